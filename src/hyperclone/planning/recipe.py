"""The choices of a growth that are not sizes: how copies share a weight, and what makes them differ.

Public signatures take the words (`ExpansionName`, `NoiseName`, ...); `Growth.recipe` turns them into these enums, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

ExpansionName = Literal["symmetric", "diagonal"]
NoiseName = Literal["split", "gaussian", "none"]
OrderName = Literal["tiled", "interleaved"]
DepthMode = Literal["identity", "stack"]
OutputDtype = Literal["bf16", "fp16", "fp32", "fp64"]


class Expansion(StrEnum):
    """How the copies of an input unit share its weight."""

    SYMMETRIC = "symmetric"
    DIAGONAL = "diagonal"


class Noise(StrEnum):
    """How symmetry between copies is broken."""

    SPLIT = "split"  # random shares of the integer mantissa: exact in the stored type
    GAUSSIAN = "gaussian"  # the paper's additive noise: exact up to rounding in the stored type
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Expansion and noise.

    Attributes:
        snr_db: power of a row's noise-free weights over the power of its noise, in dB.
        seed: of the noise.
    """

    expansion: Expansion = Expansion.SYMMETRIC
    noise: Noise = Noise.SPLIT
    snr_db: float = 10.0
    seed: int = 0
