"""Batches depend on (seed, index) only: not on threads, workers, hosts, cache, damage or kills."""

import itertools
import pathlib
from collections import Counter

import numpy as np
import pytest
from deadly import Deadly
from packing import read_frames, refused

from benchmarks.input import write_videos
from input_pipeline import loader
from input_pipeline.elements import ClipSpec
from input_pipeline.loader import eval_batches, train_batches
from input_pipeline.sources.load import Source, load_records
from input_pipeline.sources.records import Failures, Record
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import randaugment as augment
from input_pipeline.video import decode

SPEC = ClipSpec(num_frames=4, frame_stride=2, image_size=32)
CENTER = SPEC._replace(sampling="center", crop="center")
RICH = SPEC._replace(
    sampling="finetune",
    crop="random_resized",
    flip=True,
    rand_augment="rand-m7-n4-mstd0.5-inc1",
    erasing=0.5,
)
UNREADABLE = {
    "text.mp4": "not a video FFmpeg can read (Invalid data found when processing input)",
    "dies.mp4": "no such file",
}
CRASHED = UNREADABLE | {"dies.mp4": "the decoder crashed (SIGABRT)"}  # In a worker.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("good"), 7, num_frames=20)


@pytest.fixture(scope="module")
def mixed(good, tmp_path_factory):
    """Good ones with one text file and one deadly one between them, at 2 and 5."""
    text = tmp_path_factory.mktemp("bad") / "text.mp4"
    text.write_text("no video")
    bad = Record("text.mp4", str(text), 7), Deadly("dies.mp4", "", 7)
    return [*good[:2], bad[0], *good[2:4], bad[1], *good[4:]]


def take(records, spec, count, **options):
    batches = train_batches(records, spec, **({"batch_size": 4, "seed": 3} | options))
    taken = list(itertools.islice(batches, count))
    batches.close()
    assert next(batches, None) is None
    return taken


def test_threads_workers_hosts_cache_and_restarts_do_not_change_bytes(mixed):
    spec, failures = RICH._replace(repeats=2), [Failures(), Failures()]
    whole = take(mixed, spec, 5, threads=1, failures=failures[0])
    for options in (
        {"threads": 3},
        {"threads": 2, "cache_gb": 1.0},
        {"cache_gb": 0.01},
        {"workers": 2, "failures": failures[1]},
    ):
        np.testing.assert_equal(take(mixed, spec, 5, **options), whole, str(options))
    for start in (0, 2):  # In batches; an epoch is 2.25 of them.
        options = {"start": 4 * start, "cache_gb": 1.0}
        np.testing.assert_equal(take(mixed, spec, 5 - start, **options), whole[start:])
        hosts = [take(mixed, spec, 5 - start, shard=(i, 2), **options) for i in range(2)]
        for batch, *parts in zip(whole[start:], *hosts):
            for name, array in batch.items():
                assert np.array_equal(array, np.concatenate([part[name] for part in parts]))
    assert failures == [UNREADABLE, CRASHED]
    assert sum(int(batch["skipped"].sum()) for batch in whole) >= 2
    assert not {2, 5} & {int(i) for batch in whole for i in batch["index"]}
    assert not any(batch["skipped"][1::2].any() for batch in whole)  # Once a video.


def test_each_epoch_holds_each_record_once_in_a_new_order(good):
    order, other = (
        np.concatenate([b["index"] for b in take(good, SPEC, 7, batch_size=2, seed=seed)])
        for seed in (3, 4)
    )
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7].tolist() != order[7:14].tolist()
    assert order.tolist() != other.tolist()


def test_repeats_share_their_frames_and_nothing_else(good):
    one, two, three = (take(good, RICH._replace(repeats=r), 3, cache_gb=1.0) for r in (1, 2, 3))
    for fewer, more, r, of in ((one, three, 1, 3), (two, three, 2, 3)):  # Clip r does not know R.
        kept = np.arange(4 * of) % of < r
        np.testing.assert_equal([{k: v[kept] for k, v in b.items()} for b in more], fewer)
    plain = CENTER._replace(sampling="pretrain", repeats=3)
    for change in (
        {},
        {"crop": "random_resized"},
        {"flip": True},
        {"rand_augment": "rand-m9-n4-inc1"},
    ):
        batches = take(good, plain._replace(**change), 3, cache_gb=1.0)
        videos = [b["video"].reshape(4, 3, -1) for b in batches]
        pairs = [(v[i], v[j]) for b in videos for v in b for i, j in ((0, 1), (0, 2), (1, 2))]
        same = np.mean([np.array_equal(*pair) for pair in pairs])
        assert (same < 0.75) if change else (same == 1), change
    boxes = np.concatenate([b["erase"] for b in take(good, plain._replace(erasing=1.0), 3)])
    assert len(np.unique(boxes, axis=0)) == len(boxes) == 36


def test_an_element_is_decode_choose_augment_crop_mirror_erase(mixed):
    out, policy = np.empty((4, 32, 32, 3), np.uint8), augment.parse_rand_augment(RICH.rand_augment)
    erased = 0
    for position in (0, 1, 3, 4, 6, 7):
        element = loader.clip(mixed, RICH._replace(repeats=2), position, seed=8)
        # The draws in the released order, from one generator.
        rng = np.random.default_rng([8, position])
        chosen = clips.finetune(rng, 20, 4, 2)
        frames = read_frames(mixed[position].path, chosen)
        layers = augment.draw_layers(rng, policy)
        box, flip = spatial.random_resized_crop(rng, 240, 320), rng.random() < 0.5
        augment.augmented_clip(out, frames, layers, box, flip)
        assert np.array_equal(element["video"], out)
        assert np.array_equal(element["erase"], augment.erasing_box(rng, 32, 0.5))
        erased += bool(element["erase"].any())
    assert 0 < erased < 6
    assert (element["label"], element["index"], element["skipped"]) == (mixed[7].label, 7, 0)
    assert loader.clip(mixed, SPEC, 2, seed=0)["skipped"] >= 1


def test_only_bad_records_end_with_the_first_reason(mixed):
    for read, options in ((take, {"count": 1}), (loader.clip, {"position": 0, "seed": 0})):
        said = "16 videos .*dies.mp4: no such file"
        refused(said, read, [mixed[5]], SPEC, **options, kind=decode.VideoError)


def test_evaluation_meets_each_record_once(mixed):
    spec, failures = SPEC._replace(num_segments=2, num_crops=3), [Failures(), Failures()]
    whole = list(eval_batches(mixed, spec, batch_size=4, failures=failures[0]))
    rows = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
    assert rows["video"].shape == (12, 6, 4, 32, 32, 3)
    assert rows["index"].tolist() == [*range(9), -1, -1, -1]
    assert np.flatnonzero(rows["valid"]).tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert np.array_equal(rows["video"].any((1, 2, 3, 4, 5)), rows["valid"])
    assert rows["label"].tolist() == [*(record.label for record in mixed), -1, -1, -1]
    ids = [bytes(name).rstrip(b"\0").decode() for name in rows["id"]]
    assert ids == [*(record.id for record in mixed), "", "", ""]
    again = eval_batches(mixed, spec, batch_size=4, workers=2, failures=failures[1])
    np.testing.assert_equal(list(again), whole)
    assert failures == [UNREADABLE, CRASHED]
    for hosts in (2, 4):
        for host in range(hosts):
            part = list(eval_batches(mixed, spec, batch_size=4, shard=(host, hosts)))
            assert len(part) == 3
            for name, array in rows.items():
                own = np.concatenate([batch[name] for batch in part])
                assert np.array_equal(own, array[host::hosts]), (name, host, hosts)


def test_evaluation_views_are_windows_of_one_full_read(good):
    for sampling, wanted in {
        "pretrain": clips.strided_views(20, 4, 2, 2),
        "center": clips.strided_views(20, 4, 2, 2),
        "segments_center": np.array([[0, 5, 10, 15], [2, 7, 12, 17]]),
        "spread_center": np.array([[1, 6, 11, 16], [3, 8, 13, 18]]),
    }.items():
        spec = SPEC._replace(num_segments=2, num_crops=3, sampling=sampling)
        (batch,) = eval_batches(good[:1], spec, batch_size=1, threads=1)
        frames = read_frames(good[0].path, wanted.ravel())
        scaled = np.stack([spatial.shrink(frame, 32) for frame in frames]).reshape(2, 4, 32, 42, 3)
        views = [clip[:, :, x : x + 32] for clip in scaled for x in (0, 5, 10)]
        assert np.array_equal(batch["video"][0], views)


def test_parts_of_a_mixture_have_weights_and_strides(good, tmp_path):
    parts = [Source(str(tmp_path / "a.txt")), Source(str(tmp_path / "b.txt"), stride=5)]
    for part, own in zip(parts, (good[:4], good[4:])):
        pathlib.Path(part.path).write_text("\n".join(f"{r.path} {r.label}" for r in own))
    for weight, share in ((1.0, 3 / 7), (4.0, 12 / 16)):
        mixture = load_records([parts[0], parts[1]._replace(weight=weight)])
        batches = take(mixture, CENTER, 14, cache_gb=1.0)
        met = Counter(int(i) for b in batches for i in b["index"])
        drawn = sum(met[i] for i in range(4, 7))
        assert abs(drawn / 56 - share) < 0.03
        assert max(met[i] for i in range(4)) - min(met[i] for i in range(4)) <= 1
    for clip, position in zip(batches[0]["video"], batches[0]["index"]):
        spec = CENTER._replace(frame_stride=2 if position < 4 else 5)
        assert np.array_equal(clip, loader.clip(good, spec, int(position), 0)["video"])
