"""What a run starts from: its classes, and the weights, positions and teacher of other runs."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from input_pipeline.sources import load as sources
from input_pipeline.sources.records import ANY, DataError
from mvm import config as schema
from mvm import data, runs, tasks
from mvm.data import Classes
from mvm.runs import Head
from mvm.tasks import parts
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

_OURS = ("dtype", "remat", "attention", "drop_path", "head_dropout")
"""Of a teacher's `config.model`: how it is computed or was trained."""


# --- Classes


def records(
    config: Any, splits: Sequence[str], head: Head
) -> tuple[Any, dict[str, Sequence[data.Record]], Classes]:
    """The records of each split, with one order of the classes for all, and these.

    It is that of `head`, the model's that is evaluated, else of the first split that names them.
    A `data.num_classes` of 0 becomes as many as the head (in an evaluation) or the data has.
    """
    config = config.copy_and_resolve_references()
    spec, d = tasks.spec(config.task), config.data
    if spec.records:
        every = {split: spec.records(config, split) for split in splits}
        first, *others = (sources.classes(list(own[1]), d[s]) for s, own in every.items())
        config.data.num_classes = len(first.names)
        for other in others:
            pairs = (p for p in zip(first.names, other.names) if not any(map(str.isdecimal, p)))
            if any(one != two for one, two in pairs):
                said = f"{other.source} names other classes than {first.source}; name them alike"
                raise DataError(said)
        if config.evaluate and order(head, first):
            raise DataError(
                f"{first.source} has not all classes of {head.classes.source} in the same order"
            )
        return config, {split: found for split, (found, _) in every.items()}, first
    given = {split: data.sources(d, split) for split in splits}
    if not spec.labels:
        found = {s: data.records(given[s], ANY if s == "val" else 0, s) for s in splits}
        return config, found, Classes()
    follows = config.evaluate and not config.init_head_rows
    named = [classes for parts in given.values() for classes in sources.named(parts)]
    if follows and head.classes.names:
        named.insert(0, head.classes)
    first = sources.reference(named)
    for classes in dict.fromkeys(named):
        if sources.order(first, classes):
            log.info("%s: labels in the order of %s, by name", classes.source, first.source)
    count = d.num_classes or (follows and head.num_classes) or len(first.names)
    if not count:
        count = max(sources.num_classes_of(data.records(given[s], ANY, s)) for s in splits)
    if not count:
        raise UserError(f"data.{splits[0]} names no classes; give data.num_classes")
    if follows and head.num_classes not in (0, count):
        raise UserError(
            f"init_from={config.init_from} has {head.num_classes} classes, {count} wanted"
        )
    if count != d.num_classes:
        log.info("data.num_classes=%d, as many as there are", count)
    config.data.num_classes = count
    return config, {s: data.records(given[s], count, s, first) for s in splits}, first


def rows_to_load(config: Any, head: Head, classes: Classes) -> list[int] | None:
    """For each of our classes its row in the loaded head, by `init_head_rows` or by name.

    None takes the head as it is; no rows are a new head.
    """
    path, count = config.init_head_rows, config.data.num_classes
    if not tasks.spec(config.task).labels or (config.evaluate and not path):
        return None
    if path == "new":
        return []
    if path:
        try:
            rows = json.loads(epath.Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"init_head_rows={path} cannot be read as JSON: {error}") from error
        if not isinstance(rows, list) or len(rows) != count or {type(r) for r in rows} != {int}:
            raise UserError(
                f"init_head_rows={path} must be a list of data.num_classes={count} row numbers"
            )
        return rows
    if head.num_classes not in (0, count):
        log.info("init_from has %d classes, %d wanted: a new head", head.num_classes, count)
        return []
    try:
        return order(head, classes)
    except DataError as error:
        raise UserError(
            f"{error}, or start with a new head: --config.init_head_rows=new"
        ) from error


def order(head: Head, classes: Classes) -> list[int] | None:
    """For each of our classes its row in a head, by name; None if they are in order."""
    if not (head.classes.names and classes.names):
        return None
    return list(sources.order(head.classes, classes)) or None


# --- What the weights tell of the model


def resolved(config: Any, workdir: epath.Path) -> tuple[Any, dict[str, str]]:
    """The configuration with what the weights that a run starts from tell.

    `model.position_grid` of a classifier, where it is not given, becomes the grid that `init_from`
    was trained on, if the clip has another; `options.teacher_model` and `teacher_mask` become the
    teacher's. A run that resumes reads no weights, see `runs.resumed`.
    """
    if runs.begun(workdir):
        return runs.resumed(config, workdir)
    config, model = config.copy_and_resolve_references(), config.model
    if config.init_from and tasks.spec(config.task).labels and not any(model.position_grid):
        grid = runs.Source(config.init_from, "init_from").grid()
        if grid != runs.clip_grid(config):
            log.info("positions are interpolated from model.position_grid=%s, of init_from", grid)
            config.model.position_grid = grid
    if (path := tasks.options(config).get("teacher")) and not config.evaluate:
        config.options = {**config.options, **_of_teacher(path, config.data)}
    return config, {}


def _of_teacher(path: str, clip: Any) -> dict[str, Any]:
    """What differs from the defaults of `model` and `mask` in the teacher at `path`."""
    source = runs.Source(path, "options.teacher")
    theirs, usual = source.config(), schema.defaults()
    theirs.evaluate = True  # Without what only training has.
    count = theirs.data.num_classes if tasks.spec(theirs.task).labels else 0
    parts = tasks.build_vit(theirs).abstract if count else {"encoder": {}}
    plain = set(parts) == {"encoder", "fc_norm", "head"} and "norm" not in parts["encoder"]
    if not plain or count != clip.num_classes:
        raise UserError(
            f"options.teacher={path} is of task {theirs.task} with {count} classes; give a "
            f"fine-tuned one of the data's {clip.num_classes}"
        )
    model = {k: v for k, v in theirs.model.items() if k not in _OURS and v != usual.model[k]}
    mask = {k: v for k, v in theirs.mask.items() if v != usual.mask.get(k)}
    theirs.data.update(num_frames=clip.num_frames, image_size=clip.image_size)
    if (grid := source.grid()) != runs.clip_grid(theirs):
        model["position_grid"] = grid
    return {"teacher_model": ConfigDict(model), "teacher_mask": ConfigDict(mask)}


# --- Weights


def of_run(config: Any, like: Params, rows: list[int] | None, classes: Classes) -> Params:
    """The weights of `init_from`, and the teacher's if there is one, as `params`."""
    loaded: Params = {}
    if config.init_from:
        own = {name: part for name, part in like.items() if name != "teacher"}
        loaded = params(config.init_from, own, rows, config.model)
    if path := tasks.options(config).get("teacher"):
        key = "options.teacher"
        named = order(runs.Source(path, key).head(), classes)
        loaded["teacher"] = params(path, like["teacher"], named, whole=True, key=key)
    elif "teacher" in like:
        log.warning("options.teacher is empty: the teacher has random weights")
    return loaded


def params(
    path: str | runs.Source,
    like: Params,
    rows: list[int] | None = None,
    model: Any = None,
    whole: bool = False,
    key: str = "init_from",
) -> Params:
    """Weights to start from, a nested subset of `like`.

    `rows` are those of the loaded head, see `rows_to_load`. Nothing may be missing of what is to be
    `whole`. What no shape shows is compared with `model`, that of the configuration.
    """
    source = path if isinstance(path, runs.Source) else runs.Source(path, key)
    path = source.path
    if model is not None and "encoder" in like:
        known = source.file.known if not source.is_run else _untold(source.config().model)
        _check_known(known, model, path, decodes="decoder" in like)
    wanted, head = like, like.get("head", {})
    if rows and set(head) != {"kernel", "bias"}:
        rows = []  # A head of another kind is always new.
    if rows:
        file = None if source.is_run else source.file.weights
        count = source.head().num_classes if file is None else len(file.get("head.bias", ()))
        if bad := [row for row in rows if not 0 <= row < count]:
            raise UserError(
                f"init_head_rows names row {bad[0]}, but the head of {path} has {count}; set it "
                f"to `new` to start with a new head"
            )
        resized = lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], count), leaf.dtype)  # noqa: E731
        wanted = {**like, "head": jax.tree.map(resized, head)}
    loaded, report = source.load(wanted)
    if rows:
        loaded["head"] = {name: leaf[..., rows] for name, leaf in loaded["head"].items()}
    elif rows is not None:
        loaded.pop("head", None)
    if whole and (lacking := missing(like, loaded)):
        raise UserError(
            f"{key}={path} lacks {', '.join(lacking)} of this model; it takes a fine-tuned one "
            f"with data.num_classes classes"
        )
    log.info("%s %s%s", key, report, f"; {len(rows)} rows of its head" if rows else "")
    return loaded


def missing(wanted: Params, loaded: Params) -> list[str]:
    """Paths of the leaves of `wanted` that a nested subset of it lacks."""
    return sorted(set(flatten_dict(wanted, sep="/")) - set(flatten_dict(loaded, sep="/")))


def _untold(model: Any) -> dict[str, Any]:
    """What no shape shows and a model cannot do without."""
    encoder, decoder = parts.sizes(model)
    heads = {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
    return {**heads, "model.positions": model.positions}


def _check_known(known: dict[str, Any], model: Any, path: str, decodes: bool) -> None:
    """Compares what no shape shows with the configuration."""
    ours = {f"model.{key}": model[key] for key in ("epsilon", "head_epsilon", "targets")}
    ours |= (needed := _untold(model))
    if not decodes:
        del ours["model.decoder_heads"]
    for key in sorted(ours.keys() & known.keys()):
        if ours[key] != known[key]:
            said = (
                f"init_from={path} has {key}={known[key]}, this configuration {ours[key]}; set "
                f"--config.{key}={known[key]}"
            )
            if key in needed:
                raise UserError(said)
            log.warning(said)
