"""Figures: masks, reconstructions, curves, accuracies and contact sheets, written as PNG.

`overlays` compute what is shown, `sheets` and `charts` lay it out. No window, no global figure.
"""

from mvm.figures.charts import accuracies as accuracies
from mvm.figures.charts import compute as compute
from mvm.figures.charts import curves as curves
from mvm.figures.charts import per_class as per_class
from mvm.figures.overlays import members as members
from mvm.figures.overlays import overlay as overlay
from mvm.figures.overlays import paste as paste
from mvm.figures.overlays import seen as seen
from mvm.figures.overlays import token_errors as token_errors
from mvm.figures.sheets import clips as clips
from mvm.figures.sheets import frames as frames
from mvm.figures.sheets import masks as masks
from mvm.figures.sheets import reconstruction as reconstruction
from mvm.figures.sheets import strategies as strategies
