"""Which class a label names, compared between all splits and the model."""

import json
import logging
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.sources import load as sources
from input_pipeline.sources import records
from input_pipeline.sources.load import Classes
from mvm import data, runs, tasks
from mvm.types import UserError

log = logging.getLogger(__name__)


class Model(NamedTuple):
    """What is known of the classes of the model that a run starts from."""

    classes: Classes = Classes()
    """Without names where there are only numbers."""
    num_classes: int = 0
    """Of its head; 0 if it has none, or if only its weights tell."""


def of_model(path: str) -> Model:
    """Classes of a run, of one of its steps or of a Hugging Face folder or file, from small files.

    Raises:
        UserError: `config.json` cannot be read.
    """
    if not path or not (source := runs.Source(path)).where.exists():
        return Model()
    names, count, written = source.classes()
    return Model(sources.classes(names, written), count)


def agree(config: Any, model: Model) -> tuple[Any, Classes]:
    """Compares the class names of all splits and, for an evaluation, of the model.

    Args:
        config: a whole configuration; the splits that it names must be there.
        model: what `init_from` names.

    Returns:
        The configuration with `data.num_classes`, where it is 0, as many as the model (for an
        evaluation) or the data has; and the classes whose order `data.records` gives to labels:
        those of the model for an evaluation, else of the first split that names them.

    Raises:
        UserError: nobody tells the number of classes, or it is another than the model's.
        DataError: names that differ, or a source that cannot be read; names both sources.
    """
    if not tasks.spec(config.task).labels:
        return config, Classes()
    d, evaluates = config.data, config.evaluate
    splits = ("test",) if evaluates else ("train", "val", "test")
    given = {s: parts for s in splits if (parts := data.sources(d, s))}
    named = [classes for parts in given.values() for classes in sources.named(parts)]
    if evaluates and model.classes.names:
        named.insert(0, model.classes)
    first = sources.reference(named)
    for classes in named:
        sources.order(first, classes)  # Raises if they are others.
    count = d.num_classes or (evaluates and model.num_classes) or len(first.names)
    if not count:
        found = [data.records(given[s], records.ANY, s) for s in given]
        count = max(map(sources.num_classes_of, found), default=0)
        if given and not count:
            raise UserError(f"data.{next(iter(given))} names no classes; give data.num_classes")
    if evaluates and model.num_classes and count != model.num_classes:
        raise UserError(
            f"init_from={config.init_from} has {model.num_classes} classes, {count} wanted"
        )
    if count != d.num_classes:
        config = config.copy_and_resolve_references()
        config.data.num_classes = count
        log.info("data.num_classes=%d, as many as there are", count)
    return config, first


def head_rows(config: Any, model: Model, classes: Classes) -> list[int] | None:
    """Which rows of the loaded head become those of our classes; None for all, as they are.

    By `init_head_rows`, or else by name. No rows are a new head.

    Raises:
        UserError: `init_head_rows` is no list of one number per class, or the model has as many
            classes of other names.
    """
    path, count = config.init_head_rows, config.data.num_classes
    if not tasks.spec(config.task).labels:
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
    if model.num_classes not in (0, count):
        log.info("init_from has %d classes, %d wanted: a new head", model.num_classes, count)
        return []
    if not (model.classes.names and classes.names):
        return None
    try:
        return list(sources.order(model.classes, classes)) or None
    except records.DataError as error:
        raise UserError(
            f"{error}, or start with a new head: --config.init_head_rows=new"
        ) from error
