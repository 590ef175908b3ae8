"""The one door: `python main.py --config configs/demo.py`. See README.md."""

import difflib
import glob
import itertools
import logging
import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from input_pipeline.decode import VideoError
from input_pipeline.records import DataError
from mvm import memory, stages
from mvm.types import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe, such as configs/everest_ucf101.py:finetune.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Everything the run writes; default runs/<config.name>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of a Cloud TPU, SLURM, Open MPI or GKE job."
)

_MISTAKES = (UserError, DataError, VideoError)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong key or value becomes one line that names what is near."""
    _check_keys(argv)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _check_keys(argv: list[str]) -> None:
    """Loads the recipe and looks for overrides that it has no key for, before absl does."""
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    given += [b for a, b in itertools.pairwise(argv) if a == "--config"]
    if not given or {"--help", "--helpfull"} & set(argv):
        return
    path, _, variant = given[0].partition(":")
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path, glob.glob("configs/*.py"), n=3)
        _fail(f"--config={path} does not exist; near: {', '.join(near) or 'see configs/'}")
    try:
        recipe = runpy.run_path(path)["get_config"](*([variant] if variant else []))
    except ValueError as error:
        _fail(f"--config={given[0]}: {error}")
    known = {f"config.{key}" for key in _keys(recipe)}
    for argument in argv[1:]:
        key = argument.lstrip("-").split("=")[0]
        if argument.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join('--' + k for k in near)}?" if near else ""
            _fail(f"--{key} is not a key of this configuration{hint} (all: configs/common.py)")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _log_to_stderr() -> None:
    """One process speaks: plain lines with the time; libraries only if something is wrong."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)  # It looks for a TPU everywhere.
    level = logging.INFO if jax.process_index() == 0 else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("mvm").setLevel(level)
    logging.getLogger("input_pipeline").setLevel(min(level, logging.WARNING))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}; options are --config, --config.<key>, --workdir")
    if _CONFIG.value is None:
        _fail("--config is missing, such as --config configs/demo.py")
    memory.keep_freed()
    if _CONFIG.value.train.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", _CONFIG.value.train.cpu_devices)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    _log_to_stderr()
    config = _CONFIG.value
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    try:
        if config.stages:
            stages.run(config, workdir)
        else:
            stages.run_task(config, workdir)
    except _MISTAKES as error:
        _fail(str(error))
    logging.getLogger("mvm").info("everything is in %s; open %s/report.html", workdir, workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
