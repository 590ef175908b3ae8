"""What is in a run directory or a weight file: configuration, class names, parameters.

A run directory has one writer at a time and one configuration.
"""

import contextlib
import csv
import fcntl
import functools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict

from mvm import config as schema
from mvm import tasks
from mvm.runtime import checkpoint, metrics
from mvm.types import Params, UserError, first_line
from mvm.weights import convert, describe, files, hub, huggingface

log = logging.getLogger(__name__)

GO_ON = (
    f"resume with the old ones, or from where it is with the new ones by --config.{schema.ASK}=true"
)


# --- One writer, one configuration


@contextlib.contextmanager
def only_writer(workdir: epath.PathLike) -> Iterator[None]:
    """Makes a run directory and locks it until the end or the kill of this process.

    The lock is process 0's. Cloud storage has no locks.

    Raises:
        UserError: if another process holds it, or nothing can be written there.
    """
    workdir = epath.Path(workdir)
    if jax.process_index() or "://" in os.fspath(workdir):
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {workdir}; use another --workdir, or wait"
            ) from error
        except OSError:
            log.warning("%s is on a disk without locks: start one command at a time there", workdir)
        yield


def to_json(config: Any) -> str:
    """The configuration as text, keys in order."""
    return config.to_json_best_effort(indent=2, sort_keys=True) + "\n"


def write_config(config: Any, workdir: epath.Path, class_names: Sequence[str] = ()) -> None:
    """Writes `config.json` and, where classes have names and not just numbers, `classes.txt`."""
    if jax.process_index() == 0:
        metrics.replace_text(workdir / "config.json", to_json(config))
        if any(name != str(label) for label, name in enumerate(class_names)):
            text = "".join(f"{name}\n" for name in class_names)
            metrics.replace_text(workdir / "classes.txt", text)


def as_begun(config: Any, workdir: epath.PathLike) -> Any:
    """The configuration with what its zeros became when the run in `workdir` began, if one did."""
    was = schema.flat(_begun(epath.Path(workdir)))
    config = config.copy_and_resolve_references()
    if tasks.spec(config.task).labels:
        config.data.num_classes = config.data.num_classes or was.get("data.num_classes", 0)
        if not any(config.model.position_grid):
            config.model.position_grid = tuple(was.get("model.position_grid", (0, 0, 0)))
    return config


def check_config(config: Any, workdir: epath.Path) -> dict[str, str]:
    """Compares the configuration with that of the run in `workdir`, if there is one.

    Returns:
        What changed, such as {"optim.base_lr": "0.1 -> 0.01"}.

    Raises:
        UserError: if a value differs that makes it another run, or differs without being asked for;
            names the values. Also if that of the run cannot be read.
    """
    if not (was := _begun(workdir)):
        return {}
    found = schema.changes(was, config)
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
    found["always"].pop(schema.ASK, None)
    return found["asked"] | found["always"]


def _begun(workdir: epath.Path) -> dict[str, Any]:
    """The configuration that the run in `workdir` was written with; empty without a run."""
    if (own := workdir / "config.json").exists():
        return json_of(own, "delete it")
    if not (steps := checkpoint.steps_in(workdir)):
        return {}
    folder = workdir / "checkpoints" / str(steps[0])
    return json_of(folder / "config" / "metadata", f"delete {folder}")


def json_of(file: epath.Path, cure: str = "copy it again") -> dict[str, Any]:
    """The JSON object in a file; raises UserError if none can be read."""
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
        return found
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); {cure}") from error


# --- What a model is read from


class Source:
    """A run, one of its steps, or weights of other projects; each part is read when asked for.

    Attributes:
        path: as given.
        where: the same, a name on the hub as the folder that it was fetched to. May not exist.
        is_run: whether that is a run or a step of one.
    """

    def __init__(self, path: Any):
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"{path!r:.99} is no path; give a run, a weight file or a hub name")
        self.path = os.fspath(path)
        self.where = epath.Path(hub.local(self.path))
        self.is_run = checkpoint.is_run(self.where)
        is_step = checkpoint.is_step(self.where)
        self._folder = self.where.parent.parent if is_step else self.where

    @functools.cached_property
    def step(self) -> epath.Path:
        """The step itself, or the newest of a run directory."""
        if checkpoint.is_step(self.where):
            return self.where
        if steps := checkpoint.steps_in(self.where):
            return self.where / "checkpoints" / str(steps[0])
        raise UserError(f"{self.where} holds no finished checkpoint yet")

    @functools.cached_property
    def file(self) -> files.Source:
        """Weights under official names, if this is no run."""
        return files.read(self.where)

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """Of a run its configuration as written, else what the weights tell; by key."""
        if not self.is_run:
            return describe.describe(self.file.weights, self.file.known)
        own = self._folder / "config.json"
        return schema.flat(json_of(own if own.exists() else self.step / "config" / "metadata"))

    def config(self) -> Any:
        """A whole configuration, with defaults for what is not known."""
        return schema.completed(schema.nested(self.known))

    def classes(self) -> tuple[tuple[str, ...], int, str]:
        """Of the head, from small files: names, or none; number, 0 if unknown; who says so."""
        if not self.is_run:
            folder = self.where if self.where.is_dir() else self.where.parent
            return *huggingface.classes(huggingface.read_config(folder)), str(
                folder / "config.json"
            )
        config = self.config()
        if not tasks.spec(config.task).labels:
            return (), 0, ""
        listed, table = self._folder / "classes.txt", self._folder / "per_class.csv"
        found: list[str] = []
        if listed.exists():
            found = [line.strip() for line in listed.read_text().splitlines()]
        elif table.exists():
            found = [row["class"] for row in csv.DictReader(table.read_text().splitlines())]
        return tuple(found), config.data.num_classes, str(listed if listed.exists() else table)

    def load(self, like: Params) -> tuple[Params, str]:
        """Those parameters of a model that are there, and a report of the others."""
        if self.is_run:
            return checkpoint.load_params(self.where, like)
        params, report = convert.to_params(self.file.weights, like)
        return params, f"{self.path}: {report}"

    def grid(self) -> tuple[int, int, int]:
        """The grid of tokens that its positions were trained on; zeros if unknown.

        Of weights it is that of 16 frames of 224 px unless they know better.
        """
        if self.is_run:
            config = self.config()
            given = tuple(config.model.position_grid)
            return given if any(given) else clip_grid(config)
        weights, known = self.file
        kernel = weights[f"{describe.encoder_prefix(weights)}patch_embed.proj.weight"]
        if kernel.ndim != 5:
            return (0, 0, 0)  # Of images; `convert.to_params` says so.
        clip = describe.clip_of(weights) | known
        return _grid(kernel.shape[2:], clip["data.num_frames"], clip["data.image_size"])


def clip_grid(config: Any) -> tuple[int, int, int]:
    """Tokens of a clip of the configuration."""
    return _grid(config.model.tubelet, config.data.num_frames, config.data.image_size)


def _grid(tubelet: Sequence[int], frames: int, side: int) -> tuple[int, int, int]:
    t, h, w = tubelet
    return (frames // t, side // h, side // w)


# --- What a run starts from


def check_exists(path: str) -> Source:
    """What `init_from` names; a name on the hub is fetched. UserError if it is not there."""
    source = Source(path)
    if not source.where.exists():
        raise UserError(
            f"init_from={path} does not exist; name a run, a step, a weight file or a hub name, or "
            f"start from random weights with --config.init_from="
        )
    return source


def initial_params(
    path: str,
    like: Params,
    rows: list[int] | None = None,
    model: Any = None,
    whole: bool = False,
) -> Params:
    """Weights to start from, a nested subset of `like`.

    Args:
        path: as `Source`.
        like: shapes of the model's parameters.
        rows: which rows of the loaded head to take, one per class of `like`; None takes the head
            as it is, if it fits, and an empty list leaves it out.
        model: `config.model`, compared with what a Hugging Face folder says of its own.
        whole: whether nothing may be missing.

    Raises:
        UserError: if there is nothing at `path`, or it is of another model.
    """
    source = check_exists(path)
    if model is not None and not source.is_run:
        _check_known(source.file.known, model, path, decodes="decoder" in like)
    wanted, classes = like, 0
    if rows or whole:
        file = None if source.is_run else source.file.weights
        classes = source.classes()[1] if file is None else len(file.get("head.bias", ()))
    head = like.get("head", {})
    if rows and set(head) != {"kernel", "bias"}:
        rows = []  # A head of another kind is always new.
    if rows:
        if bad := [row for row in rows if not 0 <= row < classes]:
            raise UserError(
                f"init_head_rows names row {bad[0]}, but the head of {path} has {classes}; set it "
                f"to `new` to start with a new head"
            )
        resized = lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], classes), leaf.dtype)  # noqa: E731
        wanted = {**like, "head": jax.tree.map(resized, head)}
    loaded, report = source.load(wanted)
    if rows:
        loaded["head"] = {name: leaf[..., rows] for name, leaf in loaded["head"].items()}
    elif rows is not None:
        loaded.pop("head", None)
    if whole and (lacking := missing(like, loaded)):
        ours = head["bias"].shape[0] if "bias" in head else classes
        raise UserError(
            f"init_from={path} has {classes} classes, {ours} wanted (data.num_classes)"
            if classes not in (0, ours)
            else f"init_from={path} lacks {', '.join(lacking)}; evaluation needs a fine-tuned model"
        )
    log.info("init_from %s%s", report, f"; {len(rows)} rows of its head" if rows else "")
    return loaded


def missing(wanted: Params, loaded: Params) -> list[str]:
    """Paths of the leaves of `wanted` that a nested subset of it lacks."""
    return sorted(set(flatten_dict(wanted, sep="/")) - set(flatten_dict(loaded, sep="/")))


def with_training_grid(config: Any, workdir: epath.Path) -> Any:
    """The configuration of fine-tuning or evaluation, its positions tied to the grid of training.

    Where the clip has another grid than the weights that it starts from, theirs becomes
    `model.position_grid`, unless one is given. A run that resumes keeps the one it began with.
    """
    given = any(config.model.position_grid)
    if given or not config.init_from or not tasks.spec(config.task).labels:
        return config
    if checkpoint.is_run(workdir) and (workdir / "config.json").exists():
        grid = tuple(Source(workdir).config().model.position_grid)
    else:
        source = Source(config.init_from)
        grid = source.grid() if source.where.exists() else (0, 0, 0)
    if not any(grid) or grid == clip_grid(config):
        return config
    log.info("positions are interpolated from model.position_grid=%s, that of init_from", grid)
    config = config.copy_and_resolve_references()
    config.model.position_grid = grid
    return config


def _check_known(known: dict[str, Any], model: Any, path: str, decodes: bool) -> None:
    """Compares what shapes do not show with the configuration.

    Raises:
        UserError: if the heads differ, which would make it another function.
    """
    encoder, decoder = tasks.sizes(model)
    ours = {"model.heads": encoder.heads}
    ours |= {"model.decoder_heads": decoder.heads} if decodes else {}
    ours |= {f"model.{key}": model[key] for key in ("epsilon", "head_epsilon", "targets")}
    for key in sorted(ours.keys() & known.keys()):
        said = f"init_from={path} has {key}={known[key]}, this configuration {ours[key]}"
        if ours[key] != known[key] and key.endswith("heads"):
            raise UserError(f"{said}; set --config.{key}={known[key]}, or mend its config.json")
        if ours[key] != known[key]:
            log.warning("%s; set --config.%s=%s to compute as it does", said, key, known[key])
