"""What the user asked for, and the sizes that this means for a model.

A width is a factor (`2`, `1.5x`) or an absolute size (`1152`). A bare number below the axis's present size is a factor,
one at or above it is a size. Where both are plausible the request is refused, and the error names both spellings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

from hyperclone.errors import GrowthError
from hyperclone.options import check, flags, option
from hyperclone.planning.depth import layer_map
from hyperclone.planning.recipe import (
    DepthMode,
    Expansion,
    ExpansionName,
    Noise,
    NoiseName,
    OrderName,
    OutputDtype,
    Recipe,
)

Width = str | int | float
OUTPUT_DTYPES: dict[str, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "fp64": "F64"}
_TORCH_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}

LARGEST_FACTOR = 64  # a larger one is probably meant as a size
_GROUP = "Growth"  # heading of the command line's help
_SIZE = "FACTOR|SIZE"
_NUMBER_RULE = (
    "a factor (2x) or a size (1152). A bare number below the present size is a factor, one at or above it a size; "
    "one that could be either is refused."
)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A request. The metadata of each field says what it means; `hyperclone grow --help` prints the same.

    A size that is None follows `width`; if that is None too, it stays as it is.

    Raises:
        GrowthError: a value that cannot be.
    """

    width: Width | None = field(
        default=None,
        metadata=option(
            "Factor for hidden size, feed-forward size and heads together: 2, 1.5, ...", metavar="FACTOR", group=_GROUP
        ),
    )
    hidden: Width | None = field(
        default=None, metadata=option(f"Hidden size: {_NUMBER_RULE}", metavar=_SIZE, group=_GROUP)
    )
    ffn: Width | None = field(
        default=None, metadata=option("Feed-forward size, written likewise.", metavar=_SIZE, group=_GROUP)
    )
    heads: Width | None = field(
        default=None, metadata=option("Attention heads, written likewise.", metavar="FACTOR|NUMBER", group=_GROUP)
    )
    kv_heads: Width | None = field(
        default=None, metadata=option("Key-value heads [they follow the heads].", metavar="FACTOR|NUMBER", group=_GROUP)
    )
    head_dim: Width | None = field(
        default=None,
        metadata=option(
            "Head dimension, where position encodings allow it (OPT, GPT-2, BLOOM, MPT). The "
            "number of heads then stays, unless it is given.",
            metavar=_SIZE,
            group=_GROUP,
        ),
    )
    layers: Width | None = field(
        default=None, metadata=option("Layers: a factor (1.5x) or a number.", metavar="FACTOR|NUMBER", group=_GROUP)
    )
    depth_mode: DepthMode = field(
        default="identity",
        metadata=option(
            "New layers: identity (copied blocks that add nothing yet: exact) or stack (repeated blocks: not exact).",
            group=_GROUP,
        ),
    )
    experts: int | None = field(
        default=None,
        metadata=option(
            "Each feed-forward block of a dense model becomes this many experts (Llama and Mistral: Mixtral; Qwen 3).",
            group=_GROUP,
        ),
    )
    top_k: int = field(
        default=2, metadata=option("With --experts: how many of them each token is routed to.", group=_GROUP)
    )
    expansion: ExpansionName = field(
        default="symmetric",
        metadata=option(
            "Where a matrix goes in the grown one: symmetric (a share of it in every block), or diagonal (all of it in "
            "the blocks on the diagonal).",
            group=_GROUP,
        ),
    )
    order: OrderName = field(
        default="interleaved",
        metadata=option(
            "Where the copies of a unit stand: interleaved (side by side, so that shards of a large model hold whole "
            "groups of copies), or tiled (all units, then their copies, as in the HyperCloning paper).",
            group=_GROUP,
        ),
    )
    noise: NoiseName = field(
        default="split",
        metadata=option(
            "What makes the copies differ: split (noise that cancels exactly), gaussian (the HyperCloning paper's, "
            "which cancels up to rounding), or none.",
            group=_GROUP,
        ),
    )
    snr_db: float = field(
        default=10.0,
        metadata=option(
            "Level of the noise: power of the weights over that of the noise, in dB; more is fainter.", group=_GROUP
        ),
    )
    seed: int = field(default=0, metadata=option("Seed of the noise: the same seed, the same bytes.", group=_GROUP))
    untie: bool = field(
        default=False,
        metadata=option("Write a head that is tied to the embedding as a tensor of its own.", group=_GROUP),
    )
    dtype: OutputDtype | None = field(
        default=None,
        metadata=option("Type of the grown weights, by these names or torch's [the source's].", group=_GROUP),
    )
    allow_rounding: bool = field(
        default=False,
        metadata=option("Accept growths that bf16 or fp16 cannot hold exactly (irrational factors).", group=_GROUP),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        check(self, GrowthError)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise GrowthError("not a seed", field="seed", found=repr(self.seed), expected="a whole number from 0")
        self._check_experts()
        for name in ("untie", "allow_rounding"):
            if not isinstance(flag := getattr(self, name), bool):
                raise GrowthError("not a boolean", field=name, found=repr(flag), expected="True or False")
        if isinstance(self.snr_db, bool) or not isinstance(self.snr_db, int | float):
            raise GrowthError("not a noise level", field="snr_db", found=repr(self.snr_db), expected="-40 to 80 dB")
        if not -40 <= self.snr_db <= 80:  # false for NaN
            raise GrowthError("noise level out of range", field="snr_db", found=self.snr_db, expected="-40 to 80 dB")
        if self.width is not None:
            _factor(self.width, "width")

    @cached_property
    def recipe(self) -> Recipe:
        """Expansion and noise, for the arithmetic."""
        return Recipe(expansion=Expansion(self.expansion), noise=Noise(self.noise), snr_db=self.snr_db, seed=self.seed)

    @property
    def stacks(self) -> bool:
        """Whether added layers repeat the model (not exact) instead of adding nothing at first."""
        return self.depth_mode == "stack"

    @property
    def wider(self) -> bool:
        """Whether a width grows, so that units have copies; more layers or experts alone give none."""
        return any((self.width, self.hidden, self.ffn, self.heads, self.kv_heads, self.head_dim))

    def flags(self) -> str:
        """The request as it is typed on a command line: every option that is not at its default."""
        return " ".join(self.options())

    def options(self) -> list[str]:
        """The parts of `flags`, as a process gets them."""
        return flags(Growth, {named.name: getattr(self, named.name) for named in fields(self)})

    def _check_experts(self) -> None:
        experts, most = self.experts, 2 if self.experts is None else self.experts
        if experts is not None and (isinstance(experts, bool) or not isinstance(experts, int) or experts < 2):
            raise GrowthError("not a number of experts", field="experts", found=repr(experts), expected="2 or more")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 1 <= self.top_k <= most:
            raise GrowthError(
                "a token cannot be routed to this many experts", field="top_k", found=repr(self.top_k),
                expected=f"1 to {most}", cure="give --experts as well" if experts is None else None,
            )  # fmt: skip


def dtype_name(dtype: object) -> object:
    """A type by our name, if it has one: "bf16" of "bfloat16", of torch.bfloat16, and of "bf16" itself."""
    name = str(dtype).removeprefix("torch.")
    return _TORCH_DTYPES.get(name, dtype)


def resolve(growth: Growth, sizes: Mapping[str, int], *, deeper: bool = False) -> dict[str, int]:
    """New sizes of the axes that a user can grow, from their present sizes.

    Args:
        growth: the request.
        sizes: every axis of the model; heads are one axis `heads`, or `kv_heads` and `group` (query heads per KV head).
        deeper: the model gets more layers (or experts), so all its widths may stay.

    Returns:
        New size of every axis in `sizes` (unchanged ones too).

    Raises:
        GrowthError: not a whole number of units, smaller than the source, or nothing grows.
    """
    new = dict(sizes)
    width = None if growth.width is None else f"{_factor(growth.width, 'width'):.15g}x"  # never a size
    for name in ("hidden", "ffn"):
        new[name] = _size(_first(getattr(growth, name), width), sizes[name], name)
    new["head_dim"] = _size(growth.head_dim, sizes["head_dim"], "head_dim")
    wanted = _first(growth.heads, width if new["head_dim"] == sizes["head_dim"] else None)
    if "heads" in sizes:
        new["heads"] = _size(wanted, sizes["heads"], "heads")
        if growth.kv_heads is not None:
            raise GrowthError(
                "this architecture has no separate key-value heads",
                field="kv_heads",
                found=growth.kv_heads,
                cure="use heads",
            )
    else:
        new["kv_heads"], new["group"] = _grouped_heads(growth, wanted, sizes["kv_heads"], sizes["group"])
    if new == dict(sizes) and not deeper:
        raise GrowthError(
            "nothing to grow: every width stays as it is",
            cure="give --width 2, or --hidden, --ffn, --heads, --layers by factor (2x) or size",
        )
    return new


_MOST_LAYERS = 100_000


def resolve_layers(growth: Growth, layers: int) -> tuple[int, ...]:
    """The old layer that each new one copies."""
    new = _size(growth.layers, layers, "layers")
    if new > _MOST_LAYERS:
        raise GrowthError("too many layers", field="layers", found=growth.layers, expected=f"at most {_MOST_LAYERS}")
    return layer_map(layers, new, stack=growth.stacks)


def _grouped_heads(growth: Growth, wanted: Width | None, kv_heads: int, group: int) -> tuple[int, int]:
    """(KV heads, query heads per KV head). A query head must stay with a copy of its own KV head."""
    old = kv_heads * group
    if growth.kv_heads is not None:
        new_kv = _size(growth.kv_heads, kv_heads, "kv_heads")
        heads = _size(wanted, old, "heads", lambda n: n % new_kv == 0 and n // new_kv >= group)
        return new_kv, heads // new_kv
    if kv_heads == 1 and group > 1:
        return 1, _size(wanted, old, "heads")  # multi-query attention stays multi-query
    heads = _size(wanted, old, "heads", lambda n: n % group == 0 or n % kv_heads == 0)
    # Whole groups are copied where that comes out, else every group gets more query heads.
    return (heads // group, group) if heads % group == 0 else (kv_heads, heads // kv_heads)


def _first(*values: Width | None) -> Width | None:
    return next((value for value in values if value is not None), None)


def _number(value: Width, field: str) -> tuple[float, bool]:
    """(number, written as a factor with x)."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([xX]?)\s*", str(value), re.ASCII)
    if match is None or isinstance(value, bool) or float(match[1]) <= 0:
        raise GrowthError("not a width", field=field, found=value, expected="a factor (2 or 2x) or a size (1152)")
    return float(match[1]), bool(match[2])


def _factor(value: Width, field: str) -> float:
    number, _ = _number(value, field)
    if number < 1:
        raise GrowthError("a model cannot be grown to a smaller size", field=field, found=value, expected="1 or more")
    if number > LARGEST_FACTOR:
        raise GrowthError(
            "this is too large for a factor, and probably a size", field=field, found=value, expected="1.5, 2, 3, ...",
            cure="give sizes as --hidden, --ffn and --heads",
        )  # fmt: skip
    return number


def _size(value: Width | None, old: int, field: str, fits: Callable[[int], bool] = lambda size: True) -> int:
    """The new size of one axis, which must be a whole number that `fits`."""
    if value is None:
        value = "1x"
    number, is_factor = _number(value, field)
    if not is_factor and 8 < number < old:
        raise GrowthError(
            "smaller than in the source", field=field, found=value, expected=f"{old} or more",
            cure=f"write {number:g}x if it is meant as a factor" if number <= LARGEST_FACTOR else None,
        )  # fmt: skip
    if not is_factor and number >= old and 1 < old <= number <= 4:
        raise GrowthError(
            "this could be a factor or a size",
            field=field,
            found=value,
            expected=f"{number:g}x for {number * old:g}, or {number / old:g}x for {number:g}",
        )
    wanted = old * _factor(value, field) if is_factor or number < old else number
    size = round(wanted)
    if abs(size - wanted) > 1e-9 * wanted or not fits(size):
        near = [n for n in range(max(old, size - 64 * old), size + 64 * old) if fits(n)]
        below = max((n for n in near if n <= wanted), default=None)
        above = min((n for n in near if n >= wanted), default=None)
        raise GrowthError(
            "no such size",
            field=field,
            found=f"{value}" + (f", that is {wanted:g}" if is_factor or number < old else ""),
            expected=" or ".join(dict.fromkeys(str(n) for n in (below, above) if n is not None)) or "another size",
        )
    return size


def spelled(old: int, new: int) -> str:
    """A new size as an unambiguous request: 2x, 1152, or 1.5x where a bare 3 could be a factor too."""
    if new <= 4 or (new % old == 0 and new // old <= LARGEST_FACTOR):
        return f"{new / old:.15g}x"
    return str(new)
