"""Families with another head than that of a causal language model: classifiers, and reward models that are such.

The body is the family's; the head is a matrix (labels, hidden) that reads what the causal head would read. Which heads
there are is data: heads.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from hyperclone.architectures import layout
from hyperclone.architectures.entries import Axis, TensorLine
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError

LABELS = "labels"
_FIELD = "num_labels"
_DEFAULT_LABELS = 2  # of every config class of transformers


def head_of(config: Mapping[str, Any]) -> str:
    """The head that a config's `architectures` name, as heads.toml calls it; "" for a causal language model."""
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return next((head for name in classes for head in _table()["tensors"] if name.endswith(head)), "")


def names() -> tuple[str, ...]:
    """The heads besides the causal one, as the names of their classes end."""
    return tuple(_table()["tensors"])


def with_head(family: Family, config: Mapping[str, Any]) -> Family:
    """The family with the head that a config's `architectures` name; the family itself for a causal language model.

    Raises:
        CheckpointError: the family's causal head is not known, so neither is what another one reads.
    """
    if not (head := head_of(config)) or family.head:
        return family
    causal = {line.pattern for line in family.lines if _is_causal_head(line)}
    if not causal or config.get("model_type") in _table()["unknown"]:
        raise CheckpointError("what a classifier of this architecture reads is not known", file=family.file,
                              field="architectures", found=config["architectures"], expected="a causal language model",
                              cure="grow the model that it was fine-tuned from")  # fmt: skip
    reads = next(line for line in family.lines if line.pattern in causal).layout.text.partition("<-")[2].strip()
    biases = {pattern.removesuffix("weight") + "bias" for pattern in causal}
    name = _table()["names"].get(str(config.get("model_type")), "score")
    lines = [
        TensorLine(pattern.replace("NAME", name), layout.parse(text.replace("READS", reads)), None)
        for pattern, text in _table()["tensors"][head].items()
    ]
    return replace(
        family,
        head=head,
        lines=(*(line for line in family.lines if line.pattern not in causal | biases), *lines),
        tie=None,
        axes={**family.axes, LABELS: Axis(_FIELD)},
        defaults={**family.defaults, _FIELD: _labels(config)},
    )


def _labels(config: Mapping[str, Any]) -> int:
    """The number of labels where a config does not give it as a field: transformers counts their names."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else _DEFAULT_LABELS


def _is_causal_head(line: TensorLine) -> bool:
    dims = line.layout.dims
    out = next((dim for dim in range(len(dims)) if dim != line.layout.reads), None)
    if line.layout.reads is None or out is None or line.layout.norm:
        return False
    return line.layout.axes_of(out) == {"vocab"} and "{i}" not in line.pattern


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("hyperclone.architectures").joinpath("heads.toml").read_text("utf-8"))
