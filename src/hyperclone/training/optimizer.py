"""The optimizer of a run: its class, its groups and their rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperclone.optim.param_groups import param_groups
from hyperclone.optim.plain_groups import plain_groups
from hyperclone.optim.rotated_adamw import rotated_adamw
from hyperclone.optim.rotated_muon import rotated_muon
from hyperclone.training.config import Training


def make_optimizer(
    training: Training,
    model: nn.Module,
    *,
    directory: Path,
    receipt: Path | None,
    fused: bool = False,
    compiled: bool = False,
    replicated: bool = False,
) -> torch.optim.Optimizer:
    """The run's optimizer, with groups by the scaling rule or with one learning rate everywhere.

    Args:
        training: the request, with the optimizer that was chosen.
        model: as it is trained; on device meta for its groups alone.
        directory: the model's.
        receipt: directory whose receipt gives the groups; None for a model that was not grown, or has random weights.
        fused: AdamW is one kernel.
        compiled: so is as much as possible of the others.
        replicated: all processes have all weights and the same gradients.
    """
    grown = receipt is not None
    betas = (training.beta1, training.beta2)
    plain: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    by_rule = {**plain, "lr_rule": training.lr_rule or "scaled", "receipt": receipt}
    in_copies: dict[str, Any] = {"betas": betas, "difference_lr": training.difference_lr, "compile": compiled}
    whole_matrices = training.optimizer == "plain-muon"
    if training.optimizer == "rotated":
        assert grown
        return rotated_adamw(model, **by_rule, **in_copies)
    if training.optimizer == "muon" or whole_matrices:
        processes = torch.distributed.group.WORLD if replicated else None
        by_rule["receipt"] = receipt or directory  # random weights: for its family file
        return rotated_muon(
            model, **by_rule, **in_copies, momentum=training.momentum, whole_matrices=whole_matrices, grown=grown,
            process_group=processes,
        )  # fmt: skip
    groups = param_groups(model, **by_rule) if grown else plain_groups(model, **plain)
    return torch.optim.AdamW(groups, betas=betas, fused=fused or None, **plain)
