"""Figures: masks, reconstructions, curves, accuracies and contact sheets, written as PNG.

Functions from arrays to arrays (`overlay`, `seen`, `paste`, `heat`) compute what is shown and the
figures lay it out. No window system, no global figure.
"""

from mvm.figures.arrays import (
    borders,
    faded,
    heat,
    join,
    members,
    normalise,
    overlay,
    paste,
    seen,
    smooth,
    split,
    token_errors,
    unnormalise,
)
from mvm.figures.charts import accuracies, compute, curves, per_class
from mvm.figures.sheets import clips, masks, reconstruction, strategies
from mvm.figures.timeline import Shares, frames, shares

__all__ = [
    "Shares",
    "accuracies",
    "borders",
    "clips",
    "compute",
    "curves",
    "faded",
    "frames",
    "heat",
    "join",
    "masks",
    "members",
    "normalise",
    "overlay",
    "paste",
    "per_class",
    "reconstruction",
    "seen",
    "shares",
    "smooth",
    "split",
    "strategies",
    "token_errors",
    "unnormalise",
]
