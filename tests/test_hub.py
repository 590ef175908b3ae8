"""Names on the Hugging Face hub: what is fetched, and what is no such name."""

import json
import shutil
import sys
import types

import pytest
from param_shapes import classifier, random_params
from torch_writer import dense, save

import mvm
from mvm import convert as command
from mvm import runs
from mvm.weights import convert, files, hub, huggingface


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
    folder, names = tmp_path / "hub" / "me" / "model", [f"class {i}" for i in range(7)]
    weights = convert.from_params(random_params(classifier()), (2, 8, 8))
    files.write(tmp_path / "a.safetensors", weights)
    heads = {"model.heads": 4, "data.image_size": 32}
    command.translate(tmp_path / "a.safetensors", folder, "huggingface", heads)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))
    (folder / "modeling.py").write_text("raise SystemExit('executed')")
    (folder / "training_args.bin").write_text("not wanted")
    assert mvm.load("me/model").class_names == tuple(names)
    assert runs.Source("me/model").grid() == (8, 4, 4)  # which init_from asks
    assert client[0] == [("me/model", "config.json", "model.safetensors")]
    assert set(client[1]) == {"config.json", "model.safetensors"}

    # Without safetensors, the file of PyTorch.
    (folder.parent / "older").mkdir()
    shutil.copy(folder / "config.json", folder.parent / "older")
    theirs = {k: dense(array) for k, array in huggingface.from_official(weights)[0].items()}
    save(folder.parent / "older" / "pytorch_model.bin", theirs)
    assert mvm.load("me/older").class_names == tuple(names)

    with pytest.raises(mvm.UserError, match=r"^me/absent does not exist .*OSError\)$") as caught:
        hub.local("me/absent")
    assert len(str(caught.value)) < 120
    # What exists here goes first.
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert hub.local("mine/model") == "mine/model"


def test_what_is_no_name_on_the_hub(client, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    (tmp_path / "mine").mkdir()
    for path in ("runs/demo", "mine/absent", "/a/b", "a/b/c", "gs://a/b", "../a", "absent"):
        assert hub.local(path) == path
    with pytest.raises(mvm.UserError, match=r"^a/b does not exist; .* pip install huggingface_hub"):
        hub.local("a/b")
