"""Frame indices: the released rules' golden numbers, hand-worked examples, and their limits."""

import pathlib

import numpy as np
import pytest

from input_pipeline import clips


@pytest.fixture(scope="module")
def golden(shared: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "frames_videomae.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_pretrain_rows_are_golden(golden: dict[str, np.ndarray]) -> None:
    plain = np.flatnonzero(~golden["pretrain/temporal_jitter"])
    assert len(plain) == 24
    for row in plain:
        n, stride = (int(golden[f"pretrain/{key}"][row]) for key in ("duration", "rate"))
        offset = int(golden["pretrain/offset_1based"][row]) - 1
        want = golden["pretrain/frame_ids"][row]
        assert np.array_equal(clips.pretrain_at(offset, n, 16, stride), want)
        high = golden["pretrain/randint_high"][row]
        assert high == (n - 16 * stride + 1 if n >= 16 * stride else -1)


def test_finetune_rows_are_golden(golden: dict[str, np.ndarray]) -> None:
    for row in range(48):
        n, stride = (int(golden[f"cls_trainval/{key}"][row]) for key in ("duration", "rate"))
        end = int(golden["cls_trainval/randint_value"][row])
        want = golden["cls_trainval/frame_ids"][row]
        assert np.array_equal(clips.finetune_at(end, n, 16, stride), want)
        assert golden["cls_trainval/randint_low"][row] == (16 * stride if n > 16 * stride else -1)


@pytest.mark.parametrize("segments", [5, 10])
def test_view_rows_are_golden(golden: dict[str, np.ndarray], segments: int) -> None:
    part = {k.split("/")[1]: v for k, v in golden.items() if f"seg{segments}/" in k}
    for row, want in enumerate(part["frame_ids"]):
        n, stride, segment = (int(part[k][row]) for k in ("duration", "rate", "chunk_nb"))
        views = clips.view_indices(n, 16, stride, segments)
        assert views.shape == (segments, 16)
        assert np.array_equal(views[segment], want)


def test_short_videos_by_hand() -> None:
    walk = clips.pretrain_at(0, 40, 16, 4)
    assert walk.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36] + [36] * 6
    assert clips.pretrain_at(0, 3, 16, 4).tolist() == [0] * 16
    assert clips.pretrain_at(0, 5, 4, 2).tolist() == [0, 2, 2, 2]
    assert clips.pretrain_at(0, 6, 4, 2).tolist() == [0, 2, 4, 4]
    spread = clips.finetune_at(40, 40, 16, 4)
    assert spread.tolist() == [0, 4, 8, 13, 17, 22, 26, 31, 35, 39] + [39] * 6
    assert clips.finetune_at(3, 3, 16, 4).tolist() == [2] * 16
    assert clips.strided_at(0, 10, 4, 4).tolist() == [0, 4, 8, 9]
    assert clips.center_indices(10, 4, 4).tolist() == [0, 4, 8, 9]
    assert clips.center_indices(101, 16, 4).tolist() == list(range(20, 81, 4))


def test_starts_of_five_segments_and_the_middle_of_one() -> None:
    assert (clips.view_indices(200, 16, 4, 5)[:, 0] // 4).tolist() == [0, 8, 17, 25, 34]
    assert clips.view_indices(200, 16, 4, 1)[0].tolist() == list(range(17 * 4, 33 * 4, 4))
    assert clips.view_indices(5, 16, 4, 2).tolist() == [[0] + [4] * 15] * 2


def test_finetune_steps_are_a_little_longer_than_the_stride() -> None:
    steps = clips.finetune_at(64, 200, 16, 4)
    assert steps[:9].tolist() == [0, 4, 8, 12, 17, 21, 25, 29, 34]


@pytest.mark.parametrize("name", clips.SAMPLING)
def test_draws_cover_all_starts_and_stay_inside(name: str) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([clips.SAMPLING[name](rng, 40, 4, 4) for _ in range(800)])
    # 16 frames of nominal span in 40; a true span is 13. Fine-tuning never draws the last start.
    last = {"pretrain": 24, "finetune": 23, "strided": 27, "center": 13}[name]
    first = 13 if name == "center" else 0
    assert set(drawn[:, 0].tolist()) == set(range(first, last + 1))
    for n in range(1, 40):
        indices = clips.SAMPLING[name](rng, n, 4, 4)
        assert indices.shape == (4,)
        assert indices.dtype == np.int64
        assert 0 <= indices.min() <= indices.max() < n
        assert np.all(np.diff(indices) >= 0)
