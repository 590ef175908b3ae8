"""Test setup: eight virtual CPU devices, parsed flags, and the optional folder of shared facts."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
# Nearly all the time of these tests is compilation, of programs that then run for milliseconds.
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
# Many tests need the same tiny step: it is compiled once for all of them, their workers and the
# programs that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mvm-test-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a few dozen moving-shapes videos and their lists."""
    from input_pipeline.synthetic import dataset as synthetic

    folder = tmp_path_factory.mktemp("shapes")
    synthetic.write(folder, num_unlabelled=16, num_train=24, num_val=8, num_test=19, workers=1)
    return folder


@pytest.fixture(scope="session")
def pretrained(shapes: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run directory of EVEREST's pre-training; read it, copy it, write nothing into it."""
    import tiny

    from mvm import sweep

    workdir = tmp_path_factory.mktemp("pretrained")
    sweep.run(tiny.configure(shapes), workdir)
    return workdir


@pytest.fixture(scope="session")
def finetuned(
    shapes: pathlib.Path, pretrained: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run directory of the fine-tuning that started from `pretrained`, scored at its end."""
    import tiny

    from mvm import sweep

    config = tiny.configure(shapes, "finetune,smoke")
    config.init_from = str(pretrained)
    workdir = tmp_path_factory.mktemp("finetuned")
    sweep.run(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def evaluated(
    shapes: pathlib.Path, finetuned: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The directory of an evaluation of `finetuned`."""
    import tiny

    from mvm import sweep

    config = tiny.configure(shapes, "evaluate,smoke")
    config.init_from = str(finetuned)
    workdir = tmp_path_factory.mktemp("evaluated")
    sweep.run(config, workdir)
    return workdir


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing: a third of the time of a tiny one."""
    from mvm.figures import gallery

    monkeypatch.setattr(gallery, "draw", lambda *args: None)
