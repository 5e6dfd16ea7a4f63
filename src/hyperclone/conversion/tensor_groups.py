"""Param groups for trainers of other projects: the scaling rule for every tensor on disk, from the receipt alone.

What `hyperclone.param_groups` gives for a model in memory, without torch. Norms and biases do not decay. Trainer, whose
rule `param_groups` follows, knows norms by their names, and misses those of a few families (HyperCLOVA X, Doge,
Nemotron-H).
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from hyperclone.conversion import receipt as receipts
from hyperclone.errors import CheckpointError, GrowthError, OptionError
from hyperclone.io import hub
from hyperclone.io.files import exists
from hyperclone.io.local_paths import nearest
from hyperclone.planning.plan import TensorPlan
from hyperclone.planning.scaling_rule import ADJUSTMENTS, EPS, TORCH_OPTIMIZERS, group_name, scaling_of
from hyperclone.units import is_finite

_NORM_OR_BIAS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")  # Trainer's


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """How one tensor is trained.

    Attributes:
        shape: on disk.
        copies: that each of the source's weights has; an average where not all have as many.
        hidden: a hidden matrix, or one for each expert, which Muon may train.
        optimizer: that trains it: "adamw", "sgd" or "muon".
        group: readable name of its param group; tensors with one optimizer and one group have equal settings.
        lr_scale, weight_decay_scale, eps_scale: multiples of the source's settings; no eps of SGD.
        lr, weight_decay, eps: absolute values; None unless a learning rate is given.
    """

    shape: tuple[int, ...]
    copies: float
    hidden: bool
    optimizer: str
    group: str
    lr_scale: float
    weight_decay_scale: float
    eps_scale: float | None
    lr: float | None
    weight_decay: float | None
    eps: float | None


@dataclass(frozen=True, kw_only=True)
class TensorGroups:
    """The tensors of a grown directory.

    Attributes:
        source: public name of the model that it was grown from.
        order: where copies stand, "tiled" or "interleaved".
        tensors: by name on disk.
    """

    source: str
    order: str
    tensors: dict[str, TensorGroup]

    def summary(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def tensor_groups(
    directory: str | os.PathLike[str],
    *,
    optimizer: str = "adamw",
    lr: float | None = None,
    weight_decay: float | None = None,
    eps: float | None = None,
    adamw_lr: float | None = None,
    adjust_lr_fn: str = "original",
    decay_norms_and_biases: bool = False,
) -> TensorGroups:
    """The settings of every tensor of a grown directory.

    Args:
        directory: grown, trained since or not, or a Hub id.
        optimizer: "adamw", "sgd", or "muon" for the hidden matrices and AdamW for the rest.
        lr, weight_decay, eps: with which you would continue to train the source. Without a learning rate there are only
            multiples of them; with one the weight decay is 0 and eps torch's unless they are given.
        adamw_lr: with "muon", learning rate of the rest; by default `lr`.
        adjust_lr_fn: Muon's, "original" or "match_rms_adamw".
        decay_norms_and_biases: decay them as well.

    Raises:
        OptionError: an unknown option, or one that does not go with the others.
        GrowthError: no receipt.
        CheckpointError: no such directory, or a corrupt receipt.
    """
    _check_options(optimizer, adjust_lr_fn, lr=lr, weight_decay=weight_decay, eps=eps, adamw_lr=adamw_lr)
    path = hub.resolve(directory, weights=False)
    if not exists(path):
        raise CheckpointError("no such directory", file=path, cure=nearest(path))
    recorded = receipts.read(path)
    if recorded is None:
        raise GrowthError("no receipt says how this model was grown", file=path / receipts.FILE,
                          cure="name a directory that `hyperclone grow` made, or a training of one")  # fmt: skip

    def group_of(tensor: TensorPlan) -> TensorGroup:
        entry = recorded.training[tensor.name]
        hidden = "muon" in entry
        by = "adamw" if optimizer == "muon" and not hidden else optimizer
        scaling = scaling_of(entry, by, adjust_lr_fn)
        if (lr is not None and not weight_decay) or weight_decay == 0 or not (decay_norms_and_biases or decays(tensor)):
            scaling = scaling._replace(weight_decay=0.0)
        rate = adamw_lr if by != optimizer and adamw_lr is not None else lr
        has_eps, base_eps = by in EPS, EPS.get(by, 0.0) if eps is None else eps
        return TensorGroup(
            shape=tensor.shape,
            copies=1 / (entry["s"] * entry["r"]),
            hidden=hidden,
            optimizer=by,
            group=group_name(scaling, eps=has_eps),
            lr_scale=scaling.lr,
            weight_decay_scale=scaling.weight_decay,
            eps_scale=scaling.eps if has_eps else None,
            lr=None if rate is None else rate * scaling.lr,
            weight_decay=None if lr is None else (weight_decay or 0.0) * scaling.weight_decay,
            eps=base_eps * scaling.eps if has_eps and lr is not None else None,
        )

    tensors = {tensor.name: group_of(tensor) for tensor in recorded.plan.tensors if tensor.name in recorded.training}
    return TensorGroups(source=recorded.source, order=recorded.growth.order, tensors=tensors)


def decays(tensor: TensorPlan) -> bool:
    """Whether weight decay applies to a tensor: to all but norms and biases."""
    norm = tensor.layout.norm or (len(tensor.shape) == 1 and tensor.layout.reads is not None)  # with a tied head's 1/n
    return not norm and _NORM_OR_BIAS.search(tensor.name) is None


def _check_options(optimizer: str, adjust_lr_fn: str, **numbers: float | None) -> None:
    for field, word, allowed in (
        ("optimizer", optimizer, TORCH_OPTIMIZERS),
        ("adjust_lr_fn", adjust_lr_fn, ADJUSTMENTS),
    ):
        if word not in allowed:
            raise OptionError(f"unknown {field}", field=field, found=word, expected=", ".join(allowed))
    for name, number in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        if number is None:
            continue
        if not is_finite(number) or number < 0:
            raise OptionError("out of range", field=name, found=number, expected="0 or more")
        if numbers["lr"] is None:
            raise OptionError(f"{flag} needs --lr", field=name, found=number, cure="give --lr as well, or neither")
    if numbers["adamw_lr"] is not None and optimizer != "muon":
        raise OptionError("only with Muon does AdamW train the rest", field="adamw_lr", found=numbers["adamw_lr"],
                          cure="--optimizer muon, or leave --adamw-lr out")  # fmt: skip
