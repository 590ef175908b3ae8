"""Each strategy at its paper's ratios around one ViT, for `benchmarks.step` and `benchmarks.plan`.

Clips are 16 x 224 x 224, decoders VideoMAE's of 4 blocks for every size. `:everest,finetune` sees
the tokens that EVEREST keeps, `:finetune` of the others all.
"""

from configs import common

MASKS = {
    "tube": {"mask_ratio": 0.9},
    "uniform": {"mask_ratio": 0.9},
    "frame": {"mask_ratio": 0.875},
    "dual": {"mask_ratio": 0.9, "decoder_ratio": 0.5},
    "motion_tube": {"mask_ratio": 0.9},
    "adamae": {"mask_ratio": 0.95},
    "everest": {"mask_ratio": 0.9, "keep_ratio": 0.3},
}


@common.recipe(tasks=("pretrain", "finetune"), sizes=("B", "L"), of=tuple(MASKS))
def get_config(c: common.Config, task: str, size: str, of: str) -> None:
    c.model.size, c.data.num_classes = size, 400
    c.mask.update(name=of, **MASKS[of])
    if task == "finetune" and of == "everest":
        common.finetuning_on_moving_tokens(c)
    elif task == "finetune":
        common.finetuning_on_all_tokens(c)
