"""Features of windows over whole videos, one .npy file for each: for temporal detection.

    python main.py --config configs/features.py --config.init_from=WEIGHTS \
        --config.data.test=videos.txt --workdir DIR
    python main.py --config configs/features.py:videomaev2 ...   # as VideoMAE V2's extractor

Number of frames, their distance, size and patch are those of the weights unless given.
`videomaev2` is what the released extractor does with ViT-g fine-tuned on K710, for THUMOS14: 16
consecutive frames, a window every 4 (FineAction: `--config.options.stride=16`), each squashed to
224 x 224 without antialiasing and not normalised (VideoMAEv2 29eab1e, extract_tad_feature.py).
"""

from configs import common


@common.recipe(tasks=("features",), pixels=("normalised", "videomaev2"))
def get_config(c: common.Config, task: str, size: str, pixels: str) -> None:
    common.of_weights(c)
    c.options = common.Config({"stride": 4, "pixels": pixels})
    if pixels == "videomaev2":
        c.data.update(num_frames=16, frame_stride=1, image_size=224)
        c.model.dtype = "float32"
