"""mvm: masked video modelling in JAX. `mvm.load(path)` gives a trained model, see `mvm.api`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvm.api import Model, Reconstruction, Seen, UserError, load

__all__ = ["Model", "Reconstruction", "Seen", "UserError", "load"]


def __getattr__(name: str) -> Any:
    # Only who asks for these pays for importing what they need.
    if name in __all__:
        return getattr(importlib.import_module("mvm.api"), name)
    raise AttributeError(f"module 'mvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
