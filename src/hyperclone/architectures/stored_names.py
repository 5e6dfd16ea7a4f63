"""Names of stored tensors: the whole model's, whatever part of it was saved, and buffers that older libraries stored.

transformers also loads a checkpoint that was saved from the base model (AutoModel), whose names lack a prefix, one that
was saved from a wrapper around the model, whose names have it twice, and a tied model of which the head is stored
instead of the embedding. It does not load names with the prefix of DistributedDataParallel, torch.compile or peft, or
of the attribute in which a training script keeps its model, which some forget to drop. All are read here under the
names that the family file has. Buffers are computed from the config, so transformers leaves stored ones alone; which of
them a checkpoint holds depends on the version of the library that wrote it, so they are known by name, for every
family.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from hyperclone.architectures.family import Family

T = TypeVar("T")

# The last part of a buffer's name, or its last two: of positions, attention masks and their constants.
_BUFFERS = re.compile(
    r"(?:.*\.)?(?:(?:original_)?inv_freq|_?(?:cos|sin|cos_sin)_(?:cached|cache)|masked_bias|causal_mask|position_ids"
    r"|attn\.(?:scale_attn|embed_positions))"
)
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number
_MASK = re.compile(r"(?:.*\.)?(?:attn|attention)\.bias")
_MASK_DIMS = 4  # (1, 1, positions, positions); a bias of a layer has one dimension


# Parts of a name that are no part of the model: of torch.compile, FSDP and activation checkpointing, anywhere; of
# DistributedDataParallel, DataParallel and DeepSpeed, in front; of peft, in front of all names.
_INNER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = "module."
_OF_PEFT = "base_model.model."


def unwrapped_name(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    name = _INNER.sub("", name)
    while name.startswith(_OUTER):
        name = _INNER.sub("", name.removeprefix(_OUTER))
    return name


def without_wrappers(stored: Mapping[str, T], family: Family | None) -> dict[str, T]:
    """What is stored, with the prefixes of wrappers dropped from names that the model does not have, in the same order.

    A prefix that all names have is a wrapper's, whatever it is, if more names are the model's without it. Where two
    names would become one, all stay as they are.
    """
    patterns = frozenset() if family is None else _patterns(family)
    names = {name: name if _numbers_out(name) in patterns else unwrapped_name(name) for name in stored}
    inner = [*names.values()]
    outer = _shared_prefix(inner, family, patterns) if family else _OF_PEFT
    if all(name.startswith(outer) for name in inner):
        names = {name: unwrapped_name(rest.removeprefix(outer)) if outer else rest for name, rest in names.items()}
    if len(set(names.values())) < len(names):
        return dict(stored)
    return {names[name]: value for name, value in stored.items()}


def _shared_prefix(names: Collection[str], family: Family, patterns: frozenset[str]) -> str:
    """The prefix of all names without which most of them are the family's; the shortest such, "" if none is needed."""
    kinds = list({_numbers_out(name): name for name in names}.values())  # one of each, whatever its layer and expert
    parts = kinds[0].split(".")[:-1] if kinds else []
    prefixes = ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]

    def known(prefix: str) -> int:
        inner = (_full_name(name.removeprefix(prefix), family.prefix, patterns) for name in kinds)
        return sum(_numbers_out(name) in patterns for name in inner)

    return max((p for p in prefixes if all(name.startswith(p) for name in names)), key=known)  # the first of equals


def full_names(config: Mapping[str, Any], stored: Mapping[str, T], family: Family | None) -> dict[str, T]:
    """What is stored, by the names in the whole model, in the same order.

    As in transformers, each name that the model does not have may lack the prefix, or have it once too often. Where two
    names would become one, all stay as they are.

    Args:
        config: of the model.
        stored: by the names in its files.
        family: of the model; None where it is not known, which leaves every name as it is.
    """
    if family is None:
        return dict(stored)
    patterns = _patterns(family)
    named = {_full_name(name, family.prefix, patterns): value for name, value in stored.items()}
    if len(named) < len(stored):
        return dict(stored)
    if lone_head(config, stored, family) is None:
        return named
    assert family.tie is not None
    return {family.tie.embedding if name == family.tie.head else name: value for name, value in named.items()}


def lone_head(config: Mapping[str, Any], stored: Collection[str], family: Family | None) -> str | None:
    """The stored name of a tied head whose embedding is not stored; None if there is no such head."""
    if family is None or family.tie is None or not family.tied(config):
        return None
    patterns = _patterns(family)
    names = {_full_name(name, family.prefix, patterns): name for name in stored}
    return None if family.tie.embedding in names else names.get(family.tie.head)


def lacks_prefix(stored: Collection[str], family: Family | None) -> bool:
    """Whether names are those of a saved base model: none has the prefix, and with it some are the family's."""
    if family is None or not family.prefix or any(name.startswith(family.prefix) for name in stored):
        return False
    patterns = _patterns(family)
    return any(_numbers_out(family.prefix + name) in patterns for name in stored)


def _full_name(name: str, prefix: str, patterns: frozenset[str]) -> str:
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if _numbers_out(candidate) in patterns:
            return candidate
    return name


def _patterns(family: Family) -> frozenset[str]:
    """Names of tensors and ignored buffers with # for each number."""
    names = [*(line.pattern for line in family.lines), *family.ignore]
    return frozenset(_numbers_out(re.sub(r"\{[ie]\}", "0", name)) for name in names)


def _numbers_out(name: str) -> str:
    return _NUMBER.sub("#", name)


def is_buffer(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor that is no weight of its architecture is a buffer that older libraries stored."""
    return _BUFFERS.fullmatch(name) is not None or (_MASK.fullmatch(name) is not None and len(shape) == _MASK_DIMS)


def differs_in_numbers(name: str, family: Family) -> bool:
    """Whether a name would be one of the family's with another number of a layer or an expert, or in another layer."""
    return _NUMBER.search(name) is not None and _numbers_out(name) in _patterns(family)
