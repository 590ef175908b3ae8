"""What recipes share.

A recipe is a leaf file that starts from all defaults (`mvm/config.py`) and sets what differs: a
function under `recipe`, which makes it the leaf's `get_config`. The argument names the variant:
`configs/everest_ucf101.py:finetune`, `:evaluate`, `:smoke`, also `:finetune,smoke`; where a leaf
knows several sizes of the model, `configs/videomae_k400.py:L,smoke`, or words of its own,
`configs/my_clips.py:head` (docs/recipes_howto.md).

    python main.py --config configs/everest_ucf101.py --config.data.train=train.txt
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict as Config

from mvm.config import MIX
from mvm.config import defaults as get_config

__all__ = ["LABELLED", "TASKS", "Config", "get_config"]

Words = tuple[str, ...]

TASKS = ("pretrain", "finetune", "evaluate")
LABELLED = ("finetune", "evaluate")
DETECTED = ("detect", "evaluate")


def variant(
    argument: str, tasks: Words = TASKS, sizes: Words = ("",), **words: Words
) -> dict[str, str]:
    """The "task", "size", "smoke" and what else `words` names, of an argument as "L,finetune".

    Where none of a kind is named, its first is meant.
    """
    kinds = {"task": tasks, "size": sizes, **words, "smoke": ("", "smoke")}
    given = [word for word in argument.split(",") if word]
    chosen = {kind: [w for w in given if w in known] for kind, known in kinds.items()}
    if max(map(len, chosen.values())) > 1 or len(given) > sum(map(len, chosen.values())):
        known = ", ".join(filter(None, itertools.chain(*kinds.values())))
        raise ValueError(f"variant {argument!r} is unknown; choose {known}, one of a kind")
    return {kind: (one or kinds[kind])[0] for kind, one in chosen.items()}


def finish(
    c: Config, argument: str, tasks: Words = TASKS, sizes: Words = ("",), **words: Words
) -> Config:
    """Names the variant's run, says where it starts from and shrinks it if it is a smoke run.

    A task starts from where `c.init_from` says; else, and "evaluate" always, from the run of the
    one before it in `tasks`; the first one then from random weights.
    """
    chosen = variant(argument, tasks, sizes, **words)
    task, before = chosen["task"], tasks[tasks.index(chosen["task"]) - 1]
    c.name += "".join(f"_{chosen[kind]}" for kind in words if chosen[kind] != words[kind][0])
    if task != tasks[0] and (task == "evaluate" or not c.init_from):
        c.init_from = f"runs/{_run(c.name, before)}"
    c.task, c.evaluate = (before, True) if task == "evaluate" else (task, False)
    c.name = _run(c.name, task)
    if chosen["smoke"]:
        shrink(c)
        c.name += "_smoke"
        c.init_from = f"{c.init_from}_smoke" if c.evaluate else ""
    return c


def _run(name: str, task: str) -> str:
    """The run of a recipe's task: the recipe's name, and the task unless that tells it."""
    return name if task == "pretrain" or task in name.split("_") else f"{name}_{task}"


class Recipe(NamedTuple):
    """A leaf's `get_config`; the leaf's file names its runs, with the size if there are several."""

    values: Callable[..., None]
    """`values(config, task, size, **words)` sets what differs from the defaults."""
    tasks: Words
    sizes: Words
    words: dict[str, Words]
    """Kinds of words of its own, by the argument that gets the one that is meant."""

    def __call__(self, argument: str = "") -> Config:
        chosen = variant(argument, self.tasks, self.sizes, **self.words)
        del chosen["smoke"]
        c, name = get_config(), pathlib.Path(self.values.__code__.co_filename).stem
        c.name = f"{name}_{chosen['size']}" if chosen["size"] else name
        self.values(c, **chosen)
        return finish(c, argument, self.tasks, self.sizes, **self.words)


def recipe(
    tasks: Words = TASKS, sizes: Words = ("",), **words: Words
) -> Callable[[Callable[..., None]], Recipe]:
    """Decorates a leaf's function `(config, task, size, **words)`, which sets what differs."""
    return lambda values: Recipe(values, tasks, sizes, words)


def mix(**parts: dict[str, Any]) -> Config:
    """`data.mix` of these parts, each with what differs from `mvm.config.MIX`."""
    return Config({name: MIX | part for name, part in parts.items()})


def shrink(c: Config) -> None:
    """Two steps of a tiny model on a few moving shapes, to see that a recipe runs at all."""
    c.init_head_rows = ""
    c.options = Config({k: v for k, v in c.options.items() if not k.startswith("teacher")})
    if "columns" not in c.options:  # Localisation reads features and annotations.
        c.synthetic.update(num_pretrain=16, num_train=16, num_val=8, num_test=8)
    c.data.update(image_size=32, frame_stride=1, num_classes=8, cache_gb=0.1)
    c.model.update(size="Ti", width=48, depth=2, heads=2, decoder_width=32, decoder_heads=2)
    c.model.update(decoder_depth=2, tubelet=(2, 8, 8))
    c.train.update(batch_size=8, steps=2, log_every=1, save_every=2)
    c.eval.update(batch_size=8, num_segments=2, num_crops=1)


def of_weights(c: Config) -> None:
    """Clips as those that `init_from` was trained on."""
    c.data.update(num_frames=0, frame_stride=0, image_size=0)


def finetuning(c: Config) -> None:
    """What every released fine-tuning script shares."""
    c.data.crop, c.data.flip = "random_resized", True
    c.data.rand_augment, c.data.erasing = "rand-m7-n4-mstd0.5-inc1", 0.25
    c.model.drop_path = 0.1
    c.optim.update(b2=0.999, warmup_epochs=5.0, min_lr=1e-6, layer_decay=0.75, smoothing=0.1)
    c.train.batch_size = 128


def finetuning_on_moving_tokens(c: Config) -> None:
    """EVEREST's: 940 of 1568 tokens, none hidden by chance; no mixing."""
    finetuning(c)
    c.mask.update(keep_ratio=0.6, mask_ratio=0.4)


def finetuning_on_all_tokens(c: Config) -> None:
    """What the other released scripts share: the classifier sees every token."""
    finetuning(c)
    c.mask.name = ""
    c.data.update(mixup=0.8, cutmix=1.0)


def script(
    base_lr: float,
    batch_size: int,
    epochs: float,
    drop_path: float = 0.1,
    head_dropout: float = 0.0,
    **optim: float,
) -> dict[str, Any]:
    """What the fine-tuning scripts of one release differ in from size to size."""
    return {
        "model": {"drop_path": drop_path, "head_dropout": head_dropout},
        "optim": {"base_lr": base_lr, **optim},
        "train": {"batch_size": batch_size, "epochs": epochs},
    }


def ssv2(c: Config, task: str) -> None:
    """Something-Something V2; call it last: its classes tell left from right."""
    c.data.update(num_classes=174, frame_stride=2)
    c.eval.num_segments = 2
    if task != "pretrain":
        c.data.update(sampling="segments", flip=False)


def videomaev2(c: Config, size: str) -> None:
    """The models of VideoMAE V2: a decoder that does not grow, and ViT-g with smaller patches."""
    c.model.size = size
    if size == "g":
        c.model.tubelet = (2, 14, 14)
    if size in ("H", "g"):
        c.model.update(decoder_width=512, decoder_heads=8, remat="full")


def videomaev2_finetuning(c: Config, size: str) -> None:
    """What VideoMAE V2's fine-tuning scripts share."""
    videomaev2(c, size)
    finetuning_on_all_tokens(c)
    c.data.repeats = 2


def actionformer(c: Config, peak: float, batch_size: int, **options: Any) -> None:
    """ActionFormer's recipe of THUMOS14; its score is that of the moving average of the weights.

    Learning rates, the highest one and 1e-8 at the end, are those of this batch size.
    """
    every = {"columns": 1408, "stride": 4, "length": 2304, "fit": "crop", "attention": 19}
    every |= {"normaliser": 100.0, "regression": 1.0, "classes": "all", "classifier": ""}
    every |= {"shortest": 0.05, "sigma": 0.5, "most": 200, "thresholds": "0.3,0.4,0.5,0.6,0.7"}
    every |= {"train_subset": "Validation", "test_subset": "Test"}
    c.options = Config(every | options)
    c.mask.name = ""
    c.model.update(heads=4, drop_path=0.1, dtype="float32")
    c.optim.update(base_lr=peak * 256 / batch_size, min_lr=1e-8 * 256 / batch_size)
    c.optim.update(warmup_epochs=5.0, b2=0.999, clip_norm=1.0)
    c.train.update(batch_size=batch_size, ema_decay=0.999)
    c.eval.update(batch_size=1, num_segments=1, num_crops=1)
