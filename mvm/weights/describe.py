"""Which model official weights belong to, told from their names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvm.models import vit
from mvm.weights.torch_reader import ConvertError

_Weights = Mapping[str, np.ndarray]
_TOLD = re.compile(
    r"mask\.\w+|eval\.average|"
    r"model\.(heads|decoder_heads|epsilon|head_epsilon|targets|positions|position_grid|dtype)|"
    r"data\.(num_frames|image_size|frame_stride|sampling|fps|crop|num_candidates|keep_ratio)"
)


def told(values: Any) -> dict[str, Any]:
    """Of values by key of `mvm/config.py`, those that a model depends on and no shape shows."""
    values = values if isinstance(values, Mapping) else {}
    return {key: value for key, value in values.items() if _TOLD.fullmatch(key)}


def describe(weights: _Weights, known: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The configuration of the model that official weights fill.

    Shapes tell all but the number of heads, which is that of the released size of the same width,
    else one per 64 of the width. Nothing tells how clips were masked: by AdaMAE's mask if there is
    its sampler, else by VideoMAE's tubes; a classifier looks at all tokens. What is `known` from
    elsewhere goes first. Values are by key of `mvm/config.py`; `task` is "pretrain" if there is a
    decoder or the norm before it, else "finetune", with `data.num_classes` 0 without a head.
    """
    prefix = encoder_prefix(weights)
    kernel = weights[f"{prefix}patch_embed.proj.weight"].shape
    if len(kernel) != 5 or kernel[1] != 3:
        raise ConvertError(
            f"{prefix}patch_embed.proj.weight is {kernel}; a model of RGB video has (width, 3, "
            f"frames, height, width)"
        )
    width, tubelet, decoder_depth = kernel[0], kernel[2:], _depth(weights, "decoder.")
    pretrains = decoder_depth or "encoder.norm.weight" in weights
    names = {size.width: name for name, size in vit.ENCODERS.items()}
    first = f"{prefix}blocks.0."
    hidden = _shape(weights, f"{first}mlp.fc1.weight")[0]
    # The product with the width, rounded down, has to be the hidden width.
    ratio = hidden / width
    ratio = ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
    found: dict[str, Any] = {
        "task": "pretrain" if pretrains else "finetune",
        "model.size": names.get(width, "B"),
        "model.width": width,
        "model.depth": _depth(weights, prefix),
        "model.heads": _heads(width, known, "heads"),
        "model.decoder_heads": 1,  # Of no decoder, whatever `config.json` says of one.
        "model.tubelet": tubelet,
        "model.mlp_ratio": ratio,
        "model.cosine_attention": f"{first}attn.scale" in weights,
        "model.layer_scale": 0.1 if f"{first}gamma_1" in weights else 0.0,
        "model.positions": "separable" if f"{prefix}pos_embed_temporal" in weights else "sinusoid",
        "mask.name": "tube" if pretrains else "",
        "data.num_classes": 0 if pretrains else len(weights.get("head.weight", ())),
        **_clip(weights, prefix, tubelet),
    }
    if decoder_depth:
        decoder_width = _shape(weights, "encoder_to_decoder.weight")[0]
        frames = _shape(weights, "decoder.head.weight")[0] // (3 * math.prod(tubelet[1:]))
        found |= {
            "model.decoder_width": decoder_width,
            "model.decoder_depth": decoder_depth,
            "model.decoder_heads": _heads(decoder_width, known, "decoder_heads"),
            "model.target_frames": 0 if frames == tubelet[0] else frames,
        }
        if "encoder.pos_embed_probs" in weights:
            found |= {"mask.name": "adamae", "mask.mask_ratio": 0.95}
    return found | {k: v for k, v in known.items() if decoder_depth or k != "model.decoder_heads"}


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


def _depth(weights: _Weights, stack: str) -> int:
    found = (re.match(rf"{re.escape(stack)}blocks\.(\d+)\.", key) for key in weights)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _heads(width: int, known: Mapping[str, Any], name: str) -> int:
    released = {size.width: size.heads for size in vit.ENCODERS.values()}
    if name == "decoder_heads":
        released = dict(vit.DECODERS.values())
    found = known.get(f"model.{name}") or released.get(width)
    if not found and width % 64:
        raise ConvertError(
            f"no released model is {width} wide, so its number of heads is unknown: give it to "
            f"mvm.convert as --{name.replace('_', '-')}"
        )
    return found or width // 64


def _clip(weights: _Weights, prefix: str, tubelet: tuple[int, ...]) -> dict[str, int]:
    """Frames and image size of training: what learned positions tell, else 16 of 224 px."""
    slots = 16 // tubelet[0]
    if f"{prefix}pos_embed_temporal" in weights:
        slots = weights[f"{prefix}pos_embed_temporal"].shape[-2]
        places = _shape(weights, f"{prefix}pos_embed_spatial")[-2]
    elif "encoder.pos_embed_probs" in weights:
        places = weights["encoder.pos_embed_probs"].shape[-2] // slots
    else:
        return {"data.num_frames": 16, "data.image_size": 224}
    return {
        "data.num_frames": slots * tubelet[0],
        "data.image_size": math.isqrt(places) * tubelet[1],
    }


def _shape(weights: _Weights, key: str) -> tuple[int, ...]:
    if key not in weights:
        raise ConvertError(f"{key} is absent in the file, which has other parts of such a model")
    return weights[key].shape
