"""The teacher of a distillation: what its weights tell of it, and the weights.

Its parameters are the part "teacher" of a task, which is frozen: a run that resumes has them in its
checkpoint, and what they tell in its configuration.
"""

import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mvm import config as schema
from mvm import initial, labels, runs, tasks
from mvm.types import Params, UserError

log = logging.getLogger(__name__)

_OURS = ("dtype", "remat", "attention", "drop_path", "head_dropout", "head_scale")
"""Of `config.model`: how it is computed or was trained."""


def described(config: Any, workdir: epath.PathLike) -> Any:
    """The configuration with what the weights of `options.teacher` tell of their model.

    A run that resumes keeps what it began with and reads no weights.

    Raises:
        UserError: if nothing is there, or it is no classifier of the data's classes.
    """
    if (path := tasks.options(config).get("teacher")) is None or config.evaluate:
        return config
    if not path:
        log.warning("options.teacher is empty: the teacher has random weights")
        return config
    if runs.begun(epath.Path(workdir)):
        return runs.as_begun(config, workdir)
    source = runs.Source(path, "options.teacher")
    theirs, wanted = source.config(), config.data.num_classes
    count = theirs.data.num_classes if tasks.spec(theirs.task).labels else 0
    if count != wanted:
        raise UserError(
            f"options.teacher={path} has {count or 'no'} classes, the data {wanted}; give a "
            f"teacher that was fine-tuned on these classes"
        )
    theirs.evaluate = True  # Without what only training has.
    parts = tasks.build_vit(theirs).abstract
    if set(parts) != {"encoder", "fc_norm", "head"} or "norm" in parts["encoder"]:
        raise UserError(f"options.teacher={path} is of task {theirs.task}; give a fine-tuned one")
    usual = schema.defaults()
    model = {k: v for k, v in theirs.model.items() if k not in _OURS and v != usual.model[k]}
    theirs.data.update(num_frames=config.data.num_frames, image_size=config.data.image_size)
    if (grid := source.grid()) != runs.clip_grid(theirs):
        model["position_grid"] = grid
    mask = {k: v for k, v in theirs.mask.items() if v != usual.mask.get(k)}
    log.info("teacher %s: %s", path, ", ".join(f"{k}={v}" for k, v in {**model, **mask}.items()))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.options.update(teacher_model=ConfigDict(model), teacher_mask=ConfigDict(mask))
    return config


def initial_params(
    config: Any, like: Params, rows: list[int] | None, classes: labels.Classes
) -> Params:
    """What a run starts from: the weights of `init_from`, and the teacher's if there is one.

    Args:
        like: shapes of all parameters.
        rows: see `initial.params`.
        classes: of the data; the teacher's head is put into their order, by name.

    Raises:
        UserError, DataError: as `initial.params`, or for classes of other names.
    """
    own = {name: part for name, part in like.items() if name != "teacher"}
    loaded: Params = {}
    if config.init_from:
        loaded = initial.params(config.init_from, own, rows, config.model)
    if path := tasks.options(config).get("teacher"):
        order = labels.order(labels.head_of(path), classes)
        loaded["teacher"] = initial.params(
            path, like["teacher"], order, whole=True, key="options.teacher"
        )
    return loaded
