"""The exact savings of a training step, each with the plain version that stands in for it.

The product has no switch for them. `Saving.off` puts the plain version in the place of a function
or method of the product while a step is built and traced, and takes it away again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from mvm import tasks
from mvm.models import attention, compute, tubelets, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.encoder import Encoder, add_positions
from mvm.types import Grid, Mask, Tubelet, UserError


class Saving(NamedTuple):
    """Something that makes a step cheaper and leaves its result as it is."""

    name: str
    says: str
    """What the product does; of a trial, what it does not do."""
    plain: str
    """What is done instead while it is off."""
    applies: Callable[[Any], bool]
    """`(config) -> whether` a step of that configuration has it."""
    off: Callable[[], AbstractContextManager[None]]
    """Puts the plain version in place; the step has to be built and traced under it."""


@contextmanager
def _replaced(*what: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes, `(owner, name, value)`, for a while."""
    with ExitStack() as stack:
        for owner, name, value in what:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


# What the plain versions call in turn, as it was before any was in place.
_split, _gather, _targets = tubelets.split, tubelets.gather, tubelets.targets
_block, _apply_stack, _jit = vit.Block.__call__, vit.apply_stack, jax.jit


def _picking() -> tuple[list[tuple[Array, Array]], Callable[[Array, Array], Array]]:
    """What was picked from, and by which indices, newest last; and a `gather` that notes it."""
    picked = []

    def gather(x: Array, index: Array) -> Array:
        picked.append((x, index))
        return _gather(x, index)

    return picked, gather


def _embed_all() -> AbstractContextManager[None]:
    picked, gather = _picking()

    def call(
        self: Encoder,
        pixels: Shaped[Array, "B V P"],
        index: Array,
        grid: Grid,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B V D"]:
        every, _ = picked[-1]  # Of which `pixels` are those at `index`.
        x = _gather(self.embed(tubelets.standardise(every)), index)
        x = add_positions(x, grid, index, self.layout, self.positions)
        x = vit.apply_stack(self.blocks, x, self.run, self.drop_rate, key)
        return x if self.norm is None else self.norm(x)

    return _replaced((tubelets, "gather", gather), (Encoder, "__call__", call))


def _all_targets() -> AbstractContextManager[None]:
    picked, gather = _picking()

    def targets(
        pixels: Array, what: tubelets.Targets, index: Array, grid: Grid, tubelet: Tubelet
    ) -> Array:
        every, _ = picked[-1]  # Of which `pixels` are those at `index`.
        everywhere = jnp.broadcast_to(jnp.arange(grid.n), every.shape[:2])
        return _gather(_targets(every, what, everywhere, grid, tubelet), index)

    return _replaced((tubelets, "gather", gather), (tubelets, "targets", targets))


def _floats_first() -> AbstractContextManager[None]:
    def split(video: Array, tubelet: Tubelet) -> tuple[Array, Grid]:
        return _split(tubelets.unit(video), tubelet)

    return _replaced((tubelets, "split", split))


def _all_ask() -> AbstractContextManager[None]:
    def call(
        self: vit.Block,
        x: Array,
        drop_rate: Array | float = 0.0,
        key: Array | None = None,
        num_queries: int | None = None,
    ) -> Array:
        y = _block(self, x, drop_rate, key)
        return y if num_queries is None else y[:, y.shape[1] - num_queries :]

    return _replaced((vit.Block, "__call__", call))


def _three_products() -> AbstractContextManager[None]:
    def call(
        self: vit.Attention,
        x: Float[Array, "B N D"],
        num_queries: int | None = None,
        before: Callable[[Array], Array] = lambda x: x,
    ) -> Float[Array, "B Q D"]:
        b, n, d = x.shape
        first = 0 if num_queries is None else n - num_queries

        def project(x: Array) -> list[Array]:
            kernel, x = self.qkv.kernel[...].astype(self.dtype), before(x).astype(self.dtype)
            q, k, v = (
                y @ kernel[:, i * d : (i + 1) * d] for i, y in enumerate((x[:, first:], x, x))
            )
            if self.q_bias is not None and self.v_bias is not None:
                q = q + self.q_bias[...].astype(self.dtype)
                v = v + self.v_bias[...].astype(self.dtype)
            return [q, k, v]

        q, k, v = (y.reshape(b, y.shape[1], self.heads, -1) for y in vit.again(project)(x))
        y = vit.attend(self.by, q, k, v, None, self.spread)
        return self.proj(y.reshape(b, -1, d))

    return _replaced((vit.Attention, "__call__", call))


def _kept() -> AbstractContextManager[None]:
    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    return _replaced((vit, "again", kept), (attention, "again", kept))


def _attention_by_jax() -> AbstractContextManager[None]:
    return _replaced((tasks, "attention_of", lambda name, dtype: "xla"))


def _not_donated() -> AbstractContextManager[None]:
    def jit(*args: Any, donate_argnums: Any = None, **kwargs: Any) -> Any:
        return _jit(*args, **kwargs)

    return _replaced((jax, "jit", jit))


def _unrolled() -> AbstractContextManager[None]:
    def apply_stack(blocks: vit.Block, x: Array, run: vit.Run, *rest: Any, **more: Any) -> Array:
        depth = blocks.attention.proj.kernel.shape[0]
        return _apply_stack(blocks, x, run._replace(unroll=depth), *rest, **more)

    # Without a loop, XLA would merge what is computed again with the first time.
    apart = (vit, "again", jax.checkpoint), (attention, "again", jax.checkpoint)
    return _replaced((vit, "apply_stack", apply_stack), *apart)


def _shared_rows() -> AbstractContextManager[None]:
    """In the decoder's first block, norm and q, k, v of mask tokens once for all clips.

    Before that block a mask token is the same in every clip: the learned vector and its position.
    """

    def reconstruct(
        self: Autoencoder, pixels: Shaped[Array, "B N P"], grid: Grid, mask: Mask
    ) -> Float[Array, "B M P"]:
        x = self.encoder(tubelets.gather(pixels, mask.visible), mask.visible, grid)
        place = partial(add_positions, layout=self.layout, learned=self.decoder.positions)
        x = place(self.encoder_to_decoder(x), grid, mask.visible)
        hidden = jnp.broadcast_to(self.mask_token[...], (grid.n, x.shape[-1])).astype(x.dtype)
        hidden = place(hidden, grid, jnp.arange(grid.n))
        x = _first_block(self.decoder.blocks, x, hidden, mask.target, self.decoder.run)
        later = jax.tree.map(lambda w: w[1:], self.decoder.blocks)
        with _replaced((self.decoder, "blocks", later)):
            return self.decoder(x, mask.target.shape[1]).astype(jnp.float32)

    return _replaced((Autoencoder, "reconstruct", reconstruct))


def _first_block(
    blocks: Any,
    x: Float[Array, "B V D"],
    hidden: Float[Array, "N D"],
    target: Int[Array, "B M"],
    run: vit.Run,
) -> Float[Array, "B K D"]:
    block = compute.gathered(jax.tree.map(lambda w: w[0], blocks), run)
    own = block.attention

    def project(x: Array) -> Array:
        return block.norm1(x).astype(run.dtype) @ own.qkv.kernel[...].astype(run.dtype)

    rows = [vit.again(project)(x), vit.again(project)(hidden)[target]]
    q, k, v = jnp.split(jnp.concatenate(rows, axis=1), 3, axis=-1)
    if own.q_bias is not None and own.v_bias is not None:
        q, v = q + own.q_bias[...].astype(run.dtype), v + own.v_bias[...].astype(run.dtype)
    b, n, d = q.shape
    q, k, v = (y.reshape(b, n, own.heads, -1) for y in (q, k, v))
    y = own.proj(vit.attend(own.by, q, k, v, None, own.spread).reshape(b, n, d))
    x = jnp.concatenate([x, hidden[target]], axis=1) + y
    return (x + block.mlp(x, block.norm2)).astype(x.dtype)


def _pretrains(config: Any) -> bool:
    return config.task == "pretrain"


def _suits_the_device(config: Any) -> bool:
    dtype = tasks.dtype_of(config.model.dtype)
    return tasks.attention_of(config.model.attention, dtype) != "xla"


def _usual_decoder(config: Any) -> bool:
    model = config.model
    special = model.cosine_attention or model.layer_scale or model.remat != "none"
    return _pretrains(config) and model.decoder_depth > 2 and not special


SAVINGS: Sequence[Saving] = (
    Saving(
        "embed", "only visible tubelets are embedded", "all are, then those are picked",
        lambda config: bool(config.mask.name), _embed_all,
    ),
    Saving(
        "targets", "only targets are normalised", "all are, then those are picked",
        _pretrains, _all_targets,
    ),
    Saving(
        "bytes", "tubelets are cut and picked as bytes", "the video becomes float32 first",
        lambda config: True, _floats_first,
    ),
    Saving(
        "last_block", "the last decoder block asks for targets alone", "all tokens ask",
        _pretrains, _all_ask,
    ),
    Saving(
        "qkv", "queries, keys and values are one product", "they are three",
        lambda config: not config.model.cosine_attention, _three_products,
    ),
    Saving(
        "again", "norm, softmax and GELU are computed again", "the backward pass finds them kept",
        lambda config: True, _kept,
    ),
    Saving(
        "attention", "attention is written for the device", "it is that of jax.nn, by XLA",
        _suits_the_device, _attention_by_jax,
    ),
    Saving(
        "donation", "the new state takes the old one's place", "both are there for a while",
        lambda config: True, _not_donated,
    ),
    Saving(
        "unroll", "trial: layers are a loop", "the loop is unrolled",
        lambda config: True, _unrolled,
    ),
    Saving(
        "first_block", "trial: mask tokens are projected clip by clip",
        "in the first decoder block once for all clips", _usual_decoder, _shared_rows,
    ),
)  # fmt: skip
"""All of them, in the order of a step; the two trials are not in the product."""


def chosen(config: Any, only: Sequence[str] = ()) -> list[Saving]:
    """The savings that a step of a configuration has; or those of these names.

    Raises:
        UserError: for a name that is unknown or that the step does not have.
    """
    known = {saving.name: saving for saving in SAVINGS if saving.applies(config)}
    for name in only:
        if name not in known:
            raise UserError(
                f"--only={name}: a step of {config.name} has no such saving; choose from "
                f"{', '.join(known)}"
            )
    return [known[name] for name in only or known]
