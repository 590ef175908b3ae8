"""The grain graph: mixtures, rates, supervised processes, a kill in the middle of an epoch."""

import hashlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.input import write_videos
from input_pipeline.elements import ClipSpec
from input_pipeline.loader import eval_batches, train_batches
from input_pipeline.sources import load as sources
from input_pipeline.sources.records import Failures, Record

SPEC = ClipSpec(num_frames=4, frame_stride=2, image_size=32)
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return write_videos(tmp_path_factory.mktemp("good"), 7, num_frames=20)


@pytest.fixture(scope="module")
def lists(good: list[Record], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The first four videos and the other three."""
    folder = tmp_path_factory.mktemp("lists")
    for name, part in (("a", good[:4]), ("b", good[4:])):
        text = "".join(f"{record.path} {record.label}\n" for record in part)
        (folder / f"{name}.txt").write_text(text)
    return str(folder / "a.txt"), str(folder / "b.txt")


def take(records: Sequence[Record], count: int, spec: ClipSpec = SPEC, **options: Any) -> list:
    batches = train_batches(records, spec, **({"batch_size": 4, "seed": 3} | options))
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def digest(batches: list) -> list[str]:
    return [hashlib.sha256(batch["video"].tobytes()).hexdigest() for batch in batches]


def test_parts_of_a_mixture_are_drawn_by_weight(lists: tuple[str, str]) -> None:
    plain = sources.load(" + ".join(lists))
    drawn = Counter(int(i) for batch in take(plain, 14) for i in batch["index"])
    assert drawn == dict.fromkeys(range(7), 8)  # Eight epochs of the union.
    heavy = sources.load(f"{lists[0]} + {lists[1]}?weight=4")
    drawn = Counter(int(i) for batch in take(heavy, 16) for i in batch["index"])
    # 4 records of weight 1 and 3 of weight 4: one draw in four is of the first part.
    assert abs(sum(drawn[i] for i in range(4)) - 16) <= 1
    assert {drawn[i] for i in range(4)} == {4}
    assert {drawn[i] for i in range(4, 7)} == {16}


def test_a_mixture_does_not_depend_on_threads_or_hosts(lists: tuple[str, str]) -> None:
    mixture = sources.load(f"{lists[0]}?stride=3 + {lists[1]}?weight=2")
    whole = take(mixture, 6, threads=1)
    assert digest(whole) == digest(take(mixture, 6, threads=4))
    hosts = [take(mixture, 6, shard=(i, 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        both = {tuple(v.ravel()) for host in hosts for v in host[step]["video"]}
        assert both == {tuple(v.ravel()) for v in batch["video"]}


def test_a_part_may_have_its_own_stride(good: list[Record], lists: tuple[str, str]) -> None:
    center = SPEC._replace(sampling="center", crop="center")
    mixture = sources.load(f"{lists[0]} + {lists[1]}?stride=5")
    for batch in take(mixture, 4, center):
        for clip, position in zip(batch["video"], batch["index"]):
            stride = 2 if position < 4 else 5
            same = center._replace(frame_stride=stride)
            (alone,) = take([good[position]], 1, same, batch_size=1)
            assert np.array_equal(clip, alone["video"][0])


def test_videos_are_brought_to_one_rate(good: list[Record]) -> None:
    # The videos have 25 frames a second: half of them is every second frame.
    halved = SPEC._replace(sampling="center", crop="center", fps=12.5, frame_stride=1)
    own = halved._replace(fps=0.0, frame_stride=2)
    (slow,) = eval_batches(good[:1], halved._replace(num_segments=2), batch_size=1)
    (fast,) = eval_batches(good[:1], own._replace(num_segments=2), batch_size=1)
    assert np.array_equal(slow["video"], fast["video"])
    assert digest(take(good, 2, halved)) == digest(take(good, 2, own))
    assert digest(take(good, 2, halved)) != digest(take(good, 2, halved._replace(fps=25.0)))


class Deadly(Sequence[Record]):
    """Records of which one ends the process that asks for it, as a crash in a decoder does."""

    def __init__(self, records: Sequence[Record], deadly: int) -> None:
        self.records, self.deadly = records, deadly
        self.parent = os.getpid()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if index == self.deadly and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.records[index]


def test_a_crashing_decoder_costs_one_record(good: list[Record]) -> None:
    absent = [*good[:2], good[2]._replace(path="/no/such/file.mp4"), *good[3:]]
    failures = Failures()
    crashed = take(Deadly(good, 2), 5, workers=2, failures=failures)
    wanted = take(absent, 5, threads=2)
    assert digest(crashed) == digest(wanted)
    assert sum(int(batch["skipped"].sum()) for batch in crashed) > 0
    assert failures.items == [(good[2].id, "the decoder crashed (SIGSEGV)")]
    tested = Failures()
    batches = list(eval_batches(Deadly(good, 2), SPEC, batch_size=4, workers=2, failures=tested))
    assert np.concatenate([b["valid"] for b in batches]).tolist() == [i != 2 for i in range(7)] + [
        False
    ]
    assert tested.items == failures.items


READER = """
    import hashlib, sys
    from input_pipeline import lists
    from input_pipeline.elements import ClipSpec
    from input_pipeline.loader import train_batches
    spec = ClipSpec(num_frames=4, frame_stride=2, image_size=32, flip=True)
    path, start, host, hosts = sys.argv[1], *map(int, sys.argv[2:])
    batches = train_batches(
        lists.load(path), spec, batch_size=4, seed=5, start=start, shard=(host, hosts)
    )
    for batch in batches:
        for clip, index in zip(batch["video"], batch["index"]):
            print(index, hashlib.sha256(clip.tobytes()).hexdigest(), flush=True)
"""


def read(path: str, start: int, shard: tuple[int, int], count: int) -> list[str]:
    """What a process prints of its first `count` clips before it is killed."""
    program = [sys.executable, "-c", textwrap.dedent(READER), path]
    process = subprocess.Popen(
        [*program, *map(str, (start, *shard))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(count)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_killed_run_goes_on_with_the_same_samples(lists: tuple[str, str], hosts: int) -> None:
    whole = read(lists[0], 0, (0, 1), 40)
    # Killed after 12 of them, in the middle of the fourth epoch; three batches are left.
    assert read(lists[0], 0, (0, 1), 12) == whole[:12]
    rest = [read(lists[0], 12, (host, hosts), 12 // hosts) for host in range(hosts)]
    size = 4 // hosts
    for step in range(3):
        parts = [part[step * size : (step + 1) * size] for part in rest]
        batch = whole[12 + 4 * step : 16 + 4 * step]
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        # A host's share keeps the order of the whole batch.
        for part in parts:
            assert [line for line in batch if line in part] == part
