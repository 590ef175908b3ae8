"""When a run has many processes, and how it stops, hangs and fails; see test_two_processes, too."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from mvm import data
from mvm.runtime import multihost
from mvm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_several_processes_are_noticed_by_what_a_launcher_says():
    step = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "3"}
    alone = [
        {},
        {**step, "SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "16"},  # In the batch script itself, outside srun.
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ]
    assert not [found for found in alone if multihost.launched(found)]
    assert multihost.launched({**step, "SLURM_NTASKS": "16"})
    assert multihost.launched({"OMPI_COMM_WORLD_SIZE": "4"})


def test_mistakes_name_the_flags():
    with pytest.raises(UserError, match="--coordinator=a is not HOST:PORT"):
        multihost.start("a", 2, 0, False)


def test_more_processes_than_videos_is_a_mistake(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 4)
    with pytest.raises(UserError, match=r"data\.val has 3 videos for 4 processes"):
        data.facts({"val": [None] * 3})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_stop_however_many_come(number):
    before = signal.getsignal(number)
    with multihost.stop_requests() as stopped:
        assert not stopped()
        for _ in range(3):
            signal.raise_signal(number)
        assert stopped()
        assert stopped()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("seed is -1"), multihost.MISTAKE), (multihost.RestartError("disk"), 75)],
)
def test_one_line_and_a_code_where_a_process_is_alone(error, code, capsys):
    with pytest.raises(SystemExit, match=str(code)):
        multihost.fail(error, (UserError,))
    assert capsys.readouterr().err == f"error: {error}\n"
    with pytest.raises(KeyError):  # A bug keeps its traceback.
        multihost.fail(KeyError("x"), (UserError,))


def watched(code):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    code = "import threading, time\nfrom mvm.runtime.multihost import Watchdog\n" + (
        textwrap.dedent(code)
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_loop_that_hangs_ends_and_shows_every_stack():
    done = watched("""
        Watchdog(0.01).done()
        threading.Event().wait()
    """)
    assert done.returncode == -signal.SIGALRM
    assert "Timeout" in done.stderr
    assert "in wait" in done.stderr


def test_compiling_evaluating_and_working_are_not_hanging():
    done = watched("""
        watchdog = Watchdog(0.04)
        time.sleep(4)
        watchdog.done()
        with watchdog.paused():
            time.sleep(4)
        for _ in range(5):
            time.sleep(1)
            watchdog.done()
        watchdog.close()
        time.sleep(4)
        Watchdog(0.0).done()
    """)
    assert done.returncode == 0, done.stderr
