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
    from hyperclone.anatomy import examine as examine
    from hyperclone.collapsing import collapse as collapse
    from hyperclone.errors import HypercloneError as HypercloneError
    from hyperclone.evaluation import evaluate as evaluate
    from hyperclone.growing import grow as grow
    from hyperclone.growing import plan as plan
    from hyperclone.growth import Growth as Growth
    from hyperclone.memory import grow_model as grow_model
    from hyperclone.proof import Proof as Proof
    from hyperclone.proposing import propose as propose
    from hyperclone.training.groups import param_groups as param_groups
    from hyperclone.training.loading import load_state as load_state
    from hyperclone.training.request import Training as Training
    from hyperclone.training.rotated import rotated_adamw as rotated_adamw
    from hyperclone.training.run import train as train
    from hyperclone.verifying import verify as verify

# Loaded on first use, so that `plan` and `--help` start without torch.
_PUBLIC = {
    "Growth": "growth",
    "HypercloneError": "errors",
    "Proof": "proof",
    "Training": "training.request",
    "collapse": "collapsing",
    "evaluate": "evaluation",
    "examine": "anatomy",
    "grow": "growing",
    "grow_model": "memory",
    "load_state": "training.loading",
    "param_groups": "training.groups",
    "plan": "growing",
    "train": "training.run",
    "propose": "proposing",
    "rotated_adamw": "training.rotated",
    "verify": "verifying",
}
__all__ = [
    "Growth",
    "HypercloneError",
    "Proof",
    "Training",
    "collapse",
    "evaluate",
    "examine",
    "grow",
    "grow_model",
    "load_state",
    "param_groups",
    "plan",
    "propose",
    "rotated_adamw",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hyperclone' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hyperclone.{_PUBLIC[name]}"), name)
