"""Param groups of a model that was not grown: the scaling rule has nothing to say about it."""

from __future__ import annotations

from typing import Any

from torch import nn

from hyperclone.hf import parameter_names
from hyperclone.hf.trainer import decayed_names


def plain_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One learning rate everywhere; norms and biases do not decay, as in Trainer."""
    decayed = decayed_names(parameter_names.unwrap(model))
    named = [(name, p) for name, p in parameter_names.named_parameters(model) if p.requires_grad]
    return [
        {
            "name": label,
            "params": [p for _, p in part],
            "param_names": [n for n, _ in part],
            "lr": lr,
            "lr_scale": 1.0,
            "weight_decay": decay,
        }
        for label, decay, part in (
            ("decay", weight_decay, [(n, p) for n, p in named if n in decayed]),
            ("no decay", 0.0, [(n, p) for n, p in named if n not in decayed]),
        )
        if part
    ]
