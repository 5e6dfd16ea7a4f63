"""Param groups for any optimizer and training loop: the law (law.py) applied to a model's parameters.

Few groups come out, one for each set of equal settings. Schedulers that multiply (LambdaLR, and everything built on it
in transformers) work as they are, since each group keeps its own base learning rate; code that sets `group["lr"]`
itself multiplies by `group["lr_scale"]`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from hyperclone.architectures import registry
from hyperclone.architectures.family import Family
from hyperclone.conversion import receipt as receipts
from hyperclone.errors import GrowthError
from hyperclone.hf import parameter_names
from hyperclone.hf.trainer import decayed_names
from hyperclone.planning.plan import Plan
from hyperclone.planning.scaling_rule import ADJUSTMENTS, LrRule

TORCH_OPTIMIZERS = ("adamw", "sgd", "muon")  # of torch.optim
PARTS = ("all", "hidden", "rest")
_EPS = {"adamw": 1e-8, "muon": 1e-7}  # torch's defaults


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    optimizer: str = "adamw",
    lr_rule: LrRule = "scaled",
    part: str | None = None,
    adjust_lr_fn: str = "original",
    decay_norms_and_biases: bool = False,
    receipt: str | os.PathLike[str] | Plan | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch, such that a clone without noise has its source's loss after every step.

    Args:
        model: a grown transformers model, also inside DistributedDataParallel, FSDP2 or torch.compile.
            Parameters that need no gradient are left out.
        lr, weight_decay, eps: the source's. eps is 1e-8 (AdamW) or 1e-7 (Muon) by default.
        optimizer: "adamw" (torch.optim.AdamW), "sgd" (torch.optim.SGD) or "muon" (torch.optim.Muon).
        lr_rule: "scaled", or "uniform": its learning rate, decay and eps everywhere, as in the HyperCloning paper.
        part: "all", "hidden" (the matrices that Muon trains) or "rest"; by default what the optimizer can take.
        adjust_lr_fn: Muon's, "original" or "match_rms_adamw"; give the optimizer the same.
        decay_norms_and_biases: decay them as well; by default they are left alone, as transformers' Trainer does.
        receipt: the grown directory, or a plan; by default the directory that the model was loaded from.

    Returns:
        Groups with params, param_names, lr, weight_decay, eps (SGD has none), lr_scale and a readable name.

    Raises:
        GrowthError: an unknown option, no receipt, or one that speaks of another model.
    """
    for field, value, allowed in (
        ("optimizer", optimizer, TORCH_OPTIMIZERS),
        ("lr_rule", lr_rule, get_args(LrRule)),
        ("part", part, (None, *PARTS)),
        ("adjust_lr_fn", adjust_lr_fn, ADJUSTMENTS),
    ):
        if value not in allowed:
            raise GrowthError(f"unknown {field}", field=field, found=value, expected=", ".join(a for a in allowed if a))
    part = part or ("hidden" if optimizer == "muon" else "all")
    if optimizer == "muon" and part != "hidden":
        raise GrowthError("Muon trains hidden matrices only", field="part", found=part, expected="hidden",
                          cure='give an AdamW the groups of part="rest"')  # fmt: skip
    inner = parameter_names.unwrap(model)
    told = _settings(inner, receipt)
    decayed = decayed_names(inner)
    eps = _EPS.get(optimizer) if eps is None else eps
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for name, parameter in parameter_names.named_parameters(model):
        if not parameter.requires_grad:
            continue
        entry = _entry(inner, name, parameter, told)
        hidden = parameter.dim() == 2 and "muon" in entry
        if part != "all" and hidden != (part == "hidden"):
            continue
        settings = entry["muon"][adjust_lr_fn] if optimizer == "muon" else entry["sgd"] if optimizer == "sgd" else entry
        of_lr, of_decay, of_eps = (
            (1.0, 1.0, 1.0)
            if lr_rule == "uniform"
            else (settings["lr"], settings["weight_decay"], settings.get("eps", 1.0))
        )
        decays = weight_decay != 0 and (decay_norms_and_biases or name in decayed)
        key = (of_lr, of_decay if decays else 0.0, of_eps)
        if key not in groups:
            groups[key] = {
                "name": f"lr x {of_lr:g}, " + (f"decay x {of_decay:g}" if decays else "no decay")
                + (f", eps x {of_eps:g}" if optimizer != "sgd" else ""),
                "params": [], "param_names": [],
                "lr": lr * of_lr, "weight_decay": weight_decay * key[1], "lr_scale": of_lr,
            }  # fmt: skip
            if eps is not None and optimizer != "sgd":
                groups[key]["eps"] = eps * of_eps
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    return list(groups.values())


def _settings(model: Any, where: str | os.PathLike[str] | Plan | None) -> Mapping[str, dict[str, Any]]:
    """The settings of every tensor on disk, from a receipt or a plan that speaks of this model."""
    place: object = "the plan"
    own: Family | None
    if isinstance(where, Plan):
        found, own = receipts.parameter_settings(where), where.family
        sizes = {axis: new for axis, (_, new) in where.sizes.items()}
    else:
        place = Path(model.name_or_path if where is None else where) / receipts.FILE
        told = receipts.read(place.parent)
        if told is None:
            raise GrowthError(
                "no receipt says how this model was grown",
                file=place,
                cure="pass receipt= with the directory that `hyperclone grow` made",
            )
        found, sizes, own = told.training, told.sizes, told.family
    config = model.config.to_dict()
    actual = registry.of_config(config, own=own).sizes(config)
    if differs := next((axis for axis, size in sizes.items() if actual.get(axis) != size), None):
        raise GrowthError("the receipt speaks of another model", file=place, field=differs, found=actual.get(differs),
                          expected=sizes[differs], cure="pass receipt= with this model's own directory")  # fmt: skip
    return found


def _entry(model: Any, name: str, parameter: nn.Parameter, told: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings of a parameter; those of all tensors that it holds, which must agree."""
    stored = list(parameter_names.disk_shapes(model, name, parameter.shape))
    if unknown := next((key for key in stored if key not in told), None):
        raise GrowthError("the receipt does not know this parameter", tensor=name, found=unknown,
                          cure="train what was added to the model in param groups of its own")  # fmt: skip
    entry = told[stored[0]]
    if other := next((key for key in stored if not math.isclose(told[key]["s"], entry["s"], rel_tol=1e-12)
                      or not math.isclose(told[key]["r"], entry["r"], rel_tol=1e-12)), None):  # fmt: skip
        raise GrowthError("a fused parameter holds tensors that need different settings", tensor=name,
                          found=f"{stored[0]} and {other}")  # fmt: skip
    return entry
