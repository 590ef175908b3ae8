"""Fixed position tables."""

import numpy as np


def sinusoid(num_tokens: int, width: int) -> np.ndarray:
    """The table of VideoMAE, `[N, D]` float32, over the flattened token index p.

    angle(p, j) = p / 10000^(2 floor(j / 2) / D), its sine on even j and its cosine on odd j,
    computed in float64.
    """
    rate = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    angle = np.arange(num_tokens)[:, None] * rate
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
