"""When a run has many processes, and how it stops, hangs and fails; see test_two_processes, too."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

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
        {"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"},
    ]
    assert not [found for found in alone if multihost.launched(found)]
    assert multihost.launched({**step, "SLURM_NTASKS": "16"})
    assert multihost.launched({"OMPI_COMM_WORLD_SIZE": "4"})


def test_a_tpu_is_noticed_where_its_library_is(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    assert multihost.launched({})
    assert multihost.launched({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_SKIP_MDS_QUERY": "1"})
    assert not multihost.launched({"TPU_SKIP_MDS_QUERY": "1"})  # JAX saw no TPU.


def test_mistakes_name_the_flags():
    with pytest.raises(UserError, match="--coordinator=a is not HOST:PORT"):
        multihost.start("a", 2, 0, False)


def test_processes_of_other_code_or_facts_are_named(monkeypatch):
    def together(theirs):
        monkeypatch.setattr(multihost, "exchange", lambda mine: [mine, change(mine, theirs)])
        multihost.agree({"seed": 0})

    change = lambda text, theirs: json.dumps(json.loads(text) | theirs)  # noqa: E731
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(multihost, "_agreed", [])
    together({})
    for theirs in ({"code": "older"}, {"seed": 1}):
        ((name, value),) = theirs.items()
        with pytest.raises(UserError, match=f"process 1 has {name}={value}, process 0 has {name}="):
            together(theirs)


def test_signals_ask_to_stop_however_many_come():
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        with multihost.stop_requests() as stopped:
            assert not stopped()
            for _ in range(3):
                signal.raise_signal(number)
            assert stopped()
        assert signal.getsignal(number) == before


def test_one_line_and_a_code_where_a_process_is_alone(capsys):
    for error, code in ((UserError("seed is -1"), 2), (multihost.RestartError("disk"), 75)):
        with pytest.raises(SystemExit, match=str(code)):
            multihost.fail(error, (UserError,))
        assert capsys.readouterr().err == f"error: {error}\n"
    with pytest.raises(KeyError):  # A bug keeps its traceback.
        multihost.fail(KeyError("x"), (UserError,))


def test_a_loop_that_hangs_shows_every_stack_and_dies_and_one_that_works_does_not():
    code = """if True:
        import threading, time
        from mvm.runtime.multihost import watch
        for _ in range(3):
            watch(0.025)
            time.sleep(0.6)
        watch(0)
        time.sleep(1.6)
        print("works", flush=True)
        watch(0.005)
        threading.Event().wait()
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "works\n", done.stderr
    assert done.returncode == -signal.SIGALRM
    assert "in wait" in done.stderr
