"""Packed videos are those of the source, whatever interrupts the work."""

import io
import signal
import subprocess
import sys

import av
import numpy as np
from packing import GOOD, UNEVEN, H, N, W, contents, packing, paint, refused, video, write_pictures

from input_pipeline import pack
from input_pipeline.encode import Options, encode
from input_pipeline.sources import packed
from input_pipeline.sources.frames import Stills
from input_pipeline.video import decode


def test_h264_keeps_count_order_and_times(source, tmp_path):
    records = packed.load(str(packing(source, tmp_path / "out", "h264")))
    assert [(record.id, record.label) for record in records] == GOOD
    seconds = {"xvid.avi": np.arange(N) / 25}
    painted = np.stack([paint(t) for t in range(N)]).astype(float)
    for record in records:
        assert isinstance(record.data, bytes)
        with decode.open_video(record.source) as opened:
            assert isinstance(opened, decode.Video)
            assert opened.header == (N, H, W, "h264")
            frames = np.stack(opened.read(range(N))).astype(float)
            expected = seconds.get(record.id, (np.array(UNEVEN) - UNEVEN[0]) / 1e3)
            assert np.allclose(opened.clock.times, expected, atol=1e-6)
        distance = np.abs(frames[:, None] - painted).mean((2, 3, 4))
        assert np.array_equal(distance.argmin(1), np.arange(N))
        with av.open(io.BytesIO(record.data)) as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        shown = sorted(p.pts for p in packets)
        keys = sorted(p.pts for p in packets if p.is_keyframe)
        assert [shown.index(pts) for pts in keys] == [0, 16, 32]


def test_sizes_are_even_and_never_larger(tmp_path):
    for size, short_side, expected in (
        ((96, 160), 48, (48, 80)),
        ((160, 96), 48, (80, 48)),
        ((96, 160), 0, (96, 160)),
        ((48, 64), 256, (48, 64)),  # not enlarged
        ((90, 122), 45, (44, 60)),  # 45 x 61, made even
    ):
        path = video(tmp_path / "a.mp4", count=4, size=size)
        data = encode(str(path), Options(short_side=short_side))
        assert decode.probe(data)[:3] == (4, *expected), (size, short_side)


def test_splits_join_and_a_packed_folder_is_a_source(source, copy, tmp_path, capsys):
    first, files = contents(copy), {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    packing(source, copy)  # It is finished and left alone.
    assert "'train' is packed already; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == files
    other = source.parent / "other.txt"
    other.write_text("xvid.avi 2\nb.mp4 0\n")
    packing(other, copy, split="test")
    assert contents(copy) == first
    assert [record.id for record in contents(copy, "test")] == ["xvid.avi", "b.mp4"]
    packing(copy, tmp_path / "again", split="test")
    assert contents(tmp_path / "again", "test") == contents(copy, "test")
    assert packed.class_names(str(tmp_path / "again")) == ["run", "jump", "sit"]


def test_other_wishes_for_a_packed_folder_are_refused(source, copy, tmp_path):
    refused("is made from .*copy.*, not .*h264", packing, source, copy, "h264")
    (tmp_path / "classes.txt").write_text("run\njump\nstand\n")
    other = tmp_path / "other.txt"
    other.write_text(f"{source.parent / 'b.mp4'} 0\n")
    refused(f"class names differ from those of {other}", packing, other, copy, split="test")
    with pack.only_writer(copy):
        refused("another process packs into it", packing, source, copy)
    other.write_text(f"{source.parent / 'text.mp4'} 0\n")
    said = r"no video can be read \(first: .*text\.mp4: not a vid"
    refused(said, packing, other, tmp_path / "bad")


def test_pictures_and_videos_without_labels(source, tmp_path):
    folder = write_pictures(tmp_path / "pictures", range(5), "{}.png")
    (tmp_path / "list.txt").write_text(f"pictures\n{source.parent / 'b.mp4'}\n")
    pictures, file = packed.load(str(packing(tmp_path / "list.txt", tmp_path / "out")))
    stored = tuple((folder / f"{t}.png").read_bytes() for t in range(5))
    assert (pictures.data, pictures.label) == (Stills(stored), -1)
    assert file.data == (source.parent / "b.mp4").read_bytes()


KILLED = """
import os, signal, sys
from input_pipeline import pack
pack._VIDEOS = 2
def killed(event, args):
    if event == "os.rename" and "-00002-of" in str(args[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
pack.main(sys.argv[1:])
"""


def test_a_killed_pack_is_no_pack_and_resumes(source, tmp_path, monkeypatch, pytestconfig):
    out, listed = tmp_path / "out", tmp_path / "many.txt"
    listed.write_text("".join(f"{source.parent}/b.mp4 {i}\n" for i in range(7)))
    command = [sys.executable, "-c", KILLED, str(listed), str(out), "--codec=copy", "--workers=1"]
    killed = subprocess.run(command, cwd=pytestconfig.rootpath)
    assert killed.returncode == -signal.SIGKILL
    refused("no whole split 'train'", packed.load, str(out))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*-of-00004")}
    assert len(before) == len(packed.manifest(str(out))["splits"]["train"]["files"]) == 2
    monkeypatch.setattr(pack, "_VIDEOS", 2)
    packing(listed, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [record.label for record in contents(out)] == list(range(7))
    assert len(list(out.glob("[!.]*"))) == 5  # four files and the manifest
