"""Parameter trees of small models, as shapes, and models from the keys that `describe` gives."""

from typing import Any

import jax
import numpy as np

from configs import common
from mvm import tasks


def block(width: int, hidden: int, *lead: int, heads: int = 0) -> dict[str, Any]:
    def norm() -> dict[str, tuple]:
        return {"scale": (*lead, width), "bias": (*lead, width)}

    def linear(n: int, m: int) -> dict[str, tuple]:
        return {"kernel": (*lead, n, m), "bias": (*lead, m)}

    shapes: dict[str, Any] = {
        "norm1": norm(),
        "attention": {
            "qkv": {"kernel": (*lead, width, 3 * width)},
            "q_bias": (*lead, width),
            "v_bias": (*lead, width),
            "proj": linear(width, width),
        },
        "norm2": norm(),
        "mlp": {"fc1": linear(width, hidden), "fc2": linear(hidden, width)},
    }
    if heads:  # VideoMAE V2's options: cosine attention and layer scale
        shapes["attention"]["scale"] = (*lead, heads)
        shapes |= {"gamma1": (*lead, width), "gamma2": (*lead, width)}
    return shapes


def classifier(
    width: int = 48, depth: int = 3, pixels: int = 384, classes: int = 7, heads: int = 0
) -> dict[str, Any]:
    return {
        "encoder": {
            "embed": {"kernel": (pixels, width), "bias": (width,)},
            "blocks": block(width, 4 * width, depth, heads=heads),
        },
        "fc_norm": {"scale": (width,), "bias": (width,)},
        "head": {"kernel": (width, classes), "bias": (classes,)},
    }


def autoencoder(
    width: int = 48, depth: int = 2, pixels: int = 384, d: int = 32, decoder_depth: int = 2
) -> dict[str, Any]:
    decoder = {
        "last": block(d, 4 * d),
        "norm": {"scale": (d,), "bias": (d,)},
        "head": {"kernel": (d, pixels), "bias": (pixels,)},
    }
    if decoder_depth > 1:
        decoder["blocks"] = block(d, 4 * d, decoder_depth - 1)
    encoder = classifier(width, depth, pixels)["encoder"]
    return {
        "encoder": {**encoder, "norm": {"scale": (width,), "bias": (width,)}},
        "encoder_to_decoder": {"kernel": (width, d)},
        "mask_token": (d,),
        "decoder": decoder,
    }


def sampler(width: int = 48) -> dict[str, Any]:
    """AdaMAE's sampler for 128 tokens, without a bias on queries and values."""
    blocks = block(width, 4 * width, 1)
    del blocks["attention"]["q_bias"], blocks["attention"]["v_bias"]
    return {
        "positions": (128, width),
        "blocks": blocks,
        "head": {"kernel": (width, 1), "bias": (1,)},
    }


def with_positions(shapes: dict[str, Any]) -> dict[str, Any]:
    """An autoencoder with learned positions on a grid of 8 x 4 x 4."""
    tables = {"encoder": 48, "decoder": 32}
    added = {k: {"positions": {"time": (8, d), "space": (16, d)}} for k, d in tables.items()}
    return {**shapes, **{k: {**shapes[k], **table} for k, table in added.items()}}


def like(shapes: dict[str, Any], dtype: Any = np.float32) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def random_params(shapes: dict[str, Any], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), like(shapes))


def task_of(found: dict[str, Any]) -> tasks.Task:
    """A model from values by key of `mvm/config.py`, the others at their defaults."""
    config = common.get_config()
    for key, value in found.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    return tasks.build(config)
