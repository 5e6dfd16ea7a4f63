"""Floating-point operations of a token, and model FLOPs utilization (MFU).

After PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): forward and backward cost 6 operations for each
weight that multiplies a token and 12 L H Q T for attention (L layers of H heads of Q channels, windows of T tokens),
and

    MFU = tokens/s x (6 N + 12 L H Q T) / peak.

Recomputed activations do not count. N leaves out parameters that are only looked up (input embedding, learned
positions) and, in a mixture of experts, the experts that a token is not routed to. The peak is the vendor's figure for
dense bf16. For other types, and for devices that are not in the table (CPUs among them), no MFU is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Dense bf16 tensor-core peak in FLOP/s, by a part of the device's name; the first match counts.
PEAKS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("H800", 989e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A6000", 155e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307e12),
    ("MI250", 362e12),
)


def peak(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device; None where it is not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAKS if part in name), None)


def per_token(model: Any, seq_len: int) -> float:
    """Floating-point operations for training on one token.

    Args:
        model: a transformers causal language model.
        seq_len: tokens of a window.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 6 * multiplying(model) + 12 * int(config.num_hidden_layers) * width * seq_len


def multiplying(model: Any) -> float:
    """Weights that multiply a token."""
    head = model.get_output_embeddings()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {
        id(head.weight) if head is not None else None
    }  # a tied embedding multiplies as the head
    config = model.config.get_text_config()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    routed = min(1.0, (getattr(config, "num_experts_per_tok", None) or experts) / experts)
    weights: float = sum(
        parameter.numel() * (routed if ".experts." in name else 1)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in looked_up  # gains and biases hardly count
    )
    return weights
