"""Annotated segments and features: what becomes of them, and what is wrong with a file."""

import contextlib
import functools
import json

import numpy as np
import pytest
from packing import refused

from input_pipeline import segments
from input_pipeline.sources.records import Failures

SPEC = segments.FeatureSpec(columns=4, stride=4, length=32, fit="crop")
CLASSES = ("run", "jump")
FRAMES = {"long": 216, "short": 96, "none": 50}  # 51, 21 and 9 rows.


def video(frames, **more):
    rows = [("jump", 0.1, 1.5), ("run", 2.0, 2.9), ("Ambiguous", 0.0, 1.0)]
    found = [{"label": name, "segment": [start, end]} for name, start, end in rows]
    return {"subset": "a", "duration": frames / 30, "fps": 30, "annotations": found, **more}


@pytest.fixture
def folder(tmp_path):
    """Annotations, features whose first column is the row's number, and their index."""
    database = {name: video(frames) for name, frames in FRAMES.items()}
    database["late"] = video(240, subset="b")
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    for name, frames in FRAMES.items():
        rows = np.zeros(((frames - 16) // 4 + 1, 4), np.float32)
        rows[:, 0] = np.arange(len(rows))
        np.save(tmp_path / f"{name}.npy", rows)
    (tmp_path / "none.npy").unlink()
    index = {"window": 16, "stride": 4, "videos": {"of/short": {"fps": 60}, "long": {"fps": None}}}
    (tmp_path / "of").mkdir()
    (tmp_path / "short.npy").rename(tmp_path / "of" / "short.npy")
    (tmp_path / "features.json").write_text(json.dumps(index))
    return tmp_path


def load(folder, spec=SPEC):
    return segments.load(folder / "truth.json", "a", folder, spec, CLASSES)


def test_seconds_become_steps_and_come_back(folder, caplog):
    found = load(folder)
    assert [record.path != "" for record in found] == [True, True, False]
    long, short, none = (record.truth for record in found)
    jump, run = long.steps()  # Without what is ambiguous.
    np.testing.assert_allclose(jump, [0.1 * 30 / 4 - 2, 1.5 * 30 / 4 - 2, 1], rtol=1e-6)
    assert run[2] == 0
    np.testing.assert_allclose(long.seconds(jump[:2]), [0.1, 1.5], rtol=1e-6)
    assert long.seconds(np.array([-9.0, 999.0])).tolist() == [0.0, 216 / 30]
    assert short.rate == 2 * long.rate
    # One segment of "none" lies behind its end, and is cut off in steps alone.
    assert (len(none.segments), len(none.steps())) == (2, 1)
    assert "1 videos of a have no features in" in caplog.text
    assert "1 segments of a end behind their video; training cuts them, first none" in caplog.text
    resized = load(folder, SPEC._replace(fit="resize"))[0].truth
    each = (50 * 4 + 16) / 32
    np.testing.assert_allclose(resized.steps()[0, :2], np.array([3, 45]) / each - 0.5, rtol=1e-6)
    assert segments.classes(segments.read(folder / "truth.json")) == ("jump", "run")


def test_batches_are_addressed_by_seed_and_index_whatever_reads_them(folder):
    found = [record for record in load(folder) if record.path]

    def take(count, **more):
        batches = segments.train_batches(
            found, SPEC, batch_size=2, seed=1, failures=Failures(), **more
        )
        with contextlib.closing(batches):
            return [next(batches) for _ in range(count)]

    every = take(6)
    np.testing.assert_equal(take(3, start=6, threads=5), every[3:])
    half = take(5, shard=(1, 2))[4]
    np.testing.assert_array_equal(half["video"], every[4]["video"][1:])
    lengths = set()
    for batch in every:
        assert batch["segments"].shape == (2, 2, 3)
        for x, n, index in zip(batch["video"], batch["length"], batch["index"]):
            lengths.add(int(n))
            np.testing.assert_array_equal(x[:n, 0], x[0, 0] + np.arange(n))
            assert not x[n:].any()
            assert n == 32 if index == 0 else 19 <= n <= 21
    assert len(lengths) > 2


def test_evaluation_takes_each_video_once_and_whole(folder):
    found = load(folder)
    take = functools.partial(segments.eval_batches, found, failures=Failures())
    batches = list(take(SPEC, batch_size=1))
    assert [batch["video"].shape[1] for batch in batches] == [64, 32, 32]
    assert [int(batch["length"][0]) for batch in batches] == [51, 21, 0]
    assert [bool(batch["valid"][0]) for batch in batches] == [True, True, False]
    second = list(take(SPEC, batch_size=4, shard=(1, 2)))
    assert [batch["index"].tolist() for batch in second] == [[1, -1]]
    assert second[0]["video"].shape == (2, 64, 4)  # As those of the other shard.
    resized = next(take(SPEC._replace(fit="resize"), batch_size=2))
    assert resized["length"].tolist() == [32, 32]
    np.testing.assert_allclose(np.diff(resized["video"][0, 1:-1, 0]), 51 / 32, rtol=1e-5)


def test_a_broken_file_costs_itself(folder, caplog):
    file, whole = folder / "long.npy", (folder / "long.npy").read_bytes()
    before = [str(record.truth) for record in load(folder)]
    for damaged in (b"", whole[:-1], whole[:40] + b"?" + whole[41:]):
        file.write_bytes(damaged)
        failures, found = Failures(), [record for record in load(folder) if record.path]
        assert "2 videos of a have no features" in caplog.text
        for _ in range(2):
            batches = segments.train_batches(found, SPEC, batch_size=4, seed=1, failures=failures)
            with contextlib.closing(batches):
                batch = next(batches)
            assert set(batch["index"].tolist()) == {1}
            assert batch["skipped"].sum() > 0
            seen = next(segments.eval_batches(found, SPEC, batch_size=2, failures=failures))
            assert seen["valid"].tolist() == [False, True]
            assert not seen["video"][0].any()
            file.unlink(missing_ok=True)  # It may also go after it was looked at.
        assert [*failures] == ["long"]
    file.write_bytes(b"")
    assert [str(record.truth) for record in load(folder)] == before  # A run may resume.
    alone = [record for record in load(folder) if record.id == "long"]
    batches = segments.train_batches(alone, SPEC, batch_size=2, seed=1, failures=Failures())
    refused(r"16 files in a row are unreadable: \('long',", next, batches)


def test_a_wrong_file_is_named(folder):
    truth, text = folder / "truth.json", (folder / "truth.json").read_text()
    for content, said in (
        (text.replace('"fps": 30', '"fps": 0', 1), "long has fps=0, duration=7.2; give both"),
        (text.replace('"run"', '"swim"', 1), "long has class 'swim'; remove it, or train with it"),
        ("{", "truth.json cannot be read"),
    ):
        truth.write_text(content)
        refused(said, load, folder)
    truth.write_text(text)
    np.save(folder / "long.npy", np.zeros((5, 3), np.float32))
    refused("long.npy has 3 columns; .*options.columns=3", load, folder)
