"""Param groups for any optimizer and training loop: the scaling rule (scaling_rule.py) applied to a model's parameters.

There are few groups, one for each set of equal settings. Schedulers that multiply (LambdaLR, and everything built on it
in transformers) work as they are, since each group keeps its own base learning rate. Code that sets `group["lr"]`
itself multiplies by `group["lr_scale"]`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from hyperclone.architectures import registry
from hyperclone.architectures.family import Family
from hyperclone.conversion import provenance
from hyperclone.conversion import receipt as receipts
from hyperclone.errors import GrowthError
from hyperclone.hf import parameter_names
from hyperclone.hf.trainer import decayed_names
from hyperclone.optim import parameter_maps
from hyperclone.planning import scaling_rule
from hyperclone.planning.plan import Plan
from hyperclone.planning.scaling_rule import (
    ADJUSTMENTS,
    EPS,
    TORCH_OPTIMIZERS,
    LrRule,
    Scaling,
    group_name,
    scaling_of,
)

_ADAPTER = "adapter"
PARTS = ("all", "hidden", "rest")


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
    """Groups for an optimizer of torch, with which a clone without noise has its source's loss after every step.

    The multipliers are those of the receipt (`training.parameters`): of a norm or an embedding the learning rate is the
    source's, of a matrix that reads a grown axis, or a norm that carries a tied head's 1/n, it is 1/n of it.

    Args:
        model: a grown transformers model, also inside DistributedDataParallel, FSDP2 or torch.compile.
            Parameters that need no gradient are left out.
        lr, weight_decay, eps: with which you would continue to train the source; every group gets its multiple of
            them. eps is 1e-8 (AdamW) or 1e-7 (Muon) by default.
        optimizer: "adamw" (torch.optim.AdamW), "sgd" (torch.optim.SGD) or "muon" (hyperclone.Muon, and where
            no parameter holds several experts torch.optim.Muon).
        lr_rule: "scaled", or "uniform": these learning rate, decay and eps everywhere, as in the HyperCloning paper.
        part: "all", "hidden" (the matrices that Muon trains, each expert's among them) or "rest"; by default what the
            optimizer can train.
        adjust_lr_fn: Muon's, "original" or "match_rms_adamw"; give the optimizer the same.
        decay_norms_and_biases: decay them as well; by default they do not decay, as in transformers' Trainer.
        receipt: the grown directory, or a plan; by default the directory that the model was loaded from.

    What an adapter of PEFT adds is in a group of its own, "adapter", with these learning rate, decay and eps.

    Returns:
        Groups with params, param_names, lr, weight_decay, eps (SGD has none), lr_scale and a readable name.

    Raises:
        GrowthError: an unknown option, no receipt, or one of another model.
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
    multipliers = _multipliers(inner, receipt)
    decayed = decayed_names(inner)
    eps = EPS.get(optimizer) if eps is None else eps
    groups: dict[Scaling | str, dict[str, Any]] = {}
    adapted = parameter_names.has_adapters(model)
    for name, parameter in parameter_names.named_parameters(model):
        if not parameter.requires_grad:
            continue
        if adapted and not all(tensor in multipliers for tensor in _stored_names(inner, name, parameter)):
            if part != "hidden":
                given = Scaling(1.0, 1.0 if parameter.dim() > 1 else 0.0, 1.0)
                ours = groups.setdefault(_ADAPTER, {
                    **_group(given, lr=lr, weight_decay=weight_decay, eps=None if optimizer == "sgd" else eps),
                    "name": _ADAPTER,
                })  # fmt: skip
                _add(ours, name, parameter)
            continue
        entry = _entry(inner, name, parameter, multipliers)
        hidden = parameter.dim() in (2, 3) and "muon" in entry
        if part != "all" and hidden != (part == "hidden"):
            continue
        if optimizer == "muon" and parameter.dim() == 3 and len(names := _stored_names(inner, name, parameter)) > 1:
            entry = {**entry, "muon": _muon_of_fused(inner, name, parameter, entry, names, receipt)}
        scaling = Scaling(1.0, 1.0, 1.0) if lr_rule == "uniform" else scaling_of(entry, optimizer, adjust_lr_fn)
        if weight_decay == 0 or not (decay_norms_and_biases or name in decayed):
            scaling = scaling._replace(weight_decay=0.0)
        if scaling not in groups:
            groups[scaling] = _group(scaling, lr=lr, weight_decay=weight_decay, eps=None if optimizer == "sgd" else eps)
        _add(groups[scaling], name, parameter)
    return list(groups.values())


def _add(group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
    group["params"].append(parameter)
    group["param_names"].append(name)


def _muon_of_fused(
    model: Any,
    name: str,
    parameter: nn.Parameter,
    entry: Mapping[str, Any],
    stored: list[str],
    receipt: str | os.PathLike[str] | Plan | None,
) -> dict[str, Any]:
    """Muon's settings of the matrix of each expert, whose parameter is several tensors on disk: those of its own shape.

    Raises:
        GrowthError: it is put together in an unknown way.
    """
    plan = provenance.plan_of_model(model, receipt)
    planned = {tensor.name: tensor for tensor in plan.tensors}
    maps = parameter_maps.parameter_maps(model, name, parameter.shape, planned, plan)
    if maps is None:
        raise GrowthError("Muon's settings of this parameter are not known", tensor=name, found=", ".join(stored[:3]),
                          cure='train it by an AdamW with the groups of param_groups(model, part="all")')  # fmt: skip
    old, new = [copies.old for copies in maps[-2:]], parameter.shape[-2:]
    return {adjust: scaling_rule.muon(entry["s"], entry["r"], old, new, adjust) for adjust in ADJUSTMENTS}


def _group(scaling: Scaling, *, lr: float, weight_decay: float, eps: float | None) -> dict[str, Any]:
    """A group without parameters. eps: the source's; None for an optimizer that has none."""
    group = {
        "name": group_name(scaling, eps=eps is not None),
        "params": [],
        "param_names": [],
        "lr": lr * scaling.lr,
        "weight_decay": weight_decay * scaling.weight_decay,
        "lr_scale": scaling.lr,
    }
    return group if eps is None else {**group, "eps": eps * scaling.eps}


def _multipliers(model: Any, grown: str | os.PathLike[str] | Plan | None) -> Mapping[str, dict[str, Any]]:
    """The scaling rule's entry for every tensor on disk, from a receipt or a plan of this model."""
    file: object = "the plan"
    family: Family | None
    if isinstance(grown, Plan):
        entries, family = receipts.parameter_settings(grown), grown.family
        sizes = {axis: new for axis, (_, new) in grown.sizes.items()}
    else:
        directory, recorded = provenance.receipt_of_model(model, grown)
        file = directory / receipts.FILE
        if recorded is None:
            raise GrowthError(
                "no receipt says how this model was grown",
                file=file,
                cure="pass receipt= with the directory that `hyperclone grow` made",
            )
        entries, sizes, family = recorded.training, recorded.sizes, recorded.family
    config = model.config.to_dict()
    actual = registry.of_config(config, user_family=family).sizes(config)
    if differs := next((axis for axis, size in sizes.items() if actual.get(axis) != size), None):
        raise GrowthError("the receipt belongs to another model", file=file, field=differs, found=actual.get(differs),
                          expected=sizes[differs], cure="pass receipt= with this model's own directory")  # fmt: skip
    return entries


def _entry(model: Any, name: str, parameter: nn.Parameter, entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The entry of a parameter; the tensors that it holds must agree on it."""
    stored = _stored_names(model, name, parameter)
    if unknown := next((tensor for tensor in stored if tensor not in entries), None):
        raise GrowthError("the receipt does not know this parameter", tensor=name, found=unknown,
                          cure="put parameters that were added to the model into groups of their own")  # fmt: skip
    entry = entries[stored[0]]
    if other := next((tensor for tensor in stored if not _agree(entries[tensor], entry)), None):
        raise GrowthError("a fused parameter holds tensors that need different settings", tensor=name,
                          found=f"{stored[0]} and {other}")  # fmt: skip
    return entry


def _stored_names(model: Any, name: str, parameter: nn.Parameter) -> list[str]:
    return list(parameter_names.disk_shapes(model, name, parameter.shape))


def _agree(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(math.isclose(entry[factor], other[factor], rel_tol=1e-12) for factor in ("s", "r"))
