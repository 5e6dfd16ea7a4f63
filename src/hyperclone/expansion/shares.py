"""The shares of a unit's copies: what they are without noise, and how loud their noise is (expand.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperclone.planning.recipe import Expansion, Noise, Recipe

_UNIFORM = math.sqrt(12) / 65536  # scales a 16-bit draw to unit variance


@dataclass(frozen=True)
class Shares:
    """Shares of the weights that read a unit with several copies.

    Attributes:
        copies: c.
        first, other: the share of the row's own copy, and of each other one, without noise.
        snr_db: power of the noise-free row over power of its noise.
    """

    copies: int
    first: float
    other: float
    snr_db: float

    @classmethod
    def of(cls, copies: int, recipe: Recipe) -> Shares:
        """Those of a recipe, for c > 1 copies."""
        symmetric = recipe.expansion is Expansion.SYMMETRIC
        return cls(copies, 1 / copies if symmetric else 1.0, 1 / copies if symmetric else 0.0, recipe.snr_db)

    @property
    def without_noise(self) -> list[float]:
        """The shares of all copies, the row's own first."""
        return [self.first] + [self.other] * (self.copies - 1)

    @property
    def level(self) -> float:
        """Deviation of each copy's noise relative to W: the noise-free row has sum_b C^2, spread over c copies."""
        return math.sqrt(sum(b * b for b in self.without_noise) / self.copies * 10 ** (-self.snr_db / 10))

    def scale(self, noise: Noise, power: float | None) -> float:
        """What c times a draw less the sum of all c draws is multiplied by.

        Removing the mean over c copies leaves 1 - 1/c of the variance; sqrt(c / (c - 1)) puts it back.

        Args:
            noise: uniform draws are scaled to unit variance; normal ones have it, and are additive.
            power: mean square of the whole tensor, for normal draws.
        """
        c = self.copies
        if noise is Noise.GAUSSIAN:
            assert power is not None
            return self.level * math.sqrt(power) * (math.sqrt(c / (c - 1)) / c)
        return self.level * (math.sqrt(c / (c - 1)) / c) * _UNIFORM

    @property
    def within(self) -> bool:
        """Whether all shares with uniform noise lie in 0 .. 1, so that no part has to be clipped.

        Noise is loudest where one draw is at one end of its range and all others are at the other: 65535 apart.
        """
        loudest = self.level * _UNIFORM * 65536 * math.sqrt((self.copies - 1) / self.copies)
        return min(self.without_noise) >= loudest
