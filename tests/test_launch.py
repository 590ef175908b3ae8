"""The launch files are well formed, and say nothing that `main.py` does not know."""

import pathlib
import re
import runpy
import subprocess

from configs import common
from mvm.runtime import multihost

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = sorted((ROOT / "launch").iterdir())
SCRIPTS = [path for path in LAUNCH if path.suffix == ".sh"]


def ours(text):
    """Flags of our command in the text; what stands before `main.py` is another one's."""
    lines = [
        line.rsplit("main.py", 1)[-1]
        for line in text.splitlines()
        if re.search(r"main\.py|--config|--coord", line)
    ]
    return [flag for line in lines for flag in re.findall(r"(?<![\w-])--([a-z_][\w.]*)", line)]


def test_flags_and_recipes_exist():
    source = (ROOT / "main.py").read_text()
    known = {"config", *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)}
    for path in [*LAUNCH, ROOT / "docs" / "hosts.md"]:
        text = path.read_text()
        used = ours(text)
        assert used, path
        for flag in used:
            head, *rest = flag.split(".")
            assert head in known, (path, flag)
            value = common.get_config()
            for part in rest:
                value = value[part]
        for recipe in re.findall(r"configs/\w+\.py", text):
            assert "get_config" in runpy.run_path(str(ROOT / recipe)), (path, recipe)


def test_scripts_start_again_what_can_resume():
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", path], check=True)
        assert path.stat().st_mode & 0o100
        codes = re.search(r"^\s*(?:case \S+ in )?([\d |]+)\)", path.read_text(), re.M).group(1)
        found = {int(code) for code in codes.split("|")}
        # Saved or a peer is lost; aborted by JAX, killed, the watchdog's alarm, terminated.
        assert found == {multihost.RESTART, 134, 137, 142, 143}, path
