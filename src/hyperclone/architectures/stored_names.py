"""Names of stored tensors: the whole model's, whatever part of it was saved, and buffers that older libraries stored.

transformers loads a checkpoint that was saved from the base model (AutoModel) as well, whose names lack a prefix, and a
tied model of which the head is stored instead of the embedding. Both are read here under the names that the family file
has. Buffers are computed from the config, so transformers leaves stored ones alone; which of them a checkpoint holds
depends on the version of the library that wrote it, so they are known by name, for every family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hyperclone.architectures.family import Family, indices

T = TypeVar("T")

# The last part of a buffer's name, or its last two: of positions, attention masks and their constants.
_BUFFERS = re.compile(
    r"(?:.*\.)?(?:(?:original_)?inv_freq|_?(?:cos|sin|cos_sin)_(?:cached|cache)|masked_bias|causal_mask|position_ids"
    r"|attn\.(?:scale_attn|embed_positions))"
)
_MASK = re.compile(r"(?:.*\.)?(?:attn|attention)\.bias")
_MASK_DIMS = 4  # (1, 1, positions, positions); a bias of a layer has one dimension


def full_names(config: Mapping[str, Any], stored: Mapping[str, T], family: Family | None) -> dict[str, T]:
    """What is stored, by the names in the whole model, in the same order.

    Args:
        config: of the model.
        stored: by the names in its files.
        family: of the model; None where it is not known, which leaves every name as it is.
    """
    named = dict(stored)
    if family is None:
        return named
    if lacks_prefix(stored, family):
        head = {line.pattern for line in family.lines if not line.pattern.startswith(family.prefix)}
        named = {name if name in head else family.prefix + name: value for name, value in stored.items()}
    tie = family.tie if family.tied(config) else None
    if tie is not None and tie.head in named and tie.embedding not in named:
        return {tie.embedding if name == tie.head else name: value for name, value in named.items()}
    return named


def lacks_prefix(stored: Iterable[str], family: Family | None) -> bool:
    """Whether names are those of a saved base model: none has the prefix, and with it some are the family's."""
    if family is None or not family.prefix or any(name.startswith(family.prefix) for name in stored):
        return False
    return any(indices(line.pattern, family.prefix + name) is not None for name in stored for line in family.lines)


def is_buffer(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor that is no weight of its architecture is a buffer that older libraries stored."""
    return _BUFFERS.fullmatch(name) is not None or (_MASK.fullmatch(name) is not None and len(shape) == _MASK_DIMS)
