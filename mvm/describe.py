"""Which model official weights belong to, told from their names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvm.models import vit
from mvm.torch_files import ConvertError

_Weights = Mapping[str, np.ndarray]


def describe(weights: _Weights, known: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The configuration of the model that official weights fill.

    Shapes tell all but the number of heads, which is that of the released size of the same width,
    else one per 64 of the width. A pre-train file does not say how its clips were masked: that is
    AdaMAE's mask if there is its sampler, else VideoMAE's tubes. Clips have 16 frames of 224 px as
    all released models, unless learned positions tell otherwise.

    Args:
        weights: arrays by official key; only `.shape` is read.
        known: values by key of `configs/common.py` that are known from elsewhere, such as
            "model.heads" (0 is unknown); they go before what is found.

    Returns:
        Values by key of `configs/common.py`, such as "model.width"; `task` is "pretrain" if there
        is a decoder, else "finetune", with `data.num_classes` 0 if there is no head.

    Raises:
        ConvertError: the names are not official ones, the model is one of images, or widths or
            heads are none that a model here can have: names the key or the number.
    """
    prefix = encoder_prefix(weights)
    kernel = _shape(weights, f"{prefix}patch_embed.proj.weight")
    if len(kernel) != 5 or kernel[1] != 3:
        raise ConvertError(
            f"{prefix}patch_embed.proj.weight is {kernel}, wanted (width, 3, frames, height, "
            f"width): this is no model of RGB video"
        )
    width, tubelet, decoder = kernel[0], kernel[2:], depth_of(weights, "decoder.")
    block = f"{prefix}blocks.0."
    names = {size.width: name for name, size in vit.ENCODERS.items()}
    found: dict[str, Any] = {
        "task": "pretrain" if decoder else "finetune",
        "model.size": names.get(width, "B"),
        "model.width": width,
        "model.depth": depth_of(weights, prefix),
        "model.heads": _heads(weights, prefix, width, known.get("model.heads", 0)),
        "model.tubelet": tubelet,
        "model.mlp_ratio": _mlp_ratio(weights, prefix),
        "model.cosine_attention": f"{block}attn.scale" in weights,
        "model.layer_scale": 0.1 if f"{block}gamma_1" in weights else 0.0,
        "model.positions": "sinusoid",
        "model.epsilon": 1e-6,
        "model.head_epsilon": 1e-6,
        "data.num_frames": 16,
        "data.image_size": 224,
        "mask.name": "",
    }
    if decoder:
        found |= _decoder(weights, tubelet, decoder, known.get("model.decoder_heads", 0))
    else:
        classes = _shape(weights, "head.weight")[0] if "head.weight" in weights else 0
        found["data.num_classes"] = classes
    slots = 16 // tubelet[0]
    if f"{prefix}pos_embed_temporal" in weights:
        slots, width = _shape(weights, f"{prefix}pos_embed_temporal")[-2:]
        places = _shape(weights, f"{prefix}pos_embed_spatial")[-2]
        found |= {"model.positions": "separable", **_clip(tubelet, slots, places)}
    elif "encoder.pos_embed_probs" in weights:
        found |= _clip(tubelet, slots, _shape(weights, "encoder.pos_embed_probs")[-2] // slots)
    return found | {key: value for key, value in known.items() if not key.endswith("heads")}


def _decoder(weights: _Weights, tubelet: tuple[int, ...], depth: int, heads: int) -> dict[str, Any]:
    width = _shape(weights, "encoder_to_decoder.weight")[0]
    frames = _shape(weights, "decoder.head.weight")[0] // (3 * math.prod(tubelet[1:]))
    found = {
        "model.decoder_width": width,
        "model.decoder_depth": depth,
        "model.decoder_heads": _heads(weights, "decoder.", width, heads),
        "model.targets": "normalised",
        "model.target_frames": 0 if frames == tubelet[0] else frames,
        "mask.name": "tube",
        "mask.mask_ratio": 0.9,
    }
    if "encoder.pos_embed_probs" in weights:
        first = "encoder.get_token_probs.0."
        attends = f"{first}attn.qkv.weight" in weights
        project = "encoder.get_token_probs.project.weight"
        found |= {
            "mask.name": "adamae",
            "mask.mask_ratio": 0.95,
            "mask.sampler_kind": "block" if attends else "mlp",
            "mask.sampler_width": _shape(weights, project)[0] if project in weights else 0,
            "mask.sampler_depth": sampler_depth(weights),
            "mask.sampler_heads": 8,
        }
    return found


def _clip(tubelet: tuple[int, ...], slots: int, places: int) -> dict[str, int]:
    """Frames and image size of the grid on which positions were learned."""
    side = math.isqrt(places)
    if side * side != places or tubelet[1] != tubelet[2]:
        raise ConvertError(f"positions of {slots} x {places} tokens are of no square video")
    return {"data.num_frames": slots * tubelet[0], "data.image_size": side * tubelet[1]}


def _heads(weights: _Weights, stack: str, width: int, known: int) -> int:
    decoder = stack == "decoder."
    scale = f"{stack}blocks.0.attn.scale"
    if scale in weights:
        return _shape(weights, scale)[0]
    if known:
        return known
    released = {size.width: size.heads for size in vit.ENCODERS.values()}
    if decoder:
        released = dict(vit.DECODERS.values())
    if width in released or width % 64 == 0:
        return released.get(width, width // 64)
    raise ConvertError(
        f"no released {'decoder' if decoder else 'encoder'} is {width} wide, so its number of "
        f"heads is unknown: give it, to mvm.convert as --{'decoder-' if decoder else ''}heads"
    )


def _mlp_ratio(weights: _Weights, prefix: str) -> float:
    """Hidden width of the MLPs over the width: one for encoder and decoder."""
    sizes = [
        _shape(weights, f"{stack}blocks.0.mlp.fc1.weight")
        for stack in (prefix, "decoder.")
        if f"{stack}blocks.0.mlp.fc1.weight" in weights
    ]
    own = [hidden / width for hidden, width in sizes]
    for ratio in (4.0, 48 / 11, *own, *(math.nextafter(ratio, math.inf) for ratio in own)):
        if all(int(width * ratio) == hidden for hidden, width in sizes):
            return ratio
    raise ConvertError(
        f"the MLPs of encoder and decoder are {own[0]:.3g} and {own[-1]:.3g} times as wide as "
        f"their input; here both must have the same ratio"
    )


def encoder_prefix(weights: _Weights) -> str:
    """ "encoder." in the names of pre-training, "" in those of fine-tuning.

    Raises:
        ConvertError: for other names; shows some.
    """
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


def sampler_depth(weights: _Weights) -> int:
    """Number of blocks in AdaMAE's sampler; 1 for a sampler without attention."""
    found = (re.match(r"encoder\.get_token_probs\.(\d+)\.mlp", key) for key in weights)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def size_of_file(weights: _Weights, prefix: str) -> str:
    """Size of the model in a file, in words."""
    width = weights[f"{prefix}patch_embed.proj.weight"].shape[0]
    return _size(width, depth_of(weights, prefix), depth_of(weights, "decoder."))


def size_of_model(flat: Mapping[str, Any]) -> str:
    """Size of a model given by its leaves, in words."""

    def depth(path: str) -> int:
        return flat[path].shape[0] if path in flat else 0

    decoder = depth("decoder/blocks/norm1/scale") + ("decoder/last/norm1/scale" in flat)
    width = flat["encoder/embed/kernel"].shape[1]
    return _size(width, depth("encoder/blocks/norm1/scale"), decoder)


def _size(width: int, depth: int, decoder_depth: int) -> str:
    names = {size.width: f"ViT-{name}" for name, size in vit.ENCODERS.items()}
    decoder = f", decoder of {decoder_depth}" if decoder_depth else ""
    return f"{names.get(width, 'a ViT')} ({depth} blocks of width {width}{decoder})"


def _shape(weights: _Weights, key: str) -> tuple[int, ...]:
    if key not in weights:
        raise ConvertError(f"{key} is absent in the file, which has other parts of such a model")
    return weights[key].shape
