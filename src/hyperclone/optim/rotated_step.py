"""The arithmetic of one step of rotated AdamW, of one parameter; one_pass.py does the same in less time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hyperclone.optim.sharded_rotation import Turn

_SHAPES = 64  # that one function is compiled for, at least

Number = float | Tensor


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The rotated coordinates of what this process holds of a parameter, on its device.

    Attributes:
        rotation: to them.
        copy_roots: for each dimension of size D with copies, square roots of their numbers: (D, 1) or (1, D).
        differences: for each of them, 1 where a coordinate is a difference between copies along it, else 0; shaped
            likewise.
    """

    rotation: Turn
    copy_roots: tuple[Tensor, ...]
    differences: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Update:
    """One step of what this process holds of one parameter.

    Attributes:
        parameter: changed in place.
        gradient: shaped like the parameter.
        first, second: moments, in the coordinates of copies, shaped like the parameter; changed in place.
        coordinates: None if the parameter has no copies.
        group: its param group.
        step: the number of this step, the source's included.
        before: how many of the steps were the source's.
    """

    parameter: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    coordinates: Coordinates | None
    group: Mapping[str, Any]
    step: float
    before: float


class Scalars(NamedTuple):
    """The numbers of one step of one parameter.

    They are floats, or (for compiled code, which is then not compiled again when they change) fp64 tensors of shape ().

    Attributes:
        eps: added to the root of the second moment.
        step_size: of what copies have in common: learning rate and bias correction.
        difference_ratio: step size of the differences over that.
        kept: share of the weight that decay leaves.
    """

    eps: Number
    step_size: Number
    difference_ratio: Number
    kept: Number

    @classmethod
    def of(cls, update: Update) -> Scalars:
        """The numbers of a step m^ / (sqrt(v^) + eps), with bias-corrected moments m^ and v^."""
        group, (beta1, beta2), step = update.group, update.group["betas"], update.step
        correction, ratio = math.sqrt(1 - beta2**step), group["differences"]
        if update.before:
            # Moments of differences have seen fewer steps, so they need another bias correction.
            since = step - update.before
            ratio *= (1 - beta1**step) / (1 - beta1**since) * math.sqrt((1 - beta2**since) / (1 - beta2**step))
        return cls(
            eps=group["eps"] * correction,
            step_size=group["lr"] * correction / (1 - beta1**step),
            difference_ratio=ratio,
            kept=1 - group["lr"] * group["weight_decay"],
        )

    def times(self, root: float, scale: float) -> Scalars:
        """With the numbers that the whole tensor has in common, which would otherwise cost passes over it.

        The step is m^ / (sqrt(v^) / root + eps) times the scale.
        """
        return self._replace(eps=self.eps * root, step_size=self.step_size * root * scale)


def advance_unturned(updates: list[Update]) -> None:
    """AdamW's step of parameters without copies, by torch's fused one: all that share a param group at once."""
    together: dict[tuple[int, torch.device, torch.dtype], list[Update]] = {}
    for update in updates:
        if update.parameter.numel():
            key = id(update.group), update.parameter.device, update.parameter.dtype
            together.setdefault(key, []).append(update)
    for (_, device, _), same in together.items():
        fused, group = device.type in ("cpu", "cuda"), same[0].group
        before = torch.tensor([update.step - 1 for update in same]).to(device if fused else "cpu")  # it counts itself
        adamw(
            [update.parameter for update in same],
            [update.gradient for update in same],
            [update.first for update in same],
            [update.second for update in same],
            [],
            list(before.unbind()),
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def advance_turned(update: Update, *, by_compiler: bool) -> None:
    """The step of a parameter with copies.

    Args:
        update: the step.
        by_compiler: let torch.compile make fewer passes of it, where it can.
    """
    coordinates, scalars = update.coordinates, Scalars.of(update)
    assert coordinates is not None
    rotation, root = coordinates.rotation, coordinates.rotation.root
    ratio = scalars.difference_ratio
    scalars = scalars.times(root or 1.0, rotation.scale)
    take = advance
    if by_compiler and rotation.paired:
        take, scalars = compiled(), Scalars(*(torch.tensor(number, dtype=torch.float64) for number in scalars))
    take(
        update.parameter,
        update.gradient,
        update.first,
        update.second,
        rotation=rotation,
        copy_roots=() if root else coordinates.copy_roots,
        differences=() if ratio == 1 else coordinates.differences,
        differences_faster=bool(ratio > 1),
        scalars=scalars,
        betas=update.group["betas"],
    )


def advance(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    rotation: Turn,
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
        rotation: to the coordinates of copies.
        copy_roots: as of `Coordinates`; empty where the scalars have them.
        differences: as of `Coordinates`; empty if all coordinates step alike.
        differences_faster: whether differences step faster than the rest.
        scalars: of this step.
        betas: of the moments.
    """
    beta1, beta2 = betas
    turned = rotation.forward(gradient)
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
    parameter.mul_(scalars.kept).sub_(rotation.inverse_unscaled(step))


def many_shapes() -> AbstractContextManager[None]:
    """Lets torch.compile compile one function for all shapes of a model; beyond its own limit it would not compile."""
    limits: Any = torch._dynamo.config
    patch: AbstractContextManager[None] = limits.patch(recompile_limit=max(_SHAPES, limits.recompile_limit))
    return patch


@cache
def compiled() -> Callable[..., None]:
    """`advance`, compiled for each shape and rotation at their first step."""
    return torch.compile(advance, dynamic=False)
