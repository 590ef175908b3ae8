"""Masking strategies, one file each; `build` resolves one by the name of its file."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from mvm.types import Grid, Strategy, UserError

_SHARED = {"sampling", "frames"}


def names() -> list[str]:
    """Names of all strategies: the modules of this package that have a `sample`."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def _module(name: str) -> ModuleType:
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"mask.name={name!r} is unknown{hint} (known: {', '.join(names())})")
    return importlib.import_module(f"{__name__}.{name}")


def _parts(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """What a strategy consists of; only one that learns has a network and a loss."""
    found = {name: vars(module).get(name) for name in ("sample", "network", "loss")}
    return {name: part for name, part in found.items() if part is not None}


def _options(part: Callable[..., Any]) -> set[str]:
    """Names of the hyper-parameters of a part: its keyword-only arguments."""
    parameters = inspect.signature(part).parameters.values()
    named = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return named - {"rngs"}


def hparams(name: str) -> set[str]:
    """Names of a strategy's hyper-parameters: the keyword-only arguments of its parts.

    Raises:
        UserError: for an unknown strategy; names the known ones.
    """
    return set().union(*(_options(part) for part in _parts(_module(name)).values()))


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

    def bound(part: Callable[..., Any]) -> Callable[..., Any]:
        mine = {k: v for k, v in hparams_given.items() if k in _options(part)}
        return functools.partial(part, **mine)

    parts = {name: bound(part) for name, part in _parts(module).items()}
    visible, target = bound(module.counts)(grid)
    if visible < 1 or target < 0 or visible > grid.n or target > grid.n:
        raise UserError(
            f"mask {name!r} with {hparams_given} leaves {visible} visible and {target} target "
            f"tokens of {grid.n}; change its ratios"
        )
    return Strategy(
        name=name,
        needs_tokens=module.NEEDS_TOKENS,
        num_visible=visible,
        num_target=target,
        **parts,
    )
