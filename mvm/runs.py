"""What is in a run directory or a weight file: configuration, class names, parameters."""

import contextlib
import fcntl
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from mvm import config as schema
from mvm import data, masking, tasks
from mvm.models import lora
from mvm.runtime import checkpoint, metrics, steps
from mvm.types import Params, UserError, first_line
from mvm.weights import convert, describe, files, hub, huggingface

log = logging.getLogger(__name__)

GO_ON = (
    f"resume with the old ones, or from where it is with the new ones by --config.{schema.ASK}=true"
)


SPLIT = "split"
"""Folder of the lists that `data.root` was split into."""
OF_WEIGHTS = ("num_frames", "frame_stride", "image_size")
"""Keys of `data` that are those of the weights where they are 0."""
OF_CLIPS = ("num_candidates", "keep_ratio", "sampling", "crop")
"""Others that a model's clips are made by."""


# --- One writer, one configuration


class Busy(UserError):
    """Another process is at work in a run directory."""


@contextlib.contextmanager
def only_writer(workdir: epath.PathLike, wait: bool = False) -> Iterator[None]:
    """Makes a run directory and locks it until the end or the kill of this process.

    The lock is process 0's. Cloud storage has no locks. Raises Busy, or waits for another process.
    """
    workdir = epath.Path(workdir)
    if jax.process_index() or "://" in os.fspath(workdir):
        yield
        return
    there = workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(
                f"another process is at work in {workdir}; use another --workdir, or wait"
            ) from error
        except OSError:  # Some network disks.
            log.warning("%s has no locks: start one command at a time there", workdir)
        try:
            yield
        except BaseException:
            # Nothing became of it.
            if not there and {file.name for file in workdir.iterdir()} <= {".lock", SPLIT}:
                workdir.rmtree(missing_ok=True)
            raise


def write_config(config: Any, workdir: epath.Path, class_names: Sequence[str] = ()) -> None:
    """Writes `config.json` and, where classes have names and not just numbers, `classes.txt`."""
    if jax.process_index() == 0:
        text = config.to_json_best_effort(indent=2, sort_keys=True) + "\n"
        metrics.replace_text(workdir / "config.json", text)
        if any(name != str(label) for label, name in enumerate(class_names)):
            names = "".join(f"{name}\n" for name in class_names)
            metrics.replace_text(workdir / "classes.txt", names)


def resumed(config: Any, workdir: epath.Path) -> tuple[Any, dict[str, str]]:
    """The configuration with what its zeros became when the run in `workdir` began, if one did.

    With it comes what changed since, such as {"optim.base_lr": "0.1 -> 0.01"}. UserError names
    values that make it another run, or that differ without being asked for.
    """
    if not (known := begun(workdir)):
        return config, {}
    config, was = config.copy_and_resolve_references(), schema.completed(known)
    if tasks.command(config.task):  # Model and clips are those of the weights.
        config.model, config.mask = was.model, was.mask
        for key in OF_WEIGHTS:
            config.data[key] = config.data[key] or was.data[key]
        for key in OF_CLIPS if config.init_from else ():
            config.data[key] = was.data[key]
        config.options = {**was.options, **config.options}
    if tasks.spec(config.task).labels:
        config.data.num_classes = config.data.num_classes or was.data.num_classes
        if not any(config.model.position_grid):
            config.model.position_grid = was.model.position_grid
    told = {name: v for name, v in was.options.items() if name.startswith("teacher_")}
    config.options = {**config.options, **told}  # What its weights told.
    found = schema.changes(known, config)
    said = {kind: ", ".join(f"{k} {v}" for k, v in found[kind].items()) for kind in found}
    if said["never"]:
        cure = f"or delete {workdir / 'config.json'}"
        if checkpoint.steps_in(workdir):
            cure = f"with --config.init_from={workdir} to start from its weights"
        raise UserError(
            f"{workdir} holds a run with another configuration ({said['never']}); use another "
            f"--workdir, {cure}"
        )
    if said["asked"] and not config[schema.ASK]:
        raise UserError(f"{workdir} was begun with other values ({said['asked']}); {GO_ON}")
    changed = found["asked"] | {k: v for k, v in found["always"].items() if k != schema.ASK}
    return config, changed


def begun(workdir: epath.Path) -> dict[str, Any]:
    """The configuration that the run in `workdir` was written with; empty without a run."""
    file = workdir / "config.json"
    if not file.exists():
        if not (saved := checkpoint.steps_in(workdir)):
            return {}
        file = workdir / "checkpoints" / str(saved[0]) / "config" / "metadata"
    return _json_of(file)


def _json_of(file: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
        return found
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({first_line(error)}); copy it again, or delete it"
        ) from error


# --- What a model is read from


class Head(NamedTuple):
    """What is known of the classes of a model."""

    classes: data.Classes = data.Classes()
    """Without names where there are only numbers."""
    num_classes: int = 0
    """0 if the model has no head, or if only its weights tell."""


class Source:
    """A run, one of its steps, or weights of other projects; each part is read when asked for.

    `where` is `path`, of a name on the hub the folder that it was fetched to; `folder` is the run,
    whatever the step. `at` is the step that `load` read: the best one, or else the newest.
    """

    def __init__(self, path: str | os.PathLike[str], key: str = ""):
        """Raises UserError if nothing is there; `key` is that of a configuration which names it."""
        self.path = os.fspath(path)
        self.where = epath.Path(hub.local(self.path))
        if not self.where.exists():
            raise UserError(
                f"{key}{'=' * bool(key)}{path} does not exist; give a run directory or one of its "
                f"steps, a weight file, or a folder or name of Hugging Face"
            )
        self.is_run = steps.is_run(self.where)
        inside = self.where.iterdir() if self.where.is_dir() and not self.is_run else ()
        if nested := sorted(folder.name for folder in inside if checkpoint.steps_in(folder)):
            said = f"holds {len(nested)} runs; name one: {', '.join(nested)}"
            raise UserError(f"{key}{'=' * bool(key)}{path} {said}")
        self._is_step = checkpoint.is_step(self.where)
        self.folder = self.where.parent.parent if self._is_step else self.where
        self.at: checkpoint.Progress | None = None

    @functools.cached_property
    def file(self) -> files.Source:
        """Weights under official names, if this is no run."""
        return files.read(self.where)

    def config(self, given: Mapping[str, Any] = {}) -> Any:
        """A whole configuration: what is known and, by key, `given`; else defaults."""
        if not self.is_run:
            try:
                known = describe.describe(self.file.weights, {**self.file.known, **given})
            except (ArithmeticError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self.path} holds weights of no model known here ({first_line(error)})"
                ) from error
        elif self._is_step:
            known = schema.flat(_json_of(self.where / "config" / "metadata"))
        elif not (known := schema.flat(begun(self.where))):
            raise UserError(f"{self.path} holds no finished checkpoint yet")
        config = schema.completed(schema.nested({**known, **given}))
        if (name := config.mask.name) in masking.names():  # Older versions had other fields.
            for key in {*config.mask} - {"name", *masking.hparams(name)}:
                if f"mask.{key}" not in schema.KEYS:
                    del config.mask[key]
        return config

    def head(self) -> Head:
        """Classes of the head, from small files."""
        if not self.is_run:
            folder = self.where if self.where.is_dir() else self.where.parent
            said = folder / "config.json"
            names, count = huggingface.classes(huggingface.read_config(folder))
            if not count:
                names, count, said = self.file.classes, len(self.file.classes), self.where
            return Head(data.classes(list(names), str(said)), count)
        config, said = self.config(), self.folder / "classes.txt"
        if not tasks.spec(config.task).labels:
            return Head()
        names = said.read_text().removesuffix("\n").split("\n") if said.exists() else []
        return Head(data.classes(names, str(said)), config.data.num_classes)

    def load(self, like: Params) -> tuple[Params, str]:
        """Those parameters of a model that are there, and a report of the others.

        Plain ones: of a run that trained A and B beside the encoder's matrices, their sums.
        """
        like = lora.without(like)
        if self.is_run:
            own = self.config().optim
            trained = lora.beside(like, own.lora_rank) if own.train == "lora" else like
            params, report, self.at = checkpoint.load_params(self.where, trained)
            if own.train == "lora":
                params = lora.merged(params, own.lora_alpha / own.lora_rank)
            return params, report
        params, found = convert.to_params(self.file.weights, like)
        return params, f"{self.path}: {found}"

    def grid(self) -> tuple[int, int, int]:
        """The grid of tokens that its positions were trained on.

        Of weights it is that of 16 frames of 224 px unless they know better.
        """
        # Nothing here depends on the heads, which a file may not tell.
        heads = {"model.heads": 1, "model.decoder_heads": 1}
        config = self.config() if self.is_run else self.config(heads)
        given = tuple(config.model.position_grid)
        return given if any(given) else clip_grid(config)


def clip_grid(config: Any) -> tuple[int, int, int]:
    """Tokens of a clip of the configuration."""
    (t, h, w), side = config.model.tubelet, config.data.image_size
    return (config.data.num_frames // t, side // h, side // w)
