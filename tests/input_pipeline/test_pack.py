"""Packed videos are those of the source, whatever interrupts the work."""

import importlib
import io
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from packing import GOOD, UNEVEN, H, N, W, contents, packing, paint, video

from input_pipeline import decode, pack, packed, staging
from input_pipeline.encode import Options, encode
from input_pipeline.pack import Job
from input_pipeline.records import DataError
from input_pipeline.stills import Stills

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_what_cannot_be_read_is_left_out_and_listed(copied: pathlib.Path) -> None:
    split = packed.manifest(str(copied))["splits"]["train"]
    assert (split["videos"], split["left_out"], split["frames"]) == (3, 2, 3 * N)
    reasons = {names[0]: reason for reason, names in split["failures"].items()}
    assert reasons.keys() == {"text.mp4", "empty.mp4"}
    assert "empty (0 bytes)" in reasons["empty.mp4"]
    assert "not a video" in reasons["text.mp4"]


DEADLY = """
import os, signal
from input_pipeline.records import Record

class Deadly:
    def __init__(self, path):
        self.path, self.home = path, os.getpid()
    def __getitem__(self, index):
        if index == 1 and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGSEGV)
        return Record(f"record {index}", self.path, 7)
"""


def test_a_video_at_which_a_process_dies_is_given_up(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    records = importlib.import_module("deadly").Deadly(str(source.parent / "b.mp4"))
    stage = staging.Stage(records, Options("copy"), tmp_path)
    first, second, third = staging.stage_all(stage, 3, 1)
    assert second.id == "record 1"
    assert "SIGSEGV" in second.reason
    assert (first.id, third.id, first.reason, third.reason) == ("record 0", "record 2", "", "")


def test_processes_that_encode_start_quickly() -> None:
    code = (
        "import sys, input_pipeline.staging\n"
        "print(sorted({'tensorflow_datasets', 'tensorflow', 'jax', 'grain'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_h264_keeps_count_order_and_times(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pack.pack(packing(source, tmp_path / "out", "h264"))
    records = packed.load(str(tmp_path / "out"))
    assert [(record.id, record.label) for record in records] == GOOD
    seconds = {"uneven.mkv": (np.array(UNEVEN) - UNEVEN[0]) / 1e3}
    for record in records:
        assert isinstance(record.data, bytes)
        with decode.open_video(record.source) as opened:
            assert isinstance(opened, decode.Video)
            assert opened.header == (N, H, W, "h264")
            assert record.num_frames == N
            frames = np.stack(opened.read(range(N))).astype(float)
            expected = seconds.get(record.id, np.arange(N) / 25)
            assert np.allclose(opened.clock.times, expected, atol=1e-6)
        painted = np.stack([paint(t) for t in range(N)]).astype(float)
        distance = np.abs(frames[:, None] - painted).mean((2, 3, 4))
        assert np.array_equal(distance.argmin(1), np.arange(N))
        with av.open(io.BytesIO(record.data)) as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        keys = sorted(p.pts for p in packets if p.is_keyframe)
        shown = sorted(p.pts for p in packets)
        assert [shown.index(pts) for pts in keys] == [0, 16, 32]


def test_class_names_survive_options_and_mixtures(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    one = source.parent / "one.txt"
    one.write_text("b.mp4 0\n")
    specs = {"options": f"{one}?weight=2", "mixture": f"{one} + {one}?root={source.parent}"}
    for name, spec in specs.items():
        out = tmp_path / name
        assert pack.pack(Job(spec, out, options=Options("copy"), workers=1))
        assert packed.class_names(str(out)) == ["run", "jump", "sit"]


def test_class_names_that_cannot_be_are_told_before_the_work(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    high = source.parent / "high.txt"
    high.write_text("b.mp4 0\nxvid.avi 3\n")
    out = tmp_path / "out"
    for spec in (f"{high}", f"{source} + {high}"):
        with pytest.raises(DataError, match="label 3, but only 3 class names"):
            pack.pack(Job(spec, out))
    assert not out.exists()
    (tmp_path / "classes.txt").write_text("run\njump\nstand\n")
    other = tmp_path / "other.txt"
    other.write_text(f"{source.parent / 'b.mp4'} 0\n")
    with pytest.raises(DataError, match=f"its class names differ from those of {other}"):
        pack.pack(packing(other, copy, split="test"))
    assert not (copy / staging.FOLDER / "test").exists()


def test_a_finished_pack_is_left_alone(source: pathlib.Path, copy: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert not pack.pack(packing(source, copy))
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_other_wishes_for_the_same_split_are_told_apart(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(DataError, match="packed with --codec copy"):
        pack.pack(packing(source, copy, "h264"))
    with pytest.raises(DataError, match="'train' is packed with --codec copy; use the same"):
        pack.pack(packing(source, copy, "h264", split="test"))
    changed = pathlib.Path(shutil.copytree(source.parent, tmp_path / "changed")) / "train.txt"
    with pytest.raises(DataError, match=f"packed from {source}"):
        pack.pack(packing(changed, copy))


def test_a_second_split_joins_the_first(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = contents(copy)
    other = source.parent / "other.txt"
    other.write_text("xvid.avi 2\nb.mp4 0\n")
    pack.pack(packing(other, copy, split="test", shards=2))
    assert contents(copy) == first
    assert [record.id for record in contents(copy, "test")] == ["xvid.avi", "b.mp4"]
    builder = tfds.builder_from_directory(copy)
    assert [len(builder.as_data_source(name)) for name in ("train", "test")] == [3, 2]
    again = tmp_path / "again"  # A packed folder is a source like any other.
    pack.pack(packing(copy, again, split="test"))
    assert contents(again, "test") == contents(copy, "test")
    assert packed.class_names(str(again)) == ["run", "jump", "sit"]


def test_an_interrupted_pack_goes_on_with_what_it_has(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = packing(source, tmp_path / "out", "jpeg")
    records = pack.sources.load(str(source), "", 0)
    work = job.out / staging.FOLDER / "train"
    with staging.only_writer(job.out):
        work.mkdir()
        staged = staging.Stage(records, job.options, work)(0)
    # A mark that only a kept clip can carry to the end.
    kept = (work / staged.file).read_bytes()
    (work / staged.file).write_bytes(kept[:-9] + b"kept here")
    (work / "half.123.part").write_bytes(b"half a video")
    assert not packed.is_packed(str(job.out))
    pack.pack(job)
    first, second = list(packed.load(str(job.out)))[:2]
    assert isinstance(first.data, Stills)
    assert isinstance(first.data.frames[-1], bytes)
    assert first.data.frames[-1].endswith(b"kept here")
    assert second.data == encode(str(source.parent / "xvid.avi"), job.options).data
    assert not work.exists()
    work.mkdir()  # As a call leaves it that is killed at its very end.
    assert not pack.pack(job)
    assert not work.exists()


def test_a_cut_staged_clip_is_made_again(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    records = pack.sources.load(str(source), "", 0)
    stage = staging.Stage(records, Options("jpeg"), tmp_path)
    staged = stage(0)
    file = tmp_path / staged.file
    whole = file.read_bytes()
    for cut in (0, 20, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert stage(0) == staged
        assert file.read_bytes() == whole


def test_begun_with_other_options_says_so(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = packing(source, tmp_path / "out", "h264")
    work = job.out / staging.FOLDER / "train"
    work.mkdir(parents=True)
    staging.replace(work / "options.txt", b"--codec x")
    with pytest.raises(DataError, match="begun with --codec x; go on with these, or delete"):
        pack.pack(job)


def test_two_writers_do_not_mix(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = packing(source, tmp_path / "out")
    with (
        staging.only_writer(job.out),
        pytest.raises(DataError, match="another process packs into it"),
    ):
        pack.pack(job)


def test_a_killed_pack_is_no_pack_and_ends_the_same(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    one = video(tmp_path / "one.mp4", size=(144, 192), preset="ultrafast")
    for i in range(12):
        shutil.copy(one, folder / f"{i}.mp4")
    (folder / "list.txt").write_text("".join(f"{i}.mp4 0\n" for i in range(12)))
    command = [sys.executable, "-m", "input_pipeline.pack", str(folder / "list.txt"), str(out)]
    process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".staging/train/*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    left = {path.name for path in out.glob(".staging/train/*")} - {"options.txt"}
    assert 3 <= len(left) < 12
    assert not packed.is_packed(str(out))
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        packed.load(str(out))
    job = Job(str(folder / "list.txt"), out, workers=1)
    assert pack.pack(job)
    data = encode(str(one), job.options).data
    assert [record.id for record in contents(out)] == [f"{i}.mp4" for i in range(12)]
    assert all(record.data == data for record in contents(out))


def test_a_full_disk_ends_in_one_line_and_leaves_no_pack(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = packing(source, tmp_path / "out", "jpeg")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 3 * 65536  # A staged clip is smaller, all three together are not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            pack.pack(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not packed.is_packed(str(job.out))
    pack.pack(job)
    files = packed.manifest(str(job.out))["splits"]["train"]["files"]
    assert sum(file["bytes"] for file in files) > largest
    assert len(contents(job.out)) == 3


def test_videos_without_labels(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plain = source.parent / "plain.txt"
    plain.write_text("b.mp4\n")
    out = tmp_path / "out"
    pack.pack(packing(plain, out))
    assert [record.label for record in packed.load(str(out))] == [-1]
    with pytest.raises(DataError, match="without a label"):
        packed.load(str(out), num_classes=3)


def test_nothing_readable_is_an_error(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    bad = source.parent / "bad.txt"
    bad.write_text("text.mp4 0\nempty.mp4 0\n")
    with pytest.raises(DataError, match=r"no video can be read \(first: text\.mp4: not a vid"):
        pack.pack(packing(bad, tmp_path / "out"))


def test_the_command_ends_with_a_table(
    source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), str(tmp_path / "out"), "--workers", "2", "--gop", "8"]
    assert pack.main(command) == 0
    text = capsys.readouterr().out
    assert "3 videos, 120 frames" in text
    assert "left out: 1 (the file is empty (0 bytes); first: empty.mp4)" in text
    *_, first, second = text.strip().splitlines()
    assert first.split()[:2] == ["source", "0.0"]
    assert second.startswith("--codec h264 --short-side 256 --crf 20 --gop 8")
    assert pack.main(command) == 0
    assert capsys.readouterr().out.endswith("is packed already; nothing to do\n")


def test_compare_writes_nothing(
    source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(source.parent.iterdir())
    assert pack.main([str(source), "--compare"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()[1:]
    assert [row.split("  ")[0] for row in rows] == [
        "source (--codec copy)",
        "--codec h264 --short-side 256 --crf 20 --gop 16",
        "--codec jpeg --short-side 256 --quality 90",
    ]
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.txt", "out"], "no list file or folder at 'nowhere.txt'"),
        (["nowhere.txt"], "give a local folder to write as OUT"),
        (["nowhere.txt", "gs://bucket/out"], "give a local folder to write as OUT"),
        (["nowhere.txt", "out", "--crf", "99"], "--crf=99; give 0 to 51"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        pack.main(arguments)
    assert end.value.code == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
