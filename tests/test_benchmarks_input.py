"""The input benchmark: whose time it counts, its table, and that both sides make the same clips."""

import argparse
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from benchmarks import ceiling, rates, released
from benchmarks.cases import one_file, reencoded, write_video
from benchmarks.input import MODES, find_cases, ratio, row
from input_pipeline import elements
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError
from input_pipeline.video import decode

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = {"num_frames": 4, "frame_stride": 2, "image_size": 96}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A video of 30 frames, 128 x 160: soft blobs that move by 4 pixels a frame."""
    rng = np.random.default_rng(0)
    canvas = cv2.resize(rng.integers(0, 256, (8, 18, 3), np.uint8), (288, 128))
    path = tmp_path_factory.mktemp("input") / "blobs.mp4"
    write_video(path, [canvas[:, 4 * t : 4 * t + 160] for t in range(30)])
    return path


def test_time_of_living_and_of_ended_children_counts():
    burn = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = rates.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        living = rates.cpu_seconds()
        child.communicate(b"\n")
    assert living - before >= 0.28
    assert rates.cpu_seconds() >= living - 0.02  # Clock ticks are 10 ms.


def test_table_by_hand():
    def numbers(speed, cpu):
        return {"clips_per_s": speed, "clips_per_s_per_core": speed / 2, "cpu_ms_per_clip": cpu}

    ours = [numbers(100.0, 8.0), numbers(120.0, 10.0), numbers(90.0, 9.0)]
    theirs = [numbers(20.0, 45.0), numbers(25.0, 36.0), numbers(30.0, 40.0)]
    assert row("a.mp4", "pretrain", "ours", ours) == (
        "| pretrain | a.mp4 | ours | 100.0 (90.0 - 120.0) | 50.0 | 9.00 (8.00 - 10.00) | 4.5 |"
    )
    line = ratio("a.mp4", "pretrain", "ours", ours, theirs)
    assert "**4.00**" in line  # 100 / 25 clips/s
    assert "**4.44**" in line  # 40 / 9 ms
    scaled = [
        {"threads": 1, "bound": 1.0, "cores": 1, "clips_per_s": 50.0, "cpu_ms_per_clip": 20.0},
        {"threads": 2, "bound": 1.0, "cores": 2, "clips_per_s": 95.0, "cpu_ms_per_clip": 21.0},
    ]
    assert ceiling.rows("views", "b", scaled)[1] == "| views | b | 2 | 2 | 95.0 | 1.90 | 21.00 |"


def test_normalised_is_the_formula():
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    wanted = (video / 255 - released.MEAN) / released.STD
    np.testing.assert_allclose(rates.normalised(video), wanted, atol=1e-6)


def test_views_are_counted_one_by_one(path: pathlib.Path):
    spec = ClipSpec(**SMALL, **MODES["views"])
    numbers = rates.measure(
        one_file(path).records,
        spec,
        seconds=0.05,
        threads=1,
        workers=0,
        batch_size=4,
        mode="views",
    )
    assert numbers["clips"] >= 15
    assert numbers["clips"] % 15 == 0
    assert numbers["skipped"] == 0


def test_reencoded_has_the_same_frames_and_more_keyframes(path: pathlib.Path, tmp_path):
    case = one_file(path)
    again = reencoded(case, tmp_path)
    assert len({record.path for record in again.records}) == 1
    pair = [decode.read_frames(c.records[0].path, np.arange) for c in (case, again)]
    assert len(pair[0]) == len(pair[1]) == 30
    difference = np.abs(np.float32(pair[0]) - np.float32(pair[1])).mean()
    assert 0 < difference < 4


def test_command_line(path: pathlib.Path, tmp_path):
    report = tmp_path / "report.json"
    command = f"-m benchmarks.input --videos {path} --mode views --rounds 2 --seconds 0.1"
    sizes = f"--image_size 32 --num_frames 4 --threads 1 --json {report}"
    done = subprocess.run(
        [sys.executable, *command.split(), *sizes.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| views | blobs.mp4 | ours |" in done.stdout
    [case] = json.loads(report.read_text())["measured"]
    assert [len(rounds) for rounds in case["rounds"].values()] == [2]
    assert all(numbers["clips"] for rounds in case["rounds"].values() for numbers in rounds)


def test_a_folder_without_videos_is_named(tmp_path):
    flags = argparse.Namespace(list="", videos=[str(tmp_path)])
    with pytest.raises(DataError, match=f"--videos {tmp_path}: neither"):
        find_cases(flags, tmp_path)


def levels(clip) -> np.ndarray:
    """Normalised float32 `[C, T, H, W]` as grey levels `[T, H, W, C]`."""
    return (clip.permute(1, 2, 3, 0).numpy() * released.STD + released.MEAN) * 255


@pytest.mark.skipif(bool(released.missing()), reason="needs torch, decord, pillow")
@pytest.mark.parametrize(("mode", "most"), [("pretrain", 1.0), ("finetune", 1.5), ("views", 0.1)])
def test_both_sides_make_the_same_clips(path: pathlib.Path, mode, most):
    """The released loader's clip is ours up to interpolation: the same frames, boxes, draws."""
    spec = ClipSpec(**SMALL, **MODES[mode])._replace(erasing=0.0)
    records = one_file(path).records
    if mode == "views":
        ours = elements.views(records, spec, 0)["video"]
        samples = released.Samples(records, spec, mode)
        pairs = [(samples[view][0], ours[view]) for view in range(15)]
    else:
        make = {"pretrain": released.pretrain_sample, "finetune": released.finetune_sample}[mode]
        pairs = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            ours = elements.train_element(records, spec, None, 0, rng)["video"][0]
            pairs.append((make(records[0], spec, np.random.default_rng(seed)), ours))
    differences = [np.abs(levels(theirs) - ours).mean() for theirs, ours in pairs]
    assert max(differences) < most
    others = [np.abs(levels(pairs[0][0]) - ours).mean() for _, ours in pairs[1:]]
    assert min(others) > 4 * most  # So near only for the same draws.
