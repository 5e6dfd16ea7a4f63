"""Numbers as people write them: parameters and tokens (1.3B, 350M, 26e9, 1_300_000_000) and bytes (5GB, 2GiB)."""

from __future__ import annotations

import math
import re
import sys
from fractions import Fraction
from typing import Any, TypeGuard

from hyperclone.errors import OptionError

_UNITS = {"": 0, "k": 3, "m": 6, "b": 9, "t": 12}  # powers of ten
_TAGS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse(text: str | int, field: str) -> int:
    """`1.3B` -> 1300000000. A number of things that is not whole is refused, not rounded.

    Raises:
        OptionError: not such a number; `field` says whose.
    """
    pattern = r"\s*(\d[\d_]{0,23}(?:\.\d{1,15})?)\s*(?:[eE]\+?(\d{1,2})|([kKmMbBtT]?))\s*"
    match = None if isinstance(text, bool) else re.fullmatch(pattern, str(text), re.ASCII)
    if match is not None:
        power = int(match[2]) if match[2] else _UNITS[(match[3] or "").lower()]
        count = Fraction(match[1].replace("_", "")) * 10**power
        if count >= 1 and count.denominator == 1:
            return int(count)
    things = "parameters" if field == "params" else field
    raise OptionError(f"not a number of {things}", field=field, found=text, expected="1.3B, 350M or 1_300_000_000")


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number (no boolean) that a float can hold; a whole number from a file may be any."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]  # false for NaN


def decode_floats(value: Any, *, levels: int = 64) -> Any:
    """A value from JSON with the numbers that transformers 5 writes as {"__float__": "Infinity"} and the like.

    Every NaN is `math.nan`, and every tuple is a list. What is nested deeper than `levels` stays as it is.
    """
    if not levels:
        return value
    if isinstance(value, dict):
        tag = value.get("__float__") if len(value) == 1 else None
        if isinstance(tag, str) and tag in _TAGS:
            return _TAGS[tag]
        return {key: decode_floats(entry, levels=levels - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [decode_floats(entry, levels=levels - 1) for entry in value]
    return math.nan if isinstance(value, float) and math.isnan(value) else value


def human_count(count: int) -> str:
    """134515008 -> 134.5M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def short_count(count: float) -> str:
    """A count in a few characters, for axes and narrow tables: 4M, 250k, 1.5T, 2.74E."""
    for unit, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:.3g}"


def parse_size(text: str) -> int:
    """`5GB`, `500MB`, `2GiB` or a plain number of bytes.

    Raises:
        OptionError: not a size.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]*)\s*", text, re.ASCII)
    if match is None or match[2].lower() not in _BYTES or float(match[1]) <= 0:
        raise OptionError("not a size", field="shard_size", found=text, expected="5GB, 500MB, 2GiB, ...")
    return max(1, int(float(match[1]) * _BYTES[match[2].lower()]))


def human_bytes(count: float) -> str:
    """1234567 -> 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def share(part: float, count: int) -> str:
    """A share of `count` things: a percentage, or of few things, of which each would be several percent, "3/4"."""
    return f"{part:.1%}" if count >= 30 else f"{round(part * count)}/{count}"
