"""Masking strategies, one file each; `build` resolves one by the name of its file."""

import dataclasses
import importlib
import pkgutil
from typing import Any

from mvm.types import Grid, Strategy, UserError, near

_SHARED = {"sampling", "frames"}


def names() -> list[str]:
    """Names of all strategies: the modules of this package that hold one."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def _kind(name: str) -> type[Strategy]:
    if name not in names():
        raise UserError(f"mask.name={name!r} is unknown{near(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (kind,) = (
        value
        for value in vars(module).values()
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "sample")
    )
    return kind


def hparams(name: str) -> set[str]:
    """Names of a strategy's hyper-parameters.

    Raises:
        UserError: for an unknown strategy; names the known ones.
    """
    return {field.name for field in dataclasses.fields(_kind(name))} - {"grid"}


def build(name: str, grid: Grid, **hparams_given: Any) -> Strategy:
    """A strategy for one grid; hyper-parameters that are not given keep their defaults.

    Raises:
        UserError: for an unknown name or hyper-parameter, or counts that leave no visible token or
            exceed the grid; the message shows the choices or the counts.
    """
    known = hparams(name)
    if unknown := sorted(set(hparams_given) - known):
        raise UserError(
            f"mask {name!r} takes {sorted(known)}, not {unknown}; see mvm/masking/{name}.py"
        )
    strategy = _kind(name)(grid, **hparams_given)
    visible, target = strategy.counts()
    if visible < 1 or target < 0 or visible > grid.n or target > grid.n:
        raise UserError(
            f"mask {name!r} with {hparams_given} leaves {visible} visible and {target} target "
            f"tokens of {grid.n}; change its hyper-parameters"
        )
    return strategy
