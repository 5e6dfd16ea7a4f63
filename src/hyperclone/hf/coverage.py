"""Which causal language models of the installed transformers a family file grows, and why the others do not grow.

Models with a language model in them, beside what sees images or hears, have rows as well: it grows on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperclone.architectures import not_grown, registry, text_models
from hyperclone.errors import HypercloneError
from hyperclone.hf.model_types import causal_model_types

UNKNOWN = "it is new: `hyperclone family draft` may describe it"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One model type.

    Attributes:
        model_type: as in config.json.
        family: the family that grows it, or its text model; None if none does.
        text_model: the type of its text model, where only that is grown (--text-model); None where all of it is.
        reason: why none does; None if one does.
    """

    model_type: str
    family: str | None
    text_model: str | None
    reason: str | None


def coverage() -> list[Coverage]:
    """Every causal language model of the installed transformers, by its type, and models with a text model in them.

    What grows comes first, then what has a text model that does.

    Raises:
        HypercloneError: transformers is not installed, or does not list its models as expected.
    """
    if (types := causal_model_types()) is None:
        raise HypercloneError("the models of transformers could not be read", cure="pip install transformers")
    families, reasons, wholes = registry.families(), not_grown.reasons(), text_models.wholes()
    rows = []
    for model_type in types | wholes.keys():
        text_model = None if model_type in families else wholes.get(model_type)
        family = families.get(text_model or model_type)
        reason = None if family else reasons.get(model_type, UNKNOWN)
        name = family.name if family else None
        rows.append(Coverage(model_type=model_type, family=name, text_model=text_model, reason=reason))
    return sorted(rows, key=lambda row: (row.family is None, row.text_model or "", row.reason or "", row.model_type))


def counts(rows: Sequence[Coverage]) -> tuple[int, int, int]:
    """How many causal language models grow, how many there are, and of how many models only the text model grows."""
    wholes = sum(row.text_model is not None for row in rows)
    return sum(row.family is not None for row in rows) - wholes, len(causal_model_types() or ()), wholes
