"""The pure step `(state, batch) -> (state, metrics)`, one for every task, and its state.

`jitted` shards both over a mesh, without allocating or compiling anything.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mvm.optim import Schedule
from mvm.runtime import sharding
from mvm.tasks import Batch, Task
from mvm.types import Metrics, Params, State

Step = Callable[[State, Batch], tuple[State, Metrics]]


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int | Array, ema: bool = False
) -> State:
    """A state at step 0. Pure, so that under `jax.jit` each device makes its part."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params, frozen = task.init(init_key)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": optimizer.init(params),
        "key": jax.random.key_data(step_key),  # Orbax saves no typed keys.
    }
    if frozen:
        state["frozen"] = frozen
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def make(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Step:
    """Builds the update of one optimiser step, to be traced under a mesh.

    `accumulate` counts micro-batches, whose mean gradient makes the step; `ema_decay` is that of
    the moving average, where the state has one; `schedule` is only reported.
    """
    # All-gathers the parameters that the model does not gather layer by layer.
    gather = partial(sharding.gather_rest, dtype=task.run.dtype)

    def gradients(params: Params, frozen: Params, key: Array, batch: Batch) -> tuple[Any, Metrics]:
        def objective(params: Params) -> tuple[Array, Metrics]:
            return task.loss(gather(params), gather(frozen), key, batch)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        # Each device gets the gradient of its part of the parameters, and updates that.
        return sharding.shard_grads(grads), {"loss": value, **metrics}

    def micro_batches(params: Params, frozen: Params, key: Array, batch: Batch) -> Any:
        if accumulate == 1:
            return gradients(params, frozen, key, batch)
        # Interleaved, so that every device keeps its own clips. Each array has one row per clip.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, frozen, keys[0], first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        zeros = (sharding.shard_grads(zeros[0]), zeros[1])

        def body(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, frozen, *part)), None

        total, _ = jax.lax.scan(body, zeros, (keys, parts))
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        grads, metrics = micro_batches(state["params"], state.get("frozen", {}), key, batch)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {**state, "step": state["step"] + 1, "params": params, "opt": opt}
        if "frozen" in state:
            new["frozen"] = task.updated(params, state["frozen"], metrics)
        if "ema" in state:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - ema_decay)
        if "skipped" in batch:
            # Unreadable records that were replaced, of all hosts. A float, so that XLA sums it in
            # the all-reduce of the gradient: over two of them its CPU devices may deadlock.
            metrics["skipped"] = jnp.sum(batch["skipped"], dtype=jnp.float32)
        metrics["grad_norm"] = optax.tree.norm(grads)  # Before clipping.
        metrics["learning_rate"] = schedule(state["step"])
        return new, metrics

    return step


class Program(NamedTuple):
    """The step of a task on a mesh."""

    task: Task
    state: State
    """Shapes, dtypes and shardings of the state."""
    step: Any
    """`(state, batch) -> (state, metrics)`, jitted; the state is donated."""
    init: Callable[[], State]
    """A state at step 0 with random weights, jitted: each device makes its part."""


def jitted(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Any,
    *,
    seed: int = 0,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Program:
    """The step for a mesh; call under `jax.set_mesh(mesh)`.

    An abstract mesh will do: `benchmarks.plan` compiles for devices that are not there.
    """
    init = partial(init_state, task, optimizer, ema=ema_decay > 0)
    shapes = jax.eval_shape(init, seed)
    where = sharding.of_state(mesh, shapes)
    step = jax.jit(
        make(task, optimizer, schedule, accumulate=accumulate, ema_decay=ema_decay),
        in_shardings=(where, sharding.of_batch(mesh)),
        out_shardings=(where, sharding.whole(mesh)),
        donate_argnums=0,
    )
    state = jax.tree.map(sharding.at, shapes, where)
    # One program for all seeds.
    return Program(task, state, step, partial(sharding.jit_once(init, out_shardings=where), seed))


def merge(params: Params, loaded: Params) -> Params:
    """`params` with the leaves of the nested subset `loaded` put in, in their place and dtype."""
    out = dict(params)
    for name, value in loaded.items():
        if isinstance(value, dict):
            out[name] = merge(params[name], value)
        else:
            like = params[name]
            out[name] = jax.device_put(jnp.asarray(value, like.dtype), like.sharding)
    return out


def weights(state: State) -> tuple[Params, Params]:
    """What is scored and drawn: the moving average where there is one, and what is frozen."""
    trained = state["ema"] if "ema" in state else state["params"]
    return trained, state.get("frozen", {})


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
