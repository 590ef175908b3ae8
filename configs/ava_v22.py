"""Actions of people in AVA v2.2: VideoMAE's detector (arXiv 2203.12602), its scripts, and V2's g.

    python main.py --config configs/ava_v22.py:B --config.init_from=WEIGHTS \
        --config.data.root=movies --config.data.train=ava_train_v2.2.csv \
        --config.data.test=ava_val_v2.2.csv \
        --config.options.label_map=ava_action_list_v2.2_for_activitynet_2019.pbtxt \
        --config.options.person_boxes=ava_val_det_person_bbox.json \
        --config.options.images=ava_val_v2.2_min.json \
        --config.options.excluded=ava_val_excluded_timestamps_v2.2.csv
    python main.py --config configs/ava_v22.py:evaluate ...

Published, from K400 pre-training: S 22.5, B 26.7, L 34.3, H 36.5 frame mAP; from V2's K710, g 42.6
(arXiv 2303.16727). After K400 labels the scripts differ (docs/detection_boxes.md).
Tested on whole frames of 256 px.
"""

from configs import common

SCRIPTS = {
    "B": common.script(2.5e-4, 128, 30.0, drop_path=0.2),
    "S": common.script(1e-3, 128, 30.0, drop_path=0.2, layer_decay=0.6),
    "L": common.script(2.5e-4, 128, 30.0, drop_path=0.2),
    "H": common.script(5e-4, 128, 20.0, drop_path=0.2, layer_decay=0.8),
    "g": common.script(3e-4, 128, 10.0, drop_path=0.3, layer_decay=0.9, warmup_epochs=2.0),
}


@common.recipe(tasks=common.DETECTED, sizes=tuple(SCRIPTS))
def get_config(c: common.Config, task: str, size: str) -> None:
    # No mixing, no RandAugment, 16 frames at stride 4.
    common.videomaev2(c, size)
    c.mask.name = ""
    c.data.update(num_classes=80, flip=True)
    c.optim.update(b2=0.999, warmup_epochs=5.0, min_lr=1e-6, layer_decay=0.75)
    c.options = common.Config(
        {"label_map": "", "person_boxes": "", "images": "", "excluded": "", "start": 0.0}
    )
    c.update(SCRIPTS[size])
