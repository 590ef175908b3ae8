"""How to compute a model: what is kept for the backward pass, and what is rematerialised."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Dtype = Any


class Run(NamedTuple):
    """How to compute a model, which changes no result beyond rounding."""

    dtype: Dtype = jnp.float32
    """Of matrix products and activations; parameters stay float32."""
    remat: str = "none"
    """What the backward pass recomputes: "none" (hardly anything, see `again`), "dots" (all but
    matrix products), "offload" (the same; the host's memory keeps them) or "full"."""
    unroll: int = 1
    """Blocks per iteration of the scan over layers."""
    gather: Callable[[Any], Any] | None = None
    """Brings one layer's weights together before use, when they are sharded."""
    attention: str = "xla"
    """Who attends, see `attention.attend`."""
    spread: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda kernel: kernel
    """For a kernel that XLA cannot split: has each device apply it to its own clips."""


again = partial(jax.checkpoint, prevent_cse=False)
"""Has the backward pass keep what a function is given, and compute again what it needs from inside:
for norms, softmax and GELU, which cost less to compute again than to write down and to read. A
product at the function's end is not rematerialised, since no gradient asks for it; one at its
start is, as that of queries and keys. Outside of a loop, XLA may merge both computations."""


_CHEAP = frozenset(
    (
        *("abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "copy"),
        *("convert_element_type", "custom_jvp_call", "div", "erfc", "exp", "integer_pow", "log"),
        *("max", "min", "mul", "neg", "polynomial", "reduce_max", "reduce_sum", "reshape"),
        *("rsqrt", "select_n", "split", "square", "squeeze", "stop_gradient", "sub", "transpose"),
        "sharding_constraint",
    )
)
"""Operations of a block that cost less to do again than to keep what they make. With
"sharding_constraint", all-gathered weights: that is what splitting saves."""


def _all_but_cheap(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Saves products of weights, and what kernels and random numbers gave.

    Products of a batch are those of attention: XLA's is rematerialised as a whole.
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

    Args:
        function: to be rematerialised in the backward pass.
        run: gives the policy.
        scanned: whether it is the body of a scan; outside of one, XLA has to be kept from merging
            the second computation with the first.
    """
    if run.remat == "none" and run.gather is None:
        return function
    return jax.checkpoint(function, prevent_cse=not scanned, policy=_POLICIES[run.remat])


def gathered(block: Any, run: Run) -> Any:
    """A layer with whole weights; its matrices are cast first, which halves what is sent."""
    if run.gather is None:
        return block
    cast = lambda w: w.astype(run.dtype) if w.ndim > 1 else w  # noqa: E731
    return run.gather(jax.tree.map(cast, block))
