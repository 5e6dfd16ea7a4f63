"""How many examples hypothesis draws: a test names its count, the chosen profile scales it.

`HYPOTHESIS_PROFILE=quick` (or `long`), or pytest's `--hypothesis-profile`; without either each test has its own count.
tests/conftest.py loads this module before pytest and hypothesis read their options.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

_STANDARD = 100  # hypothesis's own max_examples
_FEWEST = 5  # below that a property says little

settings.register_profile("quick", max_examples=20)
settings.register_profile("long", max_examples=2000)
if profile := os.environ.get("HYPOTHESIS_PROFILE"):
    settings.load_profile(profile)


def scale() -> float:
    """How many times as many examples as usual the chosen profile asks for."""
    return settings().max_examples / _STANDARD


def examples(count: int, **options: Any) -> settings:
    """Settings with `count` examples, times the profile's scale, and no deadline (machines differ).

    Args:
        count: examples in the default profile.
        options: further arguments of hypothesis's `settings`.
    """
    scaled = max(round(count * scale()), min(count, _FEWEST))
    return settings(max_examples=scaled, **{"deadline": None, **options})
