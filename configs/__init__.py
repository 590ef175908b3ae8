"""Recipes: one file each, `common.py` holds every key with its default."""
