"""Muon for matrices and for experts: torch.optim.Muon, which takes matrices only, on every expert's matrix as well.

A parameter of three dimensions (E, rows, columns) is E matrices. Each has its momentum orthogonalized on its own, all
of them in one batch, and the learning rate is adjusted to the shape of one. Everything else is as in torch.optim.Muon
(momentum averaged, Nesterov, decoupled weight decay; Jordan et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hyperclone.errors import OptionError
from hyperclone.planning.scaling_rule import ADJUSTMENTS, adjustment

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # torch's
_AS_TORCH = "original"  # what torch takes adjust_lr_fn=None for


class Muon(torch.optim.Optimizer):
    """An optimizer for the groups of `param_groups(model, optimizer="muon")`: `torch.optim.Muon`, and experts."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        """Options, defaults and state are those of torch.optim.Muon.

        Args:
            params: parameters of two dimensions (rows, columns) or three (experts, rows, columns), or groups of them.
            lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps: as in torch.
            adjust_lr_fn: "original" (default) or "match_rms_adamw"; give `param_groups` the same.

        Raises:
            OptionError: an unknown adjust_lr_fn, or a parameter of another number of dimensions.
        """
        if (adjust_lr_fn or _AS_TORCH) not in ADJUSTMENTS:
            raise OptionError("unknown adjust_lr_fn", field="adjust_lr_fn", found=adjust_lr_fn,
                              expected=", ".join(ADJUSTMENTS))  # fmt: skip
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
        }  # fmt: skip
        super().__init__(params, defaults)
        shapes = [tuple(parameter.shape) for group in self.param_groups for parameter in group["params"]]
        if other := [shape for shape in shapes if len(shape) not in (2, 3)]:
            raise OptionError("Muon trains matrices, and experts of several matrices", field="params", found=other[0],
                              expected="2 or 3 dimensions",
                              cure='take the groups of param_groups(model, optimizer="muon")')  # fmt: skip

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._advance(parameter, parameter.grad, group)
        return loss

    def _advance(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        update = orthogonalized(update, group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
        rate = group["lr"] * adjustment(parameter.shape[-2:], group["adjust_lr_fn"] or _AS_TORCH)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-rate)


def orthogonalized(
    matrices: Tensor,
    coefficients: tuple[float, float, float],
    *,
    steps: int,
    eps: float,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Matrices (..., rows, columns) with their singular values near 1, by Newton and Schulz's iteration.

    Args:
        matrices: each is divided by its own Frobenius norm first.
        coefficients: a, b and c of a X + (b A + c A A) X, where A = X X^T.
        steps: of the iteration.
        eps: the least norm to divide by.
        dtype: to compute in; bf16 as in torch.
    """
    a, b, c = coefficients
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)
