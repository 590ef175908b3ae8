"""Test setup: four virtual CPU devices, parsed flags, and the optional folder of shared facts."""

import atexit
import fcntl
import os
import pathlib
import shutil
import tempfile
from functools import partial
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
# Nearly all the time of these tests is compilation, of programs that then run for milliseconds.
_FLAGS = (
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10."),
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
# Many tests need the same tiny step: it is compiled once for all of them, their workers and the
# programs that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mvm-test-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def compiled_as_the_flags_say():
    """Also what runs once, which asks for more than these flags."""
    import jax

    from mvm.runtime import sharding

    sharding.jit_once = jax.jit


@pytest.fixture(scope="session")
def shared():
    """The folder with golden numbers and real clips; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("MVM_SHARED") or ROOT.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip("no shared folder with golden numbers; set MVM_SHARED to one")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, fill)` is a folder that the first of all workers fills; write nothing into it.

    MVM_TEST_RUNS is where, for several calls of pytest.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    base = pathlib.Path(os.environ.get("MVM_TEST_RUNS") or base)
    base.mkdir(parents=True, exist_ok=True)

    def once(name, fill):
        done = base / f"{name} is whole"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                fill(base / name)
                done.touch()
        return base / name

    return once


@pytest.fixture(scope="session")
def shapes(once):
    """A folder with a few dozen moving-shapes videos and their lists."""
    from input_pipeline.synthetic import dataset as synthetic

    counts = dict(num_unlabelled=16, num_train=24, num_val=8, num_test=19)
    return once("shapes", lambda folder: synthetic.write(folder, **counts, workers=1))


def _run(argument, shapes, init_from, workdir):
    import tiny

    from mvm import sweep

    config = tiny.configure(shapes, argument)
    config.init_from = init_from
    sweep.run(config, workdir)


@pytest.fixture(scope="session")
def pretrained(shapes, once):
    """The run directory of EVEREST's pre-training."""
    return once("pretrained", partial(_run, "smoke", shapes, ""))


@pytest.fixture(scope="session")
def finetuned(shapes, pretrained, once):
    """The run directory of the fine-tuning that started from `pretrained`, scored at its end."""
    return once("finetuned", partial(_run, "finetune,smoke", shapes, str(pretrained)))


@pytest.fixture
def no_figures(monkeypatch):
    """Runs draw nothing: a third of the time of a tiny one."""
    from mvm.figures import gallery

    for name in ("draw", "draw_errors"):
        monkeypatch.setattr(gallery, name, lambda *args: None)
