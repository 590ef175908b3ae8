"""Frame indices: the released rules' golden numbers, hand-worked examples, and their limits."""

import numpy as np

from input_pipeline.transforms import clips

V1, V2 = "frames_videomae", "frames_videomaev2"


class Drawn:
    """A generator that draws what it is told, and says from where."""

    def __init__(self, value):
        self.value, self.bounds = value, (-1, -1)

    def integers(self, low, high=None, size=None):
        self.bounds = (0, low) if high is None else (low, high)
        return self.value


def at(rule, value, n, num_frames, stride=1):
    """Indices for a draw."""
    rng = Drawn(value)
    return clips.SAMPLING[rule](rng, n, num_frames, stride).tolist()


def rows_of(shared, release, part):
    """The columns of one table of golden frame numbers, without its name."""
    with np.load(shared / "golden" / f"{release}.npz", allow_pickle=False) as file:
        found = {k.removeprefix(f"{part}/"): file[k] for k in file.files if k.startswith(part)}
    assert len(found) > 3
    return found


def test_training_rows_are_golden(shared):
    for release in (V1, V2):
        golden = rows_of(shared, release, "pretrain")
        plain = np.flatnonzero(~golden["temporal_jitter"])
        assert len(plain) == 24
        for row in plain:
            n, stride, high = (int(golden[k][row]) for k in ("duration", "rate", "randint_high"))
            rng = Drawn(int(golden["offset_1based"][row]) - 1)
            assert np.array_equal(clips.pretrain(rng, n, 16, stride), golden["frame_ids"][row])
            assert rng.bounds[1] == high
        golden = rows_of(shared, release, "cls_trainval")
        for row in range(48):
            n, stride, end = (int(golden[k][row]) for k in ("duration", "rate", "randint_value"))
            span = 16 * stride
            if release == V2 and golden["is_val"][row]:
                assert end == -1  # Nothing is drawn: the window is the middle one.
                end = (n - span) // 2 + span
            else:
                drawn = (span, n) if n > span else (-1, -1)
                assert (golden["randint_low"][row], golden["randint_high"][row]) == drawn
            rng = Drawn(end)
            assert np.array_equal(clips.finetune(rng, n, 16, stride), golden["frame_ids"][row])
            assert rng.bounds == ((span, n) if n > span else (-1, -1))
    for release, part, rule, column, base in (
        (V1, "ss_trainval", clips.segments, "frame_ids", 0),
        (V2, "raw_trainval", clips.segments_v2, "frame_ids_1based", 1),
    ):
        golden = rows_of(shared, release, part)
        assert set(golden["duration"].tolist()) >= {5, 16, 40, 300}
        for row, want in enumerate(golden[column]):
            n, high = int(golden["duration"][row]), int(golden["randint_high"][row])
            if release == V2 and golden["is_val"][row]:
                assert high == -1  # Nothing is drawn.
                got = clips.segments_center(rng, n, 16, 1)
            else:
                assert high == (n // 16 if n >= 16 else -1)
                rng = Drawn(golden["randint_value"][row] if n >= 16 else 0)
                got = rule(rng, n, 16, 1)
            assert np.array_equal(got + base, want)


def test_view_rows_are_golden(shared):
    for release, part, rule, segments, column, base in (
        (V1, "cls_test_seg5", "finetune", 5, "frame_ids", 0),
        (V1, "cls_test_seg10", "finetune", 10, "frame_ids", 0),
        (V2, "cls_test_seg5", "finetune", 5, "frame_ids", 0),
        (V2, "cls_test_seg10", "finetune", 10, "frame_ids", 0),
        (V1, "ss_test", "segments", 2, "frame_ids", 0),
        (V2, "raw_test", "segments_v2", 2, "frame_ids_1based", 1),
        (V2, "cls_test_sparse_seg5", "segments_v2", 5, "frame_ids", 0),
    ):
        golden = rows_of(shared, release, part)
        assert set(golden["chunk_nb"].tolist()) == set(range(segments))
        strides = golden.get("rate", np.ones(len(golden[column]), int))
        for row, want in enumerate(golden[column]):
            n, segment = int(golden["duration"][row]), int(golden["chunk_nb"][row])
            views = clips.VIEWS[rule](n, 16, int(strides[row]), segments)
            assert views.shape == (segments, 16)
            assert np.array_equal(views[segment] + base, want), (release, part, row)


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
    # Two thirds of the second bin of 9 are 15; in floating point 9 * (1 + 2 / 3) is a little less.
    assert clips.spread_at(2, 3, 36, 4).tolist() == [6, 15, 24, 33]
    assert int(9 * (1 + 2 / 3)) == 14
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
