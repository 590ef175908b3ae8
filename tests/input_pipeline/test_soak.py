"""Thousands of clips: memory, open files and threads stay what they were after the first ones."""

import ctypes
import gc
import itertools
import os
import pathlib
from typing import NamedTuple

import av
import numpy as np
import pytest

from input_pipeline.elements import ClipSpec
from input_pipeline.loader import train_batches
from input_pipeline.sources.records import Record

HEIGHT, WIDTH, FRAMES = 240, 320, 20
SPEC = ClipSpec(
    num_frames=4, frame_stride=2, image_size=64, crop="random_resized", flip=True, erasing=0.25
)
# Of growth allowed, bytes: one frame of 230 kB forgotten at every second clip is more.
GROWTH = 32 << 20
THREADS = 2


class Footprint(NamedTuple):
    """What this process and its children hold."""

    memory: int
    files: int
    threads: int
    children: int


def footprint():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # What is free is no leak, and depends on the tests before.
    own = os.getpid()
    pids = [own]
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and int(_stat(entry)[1]) == own:
                pids.append(int(entry))
        except FileNotFoundError:
            pass  # Some other process, which ended just now.
    held = sum(int(_stat(str(pid))[21]) for pid in pids) * os.sysconf("SC_PAGESIZE")
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return Footprint(held, files, len(os.listdir("/proc/self/task")), len(pids) - 1)


def _stat(pid):
    """Fields of a process from its state on (`man 5 proc`, from the third)."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Small videos in three kinds of file, and as many ways of being unreadable."""
    folder = tmp_path_factory.mktemp("soak")
    kinds = [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "mpeg4")]
    for number, (suffix, codec) in enumerate(kinds * 4):
        with av.open(str(folder / f"{number}.{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for t in range(FRAMES):
                image = np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8)
                image[8 * t : 8 * t + 60, 10 * t : 10 * t + 80] = (250, 10 * t, 0)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    whole = (folder / "0.mp4").read_bytes()
    (folder / "text.mp4").write_text("no video")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    paths = [*sorted(folder.iterdir()), folder / "absent.mp4"]
    return [Record(path.name, str(path), i) for i, path in enumerate(paths)]


def assert_flat(before, after):
    # No more, as another test's thread may end meanwhile; a thread may have its video open.
    for kind in ("files", "threads", "children"):
        allowed = THREADS if kind == "files" else 0
        assert getattr(after, kind) <= getattr(before, kind) + allowed, kind
    grown = after.memory - before.memory
    assert grown < GROWTH, f"{grown / 1e6:.1f} MB more"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_holds_no_more_after_many_clips(records, workers):
    others = footprint().children
    batches = train_batches(records, SPEC, batch_size=8, seed=0, threads=THREADS, workers=workers)
    _consume(batches, 40)
    before = footprint()
    skipped = _consume(batches, 150)
    after = footprint()
    batches.close()
    assert before.children == others + workers
    assert skipped > 150  # Unreadable files were met all along.
    assert_flat(before, after)


def _consume(batches, count):
    return sum(int(batch["skipped"].sum()) for batch in itertools.islice(batches, count))
