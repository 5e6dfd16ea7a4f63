"""What training a planned model takes, from its plan alone: what `hyperclone plan --tokens` adds to the plan.

Operations of a token as in flops.py (arXiv 2204.02311, appendix B); memory and disk as in dry_run.py. Needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from hyperclone import units
from hyperclone.planning.plan import Plan
from hyperclone.training import budget as budgets
from hyperclone.training.config import Training
from hyperclone.training.lr_schedule import warmup_steps
from hyperclone.units import human_bytes

PEAK, MFU = 989e12, 0.4  # FLOP/s of an H100 in dense bf16, and the share of it that a good setup reaches
_STATE = 16  # bytes for each parameter: weights, gradients and two moments in fp32
_CHECKPOINT = 12  # without gradients
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Training)}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A training with the options that `hyperclone train` chooses by itself.

    Attributes:
        seq_len, batch_tokens: tokens of a window, and of a step.
        steps, warmup_steps: of the optimizer.
        flops_per_token, flops: floating-point operations, of a token and of all.
        gpu_hours: on H100s at 40 % of their peak.
        memory: bytes of weights, gradients and moments over all GPUs, without activations.
        disk: bytes of the checkpoints that are kept and of the trained model.
    """

    seq_len: int
    batch_tokens: int
    steps: int
    warmup_steps: int
    flops_per_token: float
    flops: float
    gpu_hours: float
    memory: int
    disk: int

    def summary(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {**asdict(self), "gpu": f"H100 at {MFU:.0%} of {PEAK / 1e12:.0f} TFLOP/s"}

    def text(self) -> str:
        """In sentences."""
        return (
            f"By the defaults of hyperclone train: {self.steps:,} steps of {self.batch_tokens:,} tokens "
            f"(windows of {self.seq_len:,}), {self.warmup_steps:,} of them warm-up; {self.flops:.2g} FLOPs, which are "
            f"{_hours(self.gpu_hours)} of one H100 at {MFU:.0%} of its peak. "
            f"{human_bytes(self.memory)} of weights, gradients and moments in memory (over all GPUs, without "
            f"activations); {human_bytes(self.disk)} of disk."
        )


def estimate(plan: Plan, tokens: str | int) -> Estimate:
    """What training the grown model of a plan on so many tokens takes.

    Args:
        plan: of the growth.
        tokens: "26B", or a number.

    Raises:
        OptionError: that is not a number of tokens.
    """
    wanted = units.parse(tokens, "tokens")
    positions = plan.config.get("max_position_embeddings") or plan.config.get("n_positions")
    seq_len = budgets.sequence_length(None, positions if isinstance(positions, int) and positions > 1 else None)
    batch = budgets.WINDOWS * seq_len
    steps = max(1, wanted // batch)
    each = flops_per_token(plan, seq_len)
    return Estimate(
        seq_len=seq_len,
        batch_tokens=batch,
        steps=steps,
        warmup_steps=warmup_steps(_DEFAULTS["warmup"], steps),
        flops_per_token=each,
        flops=each * steps * batch,
        gpu_hours=each * steps * batch / (PEAK * MFU) / 3600,
        memory=_STATE * plan.parameters,
        disk=_DEFAULTS["keep"] * _CHECKPOINT * plan.parameters + plan.nbytes,
    )


def flops_per_token(plan: Plan, seq_len: int) -> float:
    """Operations of training on one token: 6 for each weight that multiplies it, 12 L H Q T for attention.

    Of experts, those that a token is routed to. Architectures without heads have no second part.

    Args:
        plan: of the growth.
        seq_len: tokens of a window.
    """
    config, weights, head = plan.config, 0.0, False
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    routed = min(1.0, (config.get("num_experts_per_tok") or experts) / experts)
    for tensor in plan.tensors:
        size = math.prod(tensor.shape)
        if len(tensor.shape) > 1 and tensor.layout.reads is not None:
            weights += size * (routed if ".experts." in tensor.name else 1)
            head = head or "vocab" in tensor.layout.axes
    sizes = {axis: new for axis, (_, new) in plan.sizes.items()}
    if not head:  # tied: the embedding multiplies
        weights += sizes.get("vocab", 0) * sizes["hidden"]
    heads = sizes["heads"] if "heads" in sizes else sizes.get("kv_heads", 0) * sizes.get("group", 1)
    return 6 * weights + 12 * len(plan.layers) * heads * sizes.get("head_dim", 0) * seq_len


def _hours(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
