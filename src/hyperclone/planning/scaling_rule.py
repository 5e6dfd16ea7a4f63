"""The scaling rule: each optimizer's settings, relative to the source's, with which a grown model trains like it.

Like muP, it gives multipliers of learning rate, weight decay and epsilon for each parameter.

Let every copy of a source weight w be s w (s = 1/n for weights that read an axis grown n-fold, times any factor that
the growth applies), and let w have k copies. Moving all of them by s dw changes the grown model as dw changes the
source, so

    dL/dw = sum over copies of s dL/dcopy = k s g_copy,     a copy's gradient is  r g  with  r = 1 / (k s).

A copy stays at s w if each step moves it by s times the source's step. Primes mark the grown model's settings.

*AdamW* moves by lr m^ / (sqrt(v^) + eps), where m is linear and v quadratic in the gradient. With m' = r m, v' = r^2 v
and eps' = r eps the quotient is the source's, so lr' = s lr. Decay takes lr wd w; a copy must lose s lr wd w =
lr' wd' (s w), so wd' = wd / s.

*SGD* moves by lr b, with b linear in d = g + wd w (momentum, dampening and Nesterov keep it so). A copy's
d' = r g + wd' s w is r d if wd' = wd r / s; then b' = r b, and lr' r b = s lr b asks for lr' = lr s / r.

*Muon* moves a matrix by lr a(shape) NS(b), with b linear in the gradient, a the shape's adjustment (`adjustment`), and
NS the Newton-Schulz polynomial of b / |b|. With p copies of every row and q of every column, b' = r (u v^T) (x) b,
all entries of u (p,) and v (q,) being 1. Its Frobenius norm is r sqrt(p q) |b|, and u v^T / sqrt(p q) is a matrix of
norm 1 whose odd powers (X X^T)^i X are itself, so the polynomial acts on b / |b| alone:

    NS(b') = (u v^T / sqrt(p q)) (x) NS(b)               the source's update in every copy, over sqrt(p q).

Hence lr' = lr s sqrt(p q) a / a'. Decay is decoupled and does not see a: lr' wd' = lr wd. The eps under the norm
follows the norm, eps' = eps r sqrt(p q). Grown p = q = n times, s = 1/n: the learning rate is the source's, unchanged.

*Which parameter gets which learning rate.* AdamW's, where everything grows n-fold, relative to the source's:

    embedding, biases, norms (of layers, queries, keys)         s = 1      lr x 1      they write: copies repeat
    matrices in the blocks                                      s = 1/n    lr x 1/n    they read a grown axis
    an untied head                                              s = 1/n    lr x 1/n
    the norm that carries a tied head's 1/n (tied_head.py)      s = 1/n    lr x 1/n

TensorPlan.scale (plan.py) is the s of each tensor, for any growth. conversion/receipt.py writes the multipliers, and
optim/param_groups.py makes param groups of them.

*What is exact.* All of it, where every unit of an axis has the same number of copies, s is one number for the tensor,
and copies are equal: the symmetric expansion without noise, before training or after. Otherwise the numbers are
averages over the tensor: axes with uneven counts, fused tensors whose parts have different k (Falcon-7B: only eps is
off), queries fused with keys when head_dim grows. The diagonal expansion gives copies different gradients, so nothing
is exact there; nor is it with noise, whose purpose is that copies diverge. Weights that read padding channels have no
source and get their tensor's settings. Decay of gains to which the model adds 1 (Gemma) has no exact counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

LrRule = Literal["scaled", "uniform"]  # multipliers of this rule, or one learning rate, decay and epsilon everywhere
TORCH_OPTIMIZERS = ("adamw", "sgd", "muon")  # of torch.optim
EPS = {"adamw": 1e-8, "muon": 1e-7}  # torch's defaults; SGD has none
ADJUSTMENTS = ("original", "match_rms_adamw")  # torch.optim.Muon's adjust_lr_fn


def adamw(s: float, r: float) -> dict[str, float]:
    """AdamW's settings relative to the source's: lr, weight_decay, eps."""
    return {"lr": s, "weight_decay": 1 / s, "eps": r}


def sgd(s: float, r: float) -> dict[str, float]:
    """SGD's (torch: decay added to the gradient): lr, weight_decay."""
    return {"lr": s / r, "weight_decay": r / s}


def muon(s: float, r: float, old: Sequence[int], new: Sequence[int], adjust: str) -> dict[str, float]:
    """Muon's: lr, weight_decay, eps.

    Args:
        s, r: scale and gradient of a copy.
        old, new: (rows, columns) of the source's matrix and the grown one.
        adjust: torch.optim.Muon's adjust_lr_fn, one of ADJUSTMENTS.
    """
    spread = math.sqrt(math.prod(new) / math.prod(old))
    lr = s * spread * adjustment(old, adjust) / adjustment(new, adjust)
    return {"lr": lr, "weight_decay": 1 / lr, "eps": r * spread}


def adjustment(shape: Sequence[int], adjust: str) -> float:
    """What torch.optim.Muon multiplies the learning rate by for a matrix of this shape."""
    rows, columns = shape
    return math.sqrt(max(1, rows / columns)) if adjust == "original" else 0.2 * math.sqrt(max(rows, columns))


def record(s: float, r: float, old: Sequence[int], new: Sequence[int], *, hidden: bool) -> dict[str, Any]:
    """A tensor's entry in the receipt: s, r, AdamW's settings beside them, and those of the other optimizers.

    Args:
        s, r: scale and gradient of a copy.
        old, new: shapes of the source's tensor and the grown one.
        hidden: it is a hidden matrix, or one for each expert, which Muon may train.
    """
    entry: dict[str, Any] = {"s": s, "r": r, **adamw(s, r), "sgd": sgd(s, r)}
    if hidden:
        entry["muon"] = {adjust: muon(s, r, old[-2:], new[-2:], adjust) for adjust in ADJUSTMENTS}
    return entry


class Scaling(NamedTuple):
    """Multipliers of the source's settings."""

    lr: float
    weight_decay: float
    eps: float


def scaling_of(entry: Mapping[str, Any], optimizer: str, adjust: str) -> Scaling:
    """What a tensor's entry (`record`) says for an optimizer; of SGD, which has no eps, it is 1.

    Args:
        entry: of a receipt.
        optimizer: "adamw", "sgd" or "muon".
        adjust: torch.optim.Muon's adjust_lr_fn, one of ADJUSTMENTS.
    """
    settings = entry["muon"][adjust] if optimizer == "muon" else entry["sgd"] if optimizer == "sgd" else entry
    return Scaling(settings["lr"], settings["weight_decay"], settings.get("eps", 1.0))


def group_name(scaling: Scaling, *, eps: bool) -> str:
    """The readable name of a param group; `eps`: its optimizer has one."""
    decay = f"decay x {scaling.weight_decay:g}" if scaling.weight_decay else "no decay"
    return f"lr x {scaling.lr:g}, {decay}" + (f", eps x {scaling.eps:g}" if eps else "")
