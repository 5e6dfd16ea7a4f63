"""Muon in the coordinates of what copies have in common and of their differences, and rotated AdamW for the rest.

Muon (Jordan et al. 2024) gives all directions of a matrix's momentum the same size. Of a grown matrix it takes those in
which copies differ for small ones next to what they have in common, as long as both are in one matrix. So the momentum
is rotated as in rotated_adamw.py, and each block of common parts and of differences (matrix_blocks.py) is
orthogonalized on its own. What is common steps as the source's matrix did, and differences have a rate of their own.

*The scaling rule.* The source's step of w is lr a(shape) O(m), where O does not see the size of m. With k copies s w of
each weight, u_0 = sqrt(k) s w is what they have in common, and its gradient is a multiple of the source's
(rotated_adamw.py). So the source's Muon on w is Muon on the common block with lr s sqrt(k) and the adjustment a of the
source's shape, which is the block's. Differences step by the same, times a ratio. Decay is decoupled.

Without copies, as for random weights, this is Muon for hidden matrices, each part of a fused one by itself (queries,
keys, values; gate, up; experts), and AdamW for embeddings, the head, norms, biases and all else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from hyperclone.conversion.provenance import plan_of_model, receipt_of_model
from hyperclone.errors import GrowthError, OptionError
from hyperclone.expansion import copy_map
from hyperclone.hf import parameter_names
from hyperclone.optim import matrix_sharing
from hyperclone.optim.matrix_blocks import MatrixBlocks, blocks_of
from hyperclone.optim.muon import COEFFICIENTS, orthogonalized
from hyperclone.optim.param_groups import param_groups
from hyperclone.optim.parameter_maps import parameter_maps, read_dimension
from hyperclone.optim.rotated_adamw import RotatedAdamW, difference_ratio
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.plan import Plan
from hyperclone.planning.scaling_rule import ADJUSTMENTS, LrRule
from hyperclone.planning.unchanged import unchanged_plan

_EPS = 1e-7  # torch.optim.Muon's


class RotatedMuon(RotatedAdamW):
    """Muon by blocks for the groups with `muon`, rotated AdamW for the others.

    State of a parameter that Muon trains: `momentum_buffer`, as torch.optim.Muon's, in the weights' own coordinates.
    """

    grows_from: ClassVar[tuple[str, ...]] = ("adamw", "muon")

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        rotations: Mapping[str, Rotation],
        blocks: Mapping[str, MatrixBlocks],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        differences: float = 1.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        compile: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """As RotatedAdamW.

        Args:
            params: param groups by the scaling rule; those with a true `muon` hold matrices.
            rotations: of the parameters that have copies, by name.
            blocks: of the parameters that Muon trains, by name.
            betas, differences, compile: as in RotatedAdamW.
            momentum, nesterov, ns_steps: as in torch.optim.Muon.
            adjust_lr_fn: torch.optim.Muon's, by the shape of a block. With "match_rms_adamw" a learning rate and a
                decay for AdamW can be taken as they are.
            process_group: whose processes all have the same gradients, so that each orthogonalizes its share of the
                matrices (DistributedDataParallel). Sharded parameters are shared out without it.

        Raises:
            GrowthError: a beta or a ratio that is out of range.
            OptionError: another option that is.
        """
        if adjust_lr_fn not in ADJUSTMENTS:
            raise OptionError("unknown adjust_lr_fn", field="adjust_lr_fn", found=adjust_lr_fn,
                              expected=", ".join(ADJUSTMENTS))  # fmt: skip
        if not 0 <= momentum < 1:
            raise OptionError("out of range", field="momentum", found=momentum, expected="0 <= momentum < 1")
        super().__init__(params, rotations, betas=betas, differences=differences, compile=compile)
        self.defaults |= {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        for group in self.param_groups:
            if group.get("muon"):
                group.update(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        self._blocks = dict(blocks)
        self._process_group = process_group

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; a process group stays with its processes."""
        return {**super().__getstate__(), "_blocks": self._blocks, "_process_group": None}

    def takes(self, name: str, moments: Set[str]) -> bool:
        """As RotatedAdamW's."""
        return bool(moments & {"momentum_buffer", "exp_avg"}) if name in self._blocks else super().takes(name, moments)

    @torch.no_grad()
    def grown_moments(
        self, parameter: nn.Parameter, name: str, moments: Mapping[str, Tensor], step: float
    ) -> dict[str, Tensor]:
        """As RotatedAdamW's. AdamW's first moment is an average of gradients as well, and so Muon's momentum."""
        if name not in self._blocks:
            return super().grown_moments(parameter, name, moments, step)
        average = moments.get("momentum_buffer", moments.get("exp_avg"))
        assert average is not None, name
        return {"momentum_buffer": average}

    def _update_all(self, chosen: list[tuple[nn.Parameter, str, dict[str, Any]]]) -> None:
        super()._update_all([one for one in chosen if not one[2].get("muon")])
        matrices = [one for one in chosen if one[2].get("muon")]
        momenta = (self._momentum(parameter, group) for parameter, _, group in matrices)
        transform = [partial(self._direction, name=name, group=group) for _, name, group in matrices]
        directions = matrix_sharing.transformed(momenta, transform, process_group=self._process_group)
        for (parameter, _, group), direction in zip(matrices, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.to(parameter.dtype))

    def _momentum(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """The average of the gradients with this step's in it; with Nesterov's look ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(average, group["momentum"]) if group["nesterov"] else average

    def _direction(self, momentum: Tensor, *, name: str, group: dict[str, Any]) -> Tensor:
        """What a parameter steps by, decay aside: from its whole momentum, shaped like it."""
        rotation = self._rotation(name, momentum.device)
        exact = momentum.to(torch.promote_types(momentum.dtype, torch.float32))
        turned = exact if rotation is None else rotation.forward(exact)
        root = 1.0 if rotation is None else rotation.root
        step = self._blocks_on(name, momentum.device).orthogonalized(
            turned,
            partial(
                orthogonalized,
                coefficients=COEFFICIENTS,
                steps=group["ns_steps"],
                eps=group["eps"] * (root or 1.0),
                dtype=_iteration_type(exact),
            ),
            adjust=group["adjust_lr_fn"],
            difference_ratio=group["differences"],
        )
        step.mul_(group["lr"] * (root or 1.0))
        if rotation is None:
            return step
        if root is None:
            for roots, _ in rotation.factors:
                step.mul_(roots.to(step))
        return rotation.inverse(step)

    def _rotation(self, name: str, device: torch.device) -> Rotation | None:
        if name in self._rotations:
            self._rotations[name] = self._rotations[name].to(device)
        return self._rotations.get(name)

    def _blocks_on(self, name: str, device: torch.device) -> MatrixBlocks:
        self._blocks[name] = self._blocks[name].to(device)
        return self._blocks[name]


def _iteration_type(value: Tensor) -> torch.dtype:
    """What Newton and Schulz's iteration computes in: bf16 on a GPU, as torch.optim.Muon; a processor has none."""
    return torch.bfloat16 if value.is_cuda else value.dtype


def rotated_muon(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.95,
    nesterov: bool = True,
    adjust_lr_fn: str = "match_rms_adamw",
    difference_lr: float | None = None,
    whole_matrices: bool = False,
    lr_rule: LrRule = "scaled",
    receipt: str | os.PathLike[str] | Plan | None = None,
    grown: bool = True,
    compile: bool = False,
    process_group: ProcessGroup | None = None,
) -> RotatedMuon:
    """Muon for a model's hidden matrices, AdamW for all else, both in the coordinates of copies.

    Args:
        model: a transformers model, also inside DistributedDataParallel, FSDP2 or torch.compile.
        lr, weight_decay: with which you would continue to train the source with Muon. With "match_rms_adamw" they are
            of the size of AdamW's, and AdamW has the same.
        betas: AdamW's.
        momentum, nesterov, adjust_lr_fn: as in torch.optim.Muon.
        difference_lr: of the differences between copies: about the rate with which you would train a model of the
            grown size from random weights; by default lr.
        whole_matrices: no coordinates of copies: Muon on whole matrices, as torch's, and AdamW, by the scaling rule.
        lr_rule: as in `param_groups`.
        receipt: the grown directory, or a plan; by default the directory that the model was loaded from.
        grown: False for a model that was not grown, or that has random weights: it has no copies. Of a receipt it takes
            the family file alone.
        compile: as of RotatedAdamW, for what it trains.
        process_group: as of RotatedMuon; of a DistributedDataParallel its own.

    Raises:
        GrowthError: no receipt, or one of another model; a learning rate of 0.
        FamilyError: which matrices are hidden is not known of this architecture.
    """
    ratio = difference_ratio(lr, difference_lr)
    inner = parameter_names.unwrap(model)
    if difference_lr is not None and (whole_matrices or not grown):
        raise GrowthError(
            "whole matrices have no differences between copies" if grown else
            "a model that was not grown has no copies that could differ",
            field="difference_lr", found=difference_lr, cure="leave difference_lr out",
        )  # fmt: skip
    if not grown:
        recorded = None if receipt is None or isinstance(receipt, Plan) else receipt_of_model(inner, receipt)[1]
        family = None if recorded is None else recorded.family
        receipt = unchanged_plan({**inner.config.to_dict(), "architectures": [type(inner).__name__]}, family=family)
    plan = plan_of_model(inner, receipt)
    planned = {tensor.name: tensor for tensor in plan.tensors}
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "lr_rule": lr_rule, "receipt": receipt}
    if whole_matrices:
        hidden = param_groups(model, optimizer="muon", adjust_lr_fn=adjust_lr_fn, **settings)
    else:
        hidden = param_groups(model, part="hidden", eps=_EPS, **settings)
    rest = param_groups(model, part="rest", **settings)
    groups = [*({**group, "muon": True} for group in hidden), *({**group, "muon": False} for group in rest)]
    of_muon = {name for group in hidden for name in group["param_names"]}
    rotations, blocks = {}, {}
    for name, parameter in parameter_names.named_parameters(model):
        maps = parameter_maps(inner, name, parameter.shape, planned, plan)
        if maps is None and name in of_muon:
            raise GrowthError("which matrices this parameter holds is not known", tensor=name,
                              cure="train the model by rotated_adamw")  # fmt: skip
        if maps is None:
            continue
        apart = tuple(copy_map.without_copies(axis) for axis in maps) if whole_matrices else maps
        rotations[name] = Rotation(apart)
        if name in of_muon:
            together = whole_matrices and lr_rule == "scaled"
            blocks[name] = blocks_of(
                maps if together else apart,
                reads=read_dimension(inner, name, parameter.shape, planned),
                together=together,
            )
    if process_group is None and isinstance(model, DistributedDataParallel):
        process_group = model.process_group
    return RotatedMuon(
        groups, rotations, blocks, betas=betas, differences=ratio, momentum=momentum, nesterov=nesterov,
        adjust_lr_fn=adjust_lr_fn, compile=compile, process_group=process_group,
    )  # fmt: skip
