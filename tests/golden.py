"""Golden numbers of the released implementations, as inputs and weights of ours."""

import fractions
import json
from functools import partial

import jax
import numpy as np
from flax import nnx

from mvm.masking.adamae import Sampler
from mvm.models import tubelets, vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.models.encoder import Encoder
from mvm.types import Grid, Mask, Tubelet
from mvm.weights import convert


class Golden:
    """One file of golden numbers with the model it describes, its weights read by `convert`."""

    def __init__(self, shared, name, cosine=None):
        """Reads `name`.npz; `cosine` says whether attention is, if the file does not."""
        self.data = dict(np.load(shared / "golden" / f"{name}.npz", allow_pickle=False))
        config = json.loads(str(self.data["config"]))
        self.kwargs = config["kwargs"]
        self.cosine = bool(self.kwargs.get("cos_attn")) if cosine is None else cosine
        patch = self.kwargs["patch_size"]
        self.tubelet = Tubelet(self.kwargs["tubelet_size"], patch, patch)
        self.grid = Grid(8, self.kwargs["img_size"] // patch, self.kwargs["img_size"] // patch)
        self.weights = {k[3:]: v for k, v in self.data.items() if k.startswith("sd/")}
        if not self.cosine:
            self.weights = {k: v for k, v in self.weights.items() if not k.endswith("attn.scale")}
        elif "cos_attn_scale_per_block" in self.data:
            for i, scale in enumerate(self.data["cos_attn_scale_per_block"]):
                self.weights[f"blocks.{i}.attn.scale"] = scale
        self.names = [str(n) for n in self.data.get("param_names", ())]
        build = self._autoencoder if "encoder_depth" in self.kwargs else self._classifier
        self.graphdef = nnx.graphdef(nnx.eval_shape(build))
        self.like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param))
        loaded, self.report = convert.to_params(self.weights, self.like)
        self.params = jax.tree.map(jax.numpy.asarray, loaded)

    def __getitem__(self, key):
        return self.data[key]

    def _size(self, prefix=""):
        k = self.kwargs
        return vit.Size(
            k[f"{prefix}embed_dim"],
            k[f"{prefix}depth"] if prefix else k["depth"],
            k[f"{prefix}num_heads"],
            float(fractions.Fraction(k["mlp_ratio"])),
            self.cosine,
            k.get("init_values") or 0.0,
        )

    def _autoencoder(self):
        sampler = None
        if any("get_token_probs" in name for name in self.weights):
            width = self.kwargs["encoder_embed_dim"]
            sampler = partial(Sampler, self.grid.n, width, vit.Run())
        rngs, size = nnx.Rngs(0), self._size("encoder_")
        encoder = Encoder(size, self.tubelet, "xavier", vit.Run(), final_norm=True, rngs=rngs)
        return Autoencoder(encoder, self._size("decoder_"), sampler=sampler, rngs=rngs)

    def _classifier(self):
        rngs = nnx.Rngs(0)
        encoder = Encoder(self._size(), self.tubelet, "normal", vit.Run(), rngs=rngs)
        return Classifier(encoder, self.kwargs["num_classes"], rngs=rngs)

    def model(self, params=None):
        """The model with the golden weights, or with others."""
        return nnx.merge(self.graphdef, self.params if params is None else params)

    def video(self, key):
        """Clips `[B, T, H, W, 3]` in [0, 1] from normalised ones `[B, 3, T, H, W]`."""
        video = self.data[key].transpose(0, 2, 3, 4, 1)
        return video * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN

    def bytes(self, key):
        """Clips as bytes, `[B, T, H, W, 3]`."""
        return np.ascontiguousarray(self.data[key].transpose(0, 2, 3, 4, 1))

    def official(self, params):
        """A tree of parameters (or gradients) under the official names."""
        return convert.from_params(jax.device_get(params), self.tubelet)


def mask_of(hidden, target=None):
    """A mask from boolean ones, True = not visible and True = reconstructed."""
    target = hidden if target is None else target
    rows = lambda m: np.stack([np.flatnonzero(row) for row in m])  # noqa: E731
    weight = np.take_along_axis(hidden, rows(target), axis=1).astype(np.float32)
    return Mask(rows(~hidden), rows(target), weight)


def close(actual, expected, tolerance=1e-5):
    """Asserts that the largest difference is below a fraction of the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
    assert worst < tolerance, f"relative difference {worst:.2e}"
