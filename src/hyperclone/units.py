"""Numbers of parameters and tokens as people write them: 1.3B, 350M, 26e9, 1_300_000_000."""

from __future__ import annotations

import re
from fractions import Fraction

from hyperclone.errors import GrowthError

_UNITS = {"": 0, "k": 3, "m": 6, "b": 9, "t": 12}  # powers of ten


def parse(text: str | int, field: str) -> int:
    """`1.3B` -> 1300000000. A number of things that is not whole is refused, not rounded.

    Raises:
        GrowthError: not such a number; `field` says whose.
    """
    pattern = r"\s*(\d[\d_]{0,23}(?:\.\d{1,15})?)\s*(?:[eE]\+?(\d{1,2})|([kKmMbBtT]?))\s*"
    match = None if isinstance(text, bool) else re.fullmatch(pattern, str(text), re.ASCII)
    if match is not None:
        power = int(match[2]) if match[2] else _UNITS[(match[3] or "").lower()]
        count = Fraction(match[1].replace("_", "")) * 10**power
        if count >= 1 and count.denominator == 1:
            return int(count)
    things = "parameters" if field == "params" else field
    raise GrowthError(f"not a number of {things}", field=field, found=text, expected="1.3B, 350M or 1_300_000_000")


def human_count(count: int) -> str:
    """134515008 -> 134.5M."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
