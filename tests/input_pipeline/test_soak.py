"""Thousands of clips: memory, open files and threads stay what they were after the first ones."""

import contextlib
import ctypes
import gc
import itertools
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
import pytest
from deadly import crash

from input_pipeline.elements import ClipSpec
from input_pipeline.loader import train_batches
from input_pipeline.sources.records import Record
from input_pipeline.workers import Pool

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


def footprint() -> Footprint:
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


def _stat(pid: str) -> list[str]:
    """Fields of a process from its state on (`man 5 proc`, from the third)."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
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


def assert_flat(before: Footprint, after: Footprint) -> None:
    # No more, as another test's thread may end meanwhile; a thread may have its video open.
    for kind in ("files", "threads", "children"):
        allowed = THREADS if kind == "files" else 0
        assert getattr(after, kind) <= getattr(before, kind) + allowed, kind
    grown = after.memory - before.memory
    assert grown < GROWTH, f"{grown / 1e6:.1f} MB more"


@pytest.mark.parametrize(
    ("warm_up", "clips"), [(128, 400), pytest.param(512, 2_500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_holds_no_more_after_many_clips(
    records: list[Record], workers: int, warm_up: int, clips: int
) -> None:
    others = footprint().children
    batches = train_batches(records, SPEC, batch_size=8, seed=0, threads=THREADS, workers=workers)
    _consume(batches, warm_up // 8)
    before = footprint()
    skipped = _consume(batches, clips // 8)
    after = footprint()
    batches.close()
    assert before.children == others + workers
    assert skipped > clips / 8  # Unreadable files were met all along.
    assert_flat(before, after)


def _consume(batches: Iterator[dict[str, np.ndarray]], count: int) -> int:
    return sum(int(batch["skipped"].sum()) for batch in itertools.islice(batches, count))


@pytest.mark.slow
def test_opening_and_closing_the_input_leaves_nothing(records: list[Record]) -> None:
    def use(times: int) -> Footprint:
        for seed in range(times):
            batches = train_batches(records, SPEC, batch_size=4, seed=seed, workers=seed % 2)
            _consume(batches, 4)
            batches.close()
        time.sleep(2)  # Threads of grain that had a clip in hand.
        return footprint()

    # The allocator gives new threads heaps of their own until it has as many as it wants.
    assert_flat(use(8), use(24))


@pytest.mark.slow
def test_fifty_crashes_leave_nothing() -> None:
    with contextlib.closing(Pool(crash, 60.0, (16, 224, 224, 3))) as pool:
        out = np.zeros((16, 224, 224, 3), np.uint8)
        assert [pool(position, out=out) for position in range(5)] == list(range(5))
        pool(0, out=out)
        before = footprint()
        for position in range(5, 30):  # Each kills two.
            assert pool(position, out=out) == position
            assert (out == position).all()
        assert_flat(before, footprint())
    assert len(pool.banned) == 29
