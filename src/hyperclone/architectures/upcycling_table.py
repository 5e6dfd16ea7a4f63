"""What a family file of mixtures says in [upcycled]: which dense models become such mixtures, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dense:
    """A dense model type that can become a mixture of experts."""

    leave: tuple[str, ...]  # config fields that a mixture does not have
    refuse: Mapping[str, str]  # conditions over the config -> why such a model has no counterpart


@dataclass(frozen=True)
class Upcycling:
    """How dense models become mixtures of this family (upcycling.py)."""

    architecture: str
    write: Mapping[str, str]  # config fields
    router: str  # the tensor that has no source
    tensors: Mapping[str, str]  # pattern here -> pattern there
    dense: Mapping[str, Dense]  # by model type
