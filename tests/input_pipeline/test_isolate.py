"""A child that crashes, hangs or is killed costs one call; nothing outlives its parent."""

import concurrent.futures
import gc
import json
import operator
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from input_pipeline import isolate, worker
from input_pipeline.isolate import Children, Crashed
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    """Two processes that call what they are given."""
    with Children(operator.call, 2, timeout=60) as pool:
        yield pool


@pytest.fixture
def child() -> Iterator[Children]:
    """One process that calls what it is given."""
    with Children(operator.call, 1, timeout=60) as pool:
        yield pool


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return done


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def arrays(seed: int) -> dict[str, Any]:
    """Small and large arrays of many kinds, of sizes that depend on the seed."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    video = rng.integers(0, 256, (n, 50, 40, 3), np.uint8)
    return {
        "video": video,
        "fortran": np.asfortranarray(rng.standard_normal((300, n))),
        "strided": video[::2, ::3],
        "empty": np.zeros((0, 5), np.float32),
        "text": np.array("one\ntwo"),
        "label": np.array(n, np.int32),
        "nested": [(rng.standard_normal(20_000), None), "text"],
    }


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right):
            assert_same(a, b)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.array_equal(left, right)
    else:
        assert left == right


def test_results_of_changing_sizes_are_those_of_a_plain_call(children: Children) -> None:
    results = {seed: children(arrays, seed) for seed in range(12)}
    for seed, result in results.items():  # After all calls: no result is in shared memory.
        assert_same(result, arrays(seed))
        result["video"][:] = 0
    assert len({len(result["video"]) for result in results.values()}) > 8


def test_large_arguments_pass(children: Children) -> None:
    array = np.random.default_rng(0).standard_normal((700, 1000))
    assert children(operator.itemgetter((699, 3)), array) == array[699, 3]


def test_any_number_of_threads_may_call(children: Children) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(children, np.full, (n * 1000,), n) for n in range(300)]
        for n, job in enumerate(jobs):
            assert np.array_equal(job.result(), np.full(n * 1000, n))
        pids = set(pool.map(lambda _: children(slow_pid), range(16)))
    assert len(pids) == 2
    assert os.getpid() not in pids


def slow_pid() -> int:
    time.sleep(0.05)
    return os.getpid()


def raise_what_cannot_be_pickled() -> None:
    raise KeyError(lambda: None)


def test_exceptions_travel_with_their_traceback(child: Children) -> None:
    before = child(os.getpid)
    with pytest.raises(VideoError, match="no such file") as caught:
        child(decode.read_frames, "/absent.mp4", np.arange(2))
    assert "in read_frames" in "".join(caught.value.__notes__)
    with pytest.raises(json.JSONDecodeError) as parsed:
        child(json.loads, "{")
    assert parsed.value.pos == 1
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: <function.*lambda"):
        child(raise_what_cannot_be_pickled)
    with pytest.raises(TypeError, match=r"cannot pickle .generator. object"):
        child(eval, "(x for x in 'generator')")
    assert child(os.getpid) == before


def fill(value: int, *, out: np.ndarray) -> tuple[float, np.ndarray]:
    """Fills half of what it is given, and returns what was in the other half, and a large array."""
    before = float(out[len(out) // 2 :].sum(dtype=float))
    out[: len(out) // 2] = value
    return before, np.full(30_000, value)


def test_an_array_is_filled_in_place() -> None:
    with Children(fill, 1, timeout=60) as child:
        for value, shape in ((3, (4, 50, 70)), (5, (200, 100, 30)), (7, (2, 3)), (9, (90, 1000))):
            whole = np.zeros((3, *shape), np.float32 if value == 5 else np.uint8)
            child(value, out=whole[1])
            before, large = child(value, out=whole[1])
            half = shape[0] // 2
            assert np.all(whole[1, :half] == value)
            assert before == whole[1, half:].sum(dtype=float)
            assert not whole[0].any()
            assert not whole[2].any()
            assert np.array_equal(large, np.full(30_000, value))  # It stands behind the first.
        with pytest.raises(TypeError, match="out"):
            child(1)


class Holder:
    """A task with large arrays, of which it tells where they are."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __call__(self) -> list[tuple[bool, bool, float]]:
        lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split("-")[0:1] + line.split()[0].split("-")[1:] + [line] for line in lines]
        shared = [(int(a, 16), int(b, 16)) for a, b, line in spans if " r--s " in line]
        return [
            (
                any(low <= array.ctypes.data < high for low, high in shared),
                array.flags.writeable,
                float(array.sum()),
            )
            for array in self.arrays
        ]


def test_large_arrays_of_a_task_are_shared_by_all_children() -> None:
    arrays = [np.full(10, 1.0), np.full(100_000, 2.0), np.full(70_001, 3, np.uint8)]
    with Children(Holder(*arrays), 2, timeout=60) as pool:
        for found in (pool(), pool()):
            assert found == [(False, True, 10.0), (True, False, 2e5), (True, False, 210_003.0)]


# Run by `exec` in a child, which so need not import this module.
NOTED = "import ctypes, os, signal, sys, time; from input_pipeline import worker; worker.note({}); "
SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (SEGFAULT, "the decoder crashed (SIGSEGV)"),
        ("ctypes.string_at(0)", "the decoder crashed (SIGSEGV)"),
        ("os.abort()", "the decoder crashed (SIGABRT)"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the decoder crashed (SIGKILL, as when memory runs out)",
        ),
        ("sys.exit(7)", "the decoder exited (code 7)"),
    ],
)
def test_a_crash_is_told_from_the_record_and_the_pool_goes_on(
    children: Children, how: str, reason: str
) -> None:
    with pytest.raises(Crashed) as caught:
        children(exec, NOTED.format(41) + how)
    assert (str(caught.value), caught.value.reason, caught.value.note) == (reason, reason, 41)
    assert [children(abs, -n) for n in range(4)] == [0, 1, 2, 3]


def test_a_crash_is_that_of_its_own_call(children: Children) -> None:
    def call(n: int) -> int:
        if n % 8:
            return int(children(abs, -n))
        with pytest.raises(Crashed) as caught:
            children(exec, NOTED.format(n) + SEGFAULT)
        return int(caught.value.note)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(24))) == list(range(24))


@pytest.mark.parametrize(
    "how",
    [
        "time.sleep(100)",
        "ctypes.PyDLL(None).sleep(100)",  # With the interpreter held.
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_what_hangs_is_killed(how: str) -> None:
    with Children(operator.call, 1, timeout=2) as child:
        pid = child(os.getpid)
        begin = time.monotonic()
        with pytest.raises(Crashed, match=r"^the decoder did not answer in 2 s$") as caught:
            child(exec, NOTED.format(5) + how)
        assert 2 <= time.monotonic() - begin < 20
        assert caught.value.note == 5
        assert not running(pid)
        assert child(os.getpid) != pid


def test_the_time_limit_is_that_of_one_record() -> None:
    notes = "".join(f"worker.note({n}); time.sleep(0.8); " for n in range(4))
    with Children(operator.call, 1, timeout=2) as child:
        begin = time.monotonic()
        child(exec, NOTED.format(9) + notes)
        assert time.monotonic() - begin > 3
        with pytest.raises(Crashed, match=r"did not answer in 2 s$") as caught:
            child(exec, NOTED.format(9) + notes + "time.sleep(100)")
        assert caught.value.note == 3


def test_a_note_belongs_to_one_call(child: Children) -> None:
    child(worker.note, 3)
    with pytest.raises(Crashed) as caught:
        child(os._exit, 0)
    assert caught.value.note == -1
    worker.note(3)  # In the parent it does nothing.


def test_a_child_that_died_between_calls_is_replaced(child: Children) -> None:
    pid = child(os.getpid)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not running(pid))
    with pytest.raises(Crashed, match="SIGKILL") as caught:
        child(os.getpid)
    assert caught.value.note == -1
    assert child(os.getpid) != pid


def test_a_child_outlives_the_thread_that_started_it(child: Children) -> None:
    def lose_one_and_start_another() -> None:
        with pytest.raises(Crashed):
            child(os._exit, 0)
        pids.append(child(os.getpid))

    pids: list[int] = []
    thread = threading.Thread(target=lose_one_and_start_another)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert child(os.getpid) == pids[0]


def test_the_parents_signals_and_prints_do_not_disturb_a_child(child: Children) -> None:
    pid = child(os.getpid)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert child(os.system, "echo printed by a child") == 0
    assert child(os.getpid) == pid
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_child_imports_only_what_its_task_needs(children: Children) -> None:
    with pytest.raises(VideoError):
        children(decode.probe, "/absent.mp4")
    modules = children(eval, "set(__import__('sys').modules)")
    assert not modules & {"jax", "grain", "tensorflow", "torch", "mvm"}


def test_a_task_that_cannot_be_loaded_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    only_here = types.ModuleType("only_here")
    exec("def task(): pass", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    before = descriptors()
    with pytest.raises(RuntimeError, match=r"cannot start: ModuleNotFoundError: .*only_here"):
        Children(only_here.task, 2, 60)
    assert descriptors() == before


class _Exits:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return os._exit, (9,)


def test_a_child_that_ends_at_its_start_is_one_error() -> None:
    with pytest.raises(RuntimeError, match=r"cannot start: the decoder exited \(code 9\)"):
        Children(_Exits(), 1, 60)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 processes"):
        Children(abs, 0, 60)


def test_many_losses_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_IN_A_ROW", 3)
    child = Children(operator.call, 1, timeout=60)
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(Crashed):
                child(os._exit, 1)
        assert child(abs, -1) == 1  # An answer begins the count anew.
    for _ in range(2):
        with pytest.raises(Crashed):
            child(os._exit, 1)
    with pytest.raises(RuntimeError, match=r"3 decoding processes were lost in a row.*code 1"):
        child(os._exit, 1)
    child.close()


def test_closing_ends_calls_and_frees_everything() -> None:
    before = descriptors()
    pool = Children(operator.call, 2, timeout=60)
    pids = {pool(os.getpid), pool(np.ones, 1_000_000).size}
    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        jobs = [threads.submit(pool, time.sleep, 50) for _ in range(5)]  # Three of them wait.
        time.sleep(0.3)
        begin = time.monotonic()
        pool.close()
        pool.close()
        for job in jobs:
            with pytest.raises(RuntimeError, match="are closed"):
                job.result()
        assert time.monotonic() - begin < 5
    with pytest.raises(RuntimeError, match="are closed"):
        pool(os.getpid)
    assert not any(running(pid) for pid in pids)
    del pool, jobs, job
    assert descriptors() == before


def test_a_forgotten_pool_ends() -> None:
    before = descriptors()
    pids = [Children(operator.call, 1, timeout=60)(os.getpid)]
    assert eventually(lambda: not running(pids[0]))
    assert descriptors() == before


PARENT = """
import operator, sys, threading, time
from input_pipeline.isolate import Children
pool = Children(operator.call, len(sys.argv) - 1, timeout=1000)
for code in sys.argv[1:]:
    threading.Thread(target=pool, args=(eval, code)).start()
time.sleep(1000)
"""
# Each child says who it is, then is idle with a large result, or hangs in one of two ways.
SAYS = "__import__('os').write(2, b'%d ' % __import__('os').getpid()) and "
IDLE = SAYS + "__import__('numpy').ones(1_000_000)"
SLEEP = SAYS + "__import__('time').sleep(1000)"
HELD = SAYS + "__import__('ctypes').PyDLL(None).sleep(1000)"


def test_children_die_with_a_killed_parent_and_leave_nothing() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, IDLE, SLEEP, HELD],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stderr
    try:
        said = b""
        while said.count(b" ") < 3 and (part := os.read(parent.stderr.fileno(), 100)):
            said += part
        pids = [int(pid) for pid in said.split()]
        time.sleep(0.3)
        maps = [pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in pids]
        assert len(pids) == 3
        assert all(running(pid) for pid in pids)
        assert all("memfd:input_pipeline" in text and "/dev/shm" not in text for text in maps)
    finally:
        parent.kill()
        parent.wait()
        parent.stderr.close()
    assert eventually(lambda: not any(running(pid) for pid in pids))
