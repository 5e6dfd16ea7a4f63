"""The arithmetic of one step of rotated AdamW, of one parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperclone.optim.sharded_rotation import Turn

_SHAPES = 64  # that one function is compiled for, at least

Number = float | Tensor


class Scalars(NamedTuple):
    """The numbers of one step of one parameter.

    They are floats, or (for compiled code, which is then not compiled again when they change) fp64 tensors of shape ().

    Attributes:
        eps: added to the root of the second moment.
        step_size: of what copies have in common: learning rate, bias correction, and the rotation's `scale`.
        difference_ratio: step size of the differences over that.
        kept: share of the weight that decay leaves.
    """

    eps: Number
    step_size: Number
    difference_ratio: Number
    kept: Number


def scalars_of(group: Mapping[str, Any], rotation: Turn | None, *, step: float, before: float) -> Scalars:
    """The numbers of a step, in which everything is gathered that would cost passes over a tensor.

    The step is m^ / (sqrt(v^) / root + eps), with bias-corrected moments m^ and v^; root is sqrt(k), if all
    coordinates have the same, else 1 (`advance` then divides by the roots).

    Args:
        group: the param group.
        rotation: None if the parameter has no copies.
        step: the number of this step, the source's included.
        before: how many of the steps were the source's.
    """
    beta1, beta2 = group["betas"]
    root, correction = common_root(rotation) or 1.0, math.sqrt(1 - beta2**step)
    ratio = group["differences"]
    if before:
        # Moments of differences have seen fewer steps, so they need another bias correction.
        since = step - before
        ratio *= (1 - beta1**step) / (1 - beta1**since) * math.sqrt((1 - beta2**since) / (1 - beta2**step))
    return Scalars(
        eps=group["eps"] * root * correction,
        step_size=group["lr"] * root * correction / (1 - beta1**step) * (1.0 if rotation is None else rotation.scale),
        difference_ratio=ratio,
        kept=1 - group["lr"] * group["weight_decay"],
    )


def common_root(rotation: Turn | None) -> float | None:
    """sqrt(k), if it is the same for the whole tensor; None if it is not, or there are no copies."""
    return None if rotation is None else rotation.root


def advance(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    rotation: Turn | None,
    copy_roots: tuple[Tensor, ...],
    differences: tuple[Tensor, ...],
    differences_faster: bool,
    scalars: Scalars,
    betas: tuple[float, float],
) -> None:
    """One step of one parameter: everything that costs a pass over it.

    Args:
        parameter: (rows, columns) or (size,), changed in place.
        gradient: shaped like the parameter.
        first, second: moments, shaped like the parameter, changed in place.
        rotation: None if it has no copies.
        copy_roots: as of `Coordinates`; empty where the scalars have them.
        differences: as of `Coordinates`; empty if all coordinates step alike.
        differences_faster: whether differences step faster than the rest.
        scalars: of this step.
        betas: of the moments.
    """
    beta1, beta2 = betas
    turned = gradient if rotation is None else rotation.forward(gradient)
    first.lerp_(turned, 1 - beta1)
    second.mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    del turned  # of a large tensor, few temporary ones should exist at a time
    size = second.sqrt()
    for roots in copy_roots:
        size.div_(roots)
    step = first / size.add_(scalars.eps)
    del size
    # A coordinate that is a difference along any dimension steps by the differences' size: of the factors along the
    # dimensions, that is the larger one if differences are faster, else the smaller one.
    factors = [(mask * (scalars.difference_ratio - 1) + 1) * scalars.step_size for mask in differences]
    step.mul_(reduce(torch.maximum if differences_faster else torch.minimum, factors) if factors else scalars.step_size)
    if rotation is not None:
        step = rotation.inverse_unscaled(step)
    parameter.mul_(scalars.kept).sub_(step)


def many_shapes() -> AbstractContextManager[None]:
    """Lets torch.compile compile one function for all shapes of a model; beyond its own limit it would not compile."""
    limits: Any = torch._dynamo.config
    patch: AbstractContextManager[None] = limits.patch(recompile_limit=max(_SHAPES, limits.recompile_limit))
    return patch


@cache
def compiled() -> Callable[..., None]:
    """`advance`, compiled for each shape and rotation at their first step."""
    return torch.compile(advance, dynamic=False)
