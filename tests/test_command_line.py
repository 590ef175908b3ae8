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


COMMAND = {
    "args": [sys.executable, "main.py"],
    "cwd": ROOT,
    "env": {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}


def command(*arguments):
    return COMMAND | {"args": [*COMMAND["args"], *map(str, arguments)]}


@pytest.mark.slow
def test_what_is_wrong_on_the_command_line_is_one_line_and_exit_code_2():
    recipe = ("--config", "configs/everest_ucf101.py:smoke")
    for wrong, named in (
        ((*recipe, "--config.data.trian=x"), 'Did you mean "train" instead of "trian"?'),
        ((*recipe, "--config.mask.decoder_ratio=0.25"), "keep_ratio, mask_ratio"),  # Dual's.
        (("--config", "configs/everest.py"), "'configs/everest.py'"),
        (("--config", "configs/demo.py:smke"), "error: variant 'smke' is unknown; choose"),
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
def test_kill_nine_and_again(shapes, pretrained, tmp_path):
    """A real process, killed without warning at a random moment, then the same command."""
    changed = {"data.train": shapes / "pretrain.txt", "optim.warmup_epochs": 0.2}
    changed |= {"train.steps": 6, "train.log_every": 1, "train.save_every": 2}
    changed["report.clips"] = 0
    flags = ["--config", "configs/everest_ucf101.py:smoke", "--workdir", tmp_path]
    flags += [f"--config.{key}={value}" for key, value in changed.items()]
    same = command(*flags) | {"env": os.environ}  # Of as many devices as the tests have.
    victim = subprocess.Popen(**same)
    patience = time.monotonic() + 200
    while not checkpoint.steps_in(tmp_path) and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    victim.kill()
    victim.wait()
    assert checkpoint.steps_in(tmp_path)
    again = subprocess.run(**same, timeout=300)
    assert again.returncode == 0, again.stdout
    assert rows(tmp_path) == rows(pretrained)
    assert final_state(tmp_path) == final_state(pretrained)
