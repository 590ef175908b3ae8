"""When a run has many processes, and how it stops, hangs and fails; and launch files."""

import functools
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from configs import common
from mvm.runtime import multihost
from mvm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_several_processes_are_noticed_by_what_a_launcher_says():
    step = {"SLURM_STEP_NODELIST": "node[1-2]"}
    for environment, several in (
        ({**step, "SLURM_NTASKS": "16"}, True),
        ({**step, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "16"}, False),  # In the batch script itself, outside srun.
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"}, False),
    ):
        assert multihost.launched(environment) == several, environment


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
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "works\n", done.stderr
    assert done.returncode == -signal.SIGALRM
    assert "in wait" in done.stderr


# --- Launch files

LAUNCH = sorted((ROOT / "launch").iterdir())


def test_flags_and_recipes_exist():
    source = (ROOT / "main.py").read_text()
    known = {"config", *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)}
    for path in [*LAUNCH, ROOT / "docs" / "hosts.md"]:
        text = path.read_text()
        # What stands before `main.py` are flags of another command.
        lines = re.findall(r"^.*(?:main\.py|(?=--config|--coord)).*$", text, re.M)
        ours = " ".join(line.rpartition("main.py")[2] for line in lines)
        flags = re.findall(r"(?<![\w-])--([a-z_][\w.]*)", ours)
        assert flags, path
        for flag in flags:
            head, *rest = flag.split(".")
            assert head in known, (path, flag)
            functools.reduce(lambda value, part: value[part], rest, common.get_config())
        for recipe in re.findall(r"configs/\w+\.py", text):
            assert "get_config" in (ROOT / recipe).read_text(), (path, recipe)


def test_scripts_start_again_what_can_resume():
    for path in (path for path in LAUNCH if path.suffix == ".sh"):
        subprocess.run(["bash", "-n", path], check=True)
        assert path.stat().st_mode & 0o100
        codes = re.search(r"^\s*(?:case \S+ in )?([\d |]+)\)", path.read_text(), re.M).group(1)
        found = {int(code) for code in codes.split("|")}
        # Saved or a peer is lost; aborted by JAX, killed, the watchdog's alarm, terminated.
        assert found == {multihost.RESTART, 134, 137, 142, 143}, path
