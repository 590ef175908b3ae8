"""Hugging Face's VideoMAE: names of weights and `config.json`, to and from the official ones.

`VideoMAEForPreTraining`, `VideoMAEForVideoClassification` and `VideoMAEModel` of transformers 4
and 5, which differ in what they call the biases of queries and values; written are the names of 4,
which both read.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from etils import epath

from mvm.types import UserError
from mvm.weights.torch_reader import ConvertError, Weights

log = logging.getLogger(__name__)

_ENCODER = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_AT = "attention.attention."
_QKV = ("query", "key", "value")
_BIASES = {f"{_AT}q_bias": "attn.q_bias", f"{_AT}v_bias": "attn.v_bias"}  # of transformers 4
_BIASES_5 = {f"{_AT}query.bias": "attn.q_bias", f"{_AT}value.bias": "attn.v_bias"}
_CLIP = ("model.tubelet", "data.num_frames", "data.image_size")
_STACKS = {"encoder.layer": "blocks", "decoder.decoder_layers": "decoder.blocks"}


def is_named(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether the keys are those of Hugging Face."""
    return any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in weights)


def read_config(folder: epath.Path) -> dict[str, Any]:
    """`config.json` of a folder with a VideoMAE."""
    file = folder / "config.json"
    if not file.exists():
        raise ConvertError(
            f"{file}: no such file; it belongs beside weights with Hugging Face's names, for it "
            f"alone knows the number of attention heads"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ConvertError(f"{file}: no JSON, fetch it again") from error
    wanted = {"model_type": "videomae", "hidden_act": "gelu", "num_channels": 3}
    for key, value in wanted.items() if isinstance(config, dict) else ():
        if config.get(key, value) != value:
            raise ConvertError(f"{file}: {key} is {config[key]!r}, only {value!r} is VideoMAE's")
    return config


def known(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says beyond the shapes of the weights, by key of `mvm/config.py`.

    transformers fixes the epsilon of `decoder.norm` and `fc_norm`.
    """
    heads = config.get("num_attention_heads", 12)
    if (config.get("hidden_size"), heads) == (384, 16):
        log.warning(
            "config.json: 16 heads at width 384, as transformers computes it; VideoMAE's ViT-S "
            "was trained with 6, so for its weights set num_attention_heads to 6 in that file"
        )
    return {
        "model.heads": heads,
        "model.decoder_heads": config.get("decoder_num_attention_heads", 6),
        "model.targets": "normalised" if config.get("norm_pix_loss", True) else "pixels",
        "model.epsilon": config.get("layer_norm_eps", 1e-12),
        "model.head_epsilon": 1e-5,
        "data.num_frames": config.get("num_frames", 16),
        "data.image_size": _side(config.get("image_size", 224), "image_size"),
    }


def of_videomae_v2(folder: epath.Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As `known` and `labels`, of VideoMAE V2's encoders, whose weights have official names."""
    try:
        config = json.loads((folder / "config.json").read_text())
        theirs = config["model_config"]
        heads, frames, side = (theirs[key] for key in ("num_heads", "num_frames", "img_size"))
    except (OSError, KeyError, TypeError, ValueError):
        return {}, ()  # The weights tell enough.
    clip = {"data.num_frames": frames, "data.image_size": _side(side, "img_size")}
    return {"model.heads": heads, **clip}, labels(config)


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in their order; none where the file has only "LABEL_0" and so on."""
    given = config.get("id2label") or {}
    try:
        found = in_order(given)
    except UserError as error:
        log.warning("id2label of config.json: %s", error)
        return ()
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in found) else found


def in_order(names: Any) -> tuple[str, ...]:
    """Names of classes from a sequence, from `{0: "walk"}` or from `{"walk": 0}`."""
    try:
        if not isinstance(names, Mapping):
            if isinstance(names, str | Set) or not all(isinstance(name, str) for name in names):
                raise ValueError
            return tuple(names)
        pairs = list(names.items())
        if not all(str(number).isdecimal() for number, _ in pairs):
            pairs = [(number, name) for name, number in pairs]
        named = {int(number): name for number, name in pairs if isinstance(name, str)}
        return tuple(named[number] for number in range(len(pairs)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"class_names={names!r:.99} does not name the classes 0, 1, 2, ...; give a list of "
            f"names or a dict {{0: name, ...}}"
        ) from error


def to_official(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Weights:
    """Official names; nothing is lost but biases of keys, which are zero.

    Raises:
        ConvertError: for a bias of keys that is not zero, or a block without all of queries, keys
            and values: names the key.
    """
    # Official fine-tune files drop the "encoder." of pre-train files.
    finetuned = any(key.startswith(("classifier.", "fc_norm.")) for key in weights)
    prefix = "" if finetuned else "encoder."
    biased = config.get("qv_bias", config.get("qkv_bias", True))
    biases = _BIASES | _BIASES_5
    out: Weights = {}
    for key, array in weights.items():
        name = key.removeprefix("videomae.")
        block = re.fullmatch(rf"({'|'.join(map(re.escape, _STACKS))})\.(\d+)\.(.+)", name)
        part = block[3] if block else name
        module, _, leaf = part.rpartition(".")
        if block is None:
            if module in _ENCODER:
                out[f"{prefix}{_ENCODER[module]}.{leaf}"] = array
            else:
                out[f"head.{leaf}" if module == "classifier" else key] = array
            continue
        to = f"{prefix if block[1] == 'encoder.layer' else ''}{_STACKS[block[1]]}.{block[2]}."
        if part in biases:
            out[to + biases[part]] = array
        elif module in _BLOCK:
            out[f"{to}{_BLOCK[module]}.{leaf}"] = array
        elif part == f"{_AT}query.weight":
            keys = [f"{key.removesuffix('query.weight')}{name}.weight" for name in _QKV]
            if absent := [k for k in keys if k not in weights]:
                raise ConvertError(f"{absent[0]} is absent in the file, fetch it again")
            out[f"{to}attn.qkv.weight"] = np.concatenate([weights[k] for k in keys])
            if not biased:
                zeros = np.zeros(array.shape[0], array.dtype)
                out |= {f"{to}attn.q_bias": zeros, f"{to}attn.v_bias": zeros}
        elif part == f"{_AT}key.bias":
            if array.any():
                raise ConvertError(f"{key} is not zero; in VideoMAE, keys have no bias")
        elif part not in (f"{_AT}key.weight", f"{_AT}value.weight"):
            out[key] = array
    return out


def from_official(weights: Mapping[str, np.ndarray]) -> tuple[Weights, tuple[str, ...]]:
    """The inverse of `to_official`, and the keys without a place there: AdaMAE's sampler.

    Raises:
        ConvertError: for a part of the network that Hugging Face's VideoMAE lacks: names the key.
    """
    blocks = {ours: theirs for theirs, ours in _BLOCK.items()}
    encoder = {ours: theirs for theirs, ours in _ENCODER.items()}
    biases = {ours: theirs for theirs, ours in _BIASES.items()}
    stacks = {"blocks": "videomae.encoder.layer", "decoder.blocks": "decoder.decoder_layers"}
    out: Weights = {}
    left_out = []
    for key, array in weights.items():
        if key.startswith(("encoder.pos_embed_probs", "encoder.get_token_probs.")):
            left_out.append(key)
            continue
        block = re.fullmatch(r"(?:encoder\.)?(blocks|decoder\.blocks)\.(\d+)\.(.+)", key)
        part = block[3] if block else key.removeprefix("encoder.")
        module, _, leaf = part.rpartition(".")
        to = f"{stacks[block[1]]}.{block[2]}." if block else "videomae."
        if part == "attn.qkv.weight":
            names = (f"{to}{_AT}{name}.weight" for name in _QKV)
            out |= {name: rows.copy() for name, rows in zip(names, np.split(array, 3))}
        elif block and part in biases:
            out[to + biases[part]] = array
        elif (table := blocks if block else encoder).get(module):
            out[f"{to}{table[module]}.{leaf}"] = array
        elif block or "pos_embed" in key:
            raise ConvertError(
                f"{key}: Hugging Face's VideoMAE has no layer scale, cosine attention or learned "
                f"positions; convert to official names instead"
            )
        else:
            out[f"classifier.{leaf}" if module == "head" else key] = array
    return out, tuple(left_out)


def config_of(
    weights: Mapping[str, np.ndarray], found: Mapping[str, Any], names: Sequence[str] = ()
) -> dict[str, Any]:
    """`config.json` for official weights, of which `describe` has found `found`.

    Raises:
        ConvertError: for a model that Hugging Face's VideoMAE cannot be: names the key and value.
    """
    tubelet, frames, image = (found[k] for k in _CLIP)
    own = (frames // tubelet[0], image // tubelet[1], image // tubelet[2])
    wanted: dict[str, tuple[Any, ...]] = {
        "model.position_grid": ((0, 0, 0), own),
        "model.target_frames": (0,),
        "model.targets": ("normalised", "pixels"),
    }
    for key, values in wanted.items():
        if found.get(key, values[0]) not in values:
            raise ConvertError(
                f"{key}={found[key]}: Hugging Face's VideoMAE knows only {values[0]}"
            )
    prefix = "encoder." if "encoder.blocks.0.mlp.fc1.bias" in weights else ""
    decodes, classes = "decoder.blocks.0.mlp.fc1.bias" in weights, found.get("data.num_classes")
    kind = "ForPreTraining" if decodes else "ForVideoClassification" if classes else "Model"
    if kind == "Model" and "fc_norm.weight" in weights:
        raise ConvertError("a classifier without its head is none of Hugging Face's models")
    config = {
        "architectures": [f"VideoMAE{kind}"],
        "model_type": "videomae",
        "image_size": image,
        "patch_size": _side(tubelet[1:], "model.tubelet"),
        "num_channels": 3,
        "num_frames": frames,
        "tubelet_size": tubelet[0],
        "hidden_size": found["model.width"],
        "num_hidden_layers": found["model.depth"],
        "num_attention_heads": found["model.heads"],
        "intermediate_size": weights[f"{prefix}blocks.0.mlp.fc1.bias"].size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": found.get("model.epsilon", 1e-6),
        "qkv_bias": True,
        # In pre-training, True would drop the encoder's last norm.
        "use_mean_pooling": "encoder.norm.weight" not in weights,
        "torch_dtype": "float32",
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


def _side(size: Any, key: str) -> int:
    sides = [size] if isinstance(size, int) else list(size)
    if len(set(sides)) != 1:
        raise ConvertError(f"{key}={size}: only square frames and patches have a place here")
    return sides[0]
