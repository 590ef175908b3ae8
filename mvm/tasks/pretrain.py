"""Pre-training: reconstruct masked tubelets (VideoMAE, arXiv 2203.12602, and successors)."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from mvm import objectives, tasks
from mvm.models.autoencoder import Autoencoder
from mvm.optim import path_of
from mvm.runtime import flops
from mvm.tasks import parts
from mvm.types import Metrics, Params, UserError

SPEC = tasks.Spec(labels=False, sampling="pretrain", scores=("knn",))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pretrain(tasks.ClipTask):
    """The masked autoencoder; its fields are those of `tasks.ClipTask`."""

    spec = SPEC

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        assert self.strategy is not None
        network, rngs = self.strategy.network, nnx.Rngs(key)
        return Autoencoder(
            self.backbone(rngs, "xavier", final_norm=True),
            self.decoder,
            targets=self.targets,
            head_epsilon=self.head_epsilon,
            sampler=partial(network, self.encoder.width, self.run) if network else None,
            rngs=rngs,
        )

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], batch: tasks.Batch
    ) -> tuple[Array, Metrics]:
        """Reconstruction of the targets, and what a sampler learns from their errors."""
        assert self.strategy is not None
        out = self.model(params, frozen)(key, batch["video"], self.strategy)
        error = objectives.token_error(out.predicted, out.target)
        value = objectives.over_targets(error, out.mask.weight)
        log_p = out.log_p
        if self.strategy.loss is None or log_p is None:
            return value, {}
        sampling = self.strategy.loss(log_p, jax.lax.stop_gradient(error), out.mask)
        metrics = {
            "loss_reconstruction": value,
            "loss_sampling": sampling,
            # 1 is a uniform choice, 0 a certain one.
            "entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1)) / math.log(log_p.shape[-1]),
        }
        return value + sampling, metrics

    def predict(self, params: Params, frozen: Params, batch: tasks.Batch) -> dict[str, Array]:
        """The mean over all tokens of the first view, `[B, D]`."""
        tokens = self.model(params, frozen).encoder.whole(batch["video"][:, 0])
        return {"feature": tokens.mean(axis=(1, 2, 3))}

    def score(self, predictions: Mapping[str, Any], truths: tasks.Truths) -> tasks.Scores:
        """Top-1 in percent of the vote of all others on the class of each video."""
        x, label = predictions["feature"], truths.label
        if len(label) < 2:
            raise UserError("train.probe_every needs two videos of data.val that can be read")
        votes = objectives.vote(x, x, label, int(label.max()) + 1, leave_one_out=True)
        return tasks.Scores({"knn": 100.0 * float((votes.argmax(axis=1) == label).mean())}, {})

    def constant(self, shares: Mapping[str, Any], mixed: bool) -> dict[str, float]:
        learns = self.strategy is not None and self.strategy.loss is not None
        name = "loss_reconstruction" if learns else "loss"
        count = self.tubelet.pixels // (self.tubelet.t if self.targets.frames else 1)
        count //= 3 if self.targets.kind == "normalised" else 1
        # Of a prediction of 0: the mean square of `count` values over their unbiased deviation.
        return {} if self.targets.kind == "pixels" else {name: 1 - 1 / count}

    def macs(self, executed: bool = False) -> dict[str, int]:
        """As executed here, the last decoder block works on the targets alone."""
        found, size = super().macs(executed), self.decoder
        visible, target = self.num_visible, self.num_target
        n, depth = visible + target, size.depth
        last = flops.block_macs(size, n, target if executed else n)
        predicted = self.abstract["decoder"]["head"]["bias"].size
        return found | {
            "sampler": self._sampler_macs(),
            "encoder_to_decoder": visible * self.encoder.width * size.width,
            "decoder": (depth - 1) * flops.block_macs(size, n) + last,
            "head": target * size.width * predicted,
        }

    def _sampler_macs(self) -> int:
        """MACs of AdaMAE's sampler, which works on all tokens of a clip; 0 without one."""
        total, n = 0, self.grid.n
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.abstract.get("sampler", {})):
            name = path_of(path)
            if name.endswith("kernel"):
                total += n * math.prod(leaf.shape)
            if name.endswith("qkv/kernel"):
                layers, width, _ = leaf.shape
                total += layers * 2 * n * n * width
        return total


def build(config: Any, gather: Any) -> Pretrain:
    shared = parts.shared(config, gather, SPEC.sampling)
    strategy = shared["strategy"]
    if strategy is None or not strategy.num_target:
        raise UserError(
            f"pre-training needs a mask with targets; mask.name={config.mask.name!r}, "
            f"mask.mask_ratio={config.mask.mask_ratio} leaves none"
        )
    return Pretrain(**shared)
