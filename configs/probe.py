"""Frozen evaluation of any encoder: the best of 20 linear or attentive heads on its features.

    python main.py --config configs/probe.py:linear --config.init_from=WEIGHTS \
        --config.data.train=train.txt --config.data.val=val.txt --config.data.test=test.txt
    python main.py --config configs/probe.py:attentive,evaluate --config.data.test=other.txt

`attentive` is one block, `attentive4` four (V-JEPA 2, arXiv 2506.09985): 20 epochs of AdamW, five
learning rates times four weight decays, a cosine to 0, the best by data.val. The same grid for
`linear`, which is ours. `--config.eval.num_segments=8 --config.eval.num_crops=3` is their K400: the
tokens of eight clips are one sequence. Without augmentation, since features are kept: attentive
heads need a disk for 16-bit tokens, 2.4 MB for each clip of ViT-B.
"""

from configs import common


@common.recipe(tasks=("probe", "evaluate"), sizes=("linear", "attentive", "attentive4"))
def get_config(c: common.Config, task: str, size: str) -> None:
    common.of_weights(c)
    c.options = common.Config({"head": size})
    c.options.update(rates="5e-3,3e-3,1e-3,3e-4,1e-4", decays="0.01,0.1,0.4,0.8")
    c.train.update(batch_size=256, epochs=20.0)
    c.eval.update(num_segments=1, num_crops=1)
