"""Official weights against ours: layout, what shapes tell, and `python -m mvm.convert`."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from models_on_disk import (
    abstract,
    configure,
    official,
    random_params,
    refused,
    same,
    video,
    write_run,
)

import mvm
from configs import common
from mvm import convert as command
from mvm.models import positions
from mvm.weights import convert, files
from mvm.weights.describe import describe

OPTIONS = {"cosine_attention": True, "layer_scale": 0.1}  # of VideoMAE V2
AUTOENCODER = configure("videomae_k400")
CLASSIFIER = configure("videomae_k400", "finetune,smoke")
ADAMAE = configure("adamae_k400")
COSINE = configure("videomae_k400", "finetune,smoke", model=OPTIONS)
MODELS = {
    "autoencoder": AUTOENCODER,
    "one decoder block": configure("videomae_k400", model={"decoder_depth": 1}),
    "classifier": CLASSIFIER,
    "odd sizes": configure("videomae_k400", model={"tubelet": (4, 4, 4), "depth": 1}),
    "cosine attention and layer scale": COSINE,
    "AdaMAE's sampler": ADAMAE,
    "learned positions": configure("mae_st_k400"),
}


def test_round_trip_is_bitwise_from_both_ends_and_shapes_tell_the_model():
    for name, config in MODELS.items():
        params, tubelet = random_params(abstract(config)), config.model.tubelet
        weights = convert.from_params(params, tubelet)
        back, report = convert.to_params(weights, abstract(config))
        assert report == convert.Report(report.matched, (), ()), name
        jax.tree.map(np.testing.assert_array_equal, back, params)
        same(convert.from_params(back, tubelet), weights)
        described = common.get_config()
        described.update_from_flattened_dict(describe(weights))
        shapes = jax.tree.map(jnp.shape, abstract(described))
        assert shapes == jax.tree.map(jnp.shape, params), name


def test_files_fill_what_they_can_of_other_models_and_say_the_rest():
    def fill(weights, config):
        params, report = convert.to_params(weights, abstract(config))
        assert set(report.unused) == set(weights) - set(report.matched)
        return params, report

    params, report = fill(official(ADAMAE), CLASSIFIER)
    assert list(params) == ["encoder"]
    assert set(report.missing) == {"fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias"}
    assert {"encoder.norm.weight", "decoder.norm.weight", "mask_token"} <= set(report.unused)
    assert "48 unused: decoder.blocks.*, " in str(report)
    params, report = fill(official(AUTOENCODER), ADAMAE)  # A new sampler.
    assert ("sampler" in params, len(report.missing)) == (False, 14)
    # Heads: of other classes, or on the first token, are left out.
    weights = official(CLASSIFIER)
    seven = configure("videomae_k400", "finetune,smoke", data={"num_classes": 7})
    params, report = fill(weights, seven)
    assert ("head" in params, "fc_norm" in params) == (False, True)
    assert "head/bias (has 8 classes, 7 wanted)" in report.missing
    params, _ = fill({k.replace("fc_norm", "norm"): w for k, w in weights.items()}, CLASSIFIER)
    assert list(params) == ["encoder"]
    # The fixed sinusoid may be there.
    _, report = fill({**weights, "pos_embed": positions.sinusoid(128, 64)[None]}, CLASSIFIER)
    assert report.unused == ("pos_embed",)


def test_what_does_not_fit_names_the_key_and_both_shapes():
    plain, options, whole = official(CLASSIFIER), official(COSINE), official(AUTOENCODER)
    deep = configure("videomae_k400", model={"depth": 3, "decoder_depth": 3})
    wide = configure("videomae_k400", model={"width": 128})
    learned = {**plain, "pos_embed": positions.sinusoid(128, 64)[None] + 0.01}
    for weights, config, said in (
        (whole, wide, r"encoder.patch_embed.proj.weight is \(64, 3, 2, 8, 8\) .* \(128, 3"),
        (whole, MODELS["odd sizes"], "encoder.patch_embed.proj.weight .* 192 numbers"),
        (whole, deep, "coder.blocks.2.attn.* is absent"),
        (options, CLASSIFIER, r"blocks.0.(gamma_1|attn.scale) is .* in the file, wanted nothing"),
        (learned, CLASSIFIER, "pos_embed is a learned table"),
        ({"conv1.weight": np.ones(3)}, CLASSIFIER, "conv1.weight.*not the names"),
    ):
        refused(said, convert.to_params, weights, abstract(config))


def test_released_sizes_and_what_shapes_cannot_tell():
    zeros = lambda *shape: np.broadcast_to(np.float32(0), shape)  # noqa: E731
    huge = {"encoder.patch_embed.proj.weight": zeros(1280, 3, 2, 16, 16)}
    huge |= {f"encoder.blocks.{i}.mlp.fc1.weight": zeros(5120, 1280) for i in (0, 31)}
    huge["decoder.blocks.3.mlp.fc1.weight"] = zeros(2048, 512)
    huge["encoder_to_decoder.weight"] = zeros(512, 1280)
    huge["decoder.head.weight"] = zeros(1536, 512)
    found = describe(huge)
    assert (found["model.heads"], found["model.decoder_heads"]) == (16, 8)
    giant = {"patch_embed.proj.weight": zeros(1408, 3, 2, 14, 14)}
    giant |= {f"blocks.{i}.mlp.fc1.weight": zeros(6144, 1408) for i in (0, 39)}
    found = describe(giant)
    assert (found["model.size"], found["model.depth"], found["model.heads"]) == ("g", 40, 16)
    narrow = official(configure("videomae_k400", model={"width": 48, "decoder_width": 32}))
    refused("is 48 wide.*--heads", describe, narrow)
    refused("is 32 wide.*--decoder-heads", describe, narrow, {"model.heads": 4})
    refused("RGB video", describe, {"patch_embed.proj.weight": np.zeros((48, 3, 8, 8))})


def test_the_line_that_convert_prints_gives_equal_outputs(tmp_path, capsys, monkeypatch):
    """Whatever the form: classes, selection, stride and epsilons come with it."""
    monkeypatch.chdir(tmp_path)
    config = configure("everest_ucf101", "finetune,smoke", mask={"mask_ratio": 0.7})
    config.mask.keep_ratio, config.data.frame_stride, config.eval.average = 0.3, 3, "logits"
    config.model.update(heads=4, epsilon=1e-5, head_epsilon=1e-3, dtype="bfloat16")
    config.data.crop = "fit"
    write_run(tmp_path / "run", config)
    names = [f"class {i}" for i in range(8)]
    (tmp_path / "run" / "classes.txt").write_text("\n".join(names))
    clips = np.stack([video(16, 32, 32, seed=seed) for seed in range(2)])
    expected = mvm.load("run").classify(clips, top=8)
    targets = ["b", "c.safetensors", "d", "e.pth"]
    (tmp_path / "d").mkdir()  # An empty folder may be filled.
    for source, target in zip(["run", "b", "c.safetensors", "d"], targets):
        if target == "e.pth":
            pytest.importorskip("torch")
        command.main([source, target, *(["--to", "huggingface"] if target == "d" else ())])
        line = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
        found = eval(line, {"mvm": mvm})
        assert found.classify(clips, top=8) == expected, line
        assert found.config.data.frame_stride == 3
        assert found.network.task.clips["val"].crop == "fit"
        assert set(found.class_names) == set(names)
    raw = (tmp_path / "c.safetensors").read_bytes()
    assert b"class 7" in raw[: 8 + int.from_bytes(raw[:8], "little")]  # Not in the weights.


def test_what_a_file_says_is_no_more_than_values_and_imports_nothing(tmp_path):
    odd, weights = tmp_path / "odd.safetensors", official(CLASSIFIER)
    for name, refusal in (
        ("os.path", "os.path: the module has 0 strategies"),
        ("antigravity.no", "not imported because a file"),
    ):
        files.write(odd, weights, {"mask.name": name})
        refused(refusal, mvm.load, odd)
        refused(refusal, mvm.load, odd, mask={"keep_ratio": 0.1})
        mvm.load(odd, mask="everest")
    files.write(odd, weights, {"classes": 5})
    refused("classes", mvm.load, odd)
    files.write(odd, weights, {"data.train": "x", "train.steps": "y"})
    assert mvm.load(odd).config.data.train == ""


def test_safetensors(tmp_path):
    arrays = {
        "encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.full((), np.float32(0.1)),
        "c": np.array([np.nan, -0.0, 1e-42], np.float32),
    }
    path = tmp_path / "x.safetensors"
    files.write(path, arrays)
    with safetensors.safe_open(path, "numpy") as file:
        assert (set(file.keys()), file.metadata()) == (set(arrays), {"format": "pt"})
        read = files.read(path).weights
        for name, array in arrays.items():
            for found in (file.get_tensor(name), read[name]):
                assert (found.tobytes(), found.shape) == (array.tobytes(), array.shape), name
    b = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    text = json.dumps({"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b.tobytes())
    assert np.array_equal(files.read(path).weights["b"], [1.0, -2.5])


def test_mistakes_give_one_line(tmp_path, capsys):
    here, new = tmp_path / "a.safetensors", tmp_path / "new"
    files.write(here, official(configure("videomae_k400", model={"width": 48})))
    for argv, said in (
        ((tmp_path, new), "holds no weights in one file"),
        ((here, here), "a.safetensors exists"),
        ((here, new, "--to", "official"), "--to official writes a file"),
        ((here, new), "no released model is 48 wide"),
    ):
        with pytest.raises(SystemExit) as caught:
            command.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err[:7], err.count("\n")) == (2, "", "error: ", 1)
        assert said in err
    assert not new.exists()
