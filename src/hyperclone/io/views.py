"""Stored tensors as the model has them: under its own names, one by one, and those of a part of the model only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hyperclone.architectures import registry, stored_names, text_models
from hyperclone.architectures.family import Family
from hyperclone.io import fused_experts
from hyperclone.io.tensor_files import Entry
from hyperclone.units import human_bytes


@dataclass(frozen=True)
class View:
    """A model as it is read from its files.

    Attributes:
        config: of the model.
        entries: its tensors by name in the model.
        notes: what was changed for that, in sentences.
        as_found: transformers would see the same tensors.
        left_out: bytes of the tensors of a whole that are not its text model's; None if this is no part of a whole.
        placeholders: token ids that stand for images and the like in the whole.
    """

    config: dict[str, Any]
    entries: dict[str, Entry]
    notes: tuple[str, ...] = ()
    as_found: bool = True
    left_out: int | None = None
    placeholders: frozenset[int] = frozenset()


def view(
    config: dict[str, Any], entries: Mapping[str, Entry], user_family: Family | None, *, text_model: bool = False
) -> View:
    """Stored tensors by their names in the whole model, which a saved base model or a lone tied head lacks.

    A wrapper's prefix (`module.`) is dropped: transformers would not load the tensors under such names.

    Args:
        config, entries: as stored.
        user_family: the user's family file; None for the family that ships for the model.
        text_model: only the text model of a model that also sees images.

    Raises:
        CheckpointError: there is no text model.
    """
    if text_model:
        return _text_view(config, entries, user_family)
    family = registry.known(config, user_family)
    named, note = _without_wrappers(entries, family)
    notes = [one for one in (note, _note_on_head(config, named, family)) if one]
    return View(config, _by_full_names(config, named, family), tuple(notes), as_found=not note)


def _note_on_head(config: Mapping[str, Any], stored: Collection[str], family: Family | None) -> str:
    """What becomes of a tied head that is stored alone; "" if there is none."""
    if family is None or (head := stored_names.lone_head(config, stored, family)) is None:
        return ""
    assert family.tie is not None
    return (
        f"Of the tied head and embedding the source stores the head ({head}): the grown model, and what collapses from "
        f"it, store the embedding ({family.tie.embedding}), as transformers does."
    )


def _text_view(config: dict[str, Any], entries: Mapping[str, Entry], user_family: Family | None) -> View:
    if not text_models.has_text_model(config):
        raise text_models.no_text_model(config, user_family)
    text_config = text_models.text_config(config, head_stored=False)
    if (family := registry.known(text_config, user_family)) is None:
        return View(text_config, dict(entries))  # refused when its family is asked for
    named, note = _without_wrappers(entries, None)
    names = text_models.text_names(named, family)
    head_stored = family.tie is not None and family.tie.head in names.values()
    text_config = text_models.text_config(config, head_stored=head_stored)
    family = registry.known(text_config, user_family)
    on_head = _note_on_head(text_config, [names[name] for name in named if name in names], family)
    text = _by_full_names(text_config, {names[name]: entry for name, entry in named.items() if name in names}, family)
    others = {name: entry for name, entry in named.items() if name not in names}
    ids = {name: value for name, value in config.items() if name.endswith(("_token_id", "_token_index"))}
    placeholders = {
        value for name, value in ids.items() if name not in text_config and type(value) is int and 0 <= value < 2**31
    }
    return View(
        text_config,
        text,
        tuple(one for one in (note, _note_on_text_model(config, text_config, others), on_head) if one),
        as_found=not note and not text_models.difference(config, text_config),
        left_out=sum(entry.nbytes for entry in others.values()),
        placeholders=frozenset(placeholders),
    )


def _note_on_text_model(
    config: Mapping[str, Any], text_config: Mapping[str, Any], others: Mapping[str, Entry]
) -> str:  # fmt: skip
    groups: dict[str, list[Entry]] = {}
    for name, entry in others.items():
        groups.setdefault(name.removeprefix("model.").partition(".")[0], []).append(entry)
    left_out = ", ".join(
        f"{name} ({len(group)} tensor{'s' if len(group) > 1 else ''}, {human_bytes(sum(e.nbytes for e in group))})"
        for name, group in groups.items()
    )
    difference = text_models.difference(config, text_config)
    return (
        f"The text model of this {config.get('model_type')} is grown on its own, as a {text_config['model_type']}. "
        f"Left out: {left_out or 'nothing'}."
        + (f" It is proved against that text model alone, since on text transformers {difference} in the whole."
           if difference else "")
    )  # fmt: skip


def _without_wrappers(entries: Mapping[str, Entry], family: Family | None) -> tuple[dict[str, Entry], str]:
    """(tensors without the prefixes of wrappers, a note if there were any)."""
    unwrapped = stored_names.without_wrappers(entries, family)
    if not (wrapped := len(entries.keys() - unwrapped.keys())):
        return unwrapped, ""
    example = next(name for name in entries if name not in unwrapped)
    return unwrapped, (
        f"{wrapped} names have the prefix of a wrapper ({example}), under which transformers does not load them: "
        "the grown model's are without it."
    )


def _by_full_names(
    config: Mapping[str, Any], entries: Mapping[str, Entry], family: Family | None
) -> dict[str, Entry]:  # fmt: skip
    apart = fused_experts.take_apart(entries, family)
    base = stored_names.lacks_prefix(apart, family)
    return {
        name: replace(entry, base=True) if base else entry
        for name, entry in stored_names.full_names(config, apart, family).items()
    }
