"""Rows of MODELS (see conftest): mixtures that store all experts of a layer in one tensor."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import TIED, UNTIED

_LOCAL = {"num_experts_per_tok": 2, "num_local_experts": 4}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.2, "logits_scaling": 4.0,
}  # fmt: skip
_LLAMA_4 = {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8, "attention_chunk_size": 8}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "aria_text": ("aria_text", {**UNTIED, "moe_num_experts": 4, "moe_topk": 2}),
    "aria_text-tied-biases": (
        "aria_text", {**TIED, "moe_num_experts": 4, "moe_topk": 2, "attention_bias": True, "mlp_bias": True}
    ),
    "gpt_oss": ("gpt_oss", {**UNTIED, **_LOCAL, **_WINDOW, "head_dim": 8, "swiglu_limit": 2.0}),
    "gpt_oss-tied": ("gpt_oss", {**TIED, **_LOCAL, **_WINDOW, "head_dim": 16, "attention_bias": False}),
    "granitemoe": ("granitemoe", {**UNTIED, **_LOCAL, **_GRANITE}),
    "granitemoe_swa": ("granitemoe_swa", {**TIED, **_LOCAL, **_WINDOW, "shared_intermediate_size": 40}),
    "granitemoeshared": ("granitemoeshared", {**TIED, **_LOCAL, **_GRANITE, "shared_intermediate_size": 40}),
    "jetmoe": ("jetmoe", {**TIED, **_LOCAL, "kv_channels": 8}),
    "llama4_text": (
        "llama4_text",
        {**UNTIED, **_LLAMA_4, "moe_layers": [1], "no_rope_layers": [1, 0], "intermediate_size_mlp": 40,
         "floor_scale": 4},
    ),
    "llama4_text-tied": (
        "llama4_text", {**TIED, **_LLAMA_4, "use_qk_norm": False, "attention_bias": True, "intermediate_size_mlp": 40}
    ),
}  # fmt: skip
