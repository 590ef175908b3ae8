"""What is behind a path: the configuration, weights and class names of a run or of a file."""

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import orbax.checkpoint as ocp
from etils import epath

from mvm import checkpoint, convert, data, masking, start, tasks
from mvm.types import Params, UserError

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A model with its weights and what is known about it."""

    config: Any
    """Of the run, or what the weights of a file tell, completed by `DEFAULTS`."""
    task: tasks.Task
    params: Params
    """As NumPy arrays."""
    class_names: tuple[str, ...]
    """Empty for an autoencoder."""


# What a model and its clips need, for files, which have no configuration, and for runs that are
# older than a key: the values of configs/common.py, without a mask.
DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {
        **{"test": "", "num_classes": 0, "num_frames": 16, "frame_stride": 4, "image_size": 224},
        **{
            "sampling": "released",
            "num_candidates": 0,
            "keep_ratio": 0.3,
            "min_frames": 8,
            "threads": 0,
        },
    },
    "model": {
        **{"size": "B", "width": 0, "depth": 0, "heads": 0, "mlp_ratio": 0.0},
        **{"decoder_width": 0, "decoder_heads": 0, "decoder_depth": 4, "tubelet": (2, 16, 16)},
        **{"cosine_attention": False, "layer_scale": 0.0, "epsilon": 1e-6, "head_epsilon": 1e-6},
        **{"positions": "sinusoid", "position_grid": (0, 0, 0)},
        **{"targets": "normalised", "target_frames": 0},
        **{"drop_path": 0.0, "head_dropout": 0.0, "head_scale": 0.001},
        **{"dtype": "auto", "remat": "none", "unroll": 1, "attention": "auto"},
    },
    "mask": {"name": "", "keep_ratio": 0.3},
    "eval": {"num_segments": 5, "num_crops": 3, "average": "probabilities"},
}

_SELECTION = {"keep_ratio": 0.6, "mask_ratio": 0.4}
"""EVEREST's selection of tokens in fine-tuning, for a classifier that was trained without."""


def read(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    mask: str | Mapping[str, Any] | None = None,
    positions: str = "interpolated",
    dtype: str | None = None,
) -> Saved:
    """Reads a model; see `api.load`.

    Raises:
        UserError: for whatever cannot be, in one line that names it.
    """
    where = epath.Path(path)
    if not where.exists():
        raise UserError(
            f"{path} does not exist; give a run directory or one of its steps, a PyTorch or "
            f"safetensors file, or a DeepSpeed or Hugging Face folder"
        )
    is_step, is_run = checkpoint.is_step(where), checkpoint.is_run(where)
    labels: Sequence[str] = ()
    if is_run:
        given, labels = _config_of_run(where, is_step)
    else:
        _check_folder(where)
        source = convert.read(path)
        given, labels = _nested(convert.describe(source.weights, source.known)), source.labels
        if given["task"] != "pretrain" and not given["data"]["num_classes"]:
            raise UserError(
                f"{path} has neither a decoder nor a head (head.weight); fine-tune it with "
                f"--config.init_from={path}, then load that run"
            )
    config = _completed(given)
    names = _class_names(config, class_names, labels)
    config.model.dtype = dtype or config.model.dtype
    if config.model.attention in ("cudnn", "splash"):
        config.model.attention = "auto"  # What attended in training may not be here.
    _set_mask(config, mask)
    _set_positions(config, positions)
    task = tasks.build(config)
    if is_run:
        params, report = checkpoint.load_params(where, task.abstract)
    else:
        params, matched = convert.to_params(source.weights, task.abstract)
        report = f"{path}: {matched}"
    if missing := start.missing(task.abstract, params):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{path} lacks {missing[0]}{others}, which a model for task={config.task}, "
            f"mask.name={config.mask.name!r} needs; load complete weights, or another mask"
        )
    log.info("%s", report)
    return Saved(config, task, params, names)


def _config_of_run(where: epath.Path, is_step: bool) -> tuple[dict[str, Any], list[str]]:
    """Configuration and class names of a run directory or of a step."""
    steps = checkpoint.steps_in(where)
    if not is_step and not steps:
        raise UserError(f"{where} holds no finished checkpoint yet; load it once it has saved one")
    run = where.parent.parent if is_step else where
    if (run / "config.json").exists():
        config = _json(run / "config.json")
    else:
        step = where if is_step else where / "checkpoints" / str(steps[0])
        # Orbax takes no relative path.
        step = epath.Path(step if "://" in os.fspath(step) else os.path.abspath(step))
        config = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(step / "config")
    if (run / "classes.txt").exists():
        return config, (run / "classes.txt").read_text().splitlines()
    if (run / "per_class.csv").exists():
        rows = csv.DictReader((run / "per_class.csv").read_text().splitlines())
        return config, [row["class"] for row in rows]
    return config, []


def _check_folder(where: epath.Path) -> None:
    """Points from folders that have none to where the weights are."""
    if not where.is_dir():
        return
    runs = sorted(inside.name for inside in where.iterdir() if checkpoint.steps_in(inside))
    if runs:
        raise UserError(f"{where} holds {len(runs)} runs; load one: {', '.join(runs)}")
    file = where / "config.json"
    known = _json(file) if file.exists() else {}
    if "init_from" in known:
        raise UserError(f"{where} holds no weights; it evaluated {known['init_from']}, load that")


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: no JSON ({error}); copy it again") from error


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """From "model.width" to groups."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    return tree


def _completed(given: Mapping[str, Any]) -> Any:
    groups = {name: {**values, **given.get(name, {})} for name, values in DEFAULTS.items()}
    if given["task"] != "pretrain" and "decoder_heads" not in given.get("model", {}):
        groups["model"]["decoder_heads"] = 1  # There is no decoder, so any number will do.
    return ml_collections.ConfigDict({**given, **groups})


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
    elif config.task == "pretrain":
        values = {}
    else:
        values = dict(_SELECTION)
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
        t, h, w = model.tubelet
        side = data.image_size
        model.position_grid = (data.num_frames // t, side // h, side // w)


def _class_names(
    config: Any, given: Sequence[str] | None, labels: Sequence[str]
) -> tuple[str, ...]:
    count = config.data.num_classes
    if config.task == "pretrain":
        return ()
    if given is not None and len(given) != count:
        raise UserError(f"class_names has {len(given)} names, but the model {count} classes")
    if given is None and len(labels) != count:
        return tuple(data.class_names_if_any(config))
    return tuple(labels if given is None else given)
