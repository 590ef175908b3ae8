"""Detections as NumPy arrays: what is left of them, and what they are worth."""
