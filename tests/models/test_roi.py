"""RoIAlign and the detector: against loops, and against the released implementations."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import close

from mvm.models import positions, roi, tubelets, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.models.encoder import Encoder, Layout
from mvm.tasks import detect
from mvm.types import Grid, Tubelet
from mvm.weights import convert


def slow_align(features, box, bins, aligned):
    """torchvision's rule, one sample after the other."""
    (h, w), (height, width) = bins, features.shape[:2]
    x1, y1, x2, y2 = box - 0.5 * aligned
    high, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    rows, columns = int(np.ceil(high / h)), int(np.ceil(wide / w))
    out = np.zeros((h, w, features.shape[-1]))
    for p, q, i, j in np.ndindex(h, w, max(rows, 0), max(columns, 0)):
        y = y1 + (p + (i + 0.5) / rows) * high / h
        x = x1 + (q + (j + 0.5) / columns) * wide / w
        if -1 <= y <= height and -1 <= x <= width:
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            for r, c in np.ndindex(height, width):
                out[p, q] += max(1 - abs(y - r), 0) * max(1 - abs(x - c), 0) * features[r, c]
    return out / max(rows * columns, 1)


BOXES = {
    "whole": (0, 0, 6, 5),
    "of exactly two samples a bin": (0, 0, 6, 4),
    "part of a cell": (2.3, 1.1, 2.6, 1.4),
    "partly outside": (-2.0, 3.5, 3.0, 9.0),
    "outside": (-9.0, -9.0, -4.0, -3.0),
    "no area": (1.5, 2.5, 1.5, 2.5),
    "inverted": (4.0, 4.0, 2.0, 1.0),
}


def test_align_is_that_of_the_loops():
    features = np.random.default_rng(0).normal(size=(5, 6, 2))
    boxes = np.array(list(BOXES.values()), np.float32)
    wrong = []
    for aligned in (False, True):
        given = features[None].astype(np.float32), boxes[None]
        (found,) = roi.align(*given, bins=(2, 3), aligned=aligned, most=(4, 4))
        for (name, box), own in zip(BOXES.items(), found):
            expected = slow_align(features, np.array(box), (2, 3), aligned)
            if not np.allclose(own, expected, atol=2e-6):
                wrong.append((name, aligned, float(np.abs(own - expected).max())))
    assert not wrong


@pytest.mark.slow
def test_align_is_torchvisions(shared):
    golden = np.load(shared / "golden" / "downstream_roi_align.npz")
    rois = golden["rois"]
    x, boxes = jnp.asarray(golden["x"].transpose(0, 2, 3, 1)), rois[:, None, 1:] / 16
    own = rois[:, 0].astype(int)
    wrong = {}
    for name in golden.files:
        if name.startswith("out64/"):
            aligned, ratio, bins = name.removeprefix("out64/").split("_")
            found = roi.align(
                x[own],
                boxes,
                bins=tuple(map(int, bins.split("x"))),
                aligned=aligned == "aligned1",
                ratio=int(ratio[2:]),
                most=(8, 8),
            )
            wrong[name] = np.abs(found[:, 0] - golden[name].transpose(0, 2, 3, 1)).max()
    for number in (0, 1):
        cotangent = golden[f"grad/cotangent_aligned{number}"].transpose(0, 2, 3, 1)

        def total(x, cotangent=cotangent, number=number):
            found = roi.align(x[own], boxes, aligned=bool(number), most=(8, 8))
            return jnp.sum(found[:, 0] * cotangent), found.max(axis=(2, 3))[:, 0]

        grad, highest = jax.grad(total, has_aux=True)(x)
        name = f"grad/x_aligned{number}"
        wrong[name] = np.abs(grad.transpose(0, 3, 1, 2) - golden[name]).max()
        wrong[f"max{number}"] = np.abs(highest - golden[f"max7/aligned{number}"]).max()
    assert len(wrong) == 16
    assert max(wrong.values()) < 1e-5, wrong


def test_positions_are_resized_as_torch_does():
    # An impulse in row 1 of 4, seen by rows of 8 at 0.25, 0.75 and 1.75 from it; a = -0.75.
    found = positions.resized(jnp.eye(4)[:, 1:2], Grid(1, 4, 1), Grid(1, 8, 1))[:, 0]
    assert np.allclose(found[2::2], [0.87890625, 0.26171875, -0.03515625], atol=1e-6)


def encoder_of(size, tubelet, **options):
    return Encoder(size, tubelet, "normal", vit.Run(), rngs=nnx.Rngs(0), **options)


class Ava:
    """The golden detector."""

    def __init__(self, shared):
        self.data = dict(np.load(shared / "golden" / "downstream_ava_model.npz"))
        k = json.loads(str(self.data["config"]))
        patch = k["patch_size"]
        self.tubelet = Tubelet(k["tubelet_size"], patch, patch)
        side = k["img_size"] // patch
        self.grid = Grid(k["all_frames"] // k["tubelet_size"], side, side)
        size = vit.Size(k["embed_dim"], k["depth"], k["num_heads"], k["mlp_ratio"])

        def make():
            layout = Layout(trained=self.grid)
            encoder = encoder_of(size, self.tubelet, layout=layout, final_norm=True)
            return roi.Detector(encoder, k["num_classes"], rngs=nnx.Rngs(0))

        model = nnx.eval_shape(make)
        self.graphdef = nnx.graphdef(model)
        weights = {name[3:]: v for name, v in self.data.items() if name.startswith("sd/")}
        like = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        self.params, self.report = convert.to_params(weights, like)

    def video(self, name):
        video = self.data[name].transpose(0, 2, 3, 4, 1)
        return video * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN

    def padded(self, name, batch):
        """Rows of boxes as [B, K, ...], and which of them are there."""
        rows, of = self.data[name], self.data[batch]
        count = np.bincount(of)
        out = np.zeros((len(count), count.max(), *rows.shape[1:]), rows.dtype)
        there = np.arange(count.max()) < count[:, None]
        out[there] = rows
        return out, there


def test_the_detector_is_the_released_one(shared):
    golden = Ava(shared)
    assert not golden.report.missing
    assert not golden.report.unused
    data = golden.data
    table = positions.resized(
        jnp.asarray(positions.sinusoid(golden.grid.n, 24)), golden.grid, Grid(2, 4, 6)
    )
    close(table, data["test/pos_embed_resized"][0])
    boxes, there = golden.padded("test/extended_boxes", "test/box_batch")

    @jax.jit
    def run(params, video, boxes):
        model = nnx.merge(golden.graphdef, params)
        features = model.features(video)
        return features, roi.align(features, boxes / 16.0), model(video, boxes)

    features, bins, logits = run(golden.params, golden.video("test/x"), boxes)
    close(features, data["test/feature_map"])
    close(bins[there], data["test/roi_pooled_7x7"].transpose(0, 2, 3, 1))
    close(bins.max(axis=(2, 3))[there], data["test/roi_feature"])
    close(logits[there], data["test/logits"])


@pytest.mark.slow
def test_its_loss_and_gradients_are_the_released_ones(shared):
    golden = Ava(shared)
    draws, there = golden.padded("train/jitter_uniform01", "train/box_batch")
    boxes, _ = golden.padded("train/boxes", "train/box_batch")
    label, _ = golden.padded("train/labels", "train/box_batch")
    video = golden.video("train/x")
    moved = detect.jittered(jnp.asarray(draws), jnp.asarray(boxes), *video.shape[2:4])
    close(moved[there], golden.data["train/jittered_boxes"])

    def loss(params):
        logits = nnx.merge(golden.graphdef, params)(video, moved)
        return detect.box_loss(logits, label, there), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(golden.params)
    close(logits[there], golden.data["train/logits"])
    close(detect.box_loss(logits, label, there), golden.data["train/loss"], 5e-6)
    theirs = {k[11:]: v for k, v in golden.data.items() if k.startswith("train/grad/")}
    ours = convert.from_params(jax.device_get(grads), golden.tubelet)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        # The loss does not depend on biases of keys and the like: a difference of nearly zeros.
        assert np.abs(ours[name] - grad).max() < 1e-5 * max(np.abs(grad).max(), 1e-3), name


def test_it_starts_from_pretrained_and_from_fine_tuned_files():
    size, tubelet = vit.Size(24, 1, 3), Tubelet(2, 8, 8)

    def zeros(make):
        shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    plain, normed = (partial(encoder_of, size, tubelet, final_norm=n) for n in (False, True))
    detector = zeros(lambda: roi.Detector(normed(), 5, rngs=nnx.Rngs(0)))
    tuned = zeros(lambda: Classifier(plain(), 4, rngs=nnx.Rngs(0)))
    before = zeros(lambda: Autoencoder(normed(), size, rngs=nnx.Rngs(0)))
    new_norm = {"encoder/norm/bias", "encoder/norm/scale"}
    for tree, fresh in ((tuned, new_norm), (before, set()), (detector, None)):
        loaded, report = convert.to_params(convert.from_params(tree, tubelet), detector)
        missing = {path.split(" ")[0] for path in report.missing}
        heads = {"head/bias", "head/kernel"}
        assert missing == (set() if fresh is None else fresh | heads)
        assert "blocks" in loaded["encoder"]
