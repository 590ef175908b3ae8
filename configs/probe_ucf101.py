"""A probe of EVEREST's pre-training on UCF101: a head on the tokens of its frozen encoder, ViT-B.

    python main.py --config configs/probe_ucf101.py:linear \
        --config.data.train=train.txt --config.data.val=test.txt --config.data.test=test.txt
    python main.py --config configs/probe_ucf101.py:attentive,evaluate --config.data.test=test.txt
    python main.py --config configs/probe_ucf101.py:linear,demo     # of the demo's, in a minute

`linear` reads the mean over all tokens, `attentive` what one learned query finds in them (V-JEPA,
arXiv 2404.08471). `--config.init_from=` takes any run or file. Schedule and rates are ours.
Cost: all 1568 tokens forward, 180.3 GMAC a clip; nothing of the encoder backward.
"""

from configs import common, demo

TASKS = ("probe", "evaluate")
HEADS = ("linear", "attentive")


def get_config(argument: str = "") -> common.Config:
    words = [word for word in argument.split(",") if word != "demo"]
    plain, small = ",".join(words), "demo" in argument.split(",")
    head = common.variant(plain, TASKS, HEADS).size
    c = demo.get_config("finetune") if small else common.get_config()
    c.name = f"probe_{'demo' if small else 'ucf101'}_{head}"
    c.init_from = "runs/demo/pretrain_everest_seed0" if small else "runs/everest_ucf101"
    c.options = common.Config({"head": head})
    c.mask.name, c.model.drop_path = "", 0.0
    if not small:
        c.data.update(num_classes=101, fetch="ucf101/1", crop="random_resized", flip=True)
        c.optim.update(base_lr=1e-3, min_lr=0.0, warmup_epochs=5.0, b2=0.999)
        c.train.update(batch_size=128, epochs=50.0)
    return common.finish(c, plain, TASKS, HEADS)
