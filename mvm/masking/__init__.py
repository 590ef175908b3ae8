"""Masking strategies, one file each; `build` resolves one by the name of its file."""

import dataclasses
import pkgutil
from typing import Any

from mvm.types import Grid, Strategy, UserError, fits, module, near

_SHARED = {"sampling", "frames"}


def names() -> list[str]:
    """Names of all strategies: the modules of this package that hold one."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def _kind(name: str) -> type[Strategy]:
    where = module("mask.name", name, __name__, names())
    own = [x for x in vars(where).values() if getattr(x, "__module__", "") == where.__name__]
    kinds = [x for x in own if isinstance(x, type) and issubclass(x, Strategy)]
    if len(kinds) != 1:
        raise UserError(f"mask.name={name}: the module has {len(kinds)} strategies, not one")
    return kinds[0]


def hparams(name: str) -> dict[str, Any]:
    """Names of a strategy's hyper-parameters and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(_kind(name))[1:]}


def build(name: str, grid: Grid, **hparams_given: Any) -> Strategy:
    """A strategy for one grid; hyper-parameters that are not given keep their defaults."""
    known = hparams(name)
    for key, value in hparams_given.items():
        if key not in known:
            raise UserError(f"mask.{key}={value!r}: mask {name!r} has no {key}{near(key, known)}")
        if not fits(value, known[key]):
            raise UserError(f"mask.{key}={value!r}; mask {name!r} takes one like {known[key]!r}")
    strategy = _kind(name)(grid, **hparams_given)
    visible, target = strategy.counts()
    if visible < 1 or target < 0 or visible > grid.n or target > grid.n:
        raise UserError(
            f"mask {name!r} with {hparams_given} leaves {visible} visible and {target} target "
            f"tokens of {grid.n}; change its hyper-parameters"
        )
    return strategy
