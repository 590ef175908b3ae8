"""Masking strategies, one file each; `build` resolves one by the name of its file."""

import functools
import importlib
import inspect
import pkgutil
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from mvm.types import Grid, Strategy, UserError

_SHARED = {"sampling"}


def names() -> list[str]:
    """Names of all strategies: the modules of this package that have a `sample`."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def _module(name: str) -> ModuleType:
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"mask.name={name!r} is unknown{hint} (known: {', '.join(names())})")
    return importlib.import_module(f"{__name__}.{name}")


def hparams(name: str) -> set[str]:
    """Names of a strategy's hyper-parameters: the keyword-only arguments of its `sample`.

    Raises:
        UserError: for an unknown strategy; names the known ones.
    """
    parameters = inspect.signature(_module(name).sample).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def build(name: str, grid: Grid, **hparams_given: Any) -> Strategy:
    """A strategy with its hyper-parameters bound and its counts resolved for one grid.

    Args:
        name: a file of this package, such as "tube".
        grid: the token grid.
        **hparams_given: see `hparams`; those not given keep their defaults.

    Raises:
        UserError: for an unknown name or hyper-parameter, or if the counts leave no visible token
            or exceed the grid; the message shows the choices or the counts.
    """
    module, known = _module(name), hparams(name)
    if unknown := sorted(set(hparams_given) - known):
        raise UserError(
            f"mask {name!r} takes {sorted(known)}, not {unknown}; see mvm/masking/{name}.py"
        )
    visible, target = module.counts(grid, **hparams_given)
    if visible < 1 or target < 0 or visible > grid.n or target > grid.n:
        raise UserError(
            f"mask {name!r} with {hparams_given} leaves {visible} visible and {target} target "
            f"tokens of {grid.n}; change its ratios"
        )
    return Strategy(
        name=name,
        sample=functools.partial(module.sample, **hparams_given),
        needs_tokens=module.NEEDS_TOKENS,
        num_visible=visible,
        num_target=target,
    )
