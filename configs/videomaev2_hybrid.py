"""VideoMAE V2's pre-training on UnlabeledHybrid: the released scripts (arXiv 2303.16727).

    python main.py --config configs/videomaev2_hybrid.py:g --config.data.mix.k710.source=k710.txt \
        --config.data.mix.ssv2.source=ssv2.txt --config.data.mix.ava.source=ava.txt

Published: after fine-tuning on Kinetics-400 (`videomaev2_k400`) B 81.5, L 85.4, H 86.9, g 87.2 %.
1.348 M clips, of which Instagram's are not public. Parts without a source are left out;
`--config.data.train` takes one list of everything. The paper counts an epoch for each of the 4
clips of a video: 1200, B 800. For H it has rate 6e-4 and clipping at 0.02; here the scripts.
g took 241 h on 64 A100.
"""

from configs import common

BATCH = {"B": 1024, "L": 1536, "H": 2048, "g": 2048}


@common.recipe(tasks=("pretrain",), sizes=tuple(BATCH))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.data.mix = common.mix(k710={}, ssv2={"stride": 2}, ava={}, webvid={}, instagram={})
    common.videomaev2(c, size)
    c.data.repeats = 4
    c.mask.name = "dual"
    c.optim.update(base_lr=1e-3, warmup_epochs=20.0 if size == "B" else 30.0)
    c.train.update(batch_size=BATCH[size], epochs=200.0 if size == "B" else 300.0)
    if size == "g":
        c.optim.update(base_lr=6e-4, clip_norm=0.02)
