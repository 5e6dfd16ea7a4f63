"""Which causal language models of the installed transformers a family file grows, and why the others do not grow."""

from __future__ import annotations

from dataclasses import dataclass

from hyperclone.architectures import not_grown, registry
from hyperclone.errors import HypercloneError
from hyperclone.hf.model_types import causal_model_types

UNKNOWN = "it is new: `hyperclone family draft` may describe it"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One model type.

    Attributes:
        model_type: as in config.json.
        family: the family that grows it; None if none does.
        reason: why none does; None if one does.
    """

    model_type: str
    family: str | None
    reason: str | None


def coverage() -> list[Coverage]:
    """Every causal language model of the installed transformers, by its type; what grows comes first.

    Raises:
        HypercloneError: transformers is not installed, or does not list its models as expected.
    """
    if (types := causal_model_types()) is None:
        raise HypercloneError("the models of transformers could not be read", cure="pip install transformers")
    families, reasons = registry.families(), not_grown.reasons()
    rows = []
    for model_type in types:
        family = families.get(model_type)
        reason = None if family else reasons.get(model_type, UNKNOWN)
        rows.append(Coverage(model_type=model_type, family=family.name if family else None, reason=reason))
    return sorted(rows, key=lambda row: (row.family is None, row.reason or "", row.model_type))
