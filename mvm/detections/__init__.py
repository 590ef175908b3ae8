"""Detections: what is left of overlapping ones, and what they are worth."""
