"""A growth given by its parts: `grow(source, destination, width=2)` as well as `Growth(width=2)`."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from hyperclone.errors import GrowthError
from hyperclone.planning.growth import Growth, Width
from hyperclone.planning.recipe import DepthMode, ExpansionName, NoiseName, OrderName, OutputDtype

if TYPE_CHECKING:
    import torch


class GrowthOptions(TypedDict, total=False):
    """The fields of `Growth`, as keywords of a function that takes one."""

    width: Width | None
    hidden: Width | None
    ffn: Width | None
    heads: Width | None
    kv_heads: Width | None
    head_dim: Width | None
    layers: Width | None
    depth_mode: DepthMode
    experts: int | None
    top_k: int
    expansion: ExpansionName
    order: OrderName
    noise: NoiseName
    snr_db: float
    seed: int
    untie: bool
    dtype: OutputDtype | Literal["bfloat16", "float16", "float32", "float64"] | torch.dtype | None
    allow_rounding: bool


def requested(growth: Growth | None, options: GrowthOptions) -> Growth:
    """The growth that a function was asked for: whole, or by its parts.

    Raises:
        GrowthError: both or neither is given, a part that there is not, or a value that cannot be.
    """
    parts: dict[str, Any] = {**options}
    known = [field.name for field in fields(Growth)]
    for name in parts:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise GrowthError("no such option", field=name, found=repr(parts[name]),
                              expected=", ".join(near or known))  # fmt: skip
    if growth is None:
        if not parts:
            raise GrowthError("nothing says how to grow", field="growth", expected="width=2, or Growth(width=2)")
        return Growth(**parts)
    if not isinstance(growth, Growth):
        raise GrowthError("not a growth", field="growth", found=repr(growth), expected="width=2, or Growth(width=2)")
    if parts:
        raise GrowthError("a growth is given whole, so nothing can be added to it", field=next(iter(parts)),
                          found=repr(next(iter(parts.values()))), cure="put it into the Growth")  # fmt: skip
    return growth
