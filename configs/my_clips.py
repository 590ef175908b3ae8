"""Your own labelled clips, from official weights: VideoMAE's fine-tuning, sized for one GPU.

    python main.py --config configs/my_clips.py --config.data.train=clips/train \
        --config.data.val=clips/test --config.data.test=clips/test
    python main.py --config configs/my_clips.py:evaluate --config.data.test=clips/test

A folder of class folders or a list. Weights come from the Hugging Face hub; `--config.init_from=`
takes a run, a .pth or .safetensors file, or another name. Batch and epochs are ours.
"""

from configs import common

WEIGHTS = {
    "B": "MCG-NJU/videomae-base",
    "S": "MCG-NJU/videomae-small-finetuned-kinetics",
    "L": "MCG-NJU/videomae-large",
}


@common.recipe(tasks=common.LABELLED, sizes=tuple(WEIGHTS))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.name, c.init_from = "my_clips", WEIGHTS[size]
    common.finetuning_on_all_tokens(c)
    c.model.size = size
    c.train.update(batch_size=16, epochs=30.0, log_every=10, save_every=200)
