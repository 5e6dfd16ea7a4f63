"""AdamW in the coordinates of what copies have in common and of what tells them apart.

Copies of a weight get nearly the same gradient. Adam divides each entry by its own size, so what is common to copies
fills the whole step, and the small rest, by which alone they could part, moves them a fraction of it: the added width
comes into use slowly. Rotate the c copies of every unit by an orthogonal matrix whose first row is constant,

    u_0 = (w_0 + ... + w_{c-1}) / sqrt(c),      u_b = differences,

along rows and columns, keep Adam's moments there, and rotate its step back. Each coordinate is then divided by its own
size: the common one steps as the source did, and the differences step as freely as weights that have no copy. (So
freely that rounding parts copies that are equal, if their gradients are rounded differently. Where they are computed
alike, bit for bit, a clone without noise stays locked.)

*The law.* With k copies s w of a source weight w, u_0 = sqrt(k) s w, and dL/du_0 = sqrt(k) r g = g / (sqrt(k) s). The
source's AdamW on w is therefore AdamW on u_0 with lr s sqrt(k) and eps r sqrt(k): the law's settings (law.py), both
times sqrt(k). Differences step by the same, times a ratio of their own. Decoupled decay is the same in all coordinates.
A clone without noise whose differences do not step (ratio 0) follows its source exactly. A tensor without copies is
trained by AdamW itself. Parameters are fp32 or bf16: eps vanishes in fp16.

*Grown moments.* Copies of moments r m, r^2 v turn into sqrt(k) r m and k r^2 v of what is common, exactly. Differences
have no past: both moments begin at zero, and Adam's bias correction counts their steps from the growth (also of eps,
which is larger for them at first, by up to 1/sqrt(1 - beta2)).

Rotating to find better coordinates for Adam is SOAP's idea (arXiv 2409.11321); here growth tells them beforehand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hyperclone.conversion.provenance import plan_behind
from hyperclone.errors import GrowthError
from hyperclone.expansion import grown_tensors
from hyperclone.hf import parameter_names
from hyperclone.optim.param_groups import param_groups
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.plan import Plan
from hyperclone.planning.scaling_rule import LrRule

_SHAPES = 64  # that one function is compiled for, at least


class RotatedAdamW(torch.optim.Optimizer):
    """AdamW in the coordinates of copies.

    State: step, rotated_avg and rotated_avg_sq, in these coordinates (named so that nobody takes them for AdamW's), and
    before: how many of the steps differences have not taken, since they were the source's.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        rotations: Mapping[str, Rotation],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        differences: float = 1.0,
        compile: bool = False,
    ) -> None:
        """As torch.optim.AdamW.

        Args:
            params: groups of the law, with param_names, lr, weight_decay and eps (`param_groups`).
            rotations: of the parameters that have copies, by name. (Sharding puts other objects into the groups.)
            betas: of the moments.
            differences: learning rate of the differences between copies, relative to what they have in common.
            compile: do the arithmetic of each parameter by torch.compile, in a pass or two over it instead of some
                twenty. Not of sharded ones, nor where a unit has more than two copies.
        """
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1) or not differences >= 0:
            raise GrowthError("no moments or no steps come of this", field="betas, differences",
                              found=f"{betas}, {differences}", expected="0 <= beta < 1, differences >= 0")  # fmt: skip
        self._rotations = {name: rotation for name, rotation in rotations.items() if rotation.turns}
        self._placed: dict[nn.Parameter, tuple[Rotation, list[tuple[Tensor, Tensor]]]] = {}
        self._compile = compile
        usual = {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8}
        super().__init__(params, {**usual, "betas": betas, "differences": differences})

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: torch keeps three fields of its own."""
        return {**super().__getstate__(), "_rotations": self._rotations, "_placed": {}, "_compile": self._compile}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round all of a bf16 parameter's numbers to bf16 but for the step."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(saved, (p for group in self.param_groups for p in group["params"]), strict=True):
            if number in state_dict["state"]:
                self.state[parameter]["before"] = state_dict["state"][number]["before"].clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. closure: as torch's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # A model has more shapes than torch.compile takes of one function by itself: beyond, it would not compile.
        with _more_shapes() if self._compile else nullcontext():
            for group in self.param_groups:
                for parameter, name in zip(group["params"], group["param_names"], strict=True):
                    if parameter.grad is not None:
                        self._update(parameter, name, group)
        return loss

    def _update(self, parameter: nn.Parameter, name: str, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        assert gradient is not None
        rotation, factors = self._turning(parameter, name)
        state = self.state[parameter]
        if not state:
            state["step"], state["before"] = torch.tensor(0.0), torch.tensor(0.0)
            state["rotated_avg"], state["rotated_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        taken = state["step"].item()
        # m^ / (sqrt(v^) / root + eps), with all numbers in one factor: each pass over a tensor costs time
        root, correction = None if rotation is None else rotation.root, math.sqrt(1 - beta2**taken)
        roots = [] if root else [roots for roots, _ in factors]
        root = root or 1.0
        ratio = group["differences"]
        if before := state["before"].item():
            own = taken - before
            ratio *= (1 - beta1**taken) / (1 - beta1**own) * math.sqrt((1 - beta2**own) / (1 - beta2**taken))
        numbers: tuple[Any, ...] = (
            group["eps"] * root * correction,
            group["lr"] * root * correction / (1 - beta1**taken) * (1.0 if rotation is None else rotation.scale),
            ratio,
            1 - group["lr"] * group["weight_decay"],
        )
        advance = _advance
        if self._compile and not isinstance(gradient, DTensor) and (rotation is None or rotation.paired):
            advance, numbers = _compiled(), tuple(torch.tensor(one, dtype=torch.float64) for one in numbers)
        moments = state["rotated_avg"], state["rotated_avg_sq"]
        apart = [] if ratio == 1 else [apart for _, apart in factors]
        advance(parameter, gradient, *moments, rotation, roots, apart, ratio > 1, numbers, beta1, beta2)

    @torch.no_grad()
    def grown_moments(
        self, parameter: nn.Parameter, name: str, moments: Mapping[str, Tensor], step: float
    ) -> dict[str, Tensor]:
        """State of a parameter from AdamW's moments of a grown one (`load_state`).

        Args:
            parameter, name: as in the groups.
            moments: exp_avg and exp_avg_sq, shaped and sharded like the parameter.
            step: that the source had taken.
        """
        first, second = moments["exp_avg"], moments["exp_avg_sq"]
        state = {"step": torch.tensor(float(step)), "before": torch.tensor(0.0)}
        rotation, factors = self._turning(parameter, name)
        if rotation is not None:
            first, second = _turned(rotation.forward, first), second.clone()
            for roots, _ in factors:
                second.mul_(roots).mul_(roots)
            apart = _apart(factors)
            first.mul_(1 - apart)  # what rounding left
            second.mul_(1 - apart)
            state["before"] = torch.tensor(float(step))
        return {**state, "rotated_avg": first, "rotated_avg_sq": second}

    def _turning(self, parameter: nn.Parameter, name: str) -> tuple[Rotation | None, list[tuple[Tensor, Tensor]]]:
        """A parameter's rotation and its factors, where it is and sharded like it; (None, []) if it has no copies."""
        if name not in self._rotations:
            return None, []
        if parameter not in self._placed or self._placed[parameter][0].device != parameter.device:
            exact = torch.promote_types(parameter.dtype, torch.float32)
            rotation = self._rotations[name].to(parameter.device)
            _ = rotation.turns, rotation.scales  # torch.compile would break off where they are made
            self._placed[parameter] = (
                rotation,
                [(_placed(roots.to(exact), parameter), _placed(apart.to(exact), parameter))
                 for roots, apart in rotation.factors],
            )  # fmt: skip
        return self._placed[parameter]


def _advance(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rotation: Rotation | None,
    roots: list[Tensor], apart: list[Tensor], faster: bool, numbers: tuple[Any, ...], beta1: float, beta2: float,
) -> None:  # fmt: skip
    """One step of one parameter: everything that costs a pass over it.

    Args:
        parameter: changed.
        gradient: read only.
        first, second: moments; changed.
        rotation: None if it has no copies.
        roots: square roots of the numbers of copies, where they are not in the numbers.
        apart: 1 where a coordinate is a difference along a dimension, for each that has some; empty if all step alike.
        faster: whether differences step faster than the rest.
        numbers: eps, the factor of the step, that of differences beside it, and the factor of decay. Floats, or
            tensors: for these nothing is compiled anew when they change.
        beta1, beta2: of the moments.
    """
    eps, scale, ratio, keep = numbers
    turned = gradient if rotation is None else _turned(rotation.forward, gradient)
    first.lerp_(turned, 1 - beta1)
    second.mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    del turned  # a large tensor has few temporary ones of its size at a time
    size = second.sqrt()
    for one in roots:
        size.div_(one)
    step = first / size.add_(eps)
    del size
    # One that is a difference along any dimension steps by its factor: of the two, the larger one, or the smaller.
    factors = [(one * (ratio - 1) + 1) * scale for one in apart]
    step.mul_(reduce(torch.maximum if faster else torch.minimum, factors) if factors else scale)
    if rotation is not None:
        step = _turned(rotation.inverse_unscaled, step)
    parameter.mul_(keep).sub_(step)


def _more_shapes() -> AbstractContextManager[None]:
    limits: Any = torch._dynamo.config
    patch: AbstractContextManager[None] = limits.patch(recompile_limit=max(_SHAPES, limits.recompile_limit))
    return patch


@cache
def _compiled() -> Callable[..., None]:
    """`_advance`, compiled for each shape and rotation when it first meets them."""
    return torch.compile(_advance, dynamic=False)


def _apart(factors: list[tuple[Tensor, Tensor]]) -> Tensor:
    """1 where a coordinate is a difference along any dimension, else 0."""
    return reduce(torch.maximum, [apart for _, apart in factors])


def _turned(turn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """A tensor in other coordinates. Copies of a sharded one lie on several machines: it is gathered, and cut again."""
    if not isinstance(value, DTensor):
        return turn(value)
    whole = turn(value.full_tensor())
    return distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None)


def _placed(vector: Tensor, parameter: nn.Parameter) -> Tensor:
    """Numbers that broadcast over a parameter, on its device; of a sharded one, cut where it is cut."""
    vector, data = vector.to(parameter.device), parameter.data
    if not isinstance(data, DTensor):
        return vector
    cut = [
        Replicate() if isinstance(placement, Shard) and vector.shape[placement.dim] == 1 else placement
        for placement in data.placements
    ]
    return distribute_tensor(vector, data.device_mesh, cut, src_data_rank=None)


def rotated_adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    difference_lr: float | None = None,
    lr_rule: LrRule = "scaled",
    receipt: str | os.PathLike[str] | Plan | None = None,
    compile: bool = False,
) -> RotatedAdamW:
    """An optimizer for a grown model, with the law's settings (`param_groups`).

    Args:
        model: a grown transformers model, also inside DistributedDataParallel, FSDP2 or torch.compile.
        lr, weight_decay, eps, betas: as the source was trained.
        difference_lr: of the differences between copies, such as one would train a model of this size with from random
            weights; by default lr. Schedulers multiply both.
        lr_rule: as in `param_groups`.
        receipt: the grown directory, or a plan; by default the directory that the model was loaded from.
        compile: as of `RotatedAdamW`.

    Raises:
        GrowthError: no receipt, or one that speaks of another model.
    """
    if not lr > 0:
        raise GrowthError("nothing can be learnt with this", field="lr", found=lr, expected="more than 0")
    ratio = 1.0 if difference_lr is None else difference_lr / lr
    groups = param_groups(model, lr=lr, weight_decay=weight_decay, eps=eps, lr_rule=lr_rule, receipt=receipt)
    turned = rotations(model, receipt=receipt)
    return RotatedAdamW(groups, turned, betas=betas, differences=ratio, compile=compile)


def rotations(model: nn.Module, *, receipt: str | os.PathLike[str] | Plan | None = None) -> dict[str, Rotation]:
    """The change of coordinates of every parameter that is stored as it is, by its name.

    Parameters that hold several stored tensors (fused experts) are left out, and so trained by AdamW.

    Args:
        model, receipt: as in `rotated_adamw`.

    Raises:
        GrowthError: no receipt.
    """
    inner = parameter_names.unwrap(model)
    made = plan_behind(inner, receipt)
    planned = {tensor.name: tensor for tensor in made.tensors}
    found = {}
    for name, parameter in parameter_names.named_parameters(model):
        stored = parameter_names.disk_shapes(inner, name, parameter.shape)
        if list(stored.values()) != [parameter.shape] or (tensor := planned.get(next(iter(stored)))) is None:
            continue
        grown = grown_tensors.map_of(tensor, made)
        maps = (grown.columns,) if parameter.dim() == 1 else (grown.rows, grown.columns)
        found[name] = Rotation(maps[::-1] if grown.transposed else maps)
    return found
