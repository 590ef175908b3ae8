"""Figures: masks, reconstructions, curves, accuracies and contact sheets, written as PNG.

Functions from arrays to arrays (`overlay`, `seen`, `paste`, `heat`) compute what is shown and the
figures lay it out. No window system, no global figure.
"""

from mvm.visualize.arrays import (
    borders,
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
from mvm.visualize.charts import accuracies, curves, per_class
from mvm.visualize.sheets import clips, masks, reconstruction

__all__ = [
    "accuracies",
    "borders",
    "clips",
    "curves",
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
    "smooth",
    "split",
    "token_errors",
    "unnormalise",
]
