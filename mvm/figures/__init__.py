"""Figures: masks, reconstructions, curves and accuracies, written as PNG.

`overlays` compute what is shown, `sheets` and `charts` lay it out. No window, no global figure.
"""

from mvm.figures.charts import accuracies as accuracies
from mvm.figures.charts import compute as compute
from mvm.figures.overlays import members as members
from mvm.figures.overlays import paste as paste
from mvm.figures.overlays import seen as seen
from mvm.figures.overlays import token_errors as token_errors
