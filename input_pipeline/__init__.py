"""Videos from files to batches; no JAX."""

import os

MAX_PIXELS = 8192 * 4352  # Of one frame: 8K; a damaged header may claim 30000 x 30000.

# OpenCV reads this bound on pictures as it is imported; if that came first, its own of 2**30 holds.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
