"""What is behind a path: the configuration, weights and class names of a run or of a file."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from mvm import config as keys
from mvm import masking, tasks
from mvm import runs as workdirs
from mvm.runtime import checkpoint
from mvm.types import Params, UserError
from mvm.weights import convert, describe, hub, huggingface
from mvm.weights import files as weight_files

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A model with its weights and what is known about it."""

    config: Any
    """Of the run, or what the weights of a file tell, completed by the defaults."""
    task: tasks.Task
    """Without head, decoder or norms, if the weights are those of an encoder alone."""
    params: Params
    """As NumPy arrays."""
    class_names: tuple[str, ...]
    """Empty without a head."""


_SELECTION = {"keep_ratio": 0.6, "mask_ratio": 0.4}
"""EVEREST's selection of tokens in fine-tuning, for a classifier that was trained without."""


def read(
    path: str | os.PathLike[str],
    class_names: Any = None,
    mask: str | Mapping[str, Any] | None = None,
    positions: str = "interpolated",
    dtype: str | None = None,
) -> Saved:
    """Reads a model; see `api.load`."""
    where = epath.Path(hub.local(os.fspath(path)))
    if not where.exists():
        raise UserError(
            f"{path} does not exist; give a run directory or one of its steps, a file of weights, "
            f"a DeepSpeed or Hugging Face folder, or a name on the Hugging Face hub"
        )
    labels: Sequence[str] = ()
    if is_run := checkpoint.is_run(where):
        given, labels, _ = workdirs.of_run(where)
    else:
        inside = where.iterdir() if where.is_dir() else ()
        if runs := sorted(folder.name for folder in inside if checkpoint.steps_in(folder)):
            raise UserError(f"{where} holds {len(runs)} runs; load one: {', '.join(runs)}")
        source = weight_files.read(where)
        known = describe.describe(source.weights, source.known)
        given, labels = keys.nested(known), source.labels
    config = completed(given)
    names = _class_names(config, class_names, labels)
    config.model.dtype = dtype or config.model.dtype
    if config.model.attention in ("cudnn", "splash"):
        config.model.attention = "auto"  # What attended in training may not be here.
    _set_mask(config, mask)
    _set_positions(config, positions)
    keys.validate(config)
    if is_run:
        task, params, report = fitted(config, partial(checkpoint.load_params, where))
    else:
        task, params, matched = fitted(config, partial(convert.to_params, source.weights))
        report = f"{path}: {matched}"
    if missing := workdirs.missing(task.abstract, params):
        head = leaves_of(workdirs.step_of(where)).get("head") if is_run else None
        if head and missing[0] == "head/bias":
            classes = head["bias"].shape[0]
            raise UserError(
                f"{path} has {classes} classes, {config.data.num_classes} wanted by its "
                f"config.json; set data.num_classes there to {classes}"
            )
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{path} lacks {missing[0]}{others}, which a model for task={config.task}, "
            f"mask.name={config.mask.name!r} needs; load complete weights, or another mask"
        )
    log.info("%s", report)
    return Saved(config, task, params, names)


def leaves_of(step: epath.Path) -> Params:
    """Shapes of the parameters of a step, of their average if it has one."""
    tree = unflatten_dict(workdirs.json_of(step / "leaves" / "metadata"), sep="/")
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.float32),
        tree.get("ema", tree["params"]),
        is_leaf=lambda node: "shape" in node,
    )


def with_training_grid(config: Any, workdir: epath.Path) -> Any:
    """The configuration of fine-tuning or evaluation, its positions tied to the grid of training.

    Where the clip has another grid than those of the weights that it starts from, that becomes
    `model.position_grid`, unless one is given. A run that goes on keeps the one it began with.
    """
    model, clip = config.model, config.data
    if not tasks.spec(config.task).labels or not config.init_from or any(model.position_grid):
        return config
    if checkpoint.is_run(workdir) and (workdir / "config.json").exists():
        grid = completed(workdirs.json_of(workdir / "config.json")).model.position_grid
    else:
        grid = training_grid(config.init_from)
    own = _grid(model.tubelet, clip.num_frames, clip.image_size)
    if not any(grid) or tuple(grid) == own:
        return config
    log.info(
        "init_from %s was trained on a grid of %s tokens, this clip has %s: positions are "
        "interpolated; model.position_grid names another grid",
        *(config.init_from, "x".join(map(str, grid)), "x".join(map(str, own))),
    )
    config = config.copy_and_resolve_references()
    config.model.position_grid = tuple(grid)
    return config


def training_grid(path: str) -> tuple[int, int, int]:
    """The grid that the positions of a model were trained on; zeros if there is nothing to read.

    Of a file or folder it is that of 16 frames of 224 px unless the file knows better.
    """
    where = epath.Path(hub.local(os.fspath(path)))
    if checkpoint.is_run(where):
        config = completed(workdirs.of_run(where)[0])
        given = config.model.position_grid
        clip = (config.data.num_frames, config.data.image_size)
        return tuple(given) if any(given) else _grid(config.model.tubelet, *clip)
    if not where.exists():
        return (0, 0, 0)
    source = weight_files.read(where)
    found = describe.clip_of(source.weights) | source.known
    kernel = source.weights[f"{describe.encoder_prefix(source.weights)}patch_embed.proj.weight"]
    if kernel.ndim != 5:
        return (0, 0, 0)  # Of images; `convert.to_params` says so.
    return _grid(kernel.shape[2:], found["data.num_frames"], found["data.image_size"])


def _grid(tubelet: Sequence[int], frames: int, side: int) -> tuple[int, int, int]:
    t, h, w = tubelet
    return (frames // t, side // h, side // w)


def completed(given: Mapping[str, Any]) -> Any:
    """A configuration with every key, from one that may be older than some, or of a file."""
    config = keys.completed(given)
    if tasks.spec(config.task).labels:
        config.model.decoder_heads = 1  # There is no decoder, so any number will do.
    return config


def fitted(
    config: Any, load: Callable[[Params], tuple[Params, Any]]
) -> tuple[tasks.Task, Params, Any]:
    """A model without the parts that its weights lack as a whole, so that an encoder alone embeds.

    `load` takes shapes and returns the parameters that are there, and a report.
    """
    whole = config.copy_and_resolve_references()
    whole.data.num_classes = config.data.num_classes or 2  # Of a head that is taken off again.
    task = tasks.build(whole)
    params, report = load(task.abstract)
    task = dataclasses.replace(task, lacks=tuple(_lacking(config, params)))
    return task, params, report


def _lacking(config: Any, params: Params) -> list[str]:
    if tasks.spec(config.task).labels:
        return [p for p in ("head", "fc_norm") if p not in params and not config.data.num_classes]
    decoder = ["decoder", "encoder_to_decoder", "mask_token"]
    parts = [] if any(part in params for part in decoder) else decoder
    if "norm" not in params["encoder"]:  # As Hugging Face pre-trains with `use_mean_pooling`.
        log.warning("no norm after the encoder (encoder.norm): computed without")
        parts.append("encoder/norm")
    return parts


def _set_mask(config: Any, mask: str | Mapping[str, Any] | None) -> None:
    """Changes the mask; one that is not that of training starts from its own defaults."""
    if mask is None:
        return
    changes = {"name": mask} if isinstance(mask, str) else dict(mask)
    name = changes.pop("name", config.mask.name)
    known = masking.hparams(name) if name else set()
    if unknown := sorted(set(changes) - known):
        raise UserError(f"mask {name!r} has no {unknown[0]}; it has {', '.join(sorted(known))}")
    if name == config.mask.name:
        values = config.mask.to_dict()
    else:
        values = _SELECTION if tasks.spec(config.task).labels else {}
    if not tasks.spec(config.task).labels and not name:
        raise UserError("mask='' hides nothing; give an autoencoder a mask such as 'tube'")
    config.mask = ml_collections.ConfigDict({**values, **changes, "name": name})


def _set_positions(config: Any, positions: str) -> None:
    """Ties the positions to the grid of training, or lets each clip have its own table."""
    model, data = config.model, config.data
    if positions not in ("interpolated", "rebuilt"):
        raise UserError(f"positions={positions!r} is unknown; choose interpolated or rebuilt")
    if positions == "rebuilt":
        if model.positions != "sinusoid" or all(model.position_grid):
            raise UserError(
                "positions='rebuilt' is for a sinusoid built for the clip's own grid; this model "
                "was trained with positions of a certain grid, so leave positions out"
            )
    elif not all(model.position_grid):
        model.position_grid = _grid(model.tubelet, data.num_frames, data.image_size)


def _class_names(config: Any, given: Any, labels: Sequence[str]) -> tuple[str, ...]:
    count = config.data.num_classes
    if not tasks.spec(config.task).labels or not count:
        return ()
    if given is None:
        return tuple(labels if len(labels) == count else map(str, range(count)))
    names = huggingface.in_order(given)
    if len(names) != count:
        raise UserError(f"class_names has {len(names)} names, but the model {count} classes")
    return names
