"""Which model official weights belong to, told from their names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvm.models import vit
from mvm.weights.torch_reader import ConvertError

_Weights = Mapping[str, np.ndarray]


def describe(weights: _Weights, known: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The configuration of the model that official weights fill.

    Shapes tell all but the number of heads, which is that of the released size of the same width,
    else one per 64 of the width. Nothing tells how clips were masked: by AdaMAE's mask if there is
    its sampler, else by VideoMAE's tubes.

    Args:
        weights: arrays by official key; only `.shape` is read.
        known: from elsewhere; goes before what is found.

    Returns:
        Values by key of `mvm/config.py`; `task` is "pretrain" if there is a decoder or the norm
        before it, else "finetune", with `data.num_classes` 0 without a head.

    Raises:
        ConvertError: for a model that cannot be here: names the key or the number.
    """
    prefix = encoder_prefix(weights)
    kernel = _shape(weights, f"{prefix}patch_embed.proj.weight")
    if len(kernel) != 5 or kernel[1] != 3:
        raise ConvertError(
            f"{prefix}patch_embed.proj.weight is {kernel}; a model of RGB video has (width, 3, "
            f"frames, height, width)"
        )
    width, tubelet, decoder_depth = kernel[0], kernel[2:], depth_of(weights, "decoder.")
    names = {size.width: name for name, size in vit.ENCODERS.items()}
    found: dict[str, Any] = {
        "task": "pretrain" if decoder_depth or "encoder.norm.weight" in weights else "finetune",
        "model.size": names.get(width, "B"),
        "model.width": width,
        "model.depth": depth_of(weights, prefix),
        "model.heads": _heads(weights, prefix, width, known.get("model.heads", 0)),
        "model.decoder_heads": 1,  # Of no decoder, whatever the width.
        "model.tubelet": tubelet,
        "model.mlp_ratio": _mlp_ratio(weights, prefix),
        "model.cosine_attention": f"{prefix}blocks.0.attn.scale" in weights,
        "model.layer_scale": 0.1 if f"{prefix}blocks.0.gamma_1" in weights else 0.0,
        "model.positions": (
            "separable" if f"{prefix}pos_embed_temporal" in weights else "sinusoid"
        ),
        "model.epsilon": 1e-6,
        "model.head_epsilon": 1e-6,
        "mask.name": "",
    }
    if found["task"] == "pretrain":
        found |= {"mask.name": "tube", "mask.mask_ratio": 0.9}
    else:
        found["data.num_classes"] = len(weights.get("head.weight", ()))
    if decoder_depth:
        decoder_width = _shape(weights, "encoder_to_decoder.weight")[0]
        frames = _shape(weights, "decoder.head.weight")[0] // (3 * math.prod(tubelet[1:]))
        heads = _heads(weights, "decoder.", decoder_width, known.get("model.decoder_heads", 0))
        found |= {
            "model.decoder_width": decoder_width,
            "model.decoder_depth": decoder_depth,
            "model.decoder_heads": heads,
            "model.targets": "normalised",
            "model.target_frames": 0 if frames == tubelet[0] else frames,
        }
        if "encoder.pos_embed_probs" in weights:
            found |= {"mask.name": "adamae", "mask.mask_ratio": 0.95}
    found |= clip_of(weights)
    return found | {key: value for key, value in known.items() if not key.endswith("heads")}


def clip_of(weights: _Weights) -> dict[str, int]:
    """Frames and image size of training: what learned positions tell, else 16 of 224 px."""
    prefix = encoder_prefix(weights)
    tubelet = _shape(weights, f"{prefix}patch_embed.proj.weight")[2:]
    slots = 16 // tubelet[0]
    if f"{prefix}pos_embed_temporal" in weights:
        slots = _shape(weights, f"{prefix}pos_embed_temporal")[-2]
        places = _shape(weights, f"{prefix}pos_embed_spatial")[-2]
    elif "encoder.pos_embed_probs" in weights:
        places = _shape(weights, "encoder.pos_embed_probs")[-2] // slots
    else:
        return {"data.num_frames": 16, "data.image_size": 224}
    side = math.isqrt(places)
    if side * side != places or tubelet[1] != tubelet[2]:
        raise ConvertError(f"positions of {slots} x {places} tokens are of no square video")
    return {"data.num_frames": slots * tubelet[0], "data.image_size": side * tubelet[1]}


def encoder_prefix(weights: _Weights) -> str:
    """ "encoder." in the names of pre-training, "" in those of fine-tuning."""
    for prefix in ("encoder.", ""):
        if f"{prefix}patch_embed.proj.weight" in weights:
            return prefix
    raise ConvertError(
        "no [encoder.]patch_embed.proj.weight among the keys "
        f"({', '.join(list(weights)[:3]) or 'none'}): not the names of VideoMAE, EVEREST, AdaMAE, "
        "VideoMAE V2 or Hugging Face's VideoMAE"
    )


def depth_of(weights: _Weights, stack: str) -> int:
    """Number of blocks in the stack with that prefix."""
    found = (re.match(rf"{re.escape(stack)}blocks\.(\d+)\.", key) for key in weights)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _heads(weights: _Weights, stack: str, width: int, known: int) -> int:
    if f"{stack}blocks.0.attn.scale" in weights:
        return _shape(weights, f"{stack}blocks.0.attn.scale")[0]
    what = "decoder" if stack == "decoder." else "encoder"
    released = {size.width: size.heads for size in vit.ENCODERS.values()}
    if what == "decoder":
        released = dict(vit.DECODERS.values())
    if heads := known or released.get(width) or (width // 64 if width % 64 == 0 else 0):
        return heads
    raise ConvertError(
        f"no released {what} is {width} wide, so its number of heads is unknown: give it to "
        f"mvm.convert as --{'decoder-' if what == 'decoder' else ''}heads"
    )


def _mlp_ratio(weights: _Weights, prefix: str) -> float:
    """Hidden width of the MLPs over the width: one for encoder and decoder."""
    keys = (f"{stack}blocks.0.mlp.fc1.weight" for stack in (prefix, "decoder."))
    sizes = [_shape(weights, key) for key in keys if key in weights]
    own = sizes[0][0] / sizes[0][1] if sizes else 4.0
    # The last one makes up for rounding down.
    for ratio in (4.0, 48 / 11, own, math.nextafter(own, math.inf)):
        if all(int(width * ratio) == hidden for hidden, width in sizes):
            return ratio
    raise ConvertError("the MLPs of encoder and decoder must be the same multiple of their width")


def _shape(weights: _Weights, key: str) -> tuple[int, ...]:
    if key not in weights:
        raise ConvertError(f"{key} is absent in the file, which has other parts of such a model")
    return weights[key].shape
