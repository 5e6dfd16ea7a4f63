"""What is known about one model or model type: its family, what may grow in it, and what is refused and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperclone.architectures import not_grown, registry, support_table, text_models
from hyperclone.architectures.family import Family
from hyperclone.errors import FamilyError, HypercloneError
from hyperclone.hf.model_types import causal_model_types, model_types
from hyperclone.io import hub
from hyperclone.io.files import exists, user_path
from hyperclone.io.hub import Headers
from hyperclone.planning.unknown import family_of


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known about a model, or a model type.

    Attributes:
        model_type: as in config.json.
        text_model: the type of its text model, where that alone grows, with --text-model; None where all of it does.
        family: which describes the model or its text model; None where none does.
        grows: which sizes may grow, by name.
        notes: conditions, and what is refused and why, in clauses; expressions are in backquotes.
        refused: why nothing of it grows; None where something does.
        cure: what can be done about that.
    """

    model_type: str
    text_model: str | None = None
    family: Family | None = None
    grows: Mapping[str, str]
    notes: tuple[str, ...] = ()
    refused: str | None = None
    cure: str | None = None

    def summary(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "model_type": self.model_type,
            "text_model": self.text_model,
            "family": self.family.name if self.family else None,
            "models": list(self.family.models) if self.family else [],
            "grows": dict(self.grows),
            "notes": list(self.notes),
            "refused": self.refused,
            "cure": self.cure,
        }


def known(model: str) -> Known:
    """What is known about a model.

    Args:
        model: a model directory, a config.json, a model type, or a Hub id. A directory of this name comes first.

    Raises:
        CheckpointError: there is nothing of this name, or its config cannot be read.
        FamilyError: it is no model type, but like some.
    """
    if not exists(user_path(model)) and "/" not in model and not model.startswith((".", "~")):
        if model in _types():
            return _of_config({"model_type": model}, alone=True)
        if alike := difflib.get_close_matches(model, sorted(_types()), n=4):
            raise FamilyError("no model directory and no model type of this name", found=model,
                              expected="a model directory, config.json, model type or Hub id",
                              cure=f"did you mean {' or '.join(alike)}?")  # fmt: skip
    return _of_config(hub.config(model), alone=False)


def _types() -> frozenset[str]:
    """Every model type that something is known about."""
    known_types = registry.families().keys() | text_models.wholes().keys() | not_grown.reasons().keys()
    return frozenset(known_types) | (causal_model_types() or frozenset()) | (model_types() or frozenset())


def _of_config(config: dict[str, Any], *, alone: bool) -> Known:
    """Of a config; `alone`: it holds the model type and nothing else, so no condition on it can be evaluated."""
    model_type, text_model = str(config.get("model_type")), None
    if registry.shipped(config.get("model_type")) is None:
        if alone and (text_model := text_models.wholes().get(model_type)) is not None:
            config = {"model_type": text_model}
        elif text_models.has_text_model(config):
            text = text_models.text_config(config, head_stored=False)
            if registry.known(text) is not None:
                config, text_model = text, str(text.get("model_type"))
    try:
        family = registry.shipped(config.get("model_type")) if alone else None
        family = family or family_of(Headers(config, {}))
    except FamilyError as error:
        return Known(model_type=model_type, grows={}, refused=error.problem, cure=error.details.get("cure"))
    refused = None if alone else _refusal(family, config)
    return Known(
        model_type=model_type,
        text_model=text_model,
        family=family,
        grows={} if refused else support_table.cells(family, None if alone else config),
        notes=tuple(support_table.notes(family)),
        refused=refused,
    )


def _refusal(family: Family, config: Mapping[str, Any]) -> str | None:
    """Why a model cannot grow at all; None where it can."""
    try:
        family.grown_sizes(config, family.sizes(config))
    except HypercloneError as error:
        return error.problem
    return None
