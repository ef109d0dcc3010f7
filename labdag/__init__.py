"""Runs any DVC pipeline as a Prefect flow: stages in parallel, exactly those that a change affects.

`from labdag import reproduce, sweep, retrain` gives the flows, and `served` what a flow of one's own that calls them
needs: a Prefect server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labdag.flows.reproduce import reproduce
    from labdag.flows.retrain import retrain
    from labdag.flows.sweep import sweep
    from labdag.orchestration.server import served

__all__ = ["reproduce", "retrain", "served", "sweep"]
_MODULES = {
    "reproduce": "labdag.flows.reproduce",
    "retrain": "labdag.flows.retrain",
    "served": "labdag.orchestration.server",
    "sweep": "labdag.flows.sweep",
}


def __getattr__(name: str) -> Any:
    # Prefect takes seconds to load, and most of labdag can do without.
    if name not in _MODULES:
        raise AttributeError(f"module 'labdag' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
