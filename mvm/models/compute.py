"""How to compute a model: what is kept for the backward pass, and what is rematerialised."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Run(NamedTuple):
    """How to compute a model, which changes no result beyond rounding."""

    dtype: Any = jnp.float32
    """Of matrix products and activations; parameters stay float32."""
    remat: str = "none"
    """What the backward pass recomputes: "none" (only cheap functions, see `again`), "dots" (all
    but matrix products), "offload" (the same, with the products in host memory) or "full"."""
    gather: Callable[[Any], Any] | None = None
    """All-gathers one layer's weights before use, when they are sharded."""
    attention: str = "xla"
    """Kernel, see `attention.attend`."""


again = partial(jax.checkpoint, prevent_cse=False)
"""`jax.checkpoint` for cheap functions: keeps their inputs and recomputes the rest in the backward
pass. For LayerNorm, softmax and GELU, which cost less to recompute than to write and read: on CPU a
tenth of a step's time and memory (docs/benchmarks.md). A product at the function's end is not
recomputed, since no gradient asks for it; one at its start is, as that of queries and keys."""

_CHEAP = frozenset(
    (
        *("abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "copy"),
        *("convert_element_type", "custom_jvp_call", "div", "erfc", "exp", "integer_pow", "log"),
        *("max", "min", "mul", "neg", "polynomial", "reduce_max", "reduce_sum", "reshape"),
        *("rsqrt", "select_n", "split", "square", "squeeze", "stop_gradient", "sub", "transpose"),
        "sharding_constraint",
    )
)
"""Operations that cost less to repeat than to keep their results. "sharding_constraint" stands for
all-gathered weights: not keeping them is what sharding saves."""


def _all_but_cheap(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Keeps products with weights, kernels' results and random numbers.

    Batched products are those of attention: XLA's is rematerialised as a whole.
    """
    if primitive is jax.lax.dot_general_p:
        (_, _), (batched, _) = parameters["dimension_numbers"]
        return not batched
    return primitive.name not in _CHEAP


_POLICIES = {
    "none": _all_but_cheap,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(
    function: Callable[..., Any], run: Run, scanned: bool = True
) -> Callable[..., Any]:
    """`jax.checkpoint` by `run.remat`; "none" with whole weights leaves the function alone.

    Outside of a scan, XLA has to be kept from merging the second computation with the first.
    """
    if run.remat == "none" and run.gather is None:
        return function
    return jax.checkpoint(function, prevent_cse=not scanned, policy=_POLICIES[run.remat])


def gathered(block: Any, run: Run) -> Any:
    """A layer with all-gathered weights; its matrices are cast first, which halves what is sent."""
    if run.gather is None:
        return block
    cast = lambda w: w.astype(run.dtype) if w.ndim > 1 else w  # noqa: E731
    return run.gather(jax.tree.map(cast, block))
