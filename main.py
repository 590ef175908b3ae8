"""The command line: `python main.py --config configs/demo.py`. See README.md."""

import logging
import os
import platform
import re
import signal
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


def _set_up() -> None:
    """One process logs, plain lines with the time; compiled programs are kept on disk."""
    first = jax.process_index() == 0 and os.environ.get(multihost.JOB, "0") == "0"
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
    jobs = min(_JOBS.value, len(config.stages))
    if jobs > 1 and multihost.JOB not in os.environ:
        multihost.share(jobs)
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
