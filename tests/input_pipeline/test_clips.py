"""Frame indices: the released rules' golden numbers, hand-worked examples, and their limits."""

import numpy as np

from input_pipeline.transforms import clips

V1, V2 = "frames_videomae", "frames_videomaev2"


class Drawn:
    """A generator that draws what it is told, if it is asked for a number of `bounds`."""

    def __init__(self, value, bounds=None):
        self.value, self.bounds = value, bounds

    def integers(self, low, high=None, size=None):
        assert self.bounds in (None, (0, low) if high is None else (low, high))
        return self.value


def at(rule, value, n, num_frames, stride=1, bounds=None):
    """Indices for a draw."""
    return clips.SAMPLING[rule](Drawn(value, bounds), n, num_frames, stride).tolist()


def rows_of(shared, release, part):
    """The rows of one table of golden frame numbers, with those numbers from 0 on as "frames"."""
    with np.load(shared / "golden" / f"{release}.npz", allow_pickle=False) as file:
        columns = {k.split("/")[1]: file[k] for k in file.files if k.startswith(f"{part}/")}
    count = len(columns["duration"])
    assert count >= 24
    if "frame_ids_1based" in columns:
        columns["frame_ids"] = columns["frame_ids_1based"] - 1
    for i in range(count):
        row = {name: column[i] for name, column in columns.items() if len(column) == count}
        yield row | {"n": int(row["duration"]), "frames": row["frame_ids"].tolist()}


def test_training_rows_are_golden(shared):
    for release in (V1, V2):
        for row in rows_of(shared, release, "pretrain"):
            if not row["temporal_jitter"]:
                draw = int(row["offset_1based"]) - 1, row["n"], 16, int(row["rate"])
                bounds = 0, row["randint_high"]
                assert at("pretrain", *draw, bounds) == row["frames"]
        for row in rows_of(shared, release, "cls_trainval"):
            end, stride, n = int(row["randint_value"]), int(row["rate"]), row["n"]
            bounds = row["randint_low"], row["randint_high"]
            if release == V2 and row["is_val"]:  # Nothing is drawn: the window is the middle one.
                end, bounds = (n + 16 * stride) // 2, None
            assert at("finetune", end, n, 16, stride, bounds) == row["frames"]
    for release, part, rule in (V1, "ss_trainval", "segments"), (V2, "raw_trainval", "segments_v2"):
        for row in rows_of(shared, release, part):
            middle = release == V2 and row["is_val"]
            drawn = row["randint_value"], row["randint_high"]
            value, high = drawn if row["n"] >= 16 else (0, 1)  # Frames that are repeated.
            name = "segments_center" if middle else rule
            assert at(name, value, row["n"], 16, 1, (0, high)) == row["frames"]


def test_view_rows_are_golden(shared):
    for release, part, rule, segments in (
        (V1, "cls_test_seg5", "finetune", 5),
        (V1, "cls_test_seg10", "finetune", 10),
        (V2, "cls_test_seg5", "finetune", 5),
        (V2, "cls_test_seg10", "finetune", 10),
        (V1, "ss_test", "segments", 2),
        (V2, "raw_test", "segments_v2", 2),
        (V2, "cls_test_sparse_seg5", "segments_v2", 5),
    ):
        for row in rows_of(shared, release, part):
            views = clips.VIEWS[rule](row["n"], 16, int(row.get("rate", 1)), segments)
            assert views.shape == (segments, 16)
            assert views[row["chunk_nb"]].tolist() == row["frames"], (release, part)


def test_released_rules_by_hand():
    steps = at("finetune", 64, 200, 16, 4)  # A little longer than the stride.
    assert steps[:9] == [0, 4, 8, 12, 17, 21, 25, 29, 34]
    walk = at("pretrain", 0, 40, 16, 4)
    assert walk == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36] + [36] * 6
    assert at("pretrain", 0, 3, 16, 4) == [0] * 16
    assert at("pretrain", 0, 5, 4, 2) == [0, 2, 2, 2]
    assert at("pretrain", 0, 6, 4, 2) == [0, 2, 4, 4]
    spread = at("finetune", 40, 40, 16, 4)
    assert spread == [0, 4, 8, 13, 17, 22, 26, 31, 35, 39] + [39] * 6
    assert at("finetune", 3, 3, 16, 4) == [2] * 16
    assert at("strided", 0, 10, 4, 4) == [0, 4, 8, 9]
    assert at("center", 0, 10, 4, 4) == [0, 4, 8, 9]
    assert at("center", 0, 101, 16, 4) == list(range(20, 81, 4))


def test_segments_by_hand():
    # 11 frames in 4 segments of 2 whole frames; the last 3 are never seen.
    assert at("segments", np.array([0, 1, 1, 0]), 11, 4) == [0, 3, 5, 6]
    assert at("segments_center", 0, 11, 4) == [1, 3, 5, 7]
    assert at("segments", 0, 3, 4) == [0] * 4
    assert at("segments_v2", 0, 3, 4) == [0, 0, 1, 2]
    # Views cut the video into parts of 2.75 frames: 0, 2.75, 5.5, 8.25, then half a part later.
    assert clips.segment_views(11, 4, 1, 2).tolist() == [[0, 2, 5, 8], [1, 4, 6, 9]]
    assert clips.segment_views(11, 4, 1, 1).tolist() == [[1, 3, 5, 7]]
    assert clips.segment_views(3, 4, 1, 1).tolist() == [[0, 0, 1, 2]]


def test_spreads_by_hand():
    # Bins of 2.5 frames: centres at 1.25, 3.75, 6.25, 8.75.
    assert clips.spread_views(10, 4, 1, 1).tolist() == [[1, 3, 6, 8]]
    assert clips.spread_views(10, 4, 1, 2).tolist() == [[0, 3, 5, 8], [1, 4, 6, 9]]
    assert clips.spread_views(3, 4, 1, 1).tolist() == [[0, 1, 1, 2]]
    # Two thirds of the second bin of 9 are 15; in floating point it is a little less.
    assert clips.spread_at(2, 3, 36, 4).tolist() == [6, 15, 24, 33]
    assert clips.spread_at((1 << 20) - 1, 1 << 20, 10**6, 64)[-1] == 10**6 - 1


def test_draws_cover_all_starts_and_stay_inside():
    for name, rule in clips.SAMPLING.items():
        rng = np.random.default_rng(0)
        drawn = np.stack([rule(rng, 40, 4, 4) for _ in range(800)])
        # 16 frames of nominal span in 40; a true span is 13. Fine-tuning never draws the last
        # start. A segment has 10 frames, and so has a bin.
        last = {"pretrain": 24, "finetune": 23, "strided": 27, "center": 13}.get(name, 9)
        middle = {"center": 13, "segments_center": 5, "spread_center": 5}
        starts = {middle[name]} if name in middle else set(range(last + 1))
        assert set(drawn[:, 0].tolist()) == starts, name
        for n in range(1, 40):
            indices = rule(rng, n, 4, 4)
            assert indices.shape == (4,)
            assert indices.dtype == np.int64
            assert 0 <= indices.min() <= indices.max() < n, name
            assert np.all(np.diff(indices) >= 0), name
