"""What a run directory holds and whose it is: one process at a time, and one configuration."""

import contextlib
import csv
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from mvm import config as keys
from mvm import tasks
from mvm.runtime import checkpoint
from mvm.runtime import metrics as telemetry
from mvm.types import Params, UserError, first_line
from mvm.weights import convert, hub
from mvm.weights import files as weight_files

log = logging.getLogger(__name__)

GO_ON = (
    f"go on with the old ones, or from where it is with the new ones by --config.{keys.ASK}=true"
)


@contextlib.contextmanager
def only_writer(workdir: epath.PathLike) -> Iterator[None]:
    """Makes a run directory and keeps other runs out of it, until the end or the kill of this one.

    The kernel lets go of process 0's lock when it ends. On cloud storage there are no locks.

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
            log.warning(
                "no locks in %s: see to it that one command at a time writes there", workdir
            )
        yield


def json_of(file: epath.Path, cure: str = "copy it again") -> dict[str, Any]:
    """The JSON object in a file; raises UserError if none can be read."""
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise TypeError("no JSON object")
        return found
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); {cure}") from error


def step_of(where: epath.Path) -> epath.Path:
    """The step itself, or the newest of a run directory."""
    if checkpoint.is_step(where):
        return where
    if steps := checkpoint.steps_in(where):
        return where / "checkpoints" / str(steps[0])
    raise UserError(f"{where} holds no finished checkpoint yet; load it once it has saved one")


def of_run(where: epath.Path) -> tuple[dict[str, Any], list[str], str]:
    """Of a run directory or of a step: configuration as written, class names, who gives them."""
    step = step_of(where)
    run = where.parent.parent if step == where else where
    own = run / "config.json"
    config = json_of(own if own.exists() else step / "config" / "metadata")
    names: list[str] = []
    if (file := run / "classes.txt").exists():
        names = [line.strip() for line in file.read_text().splitlines()]
    elif (file := run / "per_class.csv").exists():
        names = [row["class"] for row in csv.DictReader(file.read_text().splitlines())]
    return config, names, str(file)


def _begun(workdir: epath.Path) -> dict[str, Any]:
    """The configuration that the run in `workdir` was written with; empty without a run."""
    if (own := workdir / "config.json").exists():
        return json_of(own, "delete it")
    if not (steps := checkpoint.steps_in(workdir)):
        return {}
    folder = workdir / "checkpoints" / str(steps[0])
    return json_of(folder / "config" / "metadata", f"delete {folder}")


def as_begun(config: Any, workdir: epath.PathLike) -> Any:
    """The configuration with what its zeros became when the run in `workdir` began, if one did."""
    known = keys.flat(_begun(epath.Path(workdir)))
    filled = ("data.num_classes", "model.position_grid")
    was = keys.completed(keys.nested({k: known[k] for k in filled if k in known}))
    config = config.copy_and_resolve_references()
    if tasks.spec(config.task).labels:
        config.data.num_classes = config.data.num_classes or was.data.num_classes
        if not any(config.model.position_grid):
            config.model.position_grid = was.model.position_grid
    return config


def check_config(config: Any, workdir: epath.Path) -> dict[str, str]:
    """Holds the configuration against that of the run in `workdir`, if there is one.

    Returns:
        What changed, such as {"optim.base_lr": "0.1 -> 0.01"}.

    Raises:
        UserError: if a value differs that makes it another run, or differs without being asked for;
            names the values. Also if that of the run cannot be read.
    """
    if not (was := _begun(workdir)):
        return {}
    found = keys.changes(was, config)
    said = {kind: [f"{k} {change}" for k, change in found[kind].items()] for kind in found}
    if said["never"]:
        steps = checkpoint.steps_in(workdir)
        holds = (
            f"{workdir} holds a run with another configuration ({', '.join(said['never'])}); use "
            f"another --workdir"
        )
        raise UserError(
            f"{holds}, with --config.init_from={workdir} if it is to start from there"
            if steps
            else f"{holds}, or delete {workdir / 'config.json'}"
        )
    if said["asked"] and not config[keys.ASK]:
        raise UserError(
            f"{workdir} was begun with other values ({', '.join(said['asked'])}); {GO_ON}"
        )
    found["always"].pop(keys.ASK, None)
    return found["asked"] | found["always"]


def num_classes_of(where: epath.Path) -> int:
    """Classes of the head of a run; 0 without a head."""
    run = keys.completed(of_run(where)[0])
    return run.data.num_classes if tasks.spec(run.task).labels else 0


def head_rows(config: Any) -> list[int] | None:
    """The row of the loaded head for each of our classes, from `init_head_rows`; None without.

    No rows are a new head.

    Raises:
        UserError: if the file is missing or is not a list of one number per class.
    """
    path = config.init_head_rows
    if not path:
        return None
    if path == "new":
        return []
    try:
        rows = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"init_head_rows={path} cannot be read as JSON: {error}") from error
    classes = config.data.num_classes
    if not isinstance(rows, list) or len(rows) != classes or {type(r) for r in rows} != {int}:
        raise UserError(
            f"init_head_rows={path} must be a list of data.num_classes={classes} row numbers; "
            f"or `new`, to start with a new head"
        )
    return rows


def check_exists(path: str) -> epath.Path:
    """Where the weights of `init_from` are; a name on the hub is fetched."""
    where = epath.Path(hub.local(path))
    if not where.exists():
        raise UserError(
            f"init_from={path} does not exist; train that run first, name another run, step or "
            f"PyTorch file, or start from random weights with --config.init_from="
        )
    return where


def initial_params(
    path: str,
    like: Params,
    rows: list[int] | None = None,
    model: Any = None,
    whole: bool = False,
) -> Params:
    """Weights from a run directory, a step directory or an official PyTorch file.

    Args:
        rows: which rows of the loaded head to take, one per class of `like`; None takes the head
            as it is, if it fits, and an empty list leaves it out.
        model: `config.model`, to be held against what a Hugging Face folder says of its own.
        whole: whether nothing may be missing.

    Raises:
        UserError: if there is nothing at `path`, or it is of another model.
    """
    where = check_exists(path)
    if checkpoint.is_run(where):
        classes = num_classes_of(where)
        loaded, report = checkpoint.load_params(where, _with_head(like, classes if rows else 0))
        if rows:
            if "head" not in loaded:
                raise UserError(f"init_head_rows: {path} has no head; set it to `new`")
            _check_rows(rows, classes, path)
            head = {
                "kernel": loaded["head"]["kernel"][:, rows],
                "bias": loaded["head"]["bias"][rows],
            }
            loaded = {**loaded, "head": head}
    else:
        weights, known, _ = weight_files.read(where)
        if "decoder" not in like:
            known.pop("model.decoder_heads", None)
        if known and model is not None:
            _check_known(known, model, path)
        classes = len(weights.get("head.bias", ()))
        if rows:
            _check_rows(rows, classes, path)
            weights = {k: v[rows] if k.startswith("head.") else v for k, v in weights.items()}
        loaded, matched = convert.to_params(weights, like)
        report = f"{path}: {matched}"
    if rows == []:
        loaded.pop("head", None)
    if whole and (lacking := missing(like, loaded)):
        wanted = like["head"]["bias"].shape[0]
        raise UserError(
            f"init_from={path} has {classes} classes, {wanted} wanted (data.num_classes)"
            if classes not in (0, wanted)
            else f"init_from={path} lacks {', '.join(lacking)}; evaluation needs a fine-tuned model"
        )
    log.info("init_from %s%s", report, f"; {len(rows)} rows of its head" if rows else "")
    return loaded


def _check_known(known: dict[str, Any], model: Any, path: str) -> None:
    """Holds what shapes do not show against the configuration.

    Raises:
        UserError: if the heads differ, which would make it another function.
    """
    encoder, decoder = tasks.sizes(model)
    ours = {"model.heads": encoder.heads, "model.decoder_heads": decoder.heads}
    ours |= {f"model.{key}": model[key] for key in ("epsilon", "head_epsilon", "targets")}
    for key, value in known.items():
        if key in ("model.heads", "model.decoder_heads") and value != ours[key]:
            raise UserError(
                f"init_from={path} has {value} heads ({key}), this configuration {ours[key]}; set "
                f"--config.{key}={value}, or mend its config.json"
            )
        if ours.get(key, value) != value:
            log.warning(
                "init_from %s was made with %s=%s, which is %s here; set --config.%s=%s to compute "
                "as it does",
                *(path, key, value, ours[key], key, value),
            )


def _with_head(like: Params, classes: int) -> Params:
    """The same tree with a head of as many classes; 0 leaves it alone."""
    if not classes:
        return like
    resize = lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], classes), leaf.dtype)  # noqa: E731
    return {**like, "head": jax.tree.map(resize, like["head"])}


def _check_rows(rows: list[int], classes: int, path: str) -> None:
    if bad := [row for row in rows if not 0 <= row < classes]:
        raise UserError(
            f"init_head_rows names row {bad[0]}, but the head of {path} has {classes}; set it to "
            f"`new` to start with a new head"
        )


def missing(wanted: Params, loaded: Params) -> list[str]:
    """Paths of the leaves of `wanted` that a nested subset of it lacks."""
    return sorted(set(checkpoint.leaves(wanted)) - set(checkpoint.leaves(loaded)))


def to_json(config: Any) -> str:
    """The configuration as text, keys in order."""
    return config.to_json_best_effort(indent=2, sort_keys=True) + "\n"


def write_config(config: Any, workdir: epath.Path, class_names: Sequence[str] = ()) -> None:
    """Writes `config.json` and, where classes have names and not just numbers, `classes.txt`."""
    if jax.process_index() == 0:
        telemetry.replace_text(workdir / "config.json", to_json(config))
        if any(name != str(label) for label, name in enumerate(class_names)):
            text = "".join(f"{name}\n" for name in class_names)
            telemetry.replace_text(workdir / "classes.txt", text)
