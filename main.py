"""The command line: `python main.py --config configs/demo.py`. See README.md."""

import difflib
import glob
import itertools
import logging
import os
import platform
import runpy
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
from mvm import config as schema
from mvm import masking, sweep
from mvm.runtime import memory, multihost
from mvm.types import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe, such as configs/everest_ucf101.py:finetune.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<config.name>.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 (docs/hosts.md).")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this one, from 0.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Insist on many processes.")


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong recipe, key or value becomes one line that names what is near.

    The recipe is run twice: here for its keys, then by ml_collections.
    """
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    given += [b for a, b in itertools.pairwise(argv) if a == "--config"]
    if given and not {"--help", "--helpfull"} & set(argv):
        try:
            _check_keys(given[0], argv[1:])
        except (ValueError, SyntaxError) as error:
            _fail(" ".join(str(error).split()))
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _check_keys(recipe: str, arguments: list[str]) -> None:
    """Raises ValueError for a recipe that is not there or overrides that it has no key for."""
    path, _, variant = recipe.partition(":")
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path, glob.glob("configs/*.py"), n=3)
        raise ValueError(f"--config={path} does not exist; near: {', '.join(near) or 'configs/'}")
    config = runpy.run_path(path)["get_config"](*([variant] if variant else []))
    known = [f"--config.{key}" for key in schema.flat(config)]
    for argument in arguments:
        key = argument.split("=")[0]
        if key.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            raise ValueError(f"{key} is no key (see mvm/config.py); near: {', '.join(near)}")


def _check_mask() -> None:
    """Raises UserError for a key of the mask that was given though the mask does not read it."""
    config = _CONFIG.value
    keys = [k for k in config_flags.get_override_values(flags.FLAGS["config"]) if k[:5] == "mask."]
    read = masking.hparams(config.mask.name) if config.mask.name else set()
    for key in keys:
        if key != "mask.name" and key[5:] not in read and not config.stages:
            raise UserError(
                f"--config.{key} has no effect with mask.name={config.mask.name!r}, which reads "
                f"{', '.join(sorted(read)) or 'none'}"
            )


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(multihost.MISTAKE)


def _set_up() -> None:
    """One process logs, plain lines with the time; compiled programs are kept on disk."""
    level = logging.INFO if jax.process_index() == 0 else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("mvm").setLevel(level)
    logging.getLogger("input_pipeline").setLevel(min(level, logging.WARNING))  # On all processes.
    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        backend = jax.default_backend()  # Another CPU may lack this one's instructions.
        where = f"{backend}-{platform.node()}" if backend == "cpu" else backend
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "mvm", where))


def main(argv: list[str]) -> None:
    if len(argv) > 1 or _CONFIG.value is None:
        _fail("give --config configs/demo.py, --config.<key>=<value> and --workdir, nothing else")
    absl_logging.set_verbosity(absl_logging.FATAL)  # What Orbax reports it also raises.
    logging.getLogger("jax").setLevel(logging.WARNING)  # It looks for a TPU everywhere.
    memory.tune_allocator()
    config = _CONFIG.value
    if config.train.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.train.cpu_devices)
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    try:
        multihost.start(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value
        )
        _set_up()
        _check_mask()
        sweep.run(config, workdir)  # One run, or several where config.stages is set.
    except Exception as error:
        multihost.fail(error, (UserError, DataError, VideoError))
    report = epath.Path(workdir) / "report.html"
    seen = f"; open {report}" if report.exists() else ""
    logging.getLogger("mvm").info("everything is in %s%s", workdir, seen)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
