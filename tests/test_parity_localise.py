"""The same numbers as the released detectors: ActionFormer, and VideoMAE's on AVA."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import Golden, close

from input_pipeline import segments as samples
from mvm import optim
from mvm.detections import temporal
from mvm.models import actionformer, roi, vit
from mvm.tasks import detect, localise

BLOCK = r"backbone\.(stem|branch)\.(\d)\."
NAMES = (  # Of the released weights, as regular expressions, and ours.
    (r"backbone\.embd\.(\d)\.conv", "embed/conv{0}"),
    (r"backbone\.embd_norm\.(\d)", "embed/norm{0}"),
    (BLOCK + r"ln(\d)", "norm{0}"),
    (BLOCK + r"attn\.(query|key|value)_conv\.conv", "{0}/near"),
    (BLOCK + r"attn\.(query|key|value)_norm", "{0}/norm"),
    (BLOCK + r"attn\.(query|key|value)", "{0}/linear"),
    (BLOCK + r"attn\.proj", "proj"),
    (BLOCK + r"mlp\.0", "fc1"),
    (BLOCK + r"mlp\.3", "fc2"),
    (BLOCK + r"drop_path_attn", "gamma1"),
    (BLOCK + r"drop_path_mlp", "gamma2"),
    (r"neck\.fpn_norms\.(\d)", "norms/{0}"),
    (r"(?:cls|reg)_head\.head\.(\d)\.conv", "{head}/conv{0}"),
    (r"(?:cls|reg)_head\.norm\.(\d)", "{head}/norm{0}"),
    (r"(?:cls|reg)_head\.(?:cls|offset)_head\.conv", "{head}/last"),
    (r"reg_head\.scale\.(\d)", "scales"),
)


def ours(name):
    """Our path of a released weight, and its place in what stands there."""
    stem, _, leaf = name.rpartition(".")
    pattern, path = next(pair for pair in NAMES if re.fullmatch(pair[0], stem))
    groups, first = re.fullmatch(pattern, stem).groups(), not path.startswith("norms")
    if pattern.startswith(BLOCK):
        kind, number, *groups = groups
        path, first = f"layers/{int(number) + 2 * (kind == 'branch')}/{path}", 0
    numbers = [int(g) + first if g.isdigit() else g for g in groups]
    path = path.format(*numbers, head="classes" if stem.startswith("cls") else "offsets")
    if leaf == "scale":
        return path, int(groups[0]) if path == "scales" else ()
    if path.endswith("/near"):
        return f"{path}_kernel", ()
    norm = path.rpartition("/")[2].startswith("norm") or path.startswith("norms")
    return f"{path}/{'bias' if leaf == 'bias' else 'scale' if norm else 'kernel'}", ()


class Released:
    """One of the two models of the file, its weights as ours."""

    def __init__(self, shared, name):
        self.data = np.load(shared / "golden" / "downstream_actionformer.npz")
        self.name = name
        self.config = json.loads(str(self["config"]))
        model, self.test = self.config["model"], self.config["test_cfg"]
        self.levels = len(model["regression_range"])
        windows = (model["n_mha_win_size"],) * self.levels
        if isinstance(windows[0], list):
            windows = tuple(max(w, 0) for w in windows[0])
        self.size = actionformer.Size(
            *(model["input_dim"], model["embd_dim"], model["n_head"], windows),
            *(model["use_abs_pe"] * model["max_seq_len"], model["train_cfg"]["droppath"]),
        )
        self.num_classes = model["num_classes"]
        build = partial(actionformer.ActionFormer, self.size, self.num_classes, vit.Run())
        self.graphdef, state = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
        self.like = flatten_dict(nnx.to_pure_dict(state), sep="/")
        self.params = self.tree("sd")

    def __getitem__(self, key):
        return self.data[f"{self.name}/{key}"]

    def tree(self, kind):
        """All of `sd` or `grad`, as a tree of our parameters; kernels are (size, in, out)."""
        found = {name: np.zeros(leaf.shape, np.float32) for name, leaf in self.like.items()}
        start, count = f"{self.name}/{kind}/", 0
        for key in (k for k in self.data.files if k.startswith(start)):
            name, place = ours(key.removeprefix(start))
            value = self.data[key]
            value = value.T if value.ndim == 3 else value
            found[name][place] = value.reshape(found[name][place].shape)
            count += value.size
        assert count == sum(array.size for array in found.values())
        return unflatten_dict(found, sep="/")

    def joined(self, key):
        return np.concatenate([self[f"{key}/{level}"] for level in range(self.levels)], axis=1)

    def model(self, params):
        return nnx.merge(self.graphdef, params)

    def truth(self):
        """Segments and classes of all clips, padded: `[B, M, 3]`."""
        pairs = [(self[f"gt_segments/{b}"], self[f"gt_labels/{b}"]) for b in range(len(self["x"]))]
        found = np.full((len(pairs), max(len(label) for _, label in pairs), 3), -1, np.float32)
        for row, (segment, label) in zip(found, pairs):
            row[: len(label)] = np.column_stack([segment.reshape(-1, 2), label])
        return found


THUMOS = pytest.param("thumos", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["fineaction", THUMOS])
def released(request, shared):
    return Released(shared, request.param)


def test_network_labels_losses_and_gradients(released):
    features, truth = released["x"].transpose(0, 2, 1), released.truth()
    at = actionformer.points(features.shape[1], released.levels)
    points = [released[f"points/{level}"] for level in range(released.levels)]
    for radius, suffix in ((np.inf, "_nocenter"), (1.5, "")):
        hot, sides = actionformer.assign(at, truth, released.num_classes, radius)
        np.testing.assert_array_equal(hot, released[f"gt_cls{suffix}"])
        positive = np.asarray(hot).any(-1)
        close(np.asarray(sides)[positive], released[f"gt_off{suffix}"][positive], 1e-6)
    config, length = released.config["train_cfg"], released["mask"].sum(axis=1)

    @jax.jit
    def run(params, normaliser):
        def loss(params):
            found, at = released.model(params)(features, length)
            np.testing.assert_array_equal(at, np.concatenate(points))
            more = {"smoothing": config["label_smoothing"], "regression": config["loss_weight"]}
            value, parts = localise.losses(found, hot, sides, normaliser, **more)
            return value, (found, parts)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (found, parts)), grads = run(released.params, released["loss_norm"][0])
    valid = [released[f"fpn_mask/{level}"] for level in range(released.levels)]
    np.testing.assert_array_equal(found[2], np.concatenate(valid, axis=1))
    np.testing.assert_allclose(found[0], released.joined("cls"), atol=1e-5)
    np.testing.assert_allclose(found[1], released.joined("off"), atol=1e-5)
    close(loss, released["final_loss"], 5e-6)
    close(parts["loss_classes"], released["cls_loss"], 5e-6)
    close(parts["loss_segments"], released["reg_loss"], 5e-6)
    close(parts["normaliser"], released["loss_norm"][1], 1e-6)
    (again, (_, parts)), _ = run(released.params, parts["normaliser"])
    close(again, released["second_call_final"], 5e-6)
    close(parts["normaliser"], released["second_call_norm"], 1e-6)
    expected = flatten_dict(released.tree("grad"), sep="/")
    worst = {k: abs(g - expected[k]).max() for k, g in flatten_dict(grads, sep="/").items()}
    largest = max(abs(g).max() for g in expected.values())
    assert {k: w for k, w in worst.items() if w > 1e-5 * largest} == {}


@pytest.mark.parametrize("number", [0, 1])
def test_detections_of_a_video(released, number):
    given, cfg = (lambda key: released[f"test{number}/{key}"]), released.test
    steps, rows = int(given("padded_len")), given("feats").shape[1]
    features = np.zeros((1, steps, released.size.features), np.float32)
    features[0, :rows] = given("feats").T
    found, at = jax.jit(lambda p: released.model(p)(features, jnp.array([rows])))(released.params)
    np.testing.assert_allclose(found[0], released.joined(f"test{number}/cls"), atol=1e-5)
    np.testing.assert_allclose(found[1], released.joined(f"test{number}/off"), atol=1e-5)
    best = np.asarray(actionformer.decode(found, at, cfg["pre_nms_topk"])[0])
    long = best[:, 1] - best[:, 0] > cfg["duration_thresh"]
    kept = best[long & (best[:, 2] > cfg["pre_nms_thresh"])]
    raw = [given(f"raw_{name}") for name in ("segments", "scores", "labels")]
    np.testing.assert_allclose(kept, np.column_stack(raw), atol=2e-5)
    chosen = temporal.suppress(
        kept,
        sigma=cfg["nms_sigma"],
        most=cfg["max_seg_num"],
        by_class=cfg["multiclass_nms"],
        voting=cfg["voting_thresh"],
        least=cfg["min_score"],
    )
    fps, duration = given("fps_duration")
    video = samples.Video(fps / 4, 0.5 * 16 / 4, duration, ())
    np.testing.assert_allclose(video.seconds(chosen[:, :2]), given("segments"), atol=1e-5)
    np.testing.assert_allclose(chosen[:, 2], given("scores"), atol=1e-6)
    np.testing.assert_array_equal(chosen[:, 3], given("labels"))


def test_weight_decay_and_schedule(released):
    for key, decayed in (("decay_names", True), ("no_decay_names", False)):
        assert {optim.decays(ours(str(name))[0]) for name in released[key]} == {decayed}
    epochs, warmup, steps = released.data["schedule/epochs_warmup_its"].tolist()
    schedule = optim.Schedule(1e-4, 1e-8, warmup * steps, (epochs + warmup) * steps)
    expected = released.data["schedule/lr"]
    close([float(schedule(i)) for i in range(len(expected))], expected, 1e-6)


def test_training_crops_and_resizing(shared):
    golden = np.load(shared / "golden" / "downstream_actionformer.npz")
    for case in range(6):
        given = lambda key: golden[f"truncate/{case}/{key}"]  # noqa: B023, E731
        calls = iter(given("randint_calls").tolist())

        def draw(low, high, calls=calls):
            *bounds, value = next(calls)
            assert bounds == [low, high]
            return value

        features = given("feats").T
        truth = np.column_stack([given("segments"), given("labels")])
        rows, kept = samples.crop(draw, len(features), truth, int(given("max_seq_len")))
        np.testing.assert_array_equal(features[rows].T, given("out_feats"))
        expected = np.column_stack([given("out_segments"), given("out_labels")])
        np.testing.assert_allclose(kept, expected, atol=1e-5)
        assert next(calls, None) is None
    golden = np.load(shared / "golden" / "downstream_roi_align.npz")
    resized = samples.resize(golden["seq/feats"], int(golden["seq/length"]))
    np.testing.assert_allclose(resized, golden["seq/actionformer_linear"], atol=1e-6)


# --- actions of people in boxes: AVA


@pytest.mark.slow
def test_align_is_torchvisions(shared):
    golden = np.load(shared / "golden" / "downstream_roi_align.npz")
    rois, last = golden["rois"], lambda array: array.transpose(0, 2, 3, 1)
    x, boxes, own = last(golden["x"]), rois[:, None, 1:] / 16, rois[:, 0].astype(int)
    found = roi.align(jnp.asarray(x)[own], boxes, most=8)[:, 0]
    np.testing.assert_allclose(found, last(golden["out64/aligned0_sr0_7x7"]), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def ava(shared):
    known = {"task": "detect", "data.num_frames": 4, "data.image_size": 64}
    return Golden(shared, "downstream_ava_model", **known)


def padded(rows, of):
    """Rows of boxes as [B, K, ...], and which of them are there."""
    count = np.bincount(of)
    out = np.zeros((len(count), count.max(), *rows.shape[1:]), rows.dtype)
    there = np.arange(count.max()) < count[:, None]
    out[there] = rows
    return out, there


def test_the_detector_is_the_released_one(ava):
    assert not ava.report.unused
    boxes, there = padded(ava["test/extended_boxes"], ava["test/box_batch"])

    @jax.jit
    def run(params, video, boxes):
        model = ava.model(params)
        features = model.encoder.whole(video).mean(axis=1)
        return features, roi.align(features, boxes / 16.0), model(video, boxes)

    features, bins, logits = run(ava.params, ava.video("test/x"), boxes)
    close(features, ava["test/feature_map"])
    close(bins[there], ava["test/roi_pooled_7x7"].transpose(0, 2, 3, 1))
    close(logits[there], ava["test/logits"])


@pytest.mark.slow
def test_its_loss_and_gradients_are_the_released_ones(ava):
    draws, boxes, label = (
        padded(ava[f"train/{name}"], ava["train/box_batch"])[0]
        for name in ("jitter_uniform01", "boxes", "labels")
    )
    there = padded(ava["train/boxes"], ava["train/box_batch"])[1]
    video = ava.video("train/x")
    moved = detect.jittered(jnp.asarray(draws), jnp.asarray(boxes), *video.shape[2:4])
    close(moved[there], ava["train/jittered_boxes"])

    def loss(params):
        logits = ava.model(params)(video, moved)
        return detect.box_loss(logits, label, there), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(ava.params)
    close(logits[there], ava["train/logits"])
    close(detect.box_loss(logits, label, there), ava["train/loss"], 5e-6)
    theirs = {k[11:]: v for k, v in ava.data.items() if k.startswith("train/grad/")}
    mine = ava.official(grads)
    assert mine.keys() == theirs.keys()
    for name, grad in theirs.items():
        # The loss does not depend on biases of keys and the like: a difference of nearly zeros.
        assert np.abs(mine[name] - grad).max() < 1e-5 * max(np.abs(grad).max(), 1e-3), name
