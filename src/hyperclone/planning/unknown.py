"""What can be done about an architecture that is not known: a draft of its family file, where one can work."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from hyperclone.architectures import not_grown, registry, text_models
from hyperclone.architectures.expression import evaluate
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError, FamilyError, UnknownArchitectureError
from hyperclone.hf.model_types import causal_model_types
from hyperclone.io.source import Source


def family_of(source: Source) -> Family:
    """The family of a source.

    Raises:
        FamilyError: it is not known; the message says whether it can be drafted.
    """
    try:
        return source.family
    except UnknownArchitectureError as error:
        if (refusal := _with_text_model(source.config)) is not None:
            raise refusal from None
        model_type = source.config.get("model_type")
        if (cure := without_draft(source.config)) is not None:
            raise FamilyError(error.problem, **{**error.details, "cure": cure}) from None
        if isinstance(model_type, str) and (reason := not_grown.reasons().get(model_type)) is not None:
            cure = f"no family file describes it, because {reason}; {error.details['cure']}, if it passes its proof"
            raise FamilyError(error.problem, **{**error.details, "cure": cure}) from None
        raise


def _with_text_model(config: Mapping[str, Any]) -> FamilyError | None:
    """The refusal of a model that also sees images; None where it has no text model of a known type."""
    if not text_models.has_text_model(config):
        return None
    if registry.known(text_models.text_config(config, head_stored=False)) is None:
        return None
    return FamilyError(
        "only language models are grown, and this one has a text model in it, beside what sees images or hears",
        file="config.json",
        field="model_type",
        found=config.get("model_type"),
        expected="a language model",
        cure="--text-model grows the text model on its own, and leaves out the rest",
    )


def without_draft(config: Mapping[str, Any]) -> str | None:
    """What can be done where `family draft` could propose nothing that works; None where it may."""
    types, model_type = causal_model_types(), config.get("model_type")
    if isinstance(model_type, str) and types is not None and model_type not in types:
        if config.get("is_encoder_decoder") is True:
            return "none: only decoders are grown, and this model has an encoder beside its decoder"
        return (
            "none with this transformers, which has no causal language model of this type: remote code is never run, "
            "so a family file could not be proved; try a newer transformers, or, if config and tensors are those of a "
            "known architecture, its model_type"
        )
    if (reason := limit(config)) is None:
        return None
    reason = not_grown.reasons().get(str(model_type), reason)
    return f"no draft can describe it, because {reason}; a family file would have to be written by hand, if it can be"


def limit(config: Mapping[str, Any]) -> str | None:
    """What it is about an architecture that no draft can describe; None if nothing such is known."""
    return next((reason for condition, reason in _limits().items() if _holds(condition, config)), None)


@cache
def _limits() -> dict[str, str]:
    text = resources.files("hyperclone.architectures").joinpath("undraftable.toml").read_text("utf-8")
    return {condition: str(reason) for condition, reason in tomllib.loads(text).items()}


def _holds(condition: str, config: Mapping[str, Any]) -> bool:
    try:
        return bool(evaluate(condition, config))
    except CheckpointError:  # a field of another kind
        return False
