"""Who is told what when a run starts, agrees, stops and hangs; for two processes see the next."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from configs import common
from mvm.runtime import hosts, peers
from mvm.runtime.watchdog import Watchdog
from mvm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}


def test_alone_without_flags_or_cluster():
    assert hosts.arguments({}) is None
    assert hosts.arguments({**SLURM, "SLURM_NTASKS": "1"}) is None
    assert hosts.arguments({**OMPI, **URI, "OMPI_COMM_WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("environment", [SLURM, OMPI | URI], ids=["slurm", "open_mpi"])
def test_a_cluster_is_joined_unasked_and_flags_go_first(environment):
    assert hosts.arguments(environment) == {}  # JAX finds everything.
    found = hosts.arguments(environment, "other:1", 2, 1)
    assert found == {"coordinator_address": "other:1", "num_processes": 2, "process_id": 1}
    assert hosts.arguments(environment, coordinator="other:1") == {"coordinator_address": "other:1"}


def test_open_mpi_5_needs_to_be_told_only_where():
    with pytest.raises(UserError, match="--coordinator"):
        hosts.arguments(OMPI)
    assert hosts.arguments(OMPI, coordinator="a:1") == {
        "coordinator_address": "a:1",
        "num_processes": 4,
        "process_id": 2,
        "local_device_ids": [1],
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"insist": True}, "--distributed"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator is missing"),
        ({"coordinator": "a:1", "process_id": 0}, "--num_processes is missing"),
        ({"coordinator": "a:1", "num_processes": 2}, "--process_id is missing"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "--coordinator=a is not"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 is none"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes=0"),
    ],
)
def test_mistakes_are_one_line_that_names_the_flag(given, named):
    with pytest.raises(UserError) as caught:
        hosts.arguments({}, **given)
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)


def test_more_processes_than_videos_is_a_mistake():
    with pytest.raises(UserError, match=r"data\.val has 3 videos for 4 processes"):
        hosts.check_enough({"train": 4, "val": 3}, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_stop_once_however_many_come(number):
    before = signal.getsignal(number)
    with hosts.stop_requests() as stopped:
        assert not stopped()
        for _ in range(3):
            signal.raise_signal(number)
        assert stopped()
        assert stopped()
    assert signal.getsignal(number) == before


def child(code):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_loop_that_hangs_ends_and_says_where():
    done = child("""
        import threading
        from mvm.watchdog import Watchdog
        with Watchdog(0.01) as watchdog:
            watchdog.done(41)
            threading.Event().wait()
    """)
    assert done.returncode == peers.RESTART
    assert "error: step 42 has not ended after" in done.stderr
    assert "train.timeout_minutes" in done.stderr
    assert "in wait" in done.stderr  # The stack of the thread that hangs.


def test_compiling_validating_and_working_are_not_hanging():
    done = child("""
        import time
        from mvm.watchdog import Watchdog
        with Watchdog(0.04) as watchdog:
            time.sleep(3)
            watchdog.done(1)
            with watchdog.paused():
                time.sleep(3)
            for step in range(2, 6):
                time.sleep(0.4)
                watchdog.done(step)
        with Watchdog(0.0) as watchdog:
            watchdog.done(1)
            time.sleep(1)
    """)
    assert done.returncode == 0, done.stderr


def test_its_own_configuration_says_where_a_process_reads():
    keys = json.loads(common.get_config().to_json_best_effort())
    for key in hosts._OWN:
        section, name = key.split(".")
        assert name in keys[section]
    assert Watchdog(keys["train"]["timeout_minutes"])._seconds == 1800
