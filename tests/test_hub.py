"""Names on the Hugging Face hub: what is fetched, and what is no such name."""

import json
import shutil
import sys
import types

import pytest
from models_on_disk import configure, official, refused

import mvm
from mvm import convert as command
from mvm import runs
from mvm.weights import files, hub


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A client whose hub is `tmp_path/hub`; tells what was asked for and what was given."""
    asked, given = [], []

    def snapshot_download(name, allow_patterns):
        asked.append((name, *allow_patterns))
        if not (tmp_path / "hub" / name).exists():
            raise OSError(f"404 Client Error\n\nRepository Not Found for url: {'x' * 500}")
        (tmp_path / "cache" / name).mkdir(parents=True, exist_ok=True)
        for file in (tmp_path / "hub" / name).iterdir():
            if file.name in allow_patterns:
                given.append(file.name)
                shutil.copy(file, tmp_path / "cache" / name)
        return str(tmp_path / "cache" / name)

    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    hub.local.cache_clear()
    return asked, given


def test_a_name_is_fetched_once_with_no_more_than_is_needed(client, tmp_path):
    folder, names = tmp_path / "hub" / "me" / "model", [f"class {i}" for i in range(8)]
    weights = official(configure("videomae_k400", "finetune,smoke"))
    files.write(tmp_path / "a.safetensors", weights)
    command.translate(tmp_path / "a.safetensors", folder, "huggingface", {"data.image_size": 32})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    for extra in ("modeling.py", "training_args.bin", "model-00001-of-00002.safetensors"):
        (folder / extra).write_text("raise SystemExit('executed')")
    assert mvm.load("me/model").class_names == tuple(names)
    assert runs.Source("me/model").grid() == (8, 4, 4)  # which init_from asks
    assert client[0] == [("me/model", "config.json", "model.safetensors")]
    assert set(client[1]) == {"config.json", "model.safetensors"}
    # Without one file of weights, such as one in several, there is one line.
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    hub.local.cache_clear()
    shutil.rmtree(tmp_path / "cache")
    refused(
        "me/model on the Hugging Face hub has none of model.safetensors, p", mvm.load, "me/model"
    )
    refused(r"^me/absent does not exist .*OSError\)$", hub.local, "me/absent")
    # What exists here goes first.
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert hub.local("mine/model") == "mine/model"


def test_what_is_no_name_on_the_hub(client, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    (tmp_path / "mine").mkdir()
    for path in ("runs/demo", "mine/absent", "/a/b", "a/b/c", "gs://a/b", "../a", "absent"):
        assert hub.local(path) == path
    refused("^a/b does not exist; .* pip install huggingface_hub", hub.local, "a/b")
