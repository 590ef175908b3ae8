"""Devices, processes and files of a run."""
