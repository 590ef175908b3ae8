"""RandAugment of whole frames, which the pipeline never makes: it computes what a crop needs."""

import numpy as np

from input_pipeline.transforms import randaugment as augment


def rand_augment(
    rng: np.random.Generator, frames: np.ndarray, policy: augment.Policy
) -> np.ndarray:
    """uint8 `[T, H, W, 3]`; `frames` itself when no operation was drawn."""
    layers = augment.draw_layers(rng, policy)
    if not layers:
        return frames
    return np.stack(list(augment.apply(frames, layers, (0, 0, *frames.shape[1:3]))))
