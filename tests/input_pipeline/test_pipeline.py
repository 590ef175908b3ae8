"""Batches depend on (seed, epoch, index) only: not on threads, workers, hosts, cache or damage."""

import itertools

import numpy as np
import pytest
import whole_frames

from benchmarks.input import measure, write_videos
from input_pipeline import loader as pipeline
from input_pipeline.elements import ClipSpec
from input_pipeline.loader import eval_batches, train_batches
from input_pipeline.sources import records
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import randaugment as augment
from input_pipeline.video import decode

SPEC = ClipSpec(num_frames=4, frame_stride=2, image_size=32)
RICH = SPEC._replace(
    sampling="finetune",
    crop="random_resized",
    flip=True,
    rand_augment="rand-m7-n4-mstd0.5-inc1",
    erasing=0.5,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return write_videos(tmp_path_factory.mktemp("good"), 7, num_frames=20)


@pytest.fixture(scope="module")
def mixed(good: list[Record], tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Good ones with one text file and one absent file between them."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("no video")
    bad = [Record(name, str(folder / name), 7) for name in ("text.mp4", "absent.mp4")]
    return [*good[:2], bad[0], *good[2:4], bad[1], *good[4:]]


def take(records: list[Record], spec: ClipSpec, count: int, **options: object) -> list[dict]:
    options = {"batch_size": 4, "seed": 3} | options
    batches = train_batches(records, spec, **options)  # type: ignore[arg-type]
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def equal(left: list[dict], right: list[dict]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(left, right)
    )


def test_shapes_types_and_labels(good: list[Record]) -> None:
    batch = take(good, RICH, 1)[0]
    shapes = {name: (array.shape, str(array.dtype)) for name, array in batch.items()}
    assert shapes == {
        "video": ((4, 4, 32, 32, 3), "uint8"),
        "label": ((4,), "int32"),
        "index": ((4,), "int32"),
        "skipped": ((4,), "int32"),
        "erase": ((4, 4), "int32"),
    }
    assert "erase" not in take(good, SPEC, 1)[0]
    assert np.array_equal(batch["label"], [good[i].label for i in batch["index"]])
    assert batch["video"].std() > 10


def test_repeats_are_clips_of_one_decode_side_by_side(mixed: list[Record]) -> None:
    one, two, three = (take(mixed, RICH._replace(repeats=r), 4) for r in (1, 2, 3))
    for batch in three:
        shapes = {name: array.shape for name, array in batch.items()}
        rows = ("label", "index", "skipped")
        assert shapes == {"video": (12, 4, 32, 32, 3), "erase": (12, 4)} | dict.fromkeys(
            rows, (12,)
        )
        assert np.array_equal(batch["index"][0::3], batch["index"][2::3])
        assert np.array_equal(batch["label"], [mixed[i].label for i in batch["index"]])
    # Clip r of a video does not depend on how many there are; the first is the unrepeated one.
    for fewer, more, r, of in ((one, three, 1, 3), (two, three, 2, 3), (one, two, 1, 2)):
        kept = np.arange(4 * of) % of < r
        assert equal(fewer, [{k: v[kept] for k, v in batch.items()} for batch in more])
    # A video is counted as skipped once, whatever R.
    skipped = [sum(int(batch["skipped"].sum()) for batch in some) for some in (one, two, three)]
    assert skipped[0] == skipped[1] == skipped[2] > 0
    assert all(not batch["skipped"][np.arange(12) % 3 > 0].any() for batch in three)


def test_repeats_share_their_frames_and_nothing_else(good: list[Record]) -> None:
    # Without augmentation all clips of a video are one: the frames are drawn once.
    plain = SPEC._replace(crop="center", repeats=3)
    for batch in take(good, plain, 2):
        video = batch["video"].reshape(4, 3, *batch["video"].shape[1:])
        assert np.array_equal(video, np.repeat(video[:, :1], 3, axis=1))
    for change in ({"crop": "random_resized"}, {"flip": True}, {"rand_augment": "rand-m9-n4"}):
        spec = plain._replace(**change)
        pairs = [b["video"].reshape(4, 3, -1) for b in take(good, spec, 3)]
        same = [np.array_equal(v[i], v[j]) for p in pairs for v in p for i, j in PAIRS]
        assert 0 <= np.mean(same) < 0.75
    boxes = np.concatenate([b["erase"] for b in take(good, plain._replace(erasing=1.0), 3)])
    assert len(np.unique(boxes, axis=0)) == len(boxes) == 36


PAIRS = ((0, 1), (0, 2), (1, 2))


def test_repeats_keep_order_over_threads_hosts_and_restarts(mixed: list[Record]) -> None:
    spec = RICH._replace(repeats=2)
    whole = take(mixed, spec, 3)
    assert equal(whole, take(mixed, spec, 3, threads=3, cache_gb=1.0))
    assert equal(whole[1:], take(mixed, spec, 2, start=4))
    parts = [take(mixed, spec, 3, shard=(i, 2)) for i in range(2)]
    for step in range(3):
        for name, array in whole[step].items():
            by_video = array.reshape(4, 2, *array.shape[1:])
            for i in range(2):
                want = by_video[2 * i : 2 * i + 2].reshape(4, *array.shape[1:])
                assert np.array_equal(want, parts[i][step][name])


def test_the_first_clip_of_a_repeated_element_stands_for_it(good: list[Record]) -> None:
    one, two = (pipeline.clip(good, RICH._replace(repeats=r), 1, seed=0) for r in (1, 2))
    assert equal([one], [two])
    assert one["video"].shape == (4, 32, 32, 3)
    assert one["erase"].shape == (4,)


def test_each_epoch_holds_each_record_once_in_a_new_order(good: list[Record]) -> None:
    order = np.concatenate([b["index"] for b in take(good, SPEC, 7, batch_size=2)])
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7].tolist() != order[7:14].tolist()
    other = np.concatenate([b["index"] for b in take(good, SPEC, 7, batch_size=2, seed=4)])
    assert order.tolist() != other.tolist()


def test_damage_and_threads_do_not_change_bytes(mixed: list[Record]) -> None:
    failures = records.Failures()
    one = take(mixed, RICH, 5, threads=1, failures=failures)
    assert equal(one, take(mixed, RICH, 5, threads=3))
    assert equal(one, take(mixed, RICH, 5, threads=2, cache_gb=1.0))
    assert equal(one, take(mixed, RICH, 5, threads=2, cache_gb=0.01))
    assert dict(failures.items) == {
        "text.mp4": "not a video FFmpeg can read (Invalid data found when processing input)",
        "absent.mp4": "no such file",
    }
    seen = np.concatenate([b["index"] for b in one])
    assert not {2, 5} & set(seen.tolist())
    assert failures.count == sum(int(b["skipped"].sum()) for b in one) >= 2


def test_worker_process_gives_the_same_bytes_and_failures(mixed: list[Record]) -> None:
    failures = records.Failures()
    workers = take(mixed, SPEC, 3, workers=1, cache_gb=0.1, failures=failures)
    assert equal(take(mixed, SPEC, 3), workers)
    assert {name for name, _ in failures.items} == {"text.mp4", "absent.mp4"}


def test_shards_together_are_one(mixed: list[Record]) -> None:
    whole = take(mixed, RICH, 3, batch_size=4)
    parts = [take(mixed, RICH, 3, batch_size=4, shard=(i, 2)) for i in range(2)]
    for step in range(3):
        for name, array in whole[step].items():
            for i in range(2):
                assert np.array_equal(array[2 * i : 2 * i + 2], parts[i][step][name])


def test_restart_goes_on_where_it_stopped(good: list[Record]) -> None:
    whole = take(good, RICH, 5)
    batches = train_batches(good, RICH, batch_size=4, seed=3)
    for _ in range(2):
        next(batches)
    batches.close()
    assert equal(whole[2:], take(good, RICH, 3, start=8))


def test_an_element_is_decode_choose_crop_resize(good: list[Record]) -> None:
    spec = SPEC._replace(sampling="center", crop="center")
    element = pipeline.clip(good, spec, position=2, seed=0)
    frames = decode.read_frames(good[2].path, clips.center_indices(20, 4, 2))
    want = spatial.resize_clip(frames, (0, 40, 240, 240), 32)
    assert np.array_equal(element["video"], want)
    assert (element["label"], element["index"], element["skipped"]) == (2, 2, 0)


def test_draws_come_in_the_released_order_from_one_generator(good: list[Record]) -> None:
    policy = augment.parse_rand_augment(RICH.rand_augment)
    erased = 0
    for position in range(4):
        element = pipeline.clip(good, RICH, position, seed=5)
        # Frames; RandAugment at the video's own size; crop; mirroring; erasing.
        rng = np.random.default_rng([5, position])
        indices = clips.finetune_indices(rng, 20, 4, 2)
        frames = np.stack(decode.read_frames(good[position].path, indices))
        assert frames.shape == (4, 240, 320, 3)
        frames = whole_frames.rand_augment(rng, frames, policy)
        box = spatial.random_resized_crop(rng, 240, 320)
        flip = rng.random() < 0.5
        wanted = spatial.resize_clip(list(frames), box, 32, flip)
        assert (element["video"] != wanted).mean() < 1e-3  # Color and Sharpness round elsewhere.
        assert np.array_equal(element["erase"], augment.erasing_box(rng, 32, 0.5))
        erased += bool(element["erase"].any())
    assert 0 < erased < 4


def test_a_clip_is_addressed_by_position_and_seed(mixed: list[Record]) -> None:
    first, again = (pipeline.clip(mixed, RICH, 3, seed=1) for _ in range(2))
    assert equal([first], [again])
    assert not np.array_equal(first["video"], pipeline.clip(mixed, RICH, 3, seed=2)["video"])
    replaced = pipeline.clip(mixed, SPEC, 2, seed=0)
    assert replaced["skipped"] >= 1
    assert replaced["index"] not in (2, 5)


def test_only_bad_records_end_with_the_first_reason(mixed: list[Record]) -> None:
    bad = [mixed[5]]
    message = r"16 videos in a row cannot be used, first absent.mp4 \(.*absent.mp4\): no such file"
    with pytest.raises(decode.VideoError, match=message):
        take(bad, SPEC, 1)
    with pytest.raises(decode.VideoError, match=r"^absent.mp4 cannot be used: no such file$"):
        pipeline.clip(bad, SPEC, 0, seed=0)


def test_impossible_settings_are_refused(good: list[Record]) -> None:
    cases: list[tuple[list[Record], ClipSpec, dict, str]] = [
        ([], SPEC, {}, "no records to read"),
        (good, SPEC, {"batch_size": 3, "shard": (0, 2)}, "batch_size=3 does not divide by 2 hosts"),
        (good, SPEC, {"batch_size": 0}, "batch_size=0"),
        (good, SPEC, {"shard": (2, 2)}, "shard 2 of 2"),
        (good, SPEC._replace(sampling="dense"), {}, "data.sampling='dense' is none of pretrain, "),
        (good, SPEC._replace(crop="big"), {}, "data.crop='big' is none of multi_scale, "),
        (good, SPEC._replace(repeats=0), {}, "data.repeats=0; it must be 1 or more"),
    ]
    for given, spec, options, message in cases:
        for read in (lambda *a, **k: train_batches(*a, seed=0, **k), eval_batches):
            with pytest.raises(DataError) as error:
                read(given, spec, **({"batch_size": 2} | options))
            assert str(error.value).startswith(message)
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="rand-x"):
        train_batches(good, SPEC._replace(rand_augment="rand-x"), batch_size=2, seed=0)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_evaluation_meets_each_record_once(mixed: list[Record], shards: int) -> None:
    spec = SPEC._replace(num_segments=2, num_crops=3)
    failures = records.Failures()
    parts = [
        list(eval_batches(mixed, spec, batch_size=4, shard=(i, shards), failures=failures))
        for i in range(shards)
    ]
    assert {len(part) for part in parts} == {3}
    batches = [batch for part in parts for batch in part]
    assert {b["video"].shape for b in batches} == {(4 // shards, 6, 4, 32, 32, 3)}
    positions = np.concatenate([b["index"] for b in batches])
    valid = np.concatenate([b["valid"] for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    assert sorted(positions[positions >= 0]) == list(range(9))
    assert sorted(positions[valid]) == [0, 1, 3, 4, 6, 7, 8]
    assert np.array_equal(labels >= 0, positions >= 0)
    assert all(mixed[i].label == label for i, label in zip(positions, labels) if i >= 0)
    assert {name for name, _ in failures.items} == {"text.mp4", "absent.mp4"}
    assert all((b["video"][row].any()) == b["valid"][row] for b in batches for row in range(1))
    for part in parts:
        order = np.concatenate([b["index"] for b in part])
        assert np.all(np.diff(order[order >= 0]) > 0)


@pytest.mark.parametrize(
    ("sampling", "indices"),
    [
        ("pretrain", clips.view_indices(20, 4, 2, 2)),
        ("center", clips.view_indices(20, 4, 2, 2)),
        ("segments_center", np.array([[0, 5, 10, 15], [2, 7, 12, 17]])),
        ("spread_center", np.array([[1, 6, 11, 16], [3, 8, 13, 18]])),
    ],
)
def test_evaluation_views_are_those_of_one_full_read(
    good: list[Record], sampling: str, indices: np.ndarray
) -> None:
    spec = SPEC._replace(num_segments=2, num_crops=3, sampling=sampling)
    (batch,) = eval_batches(good[:1], spec, batch_size=1, threads=1)
    frames = decode.read_frames(good[0].path, indices.ravel())
    assert np.array_equal(batch["video"][0], spatial.views_from_frames(frames, 32, 2, 3))


def test_leaving_evaluation_early_stops_its_threads(good: list[Record]) -> None:
    batches = eval_batches(good, SPEC, batch_size=1)
    next(batches)
    batches.close()


def test_benchmark_counts_clips(good: list[Record]) -> None:
    numbers = measure(good, SPEC, seconds=0.2, threads=1, workers=0, batch_size=2)
    assert numbers["clips"] >= 2
    assert numbers["clips"] % 2 == 0
    assert numbers["skipped"] == 0
    assert numbers["cpu_ms_per_clip"] > 0
