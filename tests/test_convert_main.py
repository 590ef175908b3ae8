"""`python -m mvm.convert`: every form into every other, and one line when that cannot be."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from param_shapes import autoencoder, classifier, like, random_params, sampler
from torch_writer import dense, released, save

from mvm import convert as convert_main
from mvm import runs
from mvm.runtime import checkpoint
from mvm.weights import convert
from mvm.weights import files as weight_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADS = {"model.heads": 4, "model.decoder_heads": 2}
ADAMAE = {**autoencoder(), "sampler": sampler()}


def official_file(path: pathlib.Path, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    weights = convert.from_params(random_params(shapes), (2, 8, 8))
    save(path, released({key: dense(array) for key, array in weights.items()}))
    return weights


def same(path: pathlib.Path, weights: dict[str, np.ndarray]) -> None:
    read = weight_files.official_weights(path)
    assert set(read) == set(weights)
    assert all(read[key].tobytes() == weights[key].tobytes() for key in weights)


@pytest.mark.parametrize("shapes", [ADAMAE, classifier(heads=4)], ids=["pretrain", "finetune"])
def test_official_to_run_to_official(shapes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    weights = official_file(tmp_path / "a.pth", shapes)
    run = tmp_path / "run"
    report = convert_main.translate(tmp_path / "a.pth", run, given=HEADS)
    assert set(report.matched) == set(weights)
    assert report.missing == report.unused == ()

    params = runs.initial_params(str(run), like(shapes))  # --config.init_from=run
    jax.tree.map(np.testing.assert_array_equal, params, random_params(shapes))
    config = json.loads((run / "config.json").read_text())
    assert (config["model"]["width"], config["model"]["heads"]) == (48, 4)
    assert config["model"]["tubelet"] == [2, 8, 8]
    if "sampler" in shapes:
        assert (config["task"], config["mask"]["name"]) == ("pretrain", "adamae")
        assert config["data"] == {"image_size": 32, "num_frames": 16}  # of 128 positions
    else:
        assert (config["task"], config["data"]["num_classes"]) == ("finetune", 7)
        assert config["model"]["cosine_attention"]
        assert config["model"]["layer_scale"] > 0

    # A run and one of its steps alike; heads and mask need not be given again.
    for source in (run, run / "checkpoints" / "0"):
        target = tmp_path / f"{source.name}.safetensors"
        convert_main.translate(source, target)
        same(target, weights)
    convert_main.translate(run, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    for group in ("model", "mask", "data"):  # Nothing is lost, defaults may be added.
        assert again[group] | config[group] == again[group]


def test_the_average_of_a_run_is_what_is_converted(tmp_path: pathlib.Path) -> None:
    params, ema = (random_params(classifier(), seed) for seed in (0, 1))
    config = {"model": {"size": "Ti", "heads": 0, "tubelet": [2, 8, 8]}, "data": {}}
    config |= {"task": "finetune", "mask": {"name": ""}}
    config["data"] |= {"num_frames": 8, "image_size": 32, "num_classes": 7}
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", keep=1)
    state = {"step": np.int32(3), "params": params, "ema": ema, "key": np.zeros(2, np.uint32)}
    checkpoints.save(checkpoint.Place(3, 0, 0), state, config)
    checkpoints.close()
    (tmp_path / "run" / "classes.txt").write_text("".join(f"{name}\n" for name in "abcdefg"))
    convert_main.translate(tmp_path / "run", tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", convert.from_params(ema, (2, 8, 8)))

    convert_main.translate(tmp_path / "run", tmp_path / "hub", "huggingface")
    source = weight_files.read(tmp_path / "hub")
    assert source.labels == tuple("abcdefg")
    # Three heads are those of Ti, whatever the width.
    assert (source.known["model.heads"], source.known["data.num_frames"]) == (3, 8)


def test_huggingface_to_run_and_back(tmp_path: pathlib.Path) -> None:
    official = official_file(tmp_path / "a.pth", classifier())
    hub, labels = tmp_path / "hub", [f"class {i}" for i in range(7)]
    convert_main.translate(tmp_path / "a.pth", hub, "huggingface", given=HEADS)
    config = json.loads((hub / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)), "layer_norm_eps": 1e-12}
    (hub / "config.json").write_text(json.dumps(config))
    convert_main.translate(hub, tmp_path / "run")
    assert (tmp_path / "run" / "classes.txt").read_text().splitlines() == labels
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["model"]["epsilon"], written["model"]["head_epsilon"]) == (1e-12, 1e-5)
    back = tmp_path / "back"
    convert_main.translate(tmp_path / "run", back, "huggingface")
    same(back, official)
    assert json.loads((back / "config.json").read_text())["id2label"]["6"] == "class 6"


def test_what_the_sampler_of_adamae_becomes(tmp_path: pathlib.Path) -> None:
    official_file(tmp_path / "a.pth", ADAMAE)
    report = convert_main.translate(tmp_path / "a.pth", tmp_path / "b", "huggingface", given=HEADS)
    assert len(report.unused) == 14
    assert not set(report.unused) & set(report.matched)


def message(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        convert_main.main([str(word) for word in argv])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_mistakes_give_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    official_file(tmp_path / "a.pth", classifier())
    here, new = tmp_path / "a.pth", tmp_path / "new"
    assert "absent.pth: no such file" in message(capsys, tmp_path / "absent.pth", new)
    assert "a folder with none of" in message(capsys, tmp_path, new)
    assert "a.pth exists; remove it" in message(capsys, here, here)
    assert f"{tmp_path} exists; remove it" in message(capsys, here, tmp_path)
    weight_files.write(tmp_path / "w.safetensors", {"conv1.weight": np.ones(3, np.float32)})
    assert "(conv1.weight): not the names" in message(capsys, tmp_path / "w.safetensors", new)
    assert "--to official writes a file that" in message(capsys, here, new, "--to", "official")
    line = message(capsys, here, tmp_path / "b.pth", "--to", "huggingface")
    assert "--to huggingface writes a folder" in line
    assert "no released encoder is 48 wide" in message(capsys, here, new)
    assert not new.exists()
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert "b.pth: PyTorch is needed" in message(capsys, here, tmp_path / "b.pth")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "run holds no finished checkpoint yet" in message(capsys, tmp_path / "run", new)


def test_an_empty_folder_may_be_filled(tmp_path: pathlib.Path) -> None:
    official = official_file(tmp_path / "a.pth", classifier())
    (tmp_path / "b").mkdir()
    convert_main.translate(tmp_path / "a.pth", tmp_path / "b", "huggingface", given=HEADS)
    same(tmp_path / "b", official)


def test_the_command_prints_what_became_of_every_key(tmp_path: pathlib.Path) -> None:
    weights = official_file(tmp_path / "a.pth", classifier())
    gone = {key: array for key, array in weights.items() if not key.startswith("head.")}
    extra = {"norm.weight": np.ones(48, np.float32)}
    weight_files.write(tmp_path / "b.safetensors", {**gone, **extra})
    command = [sys.executable, "-m", "mvm.convert", str(tmp_path / "b.safetensors")]
    done = subprocess.run(
        [*command, str(tmp_path / "c" / "d.safetensors")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"matched {len(gone)} keys",
        "missing 2:",
        "  head/kernel",
        "  head/bias",
        "unused 1:",
        "  norm.weight",
    ]
    same(tmp_path / "c" / "d.safetensors", gone)
