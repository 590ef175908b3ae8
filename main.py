"""The command line: `python main.py --config configs/demo.py`. See README.md."""

import logging
import os
import platform
import re
import signal
import subprocess
import sys
from typing import NoReturn

if __name__ == "__main__":  # Ctrl-C ends it without a traceback, also while libraries load.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from input_pipeline.sources.records import DataError
from input_pipeline.video.decode import VideoError
from mvm import sweep
from mvm.runtime import memory, multihost
from mvm.types import UserError, imported

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A recipe, such as configs/everest_ucf101.py:finetune.",
    lock_config=False,  # Recipes are locked, but for the groups of masks and tasks.
    accept_new_attributes=True,
)
_IMPORT = flags.DEFINE_list("import", [], "Modules of your own that runs name (docs/masks.md).")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<config.name>.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Processes that share stages and cores (docs/runs.md).", 1)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 (docs/hosts.md).")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this one, from 0.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Insist on many processes.")
_JOB = "MVM_JOB"  # Environment variable: number of a process that `_share` started.


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong recipe, key or value becomes one line."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1 or _CONFIG.value is None or not _CONFIG.value.name:
            _fail("give --config configs/demo.py, --config.<key>=<value> and --workdir alone")
        return rest
    except (AttributeError, KeyError) as error:
        said = str(error).replace("\\n", " ").replace("\\'", "").strip("'")
        _fail(f"no key of mvm/config.py: {re.sub(' and cannot be added.*}[^A-Z]*', '. ', said)}")
    except (flags.Error, SyntaxError, TypeError, ValueError, OSError) as error:
        _fail(re.sub(r"^\s*ValueError: ", "", str(error).splitlines()[-1]).strip())


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(multihost.MISTAKE)


def _share(jobs: int) -> NoReturn:
    """Starts this command `jobs` times, each with its share of the cores and of the GPUs that
    CUDA_VISIBLE_DEVICES names. Each stage is done when one of them has ended well."""
    cores, running = sorted(os.sched_getaffinity(0)), []
    gpus = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    jobs = min(jobs, len(cores), len(gpus) or jobs)
    for job in range(jobs):
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[job::jobs])} if gpus else {}
        own = os.environ | seen | {_JOB: str(job)}
        running.append(subprocess.Popen([sys.executable, *sys.argv], env=own))
        os.sched_setaffinity(running[-1].pid, cores[job::jobs])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all.
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
    codes = [process.wait() for process in running]
    raise SystemExit(0 if 0 in codes else max(codes))


def _set_up() -> None:
    """One process logs, plain lines with the time; compiled programs are kept on disk."""
    first = jax.process_index() == 0 and os.environ.get(_JOB, "0") == "0"
    level = logging.INFO if first else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("mvm").setLevel(level)
    logging.getLogger("input_pipeline").setLevel(min(level, logging.WARNING))  # Each reads its own.
    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        backend = jax.default_backend()  # Another CPU may lack this one's instructions.
        where = f"{backend}-{platform.node()}" if backend == "cpu" else backend
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "mvm", where))


def main(_: list[str]) -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)  # What Orbax reports it also raises.
    logging.getLogger("jax").setLevel(logging.WARNING)  # It looks for a TPU everywhere.
    memory.tune_allocator()
    config = _CONFIG.value
    if min(_JOBS.value, len(config.stages)) > 1 and _JOB not in os.environ:
        _share(min(_JOBS.value, len(config.stages)))
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    if config.train.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.train.cpu_devices)
    try:
        multihost.start(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value
        )
        _set_up()
        imported(*_IMPORT.value)
        given = config_flags.get_override_values(flags.FLAGS["config"])
        sweep.run(config, workdir, given)  # One run, or several where config.stages is set.
    except Exception as error:
        multihost.fail(error, (UserError, DataError, VideoError))
    report = epath.Path(workdir) / "report.html"
    seen = f"; open {report}" if report.exists() else ""
    logging.getLogger("mvm").info("everything is in %s%s", workdir, seen)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
