"""Hugging Face's VideoMAE: names of weights and `config.json`, to and from the official ones.

`VideoMAEForPreTraining`, `VideoMAEForVideoClassification` and `VideoMAEModel`. transformers 4 and 5
name the biases of queries and values differently; both are read, those of 4 are written, which
both releases load.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mvm.types import UserError
from mvm.weights import describe
from mvm.weights.torch_reader import ConvertError, Weights

log = logging.getLogger(__name__)

_RENAMED = {  # transformers: official. In this order in both directions.
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "decoder.decoder_layers.": "decoder.blocks.",
    "encoder.layer.": "blocks.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".attention.output.dense.": ".attn.proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    ".attention.attention.": ".attn.",
}
_ENCODER = ("patch_embed.", "blocks.", "norm.")
_QKV = ("query", "key", "value")
_ALIEN = re.compile(r"gamma_|attn\.scale|pos_embed")  # of VideoMAE V2 and mae_st
_SAMPLER = ("encoder.pos_embed_probs", "encoder.get_token_probs.")  # AdaMAE's


def is_named(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether the keys are those of Hugging Face."""
    return any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in weights)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`config.json` in a folder or beside a file; empty if there is none that can be read."""
    folder = epath.Path(path)
    folder = folder if folder.is_dir() else folder.parent
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def known(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says beyond the shapes of the weights, by key of `mvm/config.py`.

    transformers fixes the epsilon of `decoder.norm` and `fc_norm`. `mvm.convert` puts what it has
    no word for under "mvm".
    """
    if not config:
        raise ConvertError(
            "no readable config.json beside weights with Hugging Face's names, which alone knows "
            "the number of attention heads"
        )
    for key, value in dict(model_type="videomae", hidden_act="gelu", num_channels=3).items():
        if config.get(key, value) != value:
            raise ConvertError(f"config.json: {key}={config[key]!r}, but VideoMAE has {value!r}")
    heads, side = config.get("num_attention_heads", 12), config.get("image_size", 224)
    if isinstance(side, list) and side and side.count(side[0]) == len(side):
        side = side[0]
    if (config.get("hidden_size"), heads) == (384, 16):
        log.warning(
            "config.json: 16 heads at width 384, as transformers computes it; VideoMAE's ViT-S "
            "was trained with 6, so for its weights set num_attention_heads to 6 in that file"
        )
    return {
        "model.head_epsilon": 1e-5,
        **describe.told(config.get("mvm")),
        "model.heads": heads,
        "model.decoder_heads": config.get("decoder_num_attention_heads", 6),
        "model.targets": "normalised" if config.get("norm_pix_loss", True) else "pixels",
        "model.epsilon": config.get("layer_norm_eps", 1e-12),
        "data.num_frames": config.get("num_frames", 16),
        "data.image_size": side,
    }


def known_of_v2(config: Mapping[str, Any]) -> dict[str, Any]:
    """As `known`, of VideoMAE V2's encoders on the hub, whose weights have official names."""
    theirs = config.get("model_config")
    if not isinstance(theirs, dict):
        return {}
    names = {"num_heads": "model.heads", "num_frames": "data.num_frames"}
    names["img_size"] = "data.image_size"
    return {ours: theirs[name] for name, ours in names.items() if name in theirs}


def classes(config: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Names of the classes in their order, and their number; 0 if unknown.

    No names where the file has only "LABEL_0" and so on.
    """
    given = config.get("id2label")
    if not given or "VideoMAEForPreTraining" in (config.get("architectures") or ()):
        return (), 0
    try:
        names = in_order(given)
    except UserError as error:
        log.warning("id2label of config.json: %s", error)
        return (), len(given) if isinstance(given, dict | list) else 0
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return (() if unnamed else names), len(names)


def in_order(names: Any) -> tuple[str, ...]:
    """Names of classes from a list, from `{0: "walk"}` or from `{"walk": 0}`."""
    found = names
    if isinstance(names, Mapping):
        turned = {str(number): name for name, number in names.items()}
        by_number = turned | {str(number): name for number, name in names.items()}
        found = [by_number.get(str(i)) for i in range(len(names))]
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise UserError(
            f"{names!r:.99} does not name the classes 0, 1, 2, ...; give a list of names or a dict "
            f"{{0: name, ...}}"
        )
    return tuple(found)


def to_official(weights: Mapping[str, np.ndarray]) -> Weights:
    """Official names; nothing is lost."""
    # Official fine-tune files drop the "encoder." of pre-train files.
    finetuned = any(key.startswith(("classifier.", "fc_norm.")) for key in weights)
    out: Weights = {}
    for key, array in weights.items():
        name = key.removeprefix("videomae.")
        for theirs, official in _RENAMED.items():
            name = name.replace(theirs, official)
        name = re.sub(r"^layernorm\.", "norm.", re.sub(r"^classifier\.", "head.", name))
        name = re.sub(r"attn\.(q|v)(uery|alue)\.bias$", r"attn.\1_bias", name)  # transformers 5
        out[f"encoder.{name}" if name.startswith(_ENCODER) and not finetuned else name] = array
    for at in [name.removesuffix("query.weight") for name in out if name.endswith("query.weight")]:
        if all(f"{at}{part}.weight" in out for part in _QKV):
            qkv = [out.pop(f"{at}{part}.weight") for part in _QKV]
            out[f"{at}qkv.weight"] = np.concatenate(qkv)
    return out


def from_official(weights: Mapping[str, np.ndarray]) -> tuple[Weights, tuple[str, ...]]:
    """The inverse of `to_official`, and the keys without a place there: AdaMAE's sampler."""
    out: Weights = {}
    left_out = tuple(key for key in weights if key.startswith(_SAMPLER))
    for key, array in weights.items():
        if key in left_out:
            continue
        if _ALIEN.search(key):
            raise ConvertError(
                f"{key}: Hugging Face's VideoMAE has no layer scale, cosine attention or learned "
                f"positions; convert to official names instead"
            )
        name = key.removeprefix("encoder.")
        encodes = name.startswith(_ENCODER)
        for theirs, official in _RENAMED.items():
            name = name.replace(official, theirs)
        name = re.sub(r"^norm\.", "layernorm.", re.sub(r"^head\.", "classifier.", name))
        name = f"videomae.{name}" if encodes else name
        if name.endswith("qkv.weight"):
            at = name.removesuffix("qkv.weight")
            for part, rows in zip(_QKV, np.split(array, 3)):
                out[f"{at}{part}.weight"] = rows.copy()
        else:
            out[name] = array
    return out, left_out


def config_of(
    weights: Mapping[str, np.ndarray], found: Mapping[str, Any], names: Sequence[str] = ()
) -> dict[str, Any]:
    """`config.json` for official weights, of whose model `found` tells, by key of `mvm/config.py`.

    Of transformers' defaults it repeats none. A model that its VideoMAE cannot be is an error.
    """
    tubelet = found["model.tubelet"]
    frames, image = found["data.num_frames"], found["data.image_size"]
    own = (frames // tubelet[0], image // tubelet[1], image // tubelet[2])
    wanted: dict[str, tuple[Any, ...]] = {
        "model.position_grid": ((0, 0, 0), own),
        "model.positions": ("sinusoid",),
        "model.target_frames": (0,),
        "model.targets": ("normalised", "pixels"),
        "model.tubelet": ((tubelet[0], tubelet[1], tubelet[1]),),
    }
    for key, values in wanted.items():
        if (value := found.get(key, values[0])) not in values:
            cure = f"VideoMAE has only {values[0]}; write a .safetensors file"
            raise ConvertError(f"{key}={value}: Hugging Face's {cure}")
    prefix = "encoder." if "encoder.blocks.0.mlp.fc1.bias" in weights else ""
    decodes, classes = "decoder.blocks.0.mlp.fc1.bias" in weights, found.get("data.num_classes")
    kind = "ForPreTraining" if decodes else "ForVideoClassification" if classes else "Model"
    if kind == "Model" and "fc_norm.weight" in weights:
        raise ConvertError("a classifier without its head is none of Hugging Face's models")
    config = {
        "architectures": [f"VideoMAE{kind}"],
        "model_type": "videomae",
        "image_size": image,
        "patch_size": tubelet[1],
        "num_frames": frames,
        "tubelet_size": tubelet[0],
        "hidden_size": found["model.width"],
        "num_hidden_layers": found["model.depth"],
        "num_attention_heads": found["model.heads"],
        "intermediate_size": weights[f"{prefix}blocks.0.mlp.fc1.bias"].size,
        "layer_norm_eps": found.get("model.epsilon", 1e-6),
        "mvm": describe.told(found),
        # In pre-training, True would drop the encoder's last norm.
        "use_mean_pooling": "encoder.norm.weight" not in weights,
    }
    if decodes:
        return config | {
            "decoder_hidden_size": found["model.decoder_width"],
            "decoder_num_hidden_layers": found["model.decoder_depth"],
            "decoder_num_attention_heads": found["model.decoder_heads"],
            "decoder_intermediate_size": weights["decoder.blocks.0.mlp.fc1.bias"].size,
            "norm_pix_loss": found.get("model.targets", "normalised") == "normalised",
        }
    if not classes:
        return config
    names = names or [f"LABEL_{i}" for i in range(classes)]
    return config | {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def preprocessor(image_size: int) -> dict[str, Any]:
    """`preprocessor_config.json`: clips as `mvm.load` and evaluation cut and normalise them."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
