"""`python -m mvm.convert`: every form into every other, and one line when that cannot be."""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
from param_shapes import autoencoder, classifier, like, random_params, sampler
from torch_writer import dense, released, save

from mvm import convert as command
from mvm import runs
from mvm.runtime import checkpoint
from mvm.weights import convert, files

HEADS = {"model.heads": 4, "model.decoder_heads": 2}
ADAMAE = {**autoencoder(), "sampler": sampler()}


def official(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    return convert.from_params(random_params(shapes), (2, 8, 8))


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)


def official_file(path: pathlib.Path, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    weights = official(shapes)
    save(path, released({key: dense(array) for key, array in weights.items()}))
    return weights


@pytest.mark.parametrize("shapes", [ADAMAE, classifier(heads=4)], ids=["pretrain", "finetune"])
def test_official_to_run_to_official(shapes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    weights = official_file(tmp_path / "a.pth", shapes)
    run = tmp_path / "run"
    report = command.translate(tmp_path / "a.pth", run, changes=HEADS)
    assert report.endswith(f"{len(weights)} keys read")

    params = runs.initial_params(str(run), like(shapes))  # --config.init_from=run
    jax.tree.map(np.testing.assert_array_equal, params, random_params(shapes))
    config = json.loads((run / "config.json").read_text())
    assert (config["model"]["width"], config["model"]["heads"]) == (48, 4)
    assert config["model"]["tubelet"] == [2, 8, 8]
    if "sampler" in shapes:
        assert (config["task"], config["mask"]["name"]) == ("pretrain", "adamae")
        assert (config["data"]["image_size"], config["data"]["num_frames"]) == (32, 16)
    else:
        assert (config["task"], config["data"]["num_classes"]) == ("finetune", 7)
        assert config["model"]["cosine_attention"]

    # A run and one of its steps alike; heads and mask need not be given again.
    for source in (run, run / "checkpoints" / "0"):
        target = tmp_path / f"{source.name}.safetensors"
        command.translate(source, target)
        same(files.read(target).weights, weights)
    command.translate(run, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again | {"name": "run"} == config


def test_the_average_of_a_run_is_what_is_converted(tmp_path: pathlib.Path) -> None:
    params, ema = (random_params(classifier(), seed) for seed in (0, 1))
    config: dict[str, Any] = {"task": "finetune", "mask": {"name": ""}}
    config["model"] = {"size": "Ti", "width": 48, "depth": 3, "tubelet": [2, 8, 8]}
    config["data"] = {"num_frames": 8, "image_size": 32, "num_classes": 7}
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", keep=1)
    state = {"step": np.int32(3), "params": params, "ema": ema, "key": np.zeros(2, np.uint32)}
    checkpoints.save(checkpoint.Place(3, 0, 0), state, config)
    checkpoints.close()
    (tmp_path / "run" / "classes.txt").write_text("".join(f"{name}\n" for name in "abcdefg"))
    command.translate(tmp_path / "run", tmp_path / "a.safetensors")
    same(files.read(tmp_path / "a.safetensors").weights, convert.from_params(ema, (2, 8, 8)))
    command.translate(tmp_path / "run", tmp_path / "hub", "huggingface")
    known = files.read(tmp_path / "hub").known
    # Three heads are those of Ti, whatever the width.
    assert (known["model.heads"], known["data.num_frames"]) == (3, 8)
    assert runs.Source(tmp_path / "hub").classes()[0] == tuple("abcdefg")


def test_huggingface_to_run_and_back(tmp_path: pathlib.Path) -> None:
    weights = official_file(tmp_path / "a.pth", classifier())
    hub, back, labels = tmp_path / "hub", tmp_path / "back", [f"class {i}" for i in range(7)]
    command.translate(tmp_path / "a.pth", hub, "huggingface", changes=HEADS)
    config = json.loads((hub / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)), "layer_norm_eps": 1e-12}
    (hub / "config.json").write_text(json.dumps(config))
    command.translate(hub, tmp_path / "run")
    assert (tmp_path / "run" / "classes.txt").read_text().splitlines() == labels
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["model"]["epsilon"], written["model"]["head_epsilon"]) == (1e-12, 1e-5)
    back.mkdir()  # An empty folder may be filled.
    command.translate(tmp_path / "run", back, "huggingface")
    same(files.read(back).weights, weights)
    assert json.loads((back / "config.json").read_text())["id2label"]["6"] == "class 6"
    # There is no place for the sampler of AdaMAE.
    official_file(tmp_path / "b.pth", ADAMAE)
    report = command.translate(tmp_path / "b.pth", tmp_path / "b", "huggingface", changes=HEADS)
    assert report.count("get_token_probs") + report.count("pos_embed_probs") == 14


def test_mistakes_give_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    official_file(tmp_path / "a.pth", classifier())
    files.write(tmp_path / "w.safetensors", {"conv1.weight": np.ones(3, np.float32)})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    here, new, pth = tmp_path / "a.pth", tmp_path / "new", tmp_path / "b.pth"
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    for argv, said in (
        ((tmp_path / "absent.pth", new), "absent.pth does not exist"),
        ((tmp_path, new), "holds no weights"),
        ((here, here), "a.pth exists"),
        ((here, tmp_path), f"{tmp_path} exists"),
        ((tmp_path / "w.safetensors", new), "conv1.weight"),
        ((here, pth, "--to", "huggingface"), "--to huggingface writes a folder"),
        ((here, new), "no released encoder is 48 wide"),
        ((here, pth, "--heads", "4"), "b.pth: writing it needs PyTorch"),
        ((tmp_path / "run", new), "run holds no finished checkpoint"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err[:7], err.count("\n")) == (2, "", "error: ", 1)
        assert said in err
    assert not new.exists()
