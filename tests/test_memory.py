"""Freed memory stays with the process, seen from the page faults of the kernel."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource
import numpy as np
from mvm import memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    for _ in range(5):
        np.ones(12_000_000)  # 96 MB, freed at once

touch(); before = faults(); touch(); fresh = faults() - before
assert memory.keep_freed()
touch(); before = faults(); touch(); kept = faults() - before
print(fresh, kept)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_a_freed_array_is_not_mapped_again():
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=120
    )
    fresh, kept = map(int, done.stdout.split())
    assert kept < fresh / 10
