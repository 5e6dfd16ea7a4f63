"""Grow a trained language model into a wider one that computes the same function, with proof.

    import hyperclone
    hyperclone.grow("path/or/hub-id", "grown", hyperclone.Growth(width=2))

The method is HyperCloning (Samragh et al. 2024, arXiv 2409.12903); docs/mathematics.md derives the arithmetic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hyperclone.version import __version__ as __version__

if TYPE_CHECKING:
    from hyperclone.anatomy.examine import examine as examine
    from hyperclone.conversion.collapse import collapse as collapse
    from hyperclone.conversion.grow import grow as grow
    from hyperclone.conversion.in_memory import grow_model as grow_model
    from hyperclone.conversion.plan import plan as plan
    from hyperclone.conversion.verify import verify as verify
    from hyperclone.errors import HypercloneError as HypercloneError
    from hyperclone.evaluation.evaluate import evaluate as evaluate
    from hyperclone.optim.load_state import load_state as load_state
    from hyperclone.optim.muon import Muon as Muon
    from hyperclone.optim.param_groups import param_groups as param_groups
    from hyperclone.optim.rotated_adamw import rotated_adamw as rotated_adamw
    from hyperclone.optim.rotated_muon import rotated_muon as rotated_muon
    from hyperclone.planning.growth import Growth as Growth
    from hyperclone.planning.proposals import propose as propose
    from hyperclone.proof.proof import Proof as Proof
    from hyperclone.training.config import Training as Training
    from hyperclone.training.run import train as train

# Loaded on first use, so that `plan` and `--help` start without torch.
_PUBLIC = {
    "Growth": "planning.growth",
    "HypercloneError": "errors",
    "Muon": "optim.muon",
    "Proof": "proof.proof",
    "Training": "training.config",
    "collapse": "conversion.collapse",
    "evaluate": "evaluation.evaluate",
    "examine": "anatomy.examine",
    "grow": "conversion.grow",
    "grow_model": "conversion.in_memory",
    "load_state": "optim.load_state",
    "param_groups": "optim.param_groups",
    "plan": "conversion.plan",
    "propose": "planning.proposals",
    "rotated_adamw": "optim.rotated_adamw",
    "rotated_muon": "optim.rotated_muon",
    "train": "training.run",
    "verify": "conversion.verify",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hyperclone' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hyperclone.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
