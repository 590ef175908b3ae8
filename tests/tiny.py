"""The one tiny shape of the suite: recipes whose compiled steps are cached."""

from configs import common, everest_ucf101
from mvm.optim import Schedule

SCHEDULE = Schedule(peak=1e-2, end=0.0, warmup_steps=2, total_steps=10)


def configure(shapes, argument="smoke", leaf=everest_ucf101, **train):
    """Six steps of 8 clips, a checkpoint every 2; labelled tasks get all three lists."""
    config = leaf.get_config(argument)
    pretraining = config.task == "pretrain"
    config.data.train = str(shapes / ("pretrain.txt" if pretraining else "train.txt"))
    config.data.test = "" if pretraining else str(shapes / "test.txt")
    config.data.val = "" if pretraining else str(shapes / "val.txt")
    config.train.update(steps=6, log_every=1, save_every=2, **train)
    config.optim.warmup_epochs = 0.2
    return config


def frozen(recipe, shapes, pretrained, argument="", splits=("test",)):
    """A recipe of a frozen encoder, on clips of 32 px from the shared run and videos."""
    config = recipe.get_config(argument)
    config.init_from = str(pretrained)
    config.data.update({split: str(shapes / f"{split}.txt") for split in splits})
    config.data.update(frame_stride=1, image_size=32, threads=2)
    return config


def config_of(task, **model):
    """EVEREST on four frames, without a recipe; fine-tuning sees what it selects."""
    c = common.finish(common.get_config(), f"{task},smoke")
    c.data.num_frames = 4
    c.model.update(**model)
    if task == "finetune":
        common.finetuning_on_moving_tokens(c)
    return c
