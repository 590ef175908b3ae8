"""Probing: a head on the tokens of a frozen encoder, linear or attentive (arXiv 2404.08471)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mvm import tasks
from mvm.models import vit
from mvm.models.classifier import Classifier
from mvm.runtime import flops
from mvm.tasks import finetune, parts
from mvm.types import Tubelet

SPEC = tasks.Spec(
    labels=True,
    sampling="finetune",
    mixes=True,
    options=(("head", ("linear", "attentive")),),
)


class Probed(Classifier):
    """A classifier without gradient into its encoder, which ends in pre-training's norm.

    `attentive`: a learned query pools the tokens by one block of the encoder's size, else the mean.
    """

    def __init__(
        self,
        size: vit.Size,
        num_classes: int,
        tubelet: Tubelet,
        run: vit.Run,
        *,
        attentive: bool,
        rngs: nnx.Rngs,
        **more: Any,
    ):
        super().__init__(size, num_classes, tubelet, run, final_norm=True, rngs=rngs, **more)
        query = 0.02 * jax.random.normal(rngs.params(), (1, 1, size.width))
        self.query = nnx.Param(query) if attentive else None
        self.pooler = vit.Block(size, "normal", vit.Run(), rngs=rngs) if attentive else None

    def features(self, *args: Any, **more: Any) -> Float[Array, "B V D"]:
        return jax.lax.stop_gradient(super().features(*args, **more))

    def pool(self, tokens: Float[Array, "B V D"]) -> Float[Array, "B D"]:
        if self.query is None or self.pooler is None:
            return super().pool(tokens)
        query = jnp.broadcast_to(self.query[...], (len(tokens), 1, tokens.shape[-1]))
        return self.fc_norm(self.pooler(jnp.concatenate([tokens, query], 1), num_queries=1)[:, 0])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe(finetune.Finetune):
    """A classifier of which the encoder stays as it was loaded."""

    spec = SPEC
    frozen = ("encoder",)
    untrained = ("select", "embed", "encoder")
    attentive: bool

    def make(self, key: Key[Array, ""]) -> nnx.Module:
        return Probed(
            self.encoder,
            self.num_classes,
            self.tubelet,
            self.run,
            attentive=self.attentive,
            head_dropout=self.head_dropout,
            layout=self.layout,
            head_epsilon=self.head_epsilon,
            rngs=nnx.Rngs(key),
        )

    def macs(self, executed: bool = False) -> dict[str, int]:
        pool = flops.block_macs(self.encoder, self.num_visible + 1, 1) if self.attentive else 0
        return super().macs(executed) | {"pool": pool}


def build(config: Any, gather: Any) -> Probe:
    shared = parts.shared(config, gather, SPEC.sampling)
    classifier = finetune.classifier(config, shared["strategy"])
    attentive = tasks.options(config)["head"] == "attentive"
    return Probe(**shared, **classifier, attentive=attentive)
