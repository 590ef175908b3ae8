"""Figures: masks, reconstructions, curves and errors, written as PNG.

`overlays` compute what is shown, `sheets` and `charts` lay it out, `gallery` draws those of a run.
"""
