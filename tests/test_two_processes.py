"""Two real processes of two devices each train one model, through main.py and over gloo."""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_checkpoint import flip, largest_file

from mvm.runtime import checkpoint, multihost
from mvm.runtime.metrics import read_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {"width": 16, "depth": 1, "decoder_width": 16, "decoder_depth": 1}


def options(shapes, steps, task="", **more):
    """A tiny recipe without pictures: batches of 8 clips, a row of metrics each step."""
    suffix = f":{task},smoke" if task else ":smoke"
    chosen = {f"model.{k}": v for k, v in TINY.items()}
    chosen |= {"train.steps": steps, "train.log_every": 1, "data.workers": 0, "report.clips": 0}
    chosen["data.train"] = shapes / ("train.txt" if task else "pretrain.txt")
    if task:
        chosen["data.test"] = shapes / "test.txt"
    chosen |= {key.replace("__", "."): value for key, value in more.items()}
    keys = [f"--config.{key}={value}" for key, value in chosen.items()]
    return ["--config", f"configs/videomae_ucf101.py{suffix}", *keys]


@pytest.fixture
def start(tmp_path):
    """Starts a run of one process or of two; whatever is left of it is killed in the end."""
    begun = []

    def run(workdir, arguments, processes=2, differing=(), program=("main.py",)):
        flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        # Of the cache that all tests share, whose files JAX does not write in one go.
        environment["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for index in range(processes):
            command = [sys.executable, *program, *arguments]
            command += ["--workdir", workdir, f"--config.train.cpu_devices={4 // processes}"]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
                command += [f"--process_id={index}", *(differing if index else ())]
            with (tmp_path / f"{len(begun)}.log").open("w") as out:
                process = subprocess.Popen(
                    list(map(str, command)), cwd=ROOT, env=environment, stdout=out, stderr=out
                )
            process.log = tmp_path / f"{len(begun)}.log"
            begun.append(process)
        return begun[-processes:]

    yield run
    for process in begun:
        process.kill()
        process.wait()


def finished(processes, code=0, timeout=900):
    """Waits for all; returns what each has said."""
    for process in processes:
        process.wait(timeout)
    said = [process.log.read_text() for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def wait_for(condition, process, timeout=900):
    patience = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < patience, process.log.read_text()
        time.sleep(0.02)


def said(text):
    """Lines of ours: not Gloo's, whose threads write into each other, nor of JAX on SIGTERM."""
    theirs = ("[Gloo]", "peer ranks", "preemption_notifier")
    return [line for line in text.splitlines() if not any(word in line for word in theirs)]


@pytest.mark.slow
def test_trained_by_two_killed_damaged_restarted_stopped_and_ended_alone(shapes, tmp_path, start):
    """The same rows as a run of one process that nobody disturbed."""
    chosen = options(shapes, 100, train__save_every=20, train__fsdp=4)
    (whole,) = start(tmp_path / "whole", chosen, processes=1)
    finished([whole])
    killed = tmp_path / "killed"
    (one,) = start(killed, chosen, processes=1)
    wait_for(lambda: checkpoint.steps_in(killed), one)
    one.kill()
    one.wait()
    finished(start(killed, chosen, processes=1))
    for name in ("metrics.jsonl", "checkpoints/100/leaves/metadata"):  # Bit for bit.
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    workdir = tmp_path / "run"
    saved = lambda: checkpoint.steps_in(workdir)  # noqa: E731

    both = start(workdir, chosen)
    wait_for(lambda: len(saved()) > 1, both[0])
    for process in both:  # That one alone would end the other is shown below.
        process.kill()
        process.wait()
    damaged, last, *_ = saved()
    # One process may be alone in reading the wrong byte.
    flip(largest_file(workdir / "checkpoints" / str(damaged)))

    both = start(workdir, chosen)
    wait_for(lambda: checkpoint.is_step(workdir / "damaged" / str(damaged)), both[0])
    wait_for(lambda: saved()[0] > last, both[0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):  # To one, more than once.
        both[1].send_signal(number)
    spoken = finished(both, multihost.RESTART)
    assert all(f"checkpoint {damaged} of {workdir} is damaged" in text for text in spoken)
    assert len(said(spoken[1])) == 1  # Of the rest one process speaks.
    assert f"resuming from step {last}" in spoken[0]
    (line,) = [line for line in spoken[0].splitlines() if "stopped, saved at step" in line]
    stop = saved()[0]
    assert f"at step {stop};" in line
    assert last < stop < 100

    (alone,) = start(workdir, chosen, processes=1)
    finished([alone])
    assert f"resuming from step {stop}" in alone.log.read_text()
    # Equal but for rounding: sums over devices are taken in another order.
    whole, mine = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    assert mine == [pytest.approx(row, rel=1e-4) for row in whole]


LOSS = """
import sys
from jax.experimental.multihost_utils import process_allgather as gather
from mvm.runtime import multihost

multihost.HEARTBEAT = 5
address, _, index = (word.partition("=")[2] for word in sys.argv[-3:])
multihost.start(address, 2, int(index), False)
multihost.agree({})
try:
    for step in range(1_000_000):
        gather(0)
        if step == 3:
            print("running", flush=True)
except Exception as error:
    multihost.fail(error, ())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"), itertools.product((0, 1), (signal.SIGKILL, signal.SIGSTOP))
)
def test_a_lost_process_ends_the_other_to_be_restarted(tmp_path, start, victim, number):
    """By our line where a connection breaks, by an abort of JAX where heartbeats stop."""
    both = start(tmp_path, (), program=("-c", LOSS))
    for process in both:
        wait_for(lambda p=process: "running" in p.log.read_text(), process)
    left = both[1 - victim]
    both[victim].send_signal(number)
    left.wait(60)
    said = left.log.read_text()
    assert left.returncode in (multihost.RESTART, -signal.SIGABRT), said
    assert any(word in said for word in ("heartbeat", "lost another process", "coordination"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differing", "named"),
    [("data.train=nowhere.txt", "nowhere.txt"), ("seed=1", "process 1 has seed=1, process 0 has")],
)
def test_what_one_machine_lacks_or_has_of_its_own_ends_both(
    shapes, tmp_path, start, differing, named
):
    both = start(tmp_path, options(shapes, 3), differing=[f"--config.{differing}"])
    for spoken in finished(both, multihost.MISTAKE):
        *_, line = [line for line in spoken.splitlines() if line.startswith("error: ")]
        assert "process 1 " in line
        assert named in line


@pytest.mark.slow
def test_an_odd_test_set_scores_the_same(shapes, tmp_path, start):
    """19 videos, batches of 8, two processes: each video once, as with one process."""
    chosen = options(shapes, 2, "finetune")
    finished(start(tmp_path / "two", chosen, differing=["--config.data.threads=2"]))  # May differ.
    finished(start(tmp_path / "one", chosen, processes=1))
    two, one = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("two", "one"))
    assert two["num_videos"] == 19
    scores = ("top1", "top5", "mean_class")
    assert [two.pop(n) for n in scores] == pytest.approx([one.pop(n) for n in scores])
    assert two == one
    files = [(tmp_path / n / "predictions.csv").read_text().splitlines() for n in ("two", "one")]
    plain = [[line.split(",")[0:5:4] for line in file] for file in files]  # Without probabilities.
    assert plain[0] == plain[1]
