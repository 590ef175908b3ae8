"""Recipes: each sets what differs from the defaults of `mvm/config.py`; see README.md."""
