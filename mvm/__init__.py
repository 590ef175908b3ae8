"""mvm: masked video modelling in JAX. `mvm.load(path)` gives a trained model, see `mvm.api`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvm.api import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Only who asks for `load` pays for importing what it needs.
    if name == "load":
        from mvm import api

        return api.load
    raise AttributeError(f"module 'mvm' has no attribute {name!r}")
