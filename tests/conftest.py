"""Test setup: eight virtual CPU devices, parsed flags, and the optional folder of shared facts."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with golden numbers and real clips; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("MVM_SHARED") or ROOT.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip("no shared folder with golden numbers; set MVM_SHARED to one")
    return folder
