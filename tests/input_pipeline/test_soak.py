"""Thousands of clips: memory, open files and threads stay what they were after the first ones."""

import concurrent.futures
import gc
import itertools
import operator
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
import pytest

from input_pipeline.isolate import Children, Crashed
from input_pipeline.pipeline import ClipSpec, train_batches
from input_pipeline.sources.records import Record
from input_pipeline.video import decode
from mvm.runtime import memory

HEIGHT, WIDTH, FRAMES = 240, 320, 20
SPEC = ClipSpec(
    num_frames=4, frame_stride=2, image_size=64, crop="random_resized", flip=True, erasing=0.25
)
# Of growth allowed, bytes: one frame of 230 kB forgotten at every second clip is more.
GROWTH = 32 << 20


class Footprint(NamedTuple):
    """What this process and its children hold."""

    memory: int
    files: int
    threads: int
    children: int


def footprint() -> Footprint:
    gc.collect()
    memory.give_back()  # What is free is no leak, and depends on the tests before.
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
    # No more, as another test's thread may end meanwhile.
    for kind in ("files", "threads", "children"):
        assert getattr(after, kind) <= getattr(before, kind), kind
    grown = after.memory - before.memory
    assert grown < GROWTH, f"{grown / 1e6:.1f} MB more"


@pytest.mark.parametrize(
    ("warm_up", "clips"),
    [(128, 400), pytest.param(512, 6_000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_holds_no_more_after_many_clips(
    records: list[Record], workers: int, warm_up: int, clips: int
) -> None:
    others = footprint().children
    batches = train_batches(records, SPEC, batch_size=8, seed=0, threads=2, workers=workers)
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


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_opening_and_closing_the_input_leaves_nothing(records: list[Record], rounds: int) -> None:
    def use(times: int) -> None:
        for seed in range(times):
            workers = seed % 2
            batches = train_batches(records, SPEC, batch_size=4, seed=seed, workers=workers)
            _consume(batches, 4)
            batches.close()

    use(2)
    before = footprint()
    use(6 * rounds)
    after = footprint()
    assert after.files == before.files
    assert after.threads <= before.threads
    assert after.memory - before.memory < GROWTH


@pytest.mark.parametrize(
    ("calls", "crash_every"),
    [(400, 0), pytest.param(6_000, 400, marks=pytest.mark.slow)],
)
def test_children_hold_no_more_after_many_calls_and_crashes(
    records: list[Record], calls: int, crash_every: int
) -> None:
    good = [record.path for record in records if record.path.endswith(("avi", "mkv"))]
    others = footprint().children
    with (
        Children(operator.call, 2, timeout=60) as children,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):

        def call(number: int) -> bool:
            if crash_every and number % crash_every == 0:
                with pytest.raises(Crashed):
                    children(os.abort)
                return False
            # Results from one frame to twelve, in no order.
            path, count = good[number % len(good)], 1 + number * 7 % 12
            return len(children(decode.read_frames, path, np.arange(count))) == count

        warm = list(pool.map(call, range(1, 100)))
        before = footprint()
        made = list(pool.map(call, range(calls)))
        list(pool.map(call, range(1, 9)))  # Whatever crashed last has been replaced.
        after = footprint()
    assert before.children == others + 2
    assert all(warm)
    assert sum(made) == calls - (len(range(0, calls, crash_every)) if crash_every else 0)
    assert_flat(before, after)
