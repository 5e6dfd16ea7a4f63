"""Unmodified transformers as an independent reference: what a model directory computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAME = 1e-5  # relative distance of fp32 logits: sums of twice as many terms round differently, by some 1e-7


def logits(path: Path) -> Tensor:
    """(2, 16, V) logits of fixed tokens in fp32; fails where a tensor of the model is not stored."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    ids = torch.randint(3, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result: Tensor = model.eval()(ids, use_cache=False).logits
    return result


def distance(path: Path, reference: Path) -> float:
    """|logits - logits of the reference| / |logits of the reference|, 2-norms."""
    expected = logits(reference)
    return float((logits(path) - expected).norm() / expected.norm())


def stored_values(model: Any) -> int:
    """How many numbers a checkpoint of a model holds: of its parameters (tied ones once) and of stored buffers."""
    buffers = [buffer for name, buffer in model.named_buffers() if name in model.state_dict()]
    return sum(tensor.numel() for tensor in [*model.parameters(), *buffers])
