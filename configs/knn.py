"""Nearest neighbours on the features of any encoder: what it knows before anything is trained.

    python main.py --config configs/knn.py --config.init_from=WEIGHTS \
        --config.data.train=train.txt --config.data.test=test.txt

k = 20, temperature 0.07, the test transform on both sides, as DINO scores (arXiv 2104.14294); one
view of each video, `--config.eval.num_segments=5` for the mean of more. Number of frames, size and
patch are those of the weights.
"""

from configs import common


@common.recipe(tasks=("knn",))
def get_config(c: common.Config, task: str, size: str) -> None:
    c.eval.update(num_segments=1, num_crops=1)
    common.of_weights(c)
