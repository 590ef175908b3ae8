"""Packed videos are those of the source, whatever interrupts the work."""

import importlib
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import av
import cv2
import numpy as np
import pytest
from packing import GOOD, UNEVEN, H, N, W, contents, packing, paint, video

from input_pipeline import pack
from input_pipeline.encode import Options
from input_pipeline.pack import Job
from input_pipeline.sources import arrayrecord as packed
from input_pipeline.sources import shards
from input_pipeline.sources.frames import Stills
from input_pipeline.sources.records import DataError
from input_pipeline.video import decode

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def split_of(out: pathlib.Path) -> dict[str, Any]:
    return packed.manifest(str(out))["splits"]["train"]


def test_what_cannot_be_read_is_left_out_and_listed(copied: pathlib.Path) -> None:
    split = split_of(copied)
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
    def __len__(self):
        return 3
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
    assert shards.write(records, tmp_path / "out", "train", [], "", Options("copy"), workers=1)
    assert [record.id for record in contents(tmp_path / "out")] == ["record 0", "record 2"]
    ((reason, names),) = split_of(tmp_path / "out")["failures"].items()
    assert names == ["record 1"]
    assert "SIGSEGV" in reason


def test_processes_that_encode_start_quickly() -> None:
    code = (
        "import sys, input_pipeline.shards\n"
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
    assert not list(copy.glob("*test*"))


def test_a_finished_pack_is_left_alone(source: pathlib.Path, copy: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert not pack.pack(packing(source, copy))
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_other_wishes_for_the_same_split_are_told_apart(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(DataError, match=r"another options \(--codec copy, now --codec h264"):
        pack.pack(packing(source, copy, "h264"))
    changed = pathlib.Path(shutil.copytree(source.parent, tmp_path / "changed")) / "train.txt"
    with pytest.raises(DataError, match=rf"another source \({source}, now {changed}"):
        pack.pack(packing(changed, copy))


def test_a_second_split_joins_the_first(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = contents(copy)
    other = source.parent / "other.txt"
    other.write_text("xvid.avi 2\nb.mp4 0\n")
    pack.pack(packing(other, copy, split="test"))
    assert contents(copy) == first
    assert [record.id for record in contents(copy, "test")] == ["xvid.avi", "b.mp4"]
    again = tmp_path / "again"  # A packed folder is a source like any other.
    pack.pack(packing(copy, again, split="test"))
    assert contents(again, "test") == contents(copy, "test")
    assert packed.class_names(str(again)) == ["run", "jump", "sit"]


def test_pictures_are_packed_as_they_are_and_beside_files(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for t in range(5):
        cv2.imwrite(str(folder / f"{t}.png"), paint(t))
    (tmp_path / "list.txt").write_text(f"pictures 0\n{source.parent / 'b.mp4'} 1\n")
    out = tmp_path / "out"
    pack.pack(packing(tmp_path / "list.txt", out))
    pictures, file = packed.load(str(out))
    stored = tuple((folder / f"{t}.png").read_bytes() for t in range(5))
    assert (pictures.data, pictures.num_frames) == (Stills(stored), 5)
    assert file.data == (source.parent / "b.mp4").read_bytes()


@pytest.fixture
def many(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A list of 12 videos, two to a file when packed."""
    monkeypatch.setattr("input_pipeline.sources.shards._VIDEOS", 2)
    (tmp_path / "many").mkdir()
    one = video(tmp_path / "one.mp4", size=(144, 192), preset="ultrafast")
    for i in range(12):
        shutil.copy(one, tmp_path / "many" / f"{i}.mp4")
    listed = tmp_path / "many" / "list.txt"
    listed.write_text("".join(f"{i}.mp4 {i}\n" for i in range(12)))
    return listed


PACK = """
import sys
from input_pipeline import pack, shards
shards._VIDEOS = 2
pack.main(sys.argv[1:])
"""


def test_a_killed_pack_is_no_pack_and_goes_on(many: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", PACK, str(many), str(out), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "train.begun.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    whole = {path: path.stat().st_mtime_ns for path in out.glob("*-of-00006")}
    known = json.loads((out / "train.begun.json").read_text())["files"]
    assert 1 <= len(known) < 6
    assert not packed.is_packed(str(out))
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        packed.load(str(out))
    job = Job(str(many), out, workers=1)
    with pytest.raises(DataError, match=r"begun of another options .*--crf 20.*--crf 30"):
        pack.pack(job._replace(options=Options(crf=30)))
    assert pack.pack(job)
    for one in known:
        assert (out / one["name"]).stat().st_mtime_ns == whole[out / one["name"]]
    assert [(record.id, record.label) for record in contents(out)] == [
        (f"{i}.mp4", i) for i in range(12)
    ]
    assert all(decode.probe(record.source).num_frames == N for record in contents(out))
    assert len(list(out.glob("[!.]*"))) == 7  # six files and the manifest


def test_a_file_that_was_cut_is_written_again(many: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    assert pack.pack(packing(many, out))
    found = contents(out)
    files = sorted(out.glob("*-of-00006"))
    made_from = {key: split_of(out)[key] for key in ("source", "digest", "options")}
    parts = [
        shards._write_file(file, [shards.Stored(record.id, record.label, "", (b"as it was",))])
        for file, record in zip(files, found)
    ]
    (out / "train.begun.json").write_text(json.dumps({**made_from, "files": parts}))
    (out / packed.MANIFEST).unlink()
    os.truncate(files[1], 100)  # what is known of the first file is kept, the rest made again
    assert pack.pack(packing(many, out))
    first, *others = contents(out)
    assert first.data == b"as it was"
    assert others == found[2:]


def test_two_writers_do_not_mix(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = packing(source, tmp_path / "out")
    with (
        shards.only_writer(job.out),
        pytest.raises(DataError, match="another process packs into it"),
    ):
        pack.pack(job)


def test_a_full_disk_ends_in_one_line_and_leaves_no_pack(
    many: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    job = packing(many, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            pack.pack(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not packed.is_packed(str(job.out))
    pack.pack(job)
    assert split_of(job.out)["files"][0]["bytes"] > 65536
    assert len(contents(job.out)) == 12


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


def test_the_command_ends_with_what_was_done(
    source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), str(tmp_path / "out"), "--workers", "2", "--gop", "8"]
    assert pack.main(command) == 0
    text = capsys.readouterr().out
    assert "3 videos, 120 frames" in text
    assert "left out: 1 (the file is empty (0 bytes); first: empty.mp4)" in text
    assert pack.main(command) == 0
    assert "is packed already; nothing to do\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.txt", "out"], "no list file or folder at 'nowhere.txt'"),
        (["nowhere.txt", "gs://bucket/out"], "give a local folder to write as OUT"),
        (["nowhere.txt", "out", "--crf", "99"], "argument --crf: invalid choice"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        pack.main(arguments)
    assert end.value.code == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
