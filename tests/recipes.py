"""What papers and released scripts say of every recipe, typed from them and not computed here.

Parameters are exact where they are whole numbers; floats are millions, as printed, within 0.001.
Rates are those of the optimiser, after scaling by batch. GMAC are those of one clip forward.
"""

from typing import NamedTuple


class Pretrain(NamedTuple):
    visible: int
    target: int
    parameters: int | float
    gmac: float
    batch: int
    repeats: int
    epochs: int
    warmup: int
    peak: float


class Finetune(NamedTuple):
    visible: int  # Of all tokens; the rest is dropped.
    parameters: int | float
    gmac: float
    batch: int
    repeats: int
    epochs: int
    warmup: int
    peak: float
    layer_decay: float
    drop_path: float
    head_dropout: float
    weight_decay: float
    mixed: bool  # mixup 0.8 and cutmix 1.0, or neither


class Data(NamedTuple):
    classes: int
    records: int  # In the training list; 0 = not known.
    views: tuple[int, int]


DATA = {
    "ucf101": Data(101, 9_537, (5, 3)),
    "hmdb51": Data(51, 3_570, (10, 3)),
    "k400": Data(400, 240_436, (5, 3)),
    "k600": Data(600, 366_006, (5, 3)),
    "k710": Data(710, 658_340, (5, 3)),
    "ssv2": Data(174, 168_913, (2, 3)),
    "oscc": Data(2, 0, (1, 3)),
    "hybrid": Data(0, 1_348_000, (5, 3)),
}
VIEWS = {"videomaev2_hmdb51_from_k710": (5, 3), "mae_st_k400": (10, 3)}
"""Where a script departs from what is usual for its data."""

B, B_SAMPLER, S = 94_210_944, 102_501_505, 24_029_376
PRETRAIN = {
    ("everest_ucf101", ""): Pretrain(156, 314, B, 19.78, 192, 1, 3200, 40, 7.5e-4),
    ("everest_hmdb51", ""): Pretrain(156, 314, B, 19.78, 192, 1, 4800, 40, 7.5e-4),
    ("everest_k400", "S"): Pretrain(156, 314, S, 5.74, 512, 1, 200, 40, 3e-4),
    ("everest_k400", "B"): Pretrain(156, 314, B, 19.78, 512, 1, 200, 40, 3e-4),
    ("everest_k400", "L"): Pretrain(156, 314, 317_782_016, 57.92, 512, 1, 200, 40, 3e-4),
    ("everest_ssv2", ""): Pretrain(156, 314, B, 19.78, 512, 1, 200, 40, 3e-4),
    # The patch embedding works on 1.5 times the frames: 2.77 instead of 1.85 GMAC.
    ("everest_oscc", ""): Pretrain(156, 314, B, 20.71, 512, 1, 200, 40, 3e-4),
    ("videomae_ucf101", ""): Pretrain(392, 1176, B, 57.4, 192, 1, 3200, 40, 2.25e-4),
    ("videomae_hmdb51", ""): Pretrain(392, 1176, B, 57.4, 192, 1, 4800, 40, 2.25e-4),
    ("videomae_k400", "S"): Pretrain(160, 1408, S, 11.54, 1024, 1, 1600, 40, 6e-4),
    ("videomae_k400", "B"): Pretrain(160, 1408, B, 35.44, 2048, 1, 1600, 40, 1.2e-3),
    ("videomae_k400", "L"): Pretrain(160, 1408, 342_996_992, 142.64, 512, 1, 1600, 40, 3e-4),
    ("videomae_k400", "H"): Pretrain(160, 1408, 692_487_296, 237.6, 1024, 1, 1600, 40, 6e-4),
    ("videomae_k400_800", ""): Pretrain(160, 1408, B, 35.44, 2048, 1, 800, 40, 1.2e-3),
    ("videomae_ssv2", "S"): Pretrain(160, 1408, S, 11.54, 2048, 1, 2400, 40, 1.2e-3),
    ("videomae_ssv2", "B"): Pretrain(160, 1408, B, 35.44, 2048, 1, 2400, 40, 1.2e-3),
    ("videomae_ssv2_800", ""): Pretrain(160, 1408, B, 35.44, 2048, 1, 800, 40, 1.2e-3),
    ("adamae_k400", ""): Pretrain(78, 1490, B_SAMPLER, 43.0, 2048, 1, 800, 40, 1.2e-3),
    ("adamae_ssv2", ""): Pretrain(78, 1490, B_SAMPLER, 43.0, 2048, 1, 800, 40, 1.2e-3),
    ("dual_ssv2", ""): Pretrain(160, 784, B, 25.84, 2048, 1, 800, 40, 1.2e-3),
    ("motion_tube_ssv2", ""): Pretrain(160, 1408, B, 35.44, 384, 4, 200, 10, 1.5e-3),
    # ViT-L with a decoder of 4: half the head's 512 x 1536 + 1536, and (8 + 196) x 1536 positions.
    ("mae_st_k400", ""): Pretrain(157, 1411, 317_701_376, 81.5, 128, 4, 100, 5, 8e-4),
    ("videomaev2_hybrid", "B"): Pretrain(160, 784, B, 25.84, 1024, 4, 200, 20, 4e-3),
    ("videomaev2_hybrid", "L"): Pretrain(160, 784, 317.782, 68.27, 1536, 4, 300, 30, 6e-3),
    ("videomaev2_hybrid", "H"): Pretrain(160, 784, 645.66, 122.09, 2048, 4, 300, 30, 8e-3),
    ("videomaev2_hybrid", "g"): Pretrain(208, 1024, 1026.31, 241.61, 2048, 4, 300, 30, 4.8e-3),
}

ALL, ALL_G, KEPT = 1568, 2048, 940
UCF, HMDB, OSCC = 86_304_869, 86_266_419, 86_228_738
S_K400, B_K400, L_K400, H_K400 = 22_033_936, 86_534_800, 304_270_736, 632_119_440
S_SSV2, B_SSV2, L_SSV2 = 21_946_926, 86_361_006, 304_039_086  # S, L: body + 174 (width + 1)
V1, DROP = (0.75, 0.1, 0.0, 0.05), (0.7, 0.2, 0.5, 0.05)  # layer decay, two rates, weight decay
V2_L, V2_H = (0.75, 0.2, 0.0, 0.05), (0.8, 0.2, 0.5, 0.05)
FINETUNE = {
    ("everest_ucf101", ""): Finetune(KEPT, UCF, 98.0, 128, 1, 100, 5, 5e-4, *V1, False),
    ("everest_hmdb51", ""): Finetune(KEPT, HMDB, 98.0, 128, 1, 50, 5, 5e-4, *V1, False),
    ("everest_k400", "S"): Finetune(KEPT, S_K400, 29.0, 384, 1, 150, 5, 7.5e-4, *V1, False),
    ("everest_k400", "B"): Finetune(KEPT, B_K400, 98.0, 384, 1, 75, 5, 7.5e-4, *V1, False),
    ("everest_k400", "L"): Finetune(KEPT, L_K400, 329.8, 128, 1, 35, 5, 1e-3, *V1, False),
    ("everest_ssv2", ""): Finetune(KEPT, B_SSV2, 98.0, 512, 1, 50, 5, 1e-3, *V1, False),
    ("everest_oscc", ""): Finetune(KEPT, OSCC, 98.9, 128, 1, 100, 5, 5e-4, *V1, False),
    ("videomae_ucf101", ""): Finetune(ALL, UCF, 180.3, 128, 2, 100, 5, 2.5e-4, *DROP, True),
    ("videomae_hmdb51", ""): Finetune(ALL, HMDB, 180.3, 128, 2, 50, 5, 2.5e-4, *DROP, True),
    ("videomae_k400", "S"): Finetune(ALL, S_K400, 56.9, 384, 2, 150, 5, 7.5e-4, *V1, True),
    ("videomae_k400", "B"): Finetune(ALL, B_K400, 180.3, 384, 2, 75, 5, 7.5e-4, *V1, True),
    ("videomae_k400", "L"): Finetune(ALL, L_K400, 596.8, 128, 2, 35, 5, 1e-3, *V1, True),
    ("videomae_k400", "H"): Finetune(
        ALL, H_K400, 1191.0, 512, 2, 50, 5, 2e-3, 0.75, 0.2, 0.5, 0.05, True
    ),
    ("videomae_k400_800", ""): Finetune(ALL, B_K400, 180.3, 512, 1, 100, 5, 2e-3, *V1, True),
    ("videomae_ssv2", "S"): Finetune(
        ALL, S_SSV2, 56.9, 384, 2, 40, 5, 1.5e-3, 0.7, 0.1, 0.0, 0.05, True
    ),
    ("videomae_ssv2", "B"): Finetune(ALL, B_SSV2, 180.3, 384, 2, 30, 5, 7.5e-4, *V1, True),
    ("videomae_ssv2_800", ""): Finetune(ALL, B_SSV2, 180.3, 512, 1, 50, 5, 1e-3, *V1, True),
    ("adamae_k400", ""): Finetune(ALL, B_K400, 180.3, 512, 1, 100, 5, 2e-3, *V1, True),
    ("adamae_ssv2", ""): Finetune(ALL, B_SSV2, 180.3, 512, 1, 50, 5, 1e-3, *V1, True),
    ("dual_ssv2", ""): Finetune(ALL, B_SSV2, 180.3, 512, 1, 50, 5, 1e-3, *V1, True),
    ("motion_tube_ssv2", ""): Finetune(ALL, B_SSV2, 180.3, 512, 1, 50, 5, 1e-3, *V1, True),
    # Positions of ViT-L, (8 + 196) x 1024, are parameters here.
    ("mae_st_k400", ""): Finetune(
        ALL, L_K400 + 208_896, 596.8, 128, 2, 50, 5, 2.4e-3, 0.75, 0.2, 0.3, 0.05, True
    ),
    ("videomaev2_k710", "B"): Finetune(ALL, 86.773, 180.3, 512, 2, 90, 5, 1.4e-3, *V1, True),
    ("videomaev2_k710", "H"): Finetune(ALL, 632.517, 1191.0, 128, 2, 40, 5, 5e-4, *V2_H, True),
    ("videomaev2_k710", "g"): Finetune(
        ALL_G, 1012.611, 2542.8, 96, 2, 35, 5, 3.75e-4, 0.9, 0.3, 0.0, 0.1, True
    ),
    ("videomaev2_k400", "B"): Finetune(ALL, B_K400, 180.3, 512, 2, 90, 5, 1.4e-3, *V1, True),
    ("videomaev2_k400", "L"): Finetune(ALL, L_K400, 596.8, 192, 2, 35, 5, 1.5e-3, *V2_L, True),
    ("videomaev2_k400", "H"): Finetune(ALL, H_K400, 1191.0, 128, 2, 40, 5, 5e-4, *V2_H, True),
    ("videomaev2_k400", "g"): Finetune(
        ALL_G, 1012.174, 2542.8, 192, 2, 30, 5, 7.5e-4, 0.9, 0.2, 0.0, 0.1, True
    ),
    # 600 (1280 + 1) more than the body of ViT-H; ViT-g: 1,011.611 M and C (1408 + 1).
    ("videomaev2_k600", ""): Finetune(ALL, 632_375_640, 1191.0, 128, 2, 40, 5, 5e-4, *V2_H, True),
    ("videomaev2_k400_from_k710", ""): Finetune(
        ALL_G, 1012.174, 2542.8, 96, 2, 3, 1, 3.75e-6, 0.9, 0.25, 0.0, 0.1, True
    ),
    ("videomaev2_k600_from_k710", ""): Finetune(
        ALL_G, 1012.456, 2542.8, 96, 2, 3, 1, 3.75e-6, 0.9, 0.25, 0.0, 0.1, True
    ),
    ("videomaev2_ssv2", "B"): Finetune(
        ALL, B_SSV2, 180.3, 256, 2, 25, 5, 2e-3, 0.65, 0.1, 0.0, 0.05, True
    ),
    ("videomaev2_ssv2", "L"): Finetune(ALL, L_SSV2, 596.8, 192, 2, 20, 5, 3.75e-4, *V2_L, True),
    ("videomaev2_ssv2", "H"): Finetune(
        ALL, 631_829_934, 1191.0, 128, 2, 20, 5, 2.5e-4, 0.8, 0.2, 0.0, 0.05, True
    ),
    ("videomaev2_ssv2", "g"): Finetune(
        ALL_G, 1011.856, 2542.8, 96, 2, 20, 5, 1.125e-4, 0.9, 0.25, 0.0, 0.05, True
    ),
    ("videomaev2_ucf101_from_k710", ""): Finetune(
        ALL_G, 1011.753, 2542.8, 24, 2, 50, 5, 9.375e-5, 0.9, 0.35, 0.5, 0.05, True
    ),
    ("videomaev2_hmdb51_from_k710", ""): Finetune(
        ALL_G, 1011.683, 2542.8, 24, 2, 15, 5, 4.6875e-5, 0.9, 0.35, 0.5, 0.05, True
    ),
}

V1_AVA, G_AVA = (0.2, 0.0, 0.05, False), (0.9, 0.3, 0.0, 0.05, False)
# Detectors; from L on the parameters are those of K400 with 320 rows of the head less.
DETECT = {
    ("ava_v22", "S"): Finetune(ALL, 21_910_736, 56.9, 128, 1, 30, 5, 5e-4, 0.6, *V1_AVA),
    ("ava_v22", "B"): Finetune(ALL, 86_288_720, 180.3, 128, 1, 30, 5, 1.25e-4, 0.75, *V1_AVA),
    ("ava_v22", "L"): Finetune(ALL, 303_942_736, 596.8, 128, 1, 30, 5, 1.25e-4, 0.75, *V1_AVA),
    ("ava_v22", "H"): Finetune(ALL, 631_709_520, 1191.0, 128, 1, 20, 5, 2.5e-4, 0.8, *V1_AVA),
    ("ava_v22", "g"): Finetune(ALL_G, 1011.723, 2542.8, 128, 1, 10, 2, 1.5e-4, *G_AVA),
    ("ava_kinetics", "g"): Finetune(ALL_G, 1011.723, 2542.8, 128, 1, 10, 2, 1.5e-4, *G_AVA),
}

# What a run starts from, where it is not the pre-training of the same recipe.
START = {
    **{
        (leaf, size): f"videomaev2_hybrid_{size}"
        for leaf, size in FINETUNE
        if leaf in ("videomaev2_k710", "videomaev2_k400", "videomaev2_ssv2")
    },
    ("videomaev2_k600", ""): "videomaev2_hybrid_H",
    **{
        (leaf, size): "videomaev2_k710_g_finetune"
        for leaf, size in FINETUNE
        if leaf.endswith("from_k710")
    },
}


def known() -> list[tuple[str, str, str]]:
    """(leaf, size, task) of everything there is, evaluation as fine-tuning."""
    found = [(*recipe, "pretrain") for recipe in PRETRAIN]
    found += [(*recipe, task) for recipe in FINETUNE for task in ("finetune", "evaluate")]
    return sorted(found)


def data_of(leaf: str) -> Data:
    """Of the data set in the leaf's name; `<method>_<data>` or `<method>_<data>_<more>`."""
    (name,) = [word for word in leaf.removesuffix("_from_k710").split("_") if word in DATA]
    return DATA[name]._replace(views=VIEWS.get(leaf, DATA[name].views))
