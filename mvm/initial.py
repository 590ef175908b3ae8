"""What a run starts from: the weights of another, and the grid of their positions."""

import logging
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict

from mvm import runs, tasks
from mvm.types import Params, UserError

log = logging.getLogger(__name__)


def params(
    path: str,
    like: Params,
    rows: list[int] | None = None,
    model: Any = None,
    whole: bool = False,
    key: str = "init_from",
) -> Params:
    """Weights to start from, a nested subset of `like`.

    Args:
        path: as `runs.Source`.
        like: shapes of the model's parameters.
        rows: which rows of the loaded head to take, one per class of `like`; None takes the head
            as it is, if it fits, and an empty list leaves it out.
        model: `config.model`, compared with what a Hugging Face folder says of its own.
        whole: whether nothing may be missing.
        key: of the configuration, which names it.

    Raises:
        UserError: if there is nothing at `path`, or it is of another model.
    """
    source = runs.Source(path, key)
    if model is not None and not source.is_run:
        _check_known(source.file.known, model, path, decodes="decoder" in like)
    wanted, head = like, like.get("head", {})
    if rows and set(head) != {"kernel", "bias"}:
        rows = []  # A head of another kind is always new.
    if rows:
        file = None if source.is_run else source.file.weights
        classes = source.classes()[1] if file is None else len(file.get("head.bias", ()))
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
        raise UserError(
            f"{key}={path} lacks {', '.join(lacking)} of this model; it takes a fine-tuned one "
            f"with data.num_classes classes"
        )
    log.info("%s %s%s", key, report, f"; {len(rows)} rows of its head" if rows else "")
    return loaded


def missing(wanted: Params, loaded: Params) -> list[str]:
    """Paths of the leaves of `wanted` that a nested subset of it lacks."""
    return sorted(set(flatten_dict(wanted, sep="/")) - set(flatten_dict(loaded, sep="/")))


def with_position_grid(config: Any, workdir: epath.Path) -> Any:
    """The configuration of a classifier with the grid that its positions are interpolated from.

    `model.position_grid`, where it is not given, becomes the grid that the weights of `init_from`
    were trained on, if the clip has another. A run that resumes keeps the one it began with.
    """
    given = any(config.model.position_grid)
    if given or not config.init_from or not tasks.spec(config.task).labels:
        return config
    if runs.begun(workdir):
        return runs.as_begun(config, workdir)
    if (grid := runs.Source(config.init_from, "init_from").grid()) == runs.clip_grid(config):
        return config
    log.info("positions are interpolated from model.position_grid=%s, that of init_from", grid)
    config = config.copy_and_resolve_references()
    config.model.position_grid = grid
    return config


def _check_known(known: dict[str, Any], model: Any, path: str, decodes: bool) -> None:
    """Compares what no shape shows with the configuration.

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
