"""Thousands of clips: memory, open files and processes stay what they were after the first ones."""

import ctypes
import gc
import itertools
import os
import pathlib

import pytest
from packing import video

from input_pipeline.elements import ClipSpec
from input_pipeline.loader import train_batches
from input_pipeline.sources.records import Record

SPEC = ClipSpec(num_frames=4, frame_stride=2, image_size=64, crop="random_resized", erasing=0.25)
GROWTH = 32 << 20  # Bytes; one frame of 230 kB forgotten at every second clip is more.


def footprint():
    """Bytes, open files and the number of this process and its children."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # What is free is no leak, and depends on the tests before.
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pids = [str(os.getpid()), *children]
    pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return pages * os.sysconf("SC_PAGESIZE"), files, len(pids)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_training_holds_no_more_after_many_clips(tmp_path, workers):
    """Small videos in three kinds of file, and as many ways of being unreadable."""
    for number in range(4):
        for suffix, codec in (("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "mpeg4")):
            video(tmp_path / f"{number}.{suffix}", codec, 20, (240, 320))
    whole = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "absent.mp4"]
    records = [Record(path.name, str(path), i) for i, path in enumerate(paths)]
    batches = train_batches(records, SPEC, batch_size=8, seed=0, threads=2, workers=workers)
    assert len(list(itertools.islice(batches, 40))) == 40
    memory, files, processes = footprint()
    skipped = sum(int(batch["skipped"].sum()) for batch in itertools.islice(batches, 150))
    after = footprint()
    batches.close()
    assert skipped > 150  # Unreadable files were met all along.
    assert after[1] <= files + 2  # A thread may have its video open.
    assert after[2] == processes
    assert after[0] - memory < GROWTH
