"""The launch files are well formed, and say nothing that `main.py` does not know."""

import pathlib
import re
import runpy
import subprocess

import pytest
import yaml

from configs import common
from mvm.runtime import multihost

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = sorted((ROOT / "launch").iterdir())
SCRIPTS = [path for path in LAUNCH if path.suffix == ".sh"]


@pytest.fixture(scope="module")
def known():
    """The flags that main.py defines."""
    source = (ROOT / "main.py").read_text()
    return {"config", *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)}


def ours(text):
    """Flags of our command in the text; what stands before `main.py` is another one's."""
    lines = [
        line.rsplit("main.py", 1)[-1]
        for line in text.splitlines()
        if re.search(r"main\.py|--config|--coord", line)
    ]
    return [flag for line in lines for flag in re.findall(r"(?<![\w-])--([a-z_][\w.]*)", line)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o100


@pytest.mark.parametrize("path", [*LAUNCH, ROOT / "docs" / "hosts.md"], ids=lambda p: p.name)
def test_flags_and_recipes_exist(path, known):
    text = path.read_text()
    keys = common.get_config()
    used = ours(text)
    assert used
    for flag in used:
        head, *rest = flag.split(".")
        assert head in known, flag
        value = keys
        for part in rest:
            value = value[part]
    for recipe in re.findall(r"configs/\w+\.py", text):
        assert "get_config" in runpy.run_path(str(ROOT / recipe))


def test_all_of_them_start_again_what_can_go_on():
    for path in SCRIPTS:
        codes = re.search(r"^\s*(?:case \S+ in )?([\d |]+)\)", path.read_text(), re.M).group(1)
        found = {int(code) for code in codes.split("|")}
        assert multihost.RESTART in found
        assert not found & {0, 1, multihost.MISTAKE}


def test_the_manifest_is_a_job_set_that_gives_up_on_mistakes_alone():
    manifest = yaml.safe_load((ROOT / "launch" / "gke.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] > 1
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, multihost.MISTAKE]
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # Which a pod failure policy asks for.
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    name = f"{manifest['metadata']['name']}-{jobs['name']}-0-0.{manifest['metadata']['name']}"
    assert f"--coordinator={name}:" in (ROOT / "launch" / "gke.yaml").read_text()
