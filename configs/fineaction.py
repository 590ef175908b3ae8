"""FineAction (arXiv 2105.11107) by ActionFormer without classes on features of VideoMAE V2-g.

    python main.py --config configs/fineaction.py --config.data.root=FEATURES \
        --config.data.train=fineaction.json --config.data.test=fineaction.json \
        --config.options.classifier=SCORES.json

Every video is resized to 192 rows; a classifier of whole videos tells the classes. Values are those
of InternVideo's `fineaction.yaml`; VideoMAE V2 (arXiv 2303.16727) reports 18.2 average mAP.
"""

from configs import common


@common.recipe(tasks=("localise", "evaluate"))
def get_config(c: common.Config, task: str, size: str) -> None:
    common.actionformer(c, 1e-3, batch_size=16, stride=16, length=192, fit="resize", attention=7)
    c.options.update(classes="none", normaliser=200.0, regression=2.0)
    c.options.update(shortest=0.001, sigma=0.75, most=100)
    c.options.update(train_subset="training", test_subset="validation")
    c.options.thresholds = "0.5,0.55,0.6,0.65,0.7,0.75,0.8,0.85,0.9,0.95"
    c.model.width, c.train.epochs, c.optim.smoothing = 256, 25.0, 0.1
