"""Your own clips, 100 to 5,000 of them, on one GPU: copy this file and change what you know better.

    python main.py --config configs/my_clips.py --config.data.root=clips     # class folders in it
    python main.py --config configs/my_clips.py:evaluate                     # the same test videos

Words after the colon, joined by commas: a task (`finetune`, `evaluate`, `pretrain`), a method
(`lora`, `full`, `head`), a size (`B`, `S`, `L`), `pretrained`, `smoke`. Weights come from the
Hugging Face hub; `--config.init_from=` takes a file, a run or another name, and nothing at all for
random ones. Values are ours, scaled from the released scripts; nobody published such sizes.
"""

from configs import common

HUB = {size: f"MCG-NJU/videomae-{name}" for size, name in zip("BSL", ("base", "small", "large"))}

METHODS = {
    # Up to some thousand clips: beside the encoder's weights 0.5 % of new ones learn, which start
    # at zero and take a higher rate than good ones.
    "lora": {"train": "lora", "base_lr": 8e-3},  # 5e-4 at a batch of 16
    # From about 2,000 clips: everything moves, lower layers least (layer_decay, as released).
    "full": {"train": "all", "base_lr": 1e-3},
    # Below about 100 clips, or for a first look: the encoder stays as it is.
    "head": {"train": "head", "base_lr": 1.6e-2},
}


@common.recipe(
    tasks=("finetune", "evaluate", "pretrain"),
    sizes=tuple(HUB),
    method=tuple(METHODS),
    start=("hub", "pretrained"),
)
def get_config(c: common.Config, task: str, size: str, method: str, start: str) -> None:
    c.name, c.model.size = "my_clips" if size == "B" else f"my_clips_{size}", size
    # Steps, not epochs: Adam needs as many whatever the set; 5 epochs of 72 clips are 20 steps.
    c.optim.warmup_steps = 40
    c.train.update(log_every=10, save_every=200)
    if task == "pretrain":  # VideoMAE goes on with your clips; then `:pretrained` starts from it.
        c.init_from = HUB[size] + "-finetuned-kinetics" * (size == "S")  # S has no other.
        c.mask.update(name="tube", mask_ratio=0.9)  # What the weights were trained with.
        c.optim.base_lr = 8e-4  # 1e-4 at a batch of 32: the weights are good already.
        c.train.update(batch_size=32, epochs=100.0)
        return
    # Kinetics' labels help small sets more than longer pre-training without them.
    c.init_from = f"{HUB[size]}-finetuned-kinetics" if start == "hub" else f"runs/{c.name}"
    common.finetuning_on_all_tokens(c)  # Crops, RandAugment, erasing, smoothing as released.
    # c.data.flip = False         # Where classes tell left from right.
    # c.data.crop = "fit"         # Where things happen at both ends of a wide frame: docs/data.md.
    # c.data.sampling = "spread"  # Where it is anywhere in clips of more than some seconds.
    if method != "full":  # Mixing videos pays after hundreds of epochs of everything.
        c.data.update(mixup=0.0, cutmix=0.0)
    if method == "head":
        c.model.drop_path = 0.0  # Noise in what does not learn.
    c.optim.update(METHODS[method])
    c.train.update(batch_size=16, epochs=50.0)  # Epochs as HMDB51's 3,570 clips get.
