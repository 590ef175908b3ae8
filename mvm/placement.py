"""The training step of a configuration on a mesh, before anything is allocated or compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from mvm import optim, state, tasks
from mvm import step as train_step
from mvm.runtime import sharding


class Placed(NamedTuple):
    """A step, and the state it works on, by shape and place."""

    task: tasks.Task
    create: Callable[[], state.State]
    """A state at step 0, to be jitted with the shardings of `state`."""
    state: state.State
    """Shapes, each with its sharding."""
    step: Any
    """`(state, batch) -> (state, metrics)`, jitted; the state is donated."""


def build(config: Any, schedule: optim.Schedule, mesh: Any) -> Placed:
    """Builds the step; call it, and what it returns, under `jax.set_mesh(mesh)`.

    The devices of `mesh` need not exist.

    Raises:
        UserError: for values that do not fit together, one line each.
    """
    task = tasks.build(config, sharding.gather if mesh.shape["fsdp"] > 1 else None)
    optimizer = tasks.optimizer_of(config, task, schedule)

    def create() -> state.State:
        return state.create(task.init, optimizer, config.seed, config.train.ema_decay > 0)

    shapes = jax.eval_shape(create)
    placed = sharding.of_state(mesh, shapes)
    step = train_step.make(
        task.graphdef,
        tasks.loss_of(config, task),
        optimizer,
        schedule,
        accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay,
        gather=partial(sharding.gather_rest, dtype=tasks.dtype_of(config.model.dtype)),
        split=sharding.split,
    )
    jitted = jax.jit(
        step,
        in_shardings=(placed, sharding.of_batch(mesh)),
        out_shardings=(placed, sharding.whole(mesh)),
        donate_argnums=0,
    )
    return Placed(task, create, jax.tree.map(sharding.at, shapes, placed), jitted)
