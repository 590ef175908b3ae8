"""Probes: heads of the reference, their grid, and from videos to a run that classifies."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from golden import close
from models_on_disk import refused

import mvm
from configs import probe as recipe
from mvm import objectives, sweep
from mvm.models import pooler, vit
from mvm.tasks import probe


def ours(weights, depth):
    """Weights (or gradients) of the reference under our names."""

    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def block(name):
        norms = {norm: linear(f"{name}.{norm}") for norm in ("norm1", "norm2")}
        norms = {norm: {"scale": n["kernel"], "bias": n["bias"]} for norm, n in norms.items()}
        mlp = {part: linear(f"{name}.mlp.{part}") for part in ("fc1", "fc2")}
        return {**norms, "mlp": mlp}

    cross, blocks = "pooler.cross_attention_block", []
    found = {"query": weights["pooler.query_tokens"], **block(cross)}
    found |= {part: linear(f"{cross}.xattn.{part}") for part in ("q", "kv")}
    for name in (f"pooler.blocks.{i}" for i in range(depth - 1)):
        qkv, attention = linear(f"{name}.attn.qkv"), {"proj": linear(f"{name}.attn.proj")}
        attention |= {"qkv": {"kernel": qkv["kernel"]}}
        attention |= zip(("q_bias", "k_bias", "v_bias"), np.split(qkv["bias"], 3))
        blocks.append({**block(name), "attention": attention})
    if blocks:
        found["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    return {"pooler": found, "head": linear("linear")}


@pytest.mark.parametrize("depth", [1, 4])
def test_attentive_heads_are_those_of_the_reference(shared, depth):
    whole = np.load(shared / "golden" / "downstream_frozen.npz")
    start = f"depth{depth}/"
    golden = {k.removeprefix(start): whole[k] for k in whole.files if k.startswith(start)}
    config = json.loads(str(golden["config"]))
    size = vit.Size(config["embed_dim"], 2, config["num_heads"])

    def make():
        rngs, run = nnx.Rngs(0), vit.Run()
        head = vit.linear(size.width, config["num_classes"], "normal", run, rngs=rngs)
        return nnx.Dict(pooler=pooler.AttentivePooler(size, depth, run, rngs=rngs), head=head)

    graph, _ = nnx.split(nnx.eval_shape(make))
    params, expected = (
        ours({k.removeprefix(kind): v for k, v in golden.items() if k.startswith(kind)}, depth)
        for kind in ("sd/", "grad/")
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == golden["n_params"]

    def loss(params):
        model = nnx.merge(graph, params)
        logits = model.head(model.pooler(golden["x"]))
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(3), golden["labels"]]), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, golden["logits64"], atol=5e-6)
    np.testing.assert_allclose(value, golden["loss"], atol=2e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    compare = partial(np.testing.assert_allclose, atol=1e-5 * largest)
    jax.tree.map_with_path(lambda path, a, b: compare(a, b, err_msg=str(path)), grads, expected)


def test_the_clips_of_a_crop_are_one_sequence(shared):
    golden = np.load(shared / "golden" / "downstream_frozen.npz")
    clips, expected = golden["multiclip/clips"], golden["multiclip/tokens"]
    # The toy encoder of the file: means over 2 x 2 x 2 cubes, and the sum of the three channels.
    c, k, b, _, t, h, w = clips.shape
    cubes = clips.reshape(c, k, b, 3, t // 2, 2, h // 2, 2, w // 2, 2).mean(axis=(5, 7, 9))
    tokens = np.moveaxis(cubes.reshape(c * k, b, 3, -1), 2, -1)
    tokens = np.concatenate([tokens, tokens.sum(axis=-1, keepdims=True)], axis=-1)
    close(probe.sequences(tokens, k), expected)


def test_every_head_trains_alone_and_the_grid_is_every_pair():
    which = probe.grid("1e-1,1e-3", "0,0.5")
    assert which.tolist() == [[0.1, 0], [0.1, 0.5], [1e-3, 0], [1e-3, 0.5]]
    for bad in ("", "1e-3,x"):
        refused(r"options\.rates=", probe.grid, bad, "0")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 48)
    features = rng.normal(size=(48, 1, 8)).astype("f4") + 3 * np.eye(8, dtype="f4")[label][:, None]
    answer, first = lambda head, x: x @ head["kernel"], {"kernel": jnp.zeros((8, 3))}
    fit = partial(probe.fit, answer, first, features.__getitem__, label)
    options = {"epochs": 4, "batch_size": 16, "seed": 0}
    params = fit(which, **options)
    for number in range(4):
        found = fit(which[number : number + 1], **options)
        close(found["kernel"][0], params["kernel"][number])
    p = probe.probabilities(answer, params, features.__getitem__, 48, 32)
    assert (p.argmax(-1) == label).mean(axis=1)[0] > 0.9
    assert np.abs(params["kernel"][1]).sum() < np.abs(params["kernel"][0]).sum()  # It decays.


def features(folder):
    """The mean of all that is kept of each video, in the order of names, as lists are."""
    rows = (np.float32(np.load(path)[0]) for path in sorted(folder.glob("videos/*.npy")))
    return np.stack([row.reshape(-1, row.shape[-1]).mean(axis=0) for row in rows])


@pytest.mark.parametrize("head", ["linear", pytest.param("attentive", marks=pytest.mark.slow)])
def test_from_videos_to_a_run_that_classifies(shapes, pretrained, no_figures, tmp_path, head):
    config = tiny.frozen(recipe, shapes, pretrained, head, ("train", "val", "test"))
    config.train.update(batch_size=8, epochs=2.0)
    config.options.update(rates="1e-2,1e-3", decays="0.1")
    config.data.crop = "center"  # Not that of the weights, which is what counts.
    config.eval.update(num_segments=1, num_crops=2)
    values = sweep.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["selection"] == "best of 2 by data.val top-1"
    assert [one["rate"] for one in results["grid"]] == [1e-2, 1e-3]
    assert results["best"]["val_top1"] == max(one["val_top1"] for one in results["grid"])
    assert (results["head"], results["norm"], results["views"]) == (head, "tokens", "1x2")
    assert sweep.run(config, tmp_path / "run").items() >= values.items()
    test, train = (features(tmp_path / "run" / "features" / split) for split in ("test", "train"))
    label, gallery = (np.loadtxt(shapes / f"{name}.txt", str)[:, 1] for name in ("test", "train"))
    votes = objectives.vote(test, train, gallery.astype(int), 8)
    assert results["knn"] == 100 * (votes.argmax(axis=1) == label.astype(int)).mean()
    # Its checkpoint answers as the kept features did.
    model = mvm.load(tmp_path / "run")
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:4]
    for video, _, _, _, best, probability, *_ in (row.split(",") for row in rows):
        ((name, p),) = model.classify(shapes / video, views="1x2", top=1)
        assert name == best
        assert abs(p - float(probability)) < 2e-3
    again = recipe.get_config(f"{head},evaluate")
    again.init_from = str(tmp_path / "run")
    again.data.update(test=config.data.test, workers=0)
    again.eval.update(num_segments=1, num_crops=2)
    scores = sweep.run(again, tmp_path / "scored")
    assert scores["test_top1"] == values["test_top1"]


def test_without_val_a_part_of_train_chooses_and_a_small_one_cannot():
    assert np.flatnonzero(probe.fifth(np.repeat([0, 1], 10))).tolist() == [4, 9, 14, 19]
    refused("fewer than 5 videos", probe.fifth, np.arange(20))
