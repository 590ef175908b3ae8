"""A worker that crashes, hangs or is killed costs one record; nothing outlives the parent."""

import concurrent.futures
import contextlib
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from deadly import call, hang

from input_pipeline import workers
from input_pipeline.sources.records import DataError
from input_pipeline.video import decode


def pool(timeout=60):
    return contextlib.closing(workers.Pool(call, timeout))


def eventually(condition):
    """Whether it becomes true in time."""
    deadline = time.monotonic() + 20
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


def test_a_record_that_kills_twice_is_banned():
    said = {4: "no answer from the decoder in 1 s", 5: "the decoder crashed (SIGABRT)"}
    with pool(timeout=1) as one:
        for record, task, least in ((4, hang, 2), (5, os.abort, 0)):
            begin = time.monotonic()
            for _ in range(2):  # The second time nothing is tried.
                with pytest.raises(decode.VideoError, match=re.escape(said[record])):
                    one(record, task)
                assert least <= time.monotonic() - begin < 60  # It hung twice.
        assert one(2, abs, -1) == 1
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
    monkeypatch.setattr(workers, "_START", 0.0)  # Seconds; no record is to blame.
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
import threading, time
from deadly import call
from input_pipeline.workers import Pool
pool = Pool(call, timeout=1000)
says = "__import__('os').write(2, b'%d ' % __import__('os').getpid()) and "
for life in ("1", "__import__('time').sleep(1)"):
    threading.Thread(target=pool, args=(0, eval, says + life)).start()
time.sleep(1000)
"""


def test_workers_die_with_a_killed_parent_and_leave_nothing(pytestconfig):
    root = pytestconfig.rootpath
    environment = os.environ | {"PYTHONPATH": f"{root}:{root}/tests/input_pipeline"}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as parent:
        said = b""
        while said.count(b" ") < 2 and (part := os.read(parent.stderr.fileno(), 100)):
            said += part
        parent.kill()
    pids = [int(pid) for pid in said.split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(running(pid) for pid in pids))
