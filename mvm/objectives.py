"""What training minimises, and the vote of the nearest."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NEIGHBOURS, TEMPERATURE = 20, 0.07


def token_error(
    predicted: Float[Array, "B M P"], target: Float[Array, "B M P"]
) -> Float[Array, "B M"]:
    """Mean squared error per pixel of each target."""
    return jnp.square(predicted - target).mean(axis=-1)


def over_targets(error: Float[Array, "B M"], weight: Float[Array, "B M"]) -> Float[Array, ""]:
    """Mean over the targets that count."""
    return jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def distance_iou(a: Float[Array, "... 2"], b: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """DIoU loss (arXiv 1911.08287) of segments around one point, as distances to start and end."""
    both, around = jnp.minimum(a, b).sum(-1), jnp.maximum(a, b).sum(-1)
    union = a.sum(-1) + b.sum(-1) - both
    apart = 0.5 * (a[..., 1] - a[..., 0] - b[..., 1] + b[..., 0])
    tiny = 1e-8
    return 1 - both / jnp.maximum(union, tiny) + jnp.square(apart / jnp.maximum(around, tiny))


def vote(
    queries: np.ndarray,
    gallery: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
) -> np.ndarray:
    """Shares of the votes for each class, float64 `[Q, C]`.

    Each of the k videos of largest cosine similarity s votes exp(s / temperature) (DINO, arXiv
    2104.14294); of equal ones the earlier goes first. Features are `[Q, D]` and `[R, D]`; with
    `leave_one_out` both are the same, and none votes for itself.
    """
    queries, gallery = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (np.float32(queries), np.float32(gallery))
    )
    k = min(k, len(gallery) - leave_one_out)
    votes = np.zeros((len(queries), num_classes))
    for first in range(0, len(queries), 1024):
        similar = queries[first : first + 1024] @ gallery.T
        rows = np.arange(len(similar))
        if leave_one_out:
            similar[rows, first + rows] = -np.inf
        near = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        weight = np.exp(np.take_along_axis(similar, near, axis=1).astype(np.float64) / temperature)
        np.add.at(votes, (first + rows[:, None], label[near]), weight)
    return votes / votes.sum(axis=1, keepdims=True)
