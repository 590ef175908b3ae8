#!/usr/bin/env bash
# What one NVIDIA GPU can tell, in nine minutes: tests/test_gpu.py, then benchmarks.gpu.
#
#   bash benchmarks/gpu.sh [FOLDER]        default runs/gpu; PYTHON=... names another Python
#
# A test that fails is noted and does not end it. Killed, it leaves what was measured until then.
set -uo pipefail
folder=$(realpath -m "${1:-runs/gpu}")
python=${PYTHON:-$(command -v python3 || command -v python)}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p "$folder" || exit 1
# The CPU beside the GPU: masks of both are compared.
JAX_PLATFORMS=cuda,cpu timeout 100 "$python" -m pytest -p no:xdist -o addopts= -q tests/test_gpu.py 2>&1 |
  tee "$folder/tests.txt"
# A little before the ninth minute is over: to end the last job takes a while.
exec "$python" -m benchmarks.gpu --out "$folder" --minutes 8.8 --spent "$SECONDS"
