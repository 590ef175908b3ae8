"""Every key of a configuration: its default, its meaning, what it may be, and when it may change.

The only list of keys: recipes start from `defaults`, `main.py` checks with `validate`, a resumed
run compares by `changes`, and runs older than a key are read by `completed`.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict

from mvm.types import UserError, first_line


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float = math.inf


class Key(NamedTuple):
    """One value of a configuration."""

    default: Any
    meaning: str
    allowed: Range | tuple[str, ...] | None = None
    resume: str = "never"
    """May it change when a run resumes: "never", "always", or if "asked" for (ASK)."""


DOWNLOADS = ("", "ucf101/1", "ucf101/2", "ucf101/3")
ASK = "resume_with_changes"
FRACTION, COUNT, SOME = Range(0.0, 1.0), Range(0), Range(1)


def _free(default: Any, meaning: str, allowed: Any = None) -> Key:
    return Key(default, meaning, allowed, "always")


def _asked(default: Any, meaning: str, allowed: Any = None) -> Key:
    return Key(default, meaning, allowed, "asked")


KEYS: dict[str, Key] = {
    "name": _free("run", "names the default workdir, runs/<name>"),
    "task": Key("pretrain", "a file of mvm/tasks"),
    "evaluate": Key(False, "score init_from on data.test, without training"),
    "seed": Key(0, "of weights, masks, data order and augmentation", Range(0, 2**31 - 1)),
    "init_from": Key("", "run, step, weight file or hub name to start from; '' = random weights"),
    "init_head_rows": Key(
        "", "JSON list: row of the loaded head for each of our classes; new = none"
    ),
    ASK: _free(False, "resume although the list, the schedule or the optimiser changed"),
    # Given alone, data.root is all the data: class folders, train/ val/ test/ of such, or a table,
    # which is split (`input_pipeline/sources/folders.py`).
    "data.root": _free("", "folder that paths in lists are relative to; '' = the list's own"),
    # A list (`path label` a row), class folders, a packed folder or tfds:NAME/CONFIG. Another path
    # to the same records is no change.
    "data.train": _free("", "source of training records; or several, in data.mix"),
    "data.val": _free("", "source of the checks during fine-tuning; '' = none"),
    "data.test": _free("", "source of the final score; '' = none"),
    "data.fetch": _free("", "downloaded where no source is given", DOWNLOADS),
    "data.path_column": _free("", "of lists with a header: that of paths; '' = no header"),
    "data.label_column": _free("", "the same: that of labels or names of classes; '' = none"),
    "data.template": Key("img_{:05}.jpg", "file names of the frames of a video that is a folder"),
    "data.num_classes": Key(0, "C; 0 = as many as the data has", COUNT),
    "data.num_frames": Key(16, "T, frames of a clip; 0 = of the weights", Range(0, 4096)),
    "data.frame_stride": Key(4, "frames between two samples; 0 = of the weights", Range(0, 4096)),
    "data.fps": Key(0.0, "frame rate videos are resampled to first; 0 = the native one", COUNT),
    "data.image_size": Key(224, "height and width, px; 0 = of the weights", Range(0, 4096)),
    # segments: one frame of each of T equal segments (segments_v2: as VideoMAE V2 draws them);
    # spread: evenly over the video; strided: fine-tuning's clean rule.
    "data.sampling": Key(
        *("released", "which frames"),
        ("released", "strided", "segments", "segments_v2", "spread"),
    ),
    "data.num_candidates": Key(
        0, "frames decoded, of which frame selection keeps T; 0 = no selection", Range(0, 4096)
    ),
    "data.keep_ratio": Key(0.3, "of the candidates' tokens judged informative", FRACTION),
    "data.repeats": _asked(1, "augmented clips of each decoded video", Range(1, 64)),
    # fit: the whole frame with grey around it, in evaluation, too.
    "data.crop": _asked(
        "multi_scale", "training crop", ("multi_scale", "random_resized", "center", "fit")
    ),
    "data.flip": _asked(False, "mirror half of the training clips"),
    "data.rand_augment": _asked("", "such as rand-m7-n4-mstd0.5-inc1; '' = off"),
    "data.erasing": _asked(0.0, "probability of random erasing", FRACTION),
    "data.mixup": _asked(0.0, "alpha of mixup; 0 = off", COUNT),
    "data.cutmix": _asked(0.0, "alpha of cutmix; 0 = off. Of both, each batch draws one", COUNT),
    "data.min_frames": Key(8, "a video with fewer is refused", SOME),
    "data.max_bad_fraction": _free(0.02, "of training records that may be unreadable", FRACTION),
    "data.threads": _free(0, "videos decoded at a time, per process; 0 = one per core", COUNT),
    "data.workers": _free(-1, "decoding processes; 0 = threads; -1 = data.threads", Range(-1)),
    "data.timeout": _free(150.0, "seconds that a worker may take for a video", Range(1e-3, 1e6)),
    "data.cache_gb": _free(0.0, "GB of decoded frames kept in memory", COUNT),
    # Moving shapes, written when no data is given.
    "synthetic.num_pretrain": Key(0, "videos in all; 0 = no synthetic data", COUNT),
    "synthetic.num_train": Key(0, "of which labelled, for fine-tuning", COUNT),
    "synthetic.num_val": Key(0, "more videos, for checks", COUNT),
    "synthetic.num_test": Key(0, "more videos, for the score", COUNT),
    "synthetic.pan": Key(0.0, "speed of the camera, widths a frame; 0 = it stands", Range(0, 1)),
    "synthetic.long": Key(0, "frames of a video that is idle but for an event; 0 = short", COUNT),
    "model.size": Key("B", "of the encoder", ("Ti", "S", "B", "L", "H", "g")),
    "model.width": Key(0, "D of the encoder; 0 = of model.size", Range(0, 2**16)),
    "model.depth": Key(0, "blocks of the encoder; 0 = of model.size", Range(0, 1024)),
    "model.heads": Key(0, "of attention; 0 = of model.size", Range(0, 1024)),
    "model.mlp_ratio": Key(0.0, "hidden width of MLPs / width; 0 = of model.size", Range(0, 64)),
    "model.decoder_width": Key(0, "of the decoder; 0 = of model.size", Range(0, 2**16)),
    "model.decoder_heads": Key(0, "of the decoder; 0 = of model.size", Range(0, 1024)),
    "model.decoder_depth": Key(4, "blocks of the decoder", Range(1, 1024)),
    "model.tubelet": Key((2, 16, 16), "frames, px, px of a token", SOME),
    "model.cosine_attention": Key(False, "normalised queries and keys, learned temperatures"),
    "model.layer_scale": Key(0.0, "initial scale of each branch of a block; 0 = none", COUNT),
    "model.epsilon": Key(1e-6, "of LayerNorms (Hugging Face: 1e-12)", COUNT),
    "model.head_epsilon": Key(1e-6, "of the LayerNorm before a head (Hugging Face: 1e-5)", COUNT),
    # separable: learned, space plus time (mae_st). sincos_3d: each axis apart, for short grids.
    "model.positions": Key(
        "sinusoid", "over the tokens' index", ("sinusoid", "sincos_3d", "separable")
    ),
    "model.position_grid": Key((0, 0, 0), "grid positions are interpolated from; 0 = own", COUNT),
    "model.targets": Key(
        "normalised", "per channel | jointly | not", ("normalised", "joint", "pixels")
    ),
    "model.target_frames": Key(0, "frames of a tubelet that are predicted; 0 = all", Range(0, 1)),
    "model.drop_path": _asked(0.0, "rate of the last block, growing linearly from 0", FRACTION),
    "model.head_dropout": _asked(0.0, "rate before the classifier's head", FRACTION),
    "model.dtype": Key(
        "auto", "compute; auto: bfloat16 on GPU and TPU", ("auto", "float32", "bfloat16")
    ),
    # Rematerialised in the backward pass: none (but norms, softmax, GELU), dots (all but products
    # of weights), offload (the same, in host memory), full.
    "model.remat": _free("none", "trades compute for memory", ("none", "dots", "offload", "full")),
    # auto: cudnn on NVIDIA GPUs in bfloat16 for many tokens, else xla.
    "model.attention": _free("auto", "kernel", ("auto", "xla", "cudnn")),
    "mask.name": Key("everest", "a file of mvm/masking; '' = all tokens (classifiers)"),
    "mask.mask_ratio": Key(0.9, "fraction of tokens that is not visible", FRACTION),
    "mask.keep_ratio": Key(0.3, "fraction judged informative (everest)", FRACTION),
    "mask.decoder_ratio": Key(0.5, "dual: fraction of tokens that is not decoded", FRACTION),
    # head: all but the encoder. lora: the same, and A and B beside the encoder's matrices of
    # attention (LoRA), of which lora_alpha / lora_rank is the scale.
    "optim.train": Key("all", "what is trained", ("all", "head", "lora")),
    "optim.lora_rank": Key(8, "columns of A", SOME),
    "optim.lora_alpha": Key(16.0, "scale of their product, times rank", COUNT),
    "optim.base_lr": _asked(1e-3, "learning rate per 256 videos: times batch_size / 256", COUNT),
    "optim.min_lr": _asked(1e-5, "the schedule's end, scaled in the same way", COUNT),
    "optim.warmup_epochs": _asked(40.0, "epochs", COUNT),
    "optim.warmup_steps": _asked(0, "steps; 0 = from optim.warmup_epochs", COUNT),
    "optim.b2": _asked(0.95, "AdamW", FRACTION),
    "optim.weight_decay": _asked(0.05, "on matrices, and the positions of AdaMAE's sampler", COUNT),
    "optim.clip_norm": _asked(0.0, "largest global norm of the gradient; 0 = off", COUNT),
    "optim.layer_decay": _asked(1.0, "on the learning rate, per layer from the top", FRACTION),
    "optim.smoothing": _asked(0.0, "of labels", FRACTION),
    "train.batch_size": Key(192, "videos of a step, all devices and hosts together", SOME),
    "train.epochs": _asked(3200.0, "passes over the training list", COUNT),
    "train.steps": _asked(0, "steps; 0 = from train.epochs", COUNT),
    "train.accumulate": _asked(1, "micro-batches of a step", SOME),
    "train.cpu_devices": _free(1, "on CPU, XLA devices; small models gain from 2", SOME),
    "train.fsdp": _free(1, "devices that share one copy of the parameters; -1 = all", Range(-1)),
    "train.ema_decay": Key(0.0, "of a moving average of the parameters; 0 = none", FRACTION),
    "train.log_every": _free(50, "steps", SOME),
    "train.save_every": _free(1000, "steps", SOME),
    "train.keep": _free(2, "newest checkpoints kept", SOME),
    "train.keep_best": Key("", "check of which the best step is kept, and scored; '' = none"),
    "train.patience": _free(0, "checks without a better one until a run ends; 0 = never", COUNT),
    "train.timeout_minutes": _free(30.0, "without a step until a run ends; 0 = never", COUNT),
    "train.profile": _free(
        "", "steps traced into workdir/profile: 10:13 are 10, 11, 12; '' = none"
    ),
    "train.wandb": _free("", "project of Weights & Biases that rows go to, too; '' = none"),
    "train.probe_every": _free(
        0, "pre-training: steps between kNN scores within data.val; 0 = none", COUNT
    ),
    "train.val_every": _free(0, "steps between checks on data.val; 0 = one epoch", COUNT),
    "eval.batch_size": _free(8, "videos at a time, all devices and hosts together", SOME),
    "eval.num_segments": _free(5, "clips along time", Range(1, 4096)),
    "eval.num_crops": _free(3, "crops along the longer side", Range(1, 64)),
    "eval.average": _free(
        "probabilities", "what is averaged over views", ("probabilities", "logits")
    ),
    "report.clips": _free(4, "drawn, as masks and reconstructions; 0 = none", Range(0, 16)),
    "report.format": _free("png", "of figures, beside PNG, for papers", ("png", "pdf", "svg")),
}
FREE = {path for path, key in KEYS.items() if key.resume == "always"}
"""Those that may change whenever a run resumes."""


MIX = {"source": "", "root": "", "template": "", "weight": 1.0, "stride": 0}
"""A part of `data.mix`: as data.train, data.root and data.template; how often one of its records is
drawn, relative to one of weight 1; frames between samples, 0 = data.frame_stride."""


def defaults() -> ml_collections.ConfigDict:
    """All keys with their defaults, locked: ViT-B on 16 frames of 224 px, EVEREST's masking.

    Four groups may have further keys: "data.mix" (parts by name, see `MIX`), "stages" (see
    `sweep`), and unlocked ones "mask" (fields of the strategy) and "options" (of the task).
    """
    config = nested({path: key.default for path, key in KEYS.items()})
    config["data"]["mix"], config["options"], config["stages"] = {}, {}, {}
    made = ml_collections.ConfigDict(config).lock()
    for group in (made.mask, made.options):
        group.unlock()
    return made


def completed(given: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A whole configuration from some groups and keys, such as an older run's `config.json`.

    What it lacks has its default; what is no key any more is left out.
    """
    config = defaults()
    for path, value in flat(given).items():
        if path not in KEYS and not path.startswith("mask."):
            continue
        try:
            config.update_from_flattened_dict({path: value})
        except TypeError as error:
            raise UserError(f"{path}={value!r}: {first_line(error)}") from error
    config.options = ml_collections.ConfigDict(dict(given.get("options", {})))
    validate(config)
    return config


def validate(config: Mapping[str, Any]) -> None:
    """Checks every value by itself; UserError names the first that cannot be, and the choices."""
    for path, value in flat(config).items():
        if path.startswith("data.mix.") and path.split(".")[-1] not in MIX:
            raise UserError(f"{path} is no key; choose {', '.join(MIX)}")
        if path not in KEYS:
            continue
        default, allowed = KEYS[path].default, KEYS[path].allowed
        every = value if isinstance(value, tuple) else (value,)
        if isinstance(default, tuple) and len(every) != len(default):
            raise UserError(f"{path}={value} needs {len(default)} numbers")
        if isinstance(allowed, Range):
            low, high = allowed
            if not all(math.isfinite(one) and low <= one <= high for one in every):
                upper = f" to {high:g}" if high < math.inf else " or more"
                raise UserError(f"{path}={value}; choose {low:g}{upper}")
        elif allowed and value not in allowed:
            known = ", ".join(filter(None, allowed))
            raise UserError(f"{path}={value!r} is unknown; choose {known}")


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How two configurations differ: `{"never" | "always" | "asked": {key: "old -> new"}}`.

    A key that `was` is older than has had its default. What `data.mix` changes, the digest of the
    records tells.
    """
    found: dict[str, dict[str, str]] = {"never": {}, "always": {}, "asked": {}}
    old, new = (flat(json.loads(json.dumps(dict(c), default=dict))) for c in (was, now))
    own = {path for path in {**old, **new} if path.startswith(("options.", "mask."))}
    for path, key in ({path: Key(None, "") for path in own} | KEYS).items():
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        if path not in KEYS and path not in old:  # Older runs did not record it.
            continue
        before, after = old.get(path, default), new.get(path, default)
        if before != after:
            found[key.resume][path] = f"{before} -> {after}"
    return found


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Groups and keys as "model.width"."""
    return flatten_dict(ml_collections.ConfigDict(tree).to_dict(), sep=".")


def changed(flat_config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json, as "model.width", that have not their default."""
    default = json.loads(json.dumps(flat(defaults())))
    return {key: value for key, value in flat_config.items() if value != default.get(key)}


nested = partial(unflatten_dict, sep=".")
"""The inverse of `flat`."""


_OWN = re.compile(
    r"data\.(train|val|test|root|threads|workers|timeout|cache_gb|mix\..*\.(source|root))"
)


def shared(config: Any) -> dict[str, Any]:
    """Values that all processes of a run have in common: not where and how each reads its data."""
    return {path: value for path, value in flat(config).items() if not _OWN.fullmatch(path)}
