"""`python -m mvm.convert`: every form into every other, and one line when that cannot be."""

import json
import sys

import jax
import numpy as np
import pytest
import torch_writer
from models_on_disk import abstract, configure, official, random_params, same, write_run

from mvm import convert as command
from mvm import initial
from mvm.weights import convert, files

ADAMAE = configure("adamae_k400")
COSINE = configure(
    *("videomae_k400", "finetune,smoke"), model={"cosine_attention": True, "layer_scale": 0.1}
)
CLASSIFIER = configure("videomae_k400", "finetune,smoke", model={"heads": 4})  # Of width 64: one.


def official_file(path, config):
    weights = official(config)
    tensors = {key: torch_writer.dense(array) for key, array in weights.items()}
    torch_writer.save(path, torch_writer.released(tensors))
    return weights


def test_official_to_run_to_official(tmp_path):
    for config in (ADAMAE, COSINE):
        source, run = tmp_path / f"{config.task}.pth", tmp_path / config.task
        weights = official_file(source, config)
        report = command.translate(source, run)
        assert report == f"{source}: {len(weights)} keys read"
        params = initial.params(str(run), abstract(config))  # --config.init_from=run
        jax.tree.map(np.testing.assert_array_equal, params, random_params(abstract(config)))
        written = json.loads((run / "config.json").read_text())
        assert (written["task"], written["model"]["tubelet"]) == (config.task, [2, 8, 8])
        assert written["mask"]["name"] == ("adamae" if config is ADAMAE else "")
        # A run and one of its steps alike.
        for form in (run, run / "checkpoints" / "0"):
            target = tmp_path / "new" / f"{config.task} {form.name}.safetensors"
            command.translate(form, target)
            same(files.read(target).weights, weights)


def test_huggingface_to_run_and_back_with_heads_epsilons_and_names(tmp_path):
    weights = official_file(tmp_path / "a.pth", CLASSIFIER)
    hub, back, labels = tmp_path / "hub", tmp_path / "back", [f"class {i}" for i in range(8)]
    command.translate(tmp_path / "a.pth", hub, "huggingface", {"model.heads": 4})
    config = json.loads((hub / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)), "layer_norm_eps": 1e-12}
    (hub / "config.json").write_text(json.dumps(config))
    command.translate(hub, tmp_path / "run")
    assert (tmp_path / "run" / "classes.txt").read_text().splitlines() == labels
    model = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (model["epsilon"], model["head_epsilon"], model["heads"]) == (1e-12, 1e-5, 4)
    back.mkdir()  # An empty folder may be filled.
    command.translate(tmp_path / "run", back, "huggingface")
    same(files.read(back).weights, weights)
    again = json.loads((back / "config.json").read_text())
    assert (again["id2label"]["6"], again["num_attention_heads"]) == ("class 6", 4)
    # There is no place for the sampler of AdaMAE.
    official_file(tmp_path / "b.pth", ADAMAE)
    report = command.translate(tmp_path / "b.pth", tmp_path / "b", "huggingface")
    assert "76 keys read; left out: encoder.get_token_probs.0.attn.proj.bias, " in report


def test_the_average_of_a_run_is_what_is_converted(tmp_path):
    config = configure("everest_ucf101", "finetune,smoke")
    average = random_params(abstract(config), seed=1)
    write_run(tmp_path / "run", config, ema=average)
    command.translate(tmp_path / "run", tmp_path / "a.safetensors")
    same(files.read(tmp_path / "a.safetensors").weights, convert.from_params(average, (2, 8, 8)))


def test_mistakes_give_one_line_and_the_rest_a_report(tmp_path, capsys, monkeypatch):
    weights = official_file(tmp_path / "a.pth", configure("videomae_k400", model={"width": 48}))
    files.write(tmp_path / "w.safetensors", {"conv1.weight": np.ones(3, np.float32)})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    here, new, pth = tmp_path / "a.pth", tmp_path / "new", tmp_path / "b.pth"
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    for argv, said in (
        ((tmp_path / "absent.pth", new), "absent.pth does not exist"),
        ((tmp_path, new), "holds no weights in one file"),
        ((here, here), "a.pth exists"),
        ((here, tmp_path), f"{tmp_path} exists"),
        ((tmp_path / "w.safetensors", new), "conv1.weight"),
        ((here, new, "--to", "official"), "--to official writes a file"),
        ((here, pth, "--to", "huggingface"), "--to huggingface writes a folder"),
        ((here, new), "no released model is 48 wide"),
        ((here, pth, "--heads", "4"), "b.pth: writing it needs PyTorch"),
        ((tmp_path / "run", new), "run holds no finished checkpoint"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err[:7], err.count("\n")) == (2, "", "error: ", 1)
        assert said in err
    assert not new.exists()
    headless = {k: array for k, array in official(COSINE).items() if not k.startswith("head.")}
    files.write(tmp_path / "b.safetensors", {**headless, "norm.weight": np.ones(64, np.float32)})
    command.main([str(tmp_path / "b.safetensors"), str(tmp_path / "c" / "d.safetensors")])
    assert (
        f"{len(headless)} keys read; 2 missing: head/bias, head/kernel; 1 unused: norm.weight\n"
        in (capsys.readouterr().out)
    )
    same(files.read(tmp_path / "c" / "d.safetensors").weights, headless)
    assert weights
