"""Golden numbers of the released implementations, as inputs and weights of ours."""

import json

import jax
import numpy as np
from flax import nnx

from mvm import config as schema
from mvm import tasks
from mvm.models import tubelets
from mvm.types import Mask
from mvm.weights import convert
from mvm.weights.describe import describe


class Golden:
    """One file of golden numbers with the model that its weights describe."""

    def __init__(self, shared, name, cosine=False, **known):
        """Reads `name`.npz; `cosine` says whether attention is, `known` what no weight tells."""
        self.data = dict(np.load(shared / "golden" / f"{name}.npz", allow_pickle=False))
        config = json.loads(str(self.data["config"]))
        self.kwargs = config.get("kwargs", config)
        self.weights = {k[3:]: v for k, v in self.data.items() if k.startswith("sd/")}
        if not cosine:
            self.weights = {k: v for k, v in self.weights.items() if not k.endswith("attn.scale")}
        elif "cos_attn_scale_per_block" in self.data:
            for i, scale in enumerate(self.data["cos_attn_scale_per_block"]):
                self.weights[f"blocks.{i}.attn.scale"] = scale
        self.names = [str(n) for n in self.data.get("param_names", ())]
        known |= {
            "model.heads": self.kwargs.get("encoder_num_heads") or self.kwargs["num_heads"],
            "model.decoder_heads": self.kwargs.get("decoder_num_heads"),
            "model.attention": "xla",
        }
        task = tasks.build(schema.completed(schema.nested(describe(self.weights, known))))
        self.graphdef, self.tubelet = task.graphdef, task.tubelet
        loaded, self.report = convert.to_params(self.weights, task.abstract)
        self.params = jax.tree.map(jax.numpy.asarray, loaded)
        assert not self.report.missing
        back = self.official(self.params)  # Bit for bit, but for what no model of ours has.
        for key in self.weights.keys() - set(self.report.unused):
            np.testing.assert_array_equal(back[key], self.weights[key], err_msg=key)

    def __getitem__(self, key):
        return self.data[key]

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
