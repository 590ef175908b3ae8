"""What recipes share.

A recipe is a leaf file that starts from all defaults (`mvm/config.py`) and sets what differs. Its
argument names the variant: `configs/everest_ucf101.py:finetune`, `:evaluate`, `:smoke`, also
`:finetune,smoke`. Where a leaf knows several sizes of the model, a word names it:
`configs/videomae_k400.py:L,smoke`.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict as Config

from mvm.config import MIX, SIZES
from mvm.config import defaults as get_config

__all__ = ["LABELLED", "SIZES", "TASKS", "Config", "get_config"]

TASKS = ("pretrain", "finetune", "evaluate")
LABELLED = ("finetune", "evaluate")


class Variant(NamedTuple):
    """What a leaf's argument asks for."""

    task: str
    smoke: bool
    size: str
    """Of the model, in a leaf that knows several; else ""."""


def variant(argument: str, sizes: tuple[str, ...] = (), tasks: tuple[str, ...] = TASKS) -> Variant:
    """Splits a leaf's argument, such as "L,finetune", into one of its tasks and sizes.

    The first is meant where none is named.

    Raises:
        ValueError: for an unknown word or two of a kind; names the known ones.
    """
    words = [w for w in argument.split(",") if w and w != "smoke"]
    chosen = [[w for w in words if w in known] for known in (tasks, sizes)]
    if max(map(len, chosen)) > 1 or len(words) > sum(map(len, chosen)):
        size = f", and a size ({', '.join(sizes)})" if sizes else ""
        known = f"{', '.join(tasks)} or smoke{size}"
        raise ValueError(f"variant {argument!r} is unknown; choose {known}")
    smoke = "smoke" in argument.split(",")
    return Variant((chosen[0] or tasks)[0], smoke, (chosen[1] or sizes or ("",))[0])


def finish(
    c: Config,
    argument: str,
    tasks: tuple[str, ...] = TASKS,
    start: str = "",
    sizes: tuple[str, ...] = SIZES,
) -> Config:
    """Names the variant's run, says where it starts from and shrinks it if it is a smoke run.

    Args:
        c: gets changed; `name` is that of the recipe, with the size in it if there are several.
        argument: the leaf's.
        tasks, sizes: see `variant`.
        start: name of the run that training starts from; "" means this recipe's pre-training.
    """
    task, smoke, _ = variant(argument, sizes, tasks)
    suffix = "_smoke" if smoke else ""
    trained = next((t for t in tasks if t not in ("pretrain", "evaluate")), "")
    previous = {"pretrain": "", "evaluate": f"{c.name}_{trained}"}.get(task, start or c.name)
    if previous and (task == "evaluate" or not smoke):
        c.init_from = f"runs/{previous}{suffix}"
    c.task, c.evaluate = (trained, True) if task == "evaluate" else (task, False)
    c.name = (c.name if task == "pretrain" else f"{c.name}_{task}") + suffix
    if smoke:
        shrink(c)
    return c


def mix(**parts: dict[str, Any]) -> Config:
    """`data.mix` of these parts, each with what differs from `mvm.config.MIX`."""
    return Config({name: MIX | part for name, part in parts.items()})


def shrink(c: Config) -> None:
    """Two steps of a tiny model on a few moving shapes, to see that a recipe runs at all."""
    c.init_head_rows = ""
    c.synthetic.update(num_pretrain=16, num_train=16, num_val=8, num_test=8)
    c.data.update(image_size=32, frame_stride=1, num_classes=8, cache_gb=0.1)
    c.model.update(size="Ti", width=48, depth=2, heads=2, decoder_width=32, decoder_heads=2)
    c.model.update(decoder_depth=2, tubelet=(2, 8, 8))
    c.train.update(batch_size=8, steps=2, log_every=1, save_every=2)
    c.eval.update(batch_size=8, num_segments=2, num_crops=1)


def finetuning(c: Config) -> None:
    """What every released fine-tuning script shares."""
    c.data.crop, c.data.flip = "random_resized", True
    c.data.rand_augment, c.data.erasing = "rand-m7-n4-mstd0.5-inc1", 0.25
    c.model.drop_path = 0.1
    c.optim.update(b2=0.999, warmup_epochs=5.0, min_lr=1e-6, layer_decay=0.75, smoothing=0.1)
    c.train.batch_size = 128


def finetuning_on_all_tokens(c: Config) -> None:
    """What the released scripts share beyond that if the classifier sees every token."""
    finetuning(c)
    c.mask.name = ""
    c.data.update(mixup=0.8, cutmix=1.0)


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
