"""A worker that crashes, hangs or is killed costs one record; nothing outlives the parent."""

import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from input_pipeline import workers
from input_pipeline.sources.records import DataError
from input_pipeline.video import decode
from input_pipeline.workers import Pool

ROOT = pathlib.Path(__file__).resolve().parents[2]


def call(record, function, *args):
    """A task that calls what it is given."""
    return function(*args)


@contextlib.contextmanager
def pool(task=call, timeout=60, **options):
    with contextlib.closing(Pool(task, timeout, **options)) as made:
        yield made


def eventually(condition, seconds=20):
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def running(pid):
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(FileNotFoundError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_what_a_task_raises_and_prints_and_imports():
    with pool() as one:
        pid = one(0, os.getpid)
        with pytest.raises(decode.VideoError, match="no such file") as caught:
            one(1, decode.probe, "/absent.mp4")
        assert not one.banned
        assert "in probe" in "".join(caught.value.__notes__)
        for number in (signal.SIGINT, signal.SIGTERM):  # They are for the parent.
            os.kill(pid, number)
        modules = one(0, eval, "set(__import__('sys').modules)")
        assert not modules & {"jax", "grain", "tensorflow", "torch", "mvm"}
        assert one(0, os.getpid) == pid


def meet(good, record):
    """Ends its worker, or hangs, at other records."""
    if record not in good:
        if record % 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        ctypes.PyDLL(None).sleep(100)  # With the interpreter held.
    return record


def test_a_record_that_kills_twice_is_banned():
    said = {4: "no answer from the decoder in 1 s", 5: "the decoder crashed (SIGSEGV)"}
    with pool(functools.partial(meet, {2}), timeout=1) as one:
        for record, reason in said.items():
            begin = time.monotonic()
            with pytest.raises(decode.VideoError, match=re.escape(reason)):
                one(record)
            assert 2 * (record == 4) <= time.monotonic() - begin < 60  # It hung twice.
            with pytest.raises(decode.VideoError, match=re.escape(reason)):
                one(record)
            assert one(2) == 2
        assert one.banned == said


def test_many_losses_in_a_row_end_the_run(monkeypatch):
    monkeypatch.setattr(workers, "_IN_A_ROW", 3)
    with pool() as one:
        pid = one(0, os.getpid)
        os.kill(pid, signal.SIGKILL)  # Between calls: the next one takes another.
        assert eventually(lambda: not running(pid))
        assert one(0, os.getpid) != pid
        with pytest.raises(decode.VideoError, match=r"exited \(7\)"):
            one(1, os._exit, 7)
        with pytest.raises(decode.VideoError):  # An answer of a kind: it counts anew.
            one(2, decode.probe, "/absent.mp4")
        with pytest.raises(decode.VideoError):
            one(2, os._exit, 7)
        with pytest.raises(DataError, match=r"3 decoding processes .*exited \(7\).*data.workers=0"):
            one(3, os._exit, 7)
        assert one(3, abs, -1) == 1
        monkeypatch.setattr(workers, "_START", 0.0)  # Seconds; no record is to blame.
        one.close()
    with pool() as one:
        with pytest.raises(DataError, match="no decoder started"):
            one(4, abs, -1)
        assert not one.banned


def test_closing_ends_calls_and_frees_everything():
    before = descriptors()
    with pool() as two, concurrent.futures.ThreadPoolExecutor(5) as threads:
        pid = two(0, os.getpid)
        jobs = [threads.submit(two, number, time.sleep, 50) for number in range(5)]
        time.sleep(1)
        begin = time.monotonic()
        two.close()
        for job in jobs:
            with pytest.raises(DataError, match="decoding processes"):
                job.result()
        assert time.monotonic() - begin < 10
    assert not running(pid)
    del two, jobs, job
    assert descriptors() == before


PARENT = """
import sys, threading, time
from input_pipeline.workers import Pool
sys.path.insert(0, sys.argv[1])
from test_workers import call
pool = Pool(call, timeout=1000)
says = "__import__('os').write(2, b'%d ' % __import__('os').getpid()) and "
for life in ("1", "__import__('time').sleep(1)"):
    threading.Thread(target=pool, args=(0, eval, says + life)).start()
time.sleep(1000)
"""


def test_workers_die_with_a_killed_parent_and_leave_nothing():
    command = [sys.executable, "-c", PARENT, str(pathlib.Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as parent:
        said = b""
        while said.count(b" ") < 2 and (part := os.read(parent.stderr.fileno(), 100)):
            said += part
        parent.kill()
    pids = [int(pid) for pid in said.split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(running(pid) for pid in pids))
