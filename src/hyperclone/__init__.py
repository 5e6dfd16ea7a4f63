"""hyperclone: grow a trained language model into a wider one that computes the same function, with proof.

    import hyperclone
    hyperclone.grow("path/or/hub-id", "grown", hyperclone.Growth(width=2))

The method is HyperCloning (Samragh et al. 2024, arXiv 2409.12903); docs/architecture.md derives the arithmetic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hyperclone.collapsing import collapse as collapse
    from hyperclone.errors import HypercloneError as HypercloneError
    from hyperclone.growing import grow as grow
    from hyperclone.growing import plan as plan
    from hyperclone.growth import Growth as Growth
    from hyperclone.memory import grow_model as grow_model
    from hyperclone.proving import Proof as Proof
    from hyperclone.proving import verify as verify

# Loaded on first use, so that `plan` and `--help` start without torch.
_PUBLIC = {
    "Growth": "growth",
    "HypercloneError": "errors",
    "Proof": "proving",
    "collapse": "collapsing",
    "grow": "growing",
    "grow_model": "memory",
    "plan": "growing",
    "verify": "proving",
}
__all__ = ["Growth", "HypercloneError", "Proof", "collapse", "grow", "grow_model", "plan", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hyperclone' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hyperclone.{_PUBLIC[name]}"), name)
