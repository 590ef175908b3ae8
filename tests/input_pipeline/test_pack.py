"""Packed videos are those of the source, whatever interrupts the work or damages the files."""

import concurrent.futures
import importlib
import io
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import decode, pack, packed, staging
from input_pipeline.encode import Options, encode
from input_pipeline.pack import Job
from input_pipeline.records import DataError, Record
from input_pipeline.stills import Stills

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
H, W, N = 48, 64, 40


def paint(t: int, h: int = H, w: int = W) -> np.ndarray:
    """A smooth picture that moves, so that neighbouring frames differ."""
    y, x = np.mgrid[:h, :w] * (48 / h)
    waves = [np.sin((x + 3 * t) / 9), np.cos((y - 2 * t) / 7), np.sin((x + y + 5 * t) / 11)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def video(
    path: pathlib.Path,
    codec: str = "libx264",
    size: tuple[int, int] = (H, W),
    ticks: Sequence[int] = range(0, 40 * N, 40),
    **options: str,
) -> pathlib.Path:
    """A real file whose frame t is `paint(t)`, shown at `ticks[t]` milliseconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if path.suffix == ".mkv":
            stream.codec_context.time_base = Fraction(1, 1000)
        for t, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(paint(t, *size), format="rgb24")
            frame.pts, frame.time_base = (
                (tick, Fraction(1, 1000)) if path.suffix == ".mkv" else (t, Fraction(1, 25))
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


UNEVEN = np.cumsum([40 if t % 3 else 120 for t in range(N)]).tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A list of five videos, of which one is text and one is empty, with the names of classes."""
    folder = tmp_path_factory.mktemp("source")
    video(folder / "b.mp4", bf="2", g="250")
    video(folder / "xvid.avi", "mpeg4", bf="2", g="12")
    video(folder / "uneven.mkv", ticks=UNEVEN)
    (folder / "text.mp4").write_text("no video\n" * 50)
    (folder / "empty.mp4").touch()
    rows = ["b.mp4 0", "text.mp4 1", "xvid.avi 2", "empty.mp4 1", "uneven.mkv 1"]
    (folder / "train.txt").write_text("\n".join(rows))
    (folder / "classes.txt").write_text("run\njump\nsit\n")
    return folder / "train.txt"


GOOD = [("b.mp4", 0), ("xvid.avi", 2), ("uneven.mkv", 1)]


def packing(source: pathlib.Path, out: pathlib.Path, codec: str = "copy", **given: Any) -> Job:
    return Job(str(source), out, options=Options(codec), workers=1, **given)


@pytest.fixture(scope="module")
def copied(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    assert pack.pack(packing(source, out))
    return out


@pytest.fixture
def copy(copied: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy to do harm to."""
    return pathlib.Path(shutil.copytree(copied, tmp_path / "copy"))


def contents(out: pathlib.Path, split: str = "train") -> list[Record]:
    return [record._replace(path="") for record in packed.load(str(out), split)]


def test_a_copy_is_bytes_of_the_source_in_its_order(
    source: pathlib.Path, copied: pathlib.Path
) -> None:
    found = packed.load(str(copied), "train", num_classes=3)
    expected = [
        Record(name, f"{copied}[{i}]", label, (source.parent / name).read_bytes(), N)
        for i, (name, label) in enumerate(GOOD)
    ]
    assert list(found) == expected
    assert found[-1] == expected[-1]
    assert packed.class_names(str(copied)) == ["run", "jump", "sit"]
    files = sorted(path.name.partition(".")[0] for path in copied.iterdir())
    assert files == ["", "dataset_info", "features", "label", "manifest", "videos-train"]


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


@pytest.mark.parametrize("codec", ["copy", "jpeg"])
def test_tfds_opens_it_like_any_data_set(
    source: pathlib.Path, copied: pathlib.Path, tmp_path: pathlib.Path, codec: str
) -> None:
    out = copied
    if codec == "jpeg":
        out = tmp_path / "out"
        pack.pack(packing(source, out, codec, shards=2))
    builder = tfds.builder_from_directory(out)
    examples = builder.as_data_source("train")
    assert builder.info.splits["train"].num_shards == (2 if codec == "jpeg" else 1)
    assert builder.info.features["label"].names == ["run", "jump", "sit"]
    assert len(examples) == 3
    for example, record in zip(examples, packed.load(str(out))):
        assert example["id"].decode() == record.id
        assert (example["label"], example["num_frames"]) == (record.label, record.num_frames)
        data = record.data
        assert example.get("video") == data or tuple(example["frames"]) == data.frames
    assert "tensorflow" not in sys.modules


def test_reading_needs_no_tfds(copied: pathlib.Path) -> None:
    code = (
        "import sys; from input_pipeline import packed, decode\n"
        f"record = packed.load({str(copied)!r})[2]\n"
        "assert len(decode.read_frames(record.source, range(5))) == 5\n"
        "print(sorted({'tensorflow_datasets', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


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
        assert record.data.find(b"moov") < record.data.find(b"mdat")


def test_rates_are_resampled_alike(source: pathlib.Path) -> None:
    path = str(source.parent / "uneven.mkv")
    data = encode(path, Options("h264")).data
    with decode.open_video(path) as before, decode.open_video(data) as after:
        for fps in (5, 7.5, 10, 15, 24, 30):
            assert np.array_equal(before.at_rate(fps), after.at_rate(fps)), fps


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((96, 160), 48, (48, 80)),
        ((160, 96), 48, (80, 48)),
        ((96, 160), 0, (96, 160)),
        ((48, 64), 256, (48, 64)),  # not enlarged
        ((90, 122), 45, (44, 60)),  # 45 x 61, made even
    ],
)
def test_sizes_are_even_and_never_larger(
    tmp_path: pathlib.Path, size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    path = video(tmp_path / "a.mp4", size=size, ticks=range(0, 160, 40))
    for codec in ("h264", "jpeg"):
        data = encode(str(path), Options(codec, short_side)).data
        assert decode.probe(data)[:3] == (4, *expected)


def test_pictures_lose_an_odd_line_and_no_sharpness(tmp_path: pathlib.Path) -> None:
    images = [paint(t, 49, 65) for t in range(5)]
    frames = [cv2.imencode(".png", cv2.cvtColor(one, cv2.COLOR_RGB2BGR))[1] for one in images]
    source = Stills(tuple(frame.tobytes() for frame in frames))
    encoded = encode(source, Options("jpeg", quality=98))
    assert (encoded.num_frames, encoded.timed) == (5, False)
    found = np.stack(decode.read_frames(encoded.data, range(5))).astype(float)
    assert np.abs(found - np.stack(images)[:, :48, :64]).mean() < 1


def test_long_videos_are_encoded_in_parts(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(source.parent / "xvid.avi")
    whole = encode(path, Options("h264"))
    monkeypatch.setattr("input_pipeline.encode._MEMORY", 0)  # 32 frames at a time
    assert encode(path, Options("h264")) == whole


def test_damage_is_kept_as_a_read_gives_it(tmp_path: pathlib.Path) -> None:
    whole = video(tmp_path / "whole.mp4", bf="0", g="250", movflags="faststart").read_bytes()
    data = bytearray(whole)
    middle = whole.find(b"mdat") + (len(whole) - whole.find(b"mdat")) // 2
    data[middle : middle + 200] = bytes(200)
    encoded = encode(bytes(data), Options("jpeg", quality=98))
    with decode.open_video(bytes(data)) as opened:
        frames = np.stack(opened.read(range(N))).astype(float)
        assert opened.damage == encoded.damage > 0
    found = np.stack(decode.read_frames(encoded.data, range(N))).astype(float)
    assert np.abs(found - frames).mean((1, 2, 3)).max() < 5


def test_videos_are_turned(shared: pathlib.Path) -> None:
    path = str(shared / "clips" / "decord_video_90.mov")
    data = encode(path, Options("h264", 0)).data
    before, after = (decode.read_frames(one, range(3)) for one in (path, data))
    assert before[0].shape == after[0].shape == (568, 320, 3)
    assert np.abs(np.stack(before).astype(float) - np.stack(after)).mean() < 4


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


def test_labels_and_splits_are_checked_before_reading(copied: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"labels 0\.\.2, but data.num_classes=2"):
        packed.load(str(copied), "train", num_classes=2)
    with pytest.raises(DataError, match="no split 'val' in it, only: train"):
        packed.load(str(copied), "val")


def test_videos_without_labels(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plain = source.parent / "plain.txt"
    plain.write_text("b.mp4\n")
    out = tmp_path / "out"
    pack.pack(packing(plain, out))
    assert [record.label for record in packed.load(str(out))] == [-1]
    with pytest.raises(DataError, match="without a label"):
        packed.load(str(out), num_classes=3)


def test_one_file_alone_can_be_read(copied: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (file,) = copied.glob("*.array_record*")
    for name in ("alone.array_record", "alone.array_record-00000-of-00001"):
        alone = shutil.copy(file, tmp_path / name)
        assert packed.is_packed(str(alone))
        found = packed.load(str(alone), "whatever")
        assert [record._replace(path="") for record in found] == contents(copied)
        with pytest.raises(DataError, match=r"array_record.*\[1\]: label 2 is outside 0\.\.1"):
            list(packed.load(str(alone), num_classes=2))


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_cut_file_is_named_at_once(copy: pathlib.Path, kept: int) -> None:
    (file,) = copy.glob("*.array_record*")
    os.truncate(file, min(kept, file.stat().st_size - 65536))
    with pytest.raises(DataError, match=f"{file.name}: {file.stat().st_size} bytes instead of"):
        packed.load(str(copy))
    with pytest.raises(DataError, match="not a whole ArrayRecord file"):
        packed.load(str(file))
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        packed.load(str(copy))


def test_a_damaged_record_says_so_and_spoils_no_other(
    source: pathlib.Path, copy: pathlib.Path
) -> None:
    (file,) = copy.glob("*.array_record*")
    data = bytearray(file.read_bytes())
    at = data.find((source.parent / "xvid.avi").read_bytes()[1000:1100])
    assert at > 0
    data[at] ^= 1
    file.write_bytes(data)
    first, second, third = packed.load(str(copy))
    assert second.path == f"{copy}[1]"
    with pytest.raises(decode.VideoError, match=r"record cannot be read \(chunk data hash mismat"):
        decode.read_frames(second.source, range(4))
    for record in (first, third):
        assert record.data == (source.parent / record.id).read_bytes()


def test_records_of_others_are_refused_one_by_one(tmp_path: pathlib.Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(tmp_path / "other.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    for data in (b"anything", b"", b"\n\x00"):
        writer.write(data)
    writer.close()
    for record in packed.load(path):
        with pytest.raises(decode.VideoError, match="record cannot be read"):
            decode.read_frames(record.source, range(4))


def test_threads_and_pickles_share_a_source(copied: pathlib.Path) -> None:
    records = packed.load(str(copied))
    expected = list(records)
    again = pickle.loads(pickle.dumps(records))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.__getitem__, list(range(3)) * 40)) == expected * 40
    with pytest.raises(IndexError):
        records[3]


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
