"""Which class a label names, compared between all splits and the model."""

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.sources import load as sources
from input_pipeline.sources.load import Classes
from input_pipeline.sources.records import ANY, DataError
from mvm import data, runs, tasks
from mvm.types import UserError

log = logging.getLogger(__name__)


class Head(NamedTuple):
    """What is known of the classes of the model that a run starts from."""

    classes: Classes = Classes()
    """Without names where there are only numbers."""
    num_classes: int = 0
    """0 if the model has no head, or if only its weights tell."""


def head_of(path: str) -> Head:
    """Classes of a run, of one of its steps or of a Hugging Face folder or file, from small files.

    Raises:
        UserError: nothing is at `path`, or its `config.json` cannot be read.
    """
    if not path:
        return Head()
    names, count, written = runs.Source(path, "init_from").classes()
    return Head(sources.classes(list(names), written), count)


def reconcile(config: Any, loaded: Head) -> tuple[Any, Classes]:
    """One order of the classes for all splits and, in an evaluation, for the loaded head.

    Args:
        config: a whole configuration; the splits that it names must be there.
        loaded: `head_of` its `init_from`.

    Returns:
        The configuration with `data.num_classes`, where it is 0, as many as the head (in an
        evaluation) or the data has; and the classes whose order `data.records` gives to labels:
        those of the head in an evaluation, else of the first split that names them.

    Raises:
        UserError: nobody tells the number of classes, or it is another than the head's.
        DataError: names that differ, or a source that cannot be read; names both sources.
    """
    spec = tasks.spec(config.task)
    if not spec.labels or spec.records:
        return config, loaded.classes if config.evaluate else Classes()
    d, evaluates = config.data, config.evaluate
    if config.init_head_rows:
        loaded = Head()  # Other classes; the list says which.
    splits = ("test",) if evaluates else ("train", "val", "test")
    given = {s: parts for s in splits if (parts := data.sources(d, s))}
    named = [classes for parts in given.values() for classes in sources.named(parts)]
    if evaluates and loaded.classes.names:
        named.insert(0, loaded.classes)
    first = sources.reference(named)
    for classes in dict.fromkeys(named):
        if sources.order(first, classes):
            log.info("%s: labels in the order of %s, by name", classes.source, first.source)
    count = d.num_classes or (evaluates and loaded.num_classes) or len(first.names)
    if not count:
        found = [data.records(given[s], ANY, s) for s in given]
        count = max(map(sources.num_classes_of, found), default=0)
        if given and not count:
            raise UserError(f"data.{next(iter(given))} names no classes; give data.num_classes")
    if evaluates and loaded.num_classes and count != loaded.num_classes:
        raise UserError(
            f"init_from={config.init_from} has {loaded.num_classes} classes, {count} wanted"
        )
    if count != d.num_classes:
        config = config.copy_and_resolve_references()
        config.data.num_classes = count
        log.info("data.num_classes=%d, as many as there are", count)
    return config, first


def records(
    config: Any, splits: Sequence[str], classes: Classes
) -> tuple[Any, dict[str, Sequence[data.Record]], Classes]:
    """The records of each split, by `reconcile`d classes or as a task has them annotated.

    Returns:
        The configuration with `data.num_classes`, the records, and the classes.

    Raises:
        UserError, DataError: for a source that is missing or wrong.
    """
    spec, d = tasks.spec(config.task), config.data
    if not spec.records:
        count = d.num_classes if spec.labels else 0
        given = {s: data.sources(d, s) for s in splits}
        return config, {s: data.records(given[s], count, s, classes) for s in splits}, classes
    found = {s: spec.records(config, s) for s in splits}
    first = found[splits[0]]
    config = config.copy_and_resolve_references()
    config.data.num_classes = len(first.classes)
    named = sources.classes(list(first.classes), d[splits[0]])
    if classes.names and sources.order(classes, named):
        raise DataError(f"{named.source} has the classes of {classes.source} in another order")
    return config, {s: one.records for s, one in found.items()}, named


def rows_to_load(config: Any, loaded: Head, classes: Classes) -> list[int] | None:
    """For each of our classes its row in the loaded head, by `init_head_rows` or by name.

    None takes the head as it is; no rows are a new head.

    Raises:
        UserError: `init_head_rows` is no list of one number per class, or the loaded head has as
            many classes of other names.
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
    if loaded.num_classes not in (0, count):
        log.info("init_from has %d classes, %d wanted: a new head", loaded.num_classes, count)
        return []
    try:
        return order(loaded, classes)
    except DataError as error:
        raise UserError(
            f"{error}, or start with a new head: --config.init_head_rows=new"
        ) from error


def order(loaded: Head, classes: Classes) -> list[int] | None:
    """For each of our classes its row in the loaded head, by name; None if they are in order.

    Raises:
        DataError: both have names, and not the same ones.
    """
    if not (loaded.classes.names and classes.names):
        return None
    return list(sources.order(loaded.classes, classes)) or None
