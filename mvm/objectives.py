"""What training minimises."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_error(
    predicted: Float[Array, "B M P"], target: Float[Array, "B M P"]
) -> Float[Array, "B M"]:
    """Mean squared error per pixel of each target."""
    return jnp.square(predicted - target).mean(axis=-1)


def over_targets(error: Float[Array, "B M"], weight: Float[Array, "B M"]) -> Float[Array, ""]:
    """Mean over the targets that count."""
    return jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def smooth(label: Int[Array, "B"], num_classes: int, smoothing: float) -> Float[Array, "B C"]:
    """Soft labels: `smoothing` of the mass is spread evenly over all classes."""
    return jax.nn.one_hot(label, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def cross_entropy(logits: Float[Array, "B C"], label: Float[Array, "B C"]) -> Float[Array, ""]:
    """Mean cross entropy against soft labels."""
    return -jnp.mean(jnp.sum(label * jax.nn.log_softmax(logits), axis=-1))


def distance_iou(a: Float[Array, "... 2"], b: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """DIoU loss (arXiv 1911.08287) of segments around one point, as distances to start and end."""
    both, around = jnp.minimum(a, b).sum(-1), jnp.maximum(a, b).sum(-1)
    union = a.sum(-1) + b.sum(-1) - both
    apart = 0.5 * (a[..., 1] - a[..., 0] - b[..., 1] + b[..., 0])
    tiny = 1e-8
    return 1 - both / jnp.maximum(union, tiny) + jnp.square(apart / jnp.maximum(around, tiny))


def divergence(
    student: Float[Array, "B C"], teacher: Float[Array, "B C"], temperature: float = 1.0
) -> Float[Array, ""]:
    """Mean KL(teacher || student) of the softmax of logits / temperature."""
    log_s, log_t = (jax.nn.log_softmax(x / temperature) for x in (student, teacher))
    return jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))
