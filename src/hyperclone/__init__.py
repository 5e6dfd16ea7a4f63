"""Grow a trained language model into a wider one that computes the same function, with proof.

    import hyperclone
    hyperclone.grow("path/or/hub-id", "grown", width=2)

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
    from hyperclone.errors import CheckpointError as CheckpointError
    from hyperclone.errors import DestinationError as DestinationError
    from hyperclone.errors import FamilyError as FamilyError
    from hyperclone.errors import GrowthError as GrowthError
    from hyperclone.errors import HypercloneError as HypercloneError
    from hyperclone.errors import NonFiniteLossError as NonFiniteLossError
    from hyperclone.errors import OptionError as OptionError
    from hyperclone.errors import ProofFailed as ProofFailed
    from hyperclone.errors import StudyError as StudyError
    from hyperclone.errors import TrainingError as TrainingError
    from hyperclone.evaluation.evaluate import evaluate as evaluate
    from hyperclone.optim.load_state import load_state as load_state
    from hyperclone.optim.muon import Muon as Muon
    from hyperclone.optim.param_groups import param_groups as param_groups
    from hyperclone.optim.rotated_adamw import rotated_adamw as rotated_adamw
    from hyperclone.optim.rotated_muon import rotated_muon as rotated_muon
    from hyperclone.planning.growth import Growth as Growth
    from hyperclone.planning.proposals import propose as propose
    from hyperclone.proof.proof import Proof as Proof
    from hyperclone.report.write import report as write_report  # noqa: F401
    from hyperclone.study.run import run as run_study  # noqa: F401
    from hyperclone.training.config import Training as Training
    from hyperclone.training.run import train as train

# Name: module, and the name there if that is another. Loaded on first use, so that `plan` and `--help` start without
# torch.
_PUBLIC = {
    "CheckpointError": "errors",
    "DestinationError": "errors",
    "FamilyError": "errors",
    "Growth": "planning.growth",
    "GrowthError": "errors",
    "HypercloneError": "errors",
    "Muon": "optim.muon",
    "NonFiniteLossError": "errors",
    "OptionError": "errors",
    "Proof": "proof.proof",
    "ProofFailed": "errors",
    "StudyError": "errors",
    "Training": "training.config",
    "TrainingError": "errors",
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
    "run_study": "study.run:run",
    "train": "training.run",
    "verify": "conversion.verify",
    "write_report": "report.write:report",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hyperclone' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(f"hyperclone.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
