"""The command as a process: mistakes, Ctrl-C and kills."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_end_to_end import final_state, rows

from mvm.runtime import checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return dict(
        args=[sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_is_wrong_on_the_command_line_is_one_line_and_exit_code_2():
    recipe = ("--config", "configs/everest_ucf101.py:smoke")
    for wrong, named in (
        ((*recipe, "--config.data.trian=x"), 'Did you mean "train" instead of "trian"?'),
        (("--config", "configs/everest.py"), "'configs/everest.py'"),
        (("--config", "configs/everest_ucf101.py:smke"), "'smke' is unknown; choose pretrain"),
    ):
        done = subprocess.run(**command(*wrong), timeout=120)
        assert done.returncode == 2
        assert done.stdout.startswith("error: ")
        assert named in done.stdout
        assert len(done.stdout.splitlines()) == 1


def test_an_early_interrupt_is_no_traceback(tmp_path):
    flags = ("--config", "configs/everest_ucf101.py:smoke", "--workdir", str(tmp_path))
    victim = subprocess.Popen(**command(*flags))
    maps, patience = pathlib.Path(f"/proc/{victim.pid}/maps"), time.monotonic() + 60
    while "jaxlib" not in maps.read_text() and time.monotonic() < patience:
        time.sleep(0.02)
    victim.send_signal(signal.SIGINT)
    said = victim.communicate(timeout=60)[0]  # On a busy machine it has begun to work by then.
    assert "Traceback" not in said
    assert "Error" not in said
    assert victim.returncode == -signal.SIGINT  # A shell's 130.


@pytest.mark.slow
def test_kill_nine_and_again(shapes, tmp_path):
    """A real process, killed without warning at a random moment, then the same command."""
    options = [
        *("--config", "configs/everest_ucf101.py:smoke"),
        *(f"--config.data.train={shapes}/pretrain.txt", "--config.train.steps=40"),
        *("--config.train.save_every=5", "--config.train.log_every=1"),
    ]
    whole = subprocess.run(**command(*options, "--workdir", tmp_path / "whole"), timeout=300)
    assert whole.returncode == 0, whole.stdout
    victim = subprocess.Popen(**command(*options, "--workdir", tmp_path / "killed"))
    patience = time.monotonic() + 200
    while not checkpoint.steps_in(tmp_path / "killed") and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert checkpoint.steps_in(tmp_path / "killed")
    again = subprocess.run(**command(*options, "--workdir", tmp_path / "killed"), timeout=300)
    assert again.returncode == 0, again.stdout
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")
