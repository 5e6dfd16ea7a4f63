"""AdamW in the coordinates of what copies have in common and of their differences.

Copies of a weight get nearly the same gradient. Adam divides each entry by its own size, so what copies have in common
fills the whole step, and the small rest, by which alone they could diverge, moves them by a fraction of it: the added
width comes into use slowly. Rotate the c copies of every unit by an orthogonal matrix whose first row is constant,

    u_0 = (w_0 + ... + w_{c-1}) / sqrt(c),      u_b = differences  (0 < b < c),

along rows and columns, keep Adam's moments in these coordinates, and rotate its step back. Each coordinate is then
divided by its own size: the common one steps as the source did, and the differences step as freely as weights that
have no copy. (So freely that rounding makes equal copies diverge, if their gradients are rounded differently. Where
these are computed alike, bit for bit, the copies of a clone without noise stay equal.)

*The scaling rule.* With k copies s w of a source weight w, u_0 = sqrt(k) s w, and dL/du_0 = sqrt(k) r g = g / (sqrt(k)
s). The source's AdamW on w is therefore AdamW on u_0 with lr s sqrt(k) and eps r sqrt(k): the multipliers of the
scaling rule (planning/scaling_rule.py), both times sqrt(k). Differences step by the same, times a ratio of their own.
Decoupled decay is the same in all coordinates. A clone without noise whose differences do not step (ratio 0) follows
its source exactly. A tensor without copies is trained by AdamW itself. Parameters are fp32 or bf16: eps vanishes in
fp16.

*Grown moments.* Copies of moments r m, r^2 v turn into sqrt(k) r m and k r^2 v of what is common, exactly. Differences
have no past: both moments begin at zero, and Adam's bias correction counts their steps from the growth (also of eps,
which is larger for them at first, by up to 1/sqrt(1 - beta2)).

Rotating to better coordinates for Adam is the idea of SOAP (arXiv 2409.11321). Here they are known from the growth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hyperclone.conversion.provenance import plan_of_model
from hyperclone.errors import GrowthError
from hyperclone.hf import parameter_names
from hyperclone.optim import one_pass, rotated_step
from hyperclone.optim.param_groups import param_groups
from hyperclone.optim.parameter_maps import parameter_maps
from hyperclone.optim.rotated_step import Coordinates, Update
from hyperclone.optim.rotation import Rotation
from hyperclone.optim.sharded_rotation import local, rotation_here, wrapped
from hyperclone.planning.plan import Plan
from hyperclone.planning.scaling_rule import LrRule


class RotatedAdamW(torch.optim.Optimizer):
    """AdamW in the coordinates of copies.

    State of a parameter with copies: `step`; `rotated_avg` and `rotated_avg_sq`, the moments in these coordinates,
    shaped like the parameter (named so that nobody takes them for AdamW's); and `before`, how many of the steps were
    taken by the source, and so not by the differences. Of others: AdamW's own.

    Attributes:
        grows_from: kinds of a source's optimizer whose grown state it can start from.
    """

    grows_from: ClassVar[tuple[str, ...]] = ("adamw",)

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
            params: param groups by the scaling rule, with param_names, lr, weight_decay and eps (`param_groups`).
            rotations: of the parameters that have copies, by name. (Sharding puts other objects into the groups.)
            betas: of the moments.
            differences: learning rate of the differences between copies, over that of what they have in common.
            compile: do the arithmetic of each parameter by torch.compile, in a pass or two over it instead of some
                twenty. Shards that need copies from others are not compiled, nor parameters in which a unit has more
                than two copies.

        Raises:
            GrowthError: a beta or a ratio that is out of range.
        """
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1) or not differences >= 0:
            raise GrowthError("out of range", field="betas, differences", found=f"{betas}, {differences}",
                              expected="0 <= beta < 1, differences >= 0")  # fmt: skip
        self._rotations = {name: rotation for name, rotation in rotations.items() if rotation.turns}
        self._placed: dict[nn.Parameter, tuple[torch.device, Coordinates]] = {}
        self._compile = compile
        defaults = {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8}
        super().__init__(params, {**defaults, "betas": betas, "differences": differences})

    @property
    def turns(self) -> bool:
        """Whether any parameter is trained in coordinates of copies."""
        return bool(self._rotations)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: torch's own keeps three fields only."""
        return {**super().__getstate__(), "_rotations": self._rotations, "_placed": {}, "_compile": self._compile}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round every number of a bf16 parameter's state except `step` to bf16."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, (parameter, name, _) in zip(saved, self._named(), strict=True):
            state = self.state.get(parameter, {})
            if name in self._rotations and "before" in state:
                state["before"] = state_dict["state"][number]["before"].clone()
            elif "rotated_avg" in state:  # as it was saved before parameters without copies had AdamW's names
                del state["before"]
                state["exp_avg"], state["exp_avg_sq"] = state.pop("rotated_avg"), state.pop("rotated_avg_sq")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. closure: as torch's.

        Raises:
            GrowthError: something else than the model's parameters is in the groups, as ZeRO's flat ones.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with rotated_step.many_shapes() if self._compile else nullcontext():
            self._update_all([one for one in self._named() if one[0].grad is not None])
        return loss

    def _named(self) -> Iterator[tuple[nn.Parameter, str, dict[str, Any]]]:
        """All parameters: (parameter, name, group) each.

        Raises:
            GrowthError: they are not those of the names any more.
        """
        for group in self.param_groups:
            parameters, names = group["params"], group["param_names"]
            if len(parameters) != len(names):
                raise _flattened("param_groups", f"{len(parameters)} parameters", f"{len(names)}, one for each name")
            for parameter, name in zip(parameters, names, strict=True):
                yield parameter, name, group

    def _update_all(self, chosen: list[tuple[nn.Parameter, str, dict[str, Any]]]) -> None:
        """One step of parameters with a gradient: (parameter, name, group) each."""
        updates = [self._update(parameter, name, group) for parameter, name, group in chosen]
        rotated_step.advance_unturned([update for update in updates if update.coordinates is None])
        in_one_pass: list[Update] = []
        others: list[Update] = []
        for update in updates:
            if update.coordinates is not None:
                (in_one_pass if one_pass.applies(update) else others).append(update)
        one_pass.advance(in_one_pass)
        for update in others:  # in the same order on all processes, which may have to send each other copies
            rotated_step.advance_turned(update, by_compiler=self._compile)

    def _update(self, parameter: nn.Parameter, name: str, group: dict[str, Any]) -> Update:
        """What one step of one parameter needs; its state says that it was taken."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if isinstance(gradient, DTensor) and isinstance(data := parameter.data, DTensor):
            gradient = gradient.redistribute(placements=data.placements)  # as it is, usually
        coordinates = self._coordinates(parameter, name)
        first, second = _moment_names(coordinates)
        if not state:
            state["step"] = torch.tensor(0.0)
            state[first], state[second] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            if coordinates is not None:
                state["before"] = torch.tensor(0.0)
        state["step"] += 1
        return Update(
            parameter=local(parameter.data),
            gradient=local(gradient),
            first=local(state[first]),
            second=local(state[second]),
            coordinates=coordinates,
            group=group,
            step=state["step"].item(),
            before=0.0 if coordinates is None else state["before"].item(),
        )

    def takes(self, name: str, moments: Set[str]) -> bool:
        """Whether a parameter can start from these kinds of moments of a grown state."""
        return moments >= {"exp_avg", "exp_avg_sq"}

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
        first, second = local(moments["exp_avg"]), local(moments["exp_avg_sq"])
        state = {"step": torch.tensor(float(step))}
        coordinates = self._coordinates(parameter, name)
        if coordinates is not None:
            first, second = coordinates.rotation.forward(first), second.clone()
            for roots in coordinates.copy_roots:
                second.mul_(roots).mul_(roots)
            for difference in coordinates.differences:  # none in a shard whose units have one copy each
                first.mul_(1 - difference)  # of equal moments, only rounding is left there
                second.mul_(1 - difference)
            state["before"] = torch.tensor(float(step))
        rotated = (wrapped(moment, parameter.data) for moment in (first, second))
        return {**state, **dict(zip(_moment_names(coordinates), rotated, strict=True))}

    def _coordinates(self, parameter: nn.Parameter, name: str) -> Coordinates | None:
        """A parameter's coordinates, kept for the next step; None if it has no copies."""
        if name not in self._rotations:
            return None
        device, placed = parameter.device, self._placed.get(parameter)
        if placed is None or placed[0] != device:
            shape = tuple(axis.new for axis in self._rotations[name].maps)
            if tuple(parameter.shape) != shape:
                raise _flattened(name, f"shape {tuple(parameter.shape)}", f"shape {shape}")
            exact = torch.promote_types(parameter.dtype, torch.float32)
            rotation = rotation_here(self._rotations[name].to(device), parameter.data)
            if isinstance(rotation, Rotation):
                _ = rotation.turns, rotation.scales  # computed now: torch.compile would break the graph there
            placed = (
                device,
                Coordinates(
                    rotation=rotation,
                    copy_roots=tuple(roots.to(device, exact) for roots, _ in rotation.factors),
                    differences=tuple(difference.to(device, exact) for _, difference in rotation.factors),
                ),
            )
            self._placed[parameter] = placed
        return placed[1]


def _flattened(name: str, found: str, expected: str) -> GrowthError:
    return GrowthError(
        "these are not the model's own parameters, so where copies lie in them is not known",
        tensor=name, found=found, expected=expected,
        cure="DeepSpeed's ZeRO, FSDP1 and others flatten parameters: shard the model by FSDP2 "
        "(torch.distributed.fsdp.fully_shard, or hyperclone train --sharding full), or train it by torch.optim.AdamW "
        "with the groups of hyperclone.param_groups",
    )  # fmt: skip


def _moment_names(coordinates: Coordinates | None) -> tuple[str, str]:
    return ("exp_avg", "exp_avg_sq") if coordinates is None else ("rotated_avg", "rotated_avg_sq")


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
    """An optimizer for a grown model, with the multipliers of the scaling rule (`param_groups`).

    Args:
        model: a grown transformers model, also inside DistributedDataParallel, FSDP2 or torch.compile.
        lr, weight_decay, eps, betas: with which you would continue to train the source.
        difference_lr: of the differences between copies: about the rate with which you would train a model of the
            grown size from random weights; by default lr. Schedulers multiply both.
        lr_rule: as in `param_groups`.
        receipt: the grown directory, or a plan; by default the directory that the model was loaded from.
        compile: as of `RotatedAdamW`.

    Raises:
        GrowthError: no receipt, or one of another model.
    """
    ratio = difference_ratio(lr, difference_lr)
    groups = param_groups(model, lr=lr, weight_decay=weight_decay, eps=eps, lr_rule=lr_rule, receipt=receipt)
    return RotatedAdamW(groups, rotations(model, receipt=receipt), betas=betas, differences=ratio, compile=compile)


def difference_ratio(lr: float, difference_lr: float | None) -> float:
    """The rate of the differences between copies over that of what they have in common.

    Raises:
        GrowthError: nothing can be learned with this lr.
    """
    if not lr > 0:
        raise GrowthError("nothing can be learned with this", field="lr", found=lr, expected="more than 0")
    return 1.0 if difference_lr is None else difference_lr / lr


def rotations(model: nn.Module, *, receipt: str | os.PathLike[str] | Plan | None = None) -> dict[str, Rotation]:
    """The change of coordinates of every parameter, by its name.

    Parameters that are put together of stored tensors in an unknown way are left out, and so trained by AdamW itself.

    Args:
        model, receipt: as in `rotated_adamw`.

    Raises:
        GrowthError: no receipt.
    """
    inner = parameter_names.unwrap(model)
    plan = plan_of_model(inner, receipt)
    planned = {tensor.name: tensor for tensor in plan.tensors}
    turned = {}
    for name, parameter in parameter_names.named_parameters(model):
        if (maps := parameter_maps(inner, name, parameter.shape, planned, plan)) is not None:
            turned[name] = Rotation(maps)
    return turned
