"""RoIAlign and the detector against the released implementations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import close

from mvm.models import positions, roi, tubelets, vit
from mvm.models.encoder import Encoder, Layout
from mvm.tasks import detect
from mvm.types import Grid, Tubelet
from mvm.weights import convert


@pytest.mark.slow
def test_align_is_torchvisions(shared):
    golden = np.load(shared / "golden" / "downstream_roi_align.npz")
    rois, last = golden["rois"], lambda array: array.transpose(0, 2, 3, 1)
    x, boxes, own = jnp.asarray(last(golden["x"])), rois[:, None, 1:] / 16, rois[:, 0].astype(int)
    wrong = {}
    for name in golden.files:
        if name.startswith("out64/"):
            aligned, ratio, bins = name.removeprefix("out64/").split("_")
            options = {"bins": tuple(map(int, bins.split("x"))), "ratio": int(ratio[2:])}
            found = roi.align(x[own], boxes, aligned=aligned == "aligned1", most=(8, 8), **options)
            wrong[name] = np.abs(found[:, 0] - last(golden[name])).max()
    for number in (0, 1):
        cotangent = last(golden[f"grad/cotangent_aligned{number}"])

        def total(x, cotangent=cotangent, number=number):
            found = roi.align(x[own], boxes, aligned=bool(number), most=(8, 8))
            return jnp.sum(found[:, 0] * cotangent), found.max(axis=(2, 3))[:, 0]

        grad, highest = jax.grad(total, has_aux=True)(x)
        name = f"grad/x_aligned{number}"
        wrong[name] = np.abs(grad - last(golden[name])).max()
        wrong[f"max{number}"] = np.abs(highest - golden[f"max7/aligned{number}"]).max()
    assert len(wrong) == 16
    assert max(wrong.values()) < 1e-5, wrong


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
        features = model.encoder.whole(video).mean(axis=1)
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
