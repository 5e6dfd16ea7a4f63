"""Rows of MODELS (see conftest): mixtures of experts, and latent attention."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import MULTIHEAD, TIED, UNTIED

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
_ROUTED = {
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1,
}  # fmt: skip
_THREE = {"num_hidden_layers": 3, "first_k_dense_replace": 1}
_LATENT = {
    **MULTIHEAD, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
_SPARSE = {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
_LOCAL = {"num_experts_per_tok": 2, "num_local_experts": 4}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "afmoe", {**UNTIED, **_EXPERTS, **_WINDOWS, "num_hidden_layers": 3, "head_dim": 8, "num_shared_experts": 2}
    ),
    "axk1": ("axk1", {**UNTIED, **_ROUTED, **_SPARSE, **_LATENT}),
    "beam": ("beam", {**UNTIED, **_EXPERTS, **_SPARSE, **_WINDOWS, "head_dim": 8, "n_group": 2, "topk_group": 1}),
    "cohere2_moe": ("cohere2_moe", {**TIED, **_EXPERTS, **_WINDOW, "head_dim": 16}),
    "cohere2_moe-first-dense": (
        "cohere2_moe",
        {**UNTIED, **_EXPERTS, **_SPARSE, "head_dim": 8, "attention_bias": True, "prefix_dense_intermediate_size": 40},
    ),
    "deepseek_v2": ("deepseek_v2", {**UNTIED, **_ROUTED, **_THREE, **_LATENT, "topk_method": "group_limited_greedy"}),
    "deepseek_v2-lite": ("deepseek_v2", {**TIED, **_ROUTED, **_LATENT, "q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek_v3": ("deepseek_v3", {**UNTIED, **_ROUTED, **_THREE, **_LATENT}),
    "deepseek_v3-tied-biases": (
        "deepseek_v3", {**TIED, **_ROUTED, **_LATENT, "first_k_dense_replace": 0, "attention_bias": True}
    ),
    "dots1": ("dots1", {**UNTIED, **_ROUTED, **_THREE, "head_dim": 8, "attention_bias": True}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {**TIED, "num_hidden_layers": 3, "head_dim": 8, "moe_k": 2, "moe_num_experts": 4, "moe_intermediate_size": 24},
    ),
    "exaone_moe": ("exaone_moe", {**UNTIED, **_EXPERTS, **_SPARSE, **_WINDOWS}),
    "flex_olmo": ("flex_olmo", {**UNTIED, **_EXPERTS}),
    "flint": (
        "flint",
        {**UNTIED, **_EXPERTS, **_WINDOWS, "num_hidden_layers": 3, "head_dim": 8, "mlp_only_layers": [0],
         "shared_expert_intermediate_size": 40},
    ),
    "glm4_moe": ("glm4_moe", {**UNTIED, **_ROUTED, **_THREE, "attention_bias": True}),
    "glm4_moe-tied-norms": ("glm4_moe", {**TIED, **_ROUTED, **_THREE, "head_dim": 16, "use_qk_norm": True}),
    "glm4_moe_lite": ("glm4_moe_lite", {**UNTIED, **_ROUTED, **_SPARSE, **_LATENT}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**UNTIED, "head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    "hy_v3": ("hy_v3", {**UNTIED, **_EXPERTS, **_SPARSE, "head_dim": 8}),
    "kolibri1": (
        "kolibri1", {**UNTIED, **_EXPERTS, **_WINDOW, "head_dim": 8, "shared_expert_intermediate_size": 40}
    ),
    "laguna": (
        "laguna", {**UNTIED, **_EXPERTS, **_SPARSE, **_WINDOWS, "head_dim": 8, "shared_expert_intermediate_size": 40}
    ),
    "mellum": ("mellum", {**UNTIED, **_EXPERTS, **_WINDOW, "head_dim": 8}),
    "minicpm3": ("minicpm3", {**TIED, **_LATENT, "v_head_dim": None, "dim_model_base": 16}),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        {**UNTIED, **_ROUTED, **_SPARSE, **_WINDOWS, "n_group": 1, "head_dim": 12, "v_head_dim": 8,
         "num_key_value_heads": 2, "attention_bias": True},
    ),
    "mimo_v2_flash-tied": (
        "mimo_v2_flash",
        {**TIED, **_ROUTED, **_SPARSE, **_WINDOWS, "n_group": 1, "head_dim": 12, "v_head_dim": 8,
         "num_key_value_heads": 1},
    ),
    "minimax_m2": ("minimax_m2", {**UNTIED, **_LOCAL, "head_dim": 8, "rotary_dim": 4}),
    "phimoe": ("phimoe", {**UNTIED, **_LOCAL, "attention_bias": True, "lm_head_bias": True}),
    "phimoe-tied": ("phimoe", {**TIED, **_LOCAL, "lm_head_bias": True}),
    "sarvam_mla": ("sarvam_mla", {**UNTIED, **_ROUTED, **_THREE, **_LATENT, "q_lora_rank": None}),
    "solar_open": ("solar_open", {**UNTIED, **_ROUTED, "head_dim": 16}),
    "youtu": ("youtu", {**TIED, **_LATENT}),
}  # fmt: skip

# The embedding is multiplied by the root of the hidden size (tests/proof/test_rounded_families.py).
MULTIPLIED: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe-multiplied": ("afmoe", {**ROWS["afmoe"][1], "mup_enabled": True}),
}
