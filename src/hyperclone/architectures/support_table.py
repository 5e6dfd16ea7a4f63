"""The supported architectures and which of their sizes can grow: one row for each family file.

`hyperclone families` shows it, and `hyperclone families --markdown` is docs/families.md. A column is a function of a
`Family`; a new one is an entry in COLUMNS. tests/architectures/test_family_table.py checks the cells
against the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hyperclone.architectures import registry, text_models
from hyperclone.architectures.expression import lead_field, names
from hyperclone.architectures.family import Family

LEGEND = (
    "any: any number of units; multiples: 2x, 3x, ...; (any): any where the note says so, else multiples.",
    "with hidden: by the factor of the hidden size; in fp32 or with --allow-rounding where that is no multiple.",
    "Query heads grow in whole groups, and KV heads with them; the number of experts stays.",
    "Layers: identity (new ones add nothing yet: exact), or stack (the model repeated: not exact).",
)


def _hidden(family: Family) -> str:
    spec = family.residual.get("hidden")
    return "multiples" if spec is None else "any" if spec.when is None else "(any)"


def _ffn(family: Family) -> str:
    if lead := family.axes["ffn"].grows_with:
        return f"with {lead}"
    return "multiples" if _normed(family, "ffn") else "any"


def _heads(family: Family) -> str:
    axis = "heads" if "heads" in family.axes else "kv_heads"
    if any(names(condition)[:1] == ("heads",) and " and " not in condition for condition in family.refuse):
        return "stay"
    if lead_field(family.axes["head_dim"].size) is None:  # head_dim is always hidden / heads
        return "with hidden"
    return "multiples" if _normed(family, axis) else "any"


def _kv_heads(family: Family) -> str:
    return "with heads" if "kv_heads" in family.axes else ""


def _head_dim(family: Family) -> str:
    return "any" if any(line.layout.queries for line in family.lines) else "stay"


def _layers(family: Family) -> str:
    if "deeper" in family.refuse:
        return "stay"
    return "stack" if "identity" in family.refuse else "identity, stack"


def _experts(family: Family) -> str:
    return "stay" if "experts" in family.axes else ""


COLUMNS: dict[str, Callable[[Family], str]] = {
    "models": lambda family: ", ".join(family.models),
    "model type": lambda family: ", ".join(family.model_types),
    "hidden": _hidden,
    "ffn": _ffn,
    "heads": _heads,
    "head dim": _head_dim,
    "KV heads": _kv_heads,
    "layers": _layers,
    "experts": _experts,
}


def cells(family: Family, config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Which sizes of a family grow, by the columns' titles; of one model where its config is given.

    Args:
        family: the architecture.
        config: config.json of a model, for which conditions are evaluated.
    """
    grows = {title: cell(family) for title, cell in list(COLUMNS.items())[2:]}
    spec = family.residual.get("hidden")
    if config is not None and spec is not None and spec.when is not None:
        grows["hidden"] = "any" if family.value(spec.when, config) else "multiples"
    return {title: text for title, text in grows.items() if text}


def _normed(family: Family, axis: str) -> bool:
    return any(line.layout.norm and axis in line.layout.axes for line in family.lines)


def notes(family: Family) -> Iterator[str]:
    """Conditions, and what is refused and why. Expressions are in backquotes."""
    for axis, spec in family.residual.items():
        if spec.when is not None:
            yield f"{axis} grows to any size where `{spec.when}`"
    for text, when in family.whole.items():
        yield f"`{text}` must stay a whole number" + ("" if when == "True" else f" where `{when}`")
    for root in family.multiplied.values():
        where = "" if root.when is None else f" where `{root.when}`"
        yield f"the model multiplies its embedding by the square root of {root.axis}{where}: exact only for powers of 4"
    if family.tie is not None and family.tie.fold and family.gain_offset:
        yield (
            f"the last norm stores its gains less {family.gain_offset}, so they cannot be divided among copies without "
            "rounding: in bf16 and fp16 a tied head is untied when hidden grows, if that makes the growth exact"
        )
    if family.tie is not None and not family.tie.fold:
        yield "a tied head is untied when hidden grows, since no last norm has a gain"
    if wholes := wholes_of(family):
        yield f"the text model of {', '.join(wholes)} is such a model, and grows on its own (--text-model)"
    if family.upcycled is not None:
        yield f"can be made from dense models of type {', '.join(family.upcycled.dense)} (--experts)"
    for condition, reason in family.refuse.items():
        yield f"refused where `{condition}`: {reason}"


def wholes_of(family: Family) -> list[str]:
    """The model types whose text model a family grows."""
    return [whole for whole, text_model in text_models.wholes().items() if text_model in family.model_types]


def families() -> list[Family]:
    """Every family that ships with the package, each once, by the names of their models."""
    each = {family.name: family for family in registry.families().values()}
    return sorted(each.values(), key=lambda family: (*family.models, family.name)[0].lower())


def summary() -> list[dict[str, Any]]:
    """The table as plain JSON data."""
    return [
        {
            "family": family.name,
            "model_types": list(family.model_types),
            "models": list(family.models),
            "grows": {title: cell(family) for title, cell in list(COLUMNS.items())[2:]},
            "text_model_of": wholes_of(family),
            "notes": list(notes(family)),
        }
        for family in families()
    ]


def markdown() -> str:
    """docs/families.md."""
    lines = [
        "# Known architectures",
        "",
        "Generated from [the family files](../src/hyperclone/architectures/families) "
        "by `hyperclone families --markdown`.",
        "How to add one: [docs/family-files.md](family-files.md#adding-an-architecture).",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(cell(family) for cell in COLUMNS.values()) + " |" for family in families()),
        "",
        *(f"- {sentence}" for sentence in LEGEND),
        "",
        "## Notes",
        "",
    ]
    for family in families():
        lines += [f"- {', '.join(family.model_types)}: {note}." for note in notes(family)]
    return "\n".join(lines) + "\n"
