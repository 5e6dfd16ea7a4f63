"""Rows of MODELS (see conftest): layers that are not attention (Mamba, linear attention, convolutions), and numbers."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import MULTIHEAD, TIED, UNTIED

_MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8}
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 8,
}  # fmt: skip
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONV = {"layer_types": ["conv", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
_SHARED = {"shared_expert_intermediate_size": 40}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", {**UNTIED, **MULTIHEAD}),
    "apertus-tied-biases": ("apertus", {**TIED, "attention_bias": True, "hidden_act": "relu2"}),
    "apertus1p5_text": ("apertus1p5_text", UNTIED),
    "bamba": ("bamba", {**UNTIED, **_MAMBA, "attn_layer_indices": [1]}),
    "doge": ("doge", {**TIED, "attention_bias": True}),
    "falcon_h1": ("falcon_h1", {**UNTIED, **_MAMBA, "mamba_d_ssm": 64, "mamba_rms_norm": True}),
    "falcon_h1-tied-no-norm": ("falcon_h1", {**TIED, **_MAMBA, "mamba_d_ssm": None, "mamba_proj_bias": True}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**TIED, **_MAMBA, **_LINEAR, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48},
    ),
    "granitemoehybrid-experts": (
        "granitemoehybrid",
        {**TIED, **_MAMBA, **_LINEAR, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40},
    ),
    "jamba": (
        "jamba",
        {**UNTIED, "mamba_d_state": 6, "mamba_dt_rank": 3, "num_experts": 4, "attn_layer_period": 2,
         "attn_layer_offset": 1},
    ),
    "lfm2": ("lfm2", {**TIED, **_CONV, "block_auto_adjust_ff_dim": False}),
    # 2/3 of 50, rounded down, are 33, and a multiple of 8 is 40.
    "lfm2-rounded": ("lfm2", {**TIED, **_CONV, "intermediate_size": 50, "block_multiple_of": 8}),
    "lfm2_moe": ("lfm2_moe", {**TIED, **_CONV, **_EXPERTS, "num_dense_layers": 1}),
    "lfm3": ("lfm3", {**TIED, **_CONV, "head_dim": 8, "conv_bias": True}),
    "minimax": ("minimax", {**UNTIED, **_LINEAR, "head_dim": 8, "num_local_experts": 4, "block_size": 8}),
    "nemotron_h": (
        "nemotron_h",
        {**UNTIED, "layers_block_type": ["mamba", "attention", "mlp", "moe"], "num_hidden_layers": 4, "head_dim": 8,
         "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 6, "n_groups": 2, "chunk_size": 8,
         "n_routed_experts": 4, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40},
    ),
    "qwen3_5_text": ("qwen3_5_text", {**UNTIED, **_DELTA, **_LINEAR, "head_dim": 8}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**UNTIED, **_DELTA, **_LINEAR, **_EXPERTS, **_SHARED, "head_dim": 8}),
    "qwen3_next": (
        "qwen3_next", {**UNTIED, **_DELTA, **_LINEAR, **_EXPERTS, **_SHARED, "head_dim": 8, "mlp_only_layers": [0]}
    ),
}  # fmt: skip
