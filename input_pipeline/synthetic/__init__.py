"""Moving shapes as real video files."""
