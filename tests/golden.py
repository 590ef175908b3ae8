"""Golden numbers of the released implementations, as inputs and weights of ours."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

from mvm import convert, tubelets
from mvm.models import vit
from mvm.models.autoencoder import Autoencoder
from mvm.models.classifier import Classifier
from mvm.types import Grid, Mask, Tubelet


class Golden:
    """One file of golden numbers with the model it describes, its weights read by `convert`."""

    def __init__(self, shared: pathlib.Path, name: str):
        self.data = dict(np.load(shared / "golden" / f"{name}.npz", allow_pickle=False))
        config = json.loads(str(self.data["config"]))
        self.kwargs = config["kwargs"]
        patch = self.kwargs["patch_size"]
        self.tubelet = Tubelet(self.kwargs["tubelet_size"], patch, patch)
        self.grid = Grid(8, self.kwargs["img_size"] // patch, self.kwargs["img_size"] // patch)
        self.weights = {k[3:]: v for k, v in self.data.items() if k.startswith("sd/")}
        self.names = [str(n) for n in self.data.get("param_names", ())]
        build = self._autoencoder if "encoder_depth" in self.kwargs else self._classifier
        self.graphdef = nnx.graphdef(nnx.eval_shape(build))
        self.like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param))
        loaded, self.report = convert.to_params(self.weights, self.like)
        self.params = jax.tree.map(jax.numpy.asarray, loaded)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.data[key]

    def _autoencoder(self) -> Autoencoder:
        k = self.kwargs
        return Autoencoder(
            vit.Size(k["encoder_embed_dim"], k["encoder_depth"], k["encoder_num_heads"]),
            vit.Size(k["decoder_embed_dim"], k["decoder_depth"], k["decoder_num_heads"]),
            self.tubelet,
            vit.Run(),
            rngs=nnx.Rngs(0),
        )

    def _classifier(self) -> Classifier:
        k = self.kwargs
        size = vit.Size(k["embed_dim"], k["depth"], k["num_heads"])
        return Classifier(size, k["num_classes"], self.tubelet, vit.Run(), rngs=nnx.Rngs(0))

    def model(self, params: Any = None) -> Any:
        """The model with the golden weights, or with others."""
        return nnx.merge(self.graphdef, self.params if params is None else params)

    def video(self, key: str) -> np.ndarray:
        """Clips `[B, T, H, W, 3]` in [0, 1] from normalised ones `[B, 3, T, H, W]`."""
        video = self.data[key].transpose(0, 2, 3, 4, 1)
        return video * tubelets.IMAGENET_STD + tubelets.IMAGENET_MEAN

    def bytes(self, key: str) -> np.ndarray:
        """Clips as bytes, `[B, T, H, W, 3]`."""
        return np.ascontiguousarray(self.data[key].transpose(0, 2, 3, 4, 1))

    def official(self, params: Any) -> dict[str, np.ndarray]:
        """A tree of parameters (or gradients) under the official names."""
        return convert.from_params(jax.device_get(params), self.tubelet)


def mask_of(hidden: np.ndarray, target: np.ndarray | None = None) -> Mask:
    """A mask from boolean ones, True = not visible and True = reconstructed."""
    target = hidden if target is None else target
    rows = lambda m: np.stack([np.flatnonzero(row) for row in m])  # noqa: E731
    return Mask(rows(~hidden), rows(target), np.ones((len(target), target[0].sum()), np.float32))


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Asserts that the largest difference is below a fraction of the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
    assert worst < tolerance, f"relative difference {worst:.2e}"
