"""From decoded frames to clips."""
