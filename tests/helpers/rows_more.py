"""Rows of MODELS (see conftest): families with fused, nested or per-expert tensors."""

from __future__ import annotations

from typing import Any

_COMMON = {
    "vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32,
    "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_FALCON = {**_COMMON, "ffn_hidden_size": 48}
_40B = {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
_REFINED_WEB = {**_FALCON, "multi_query": False, "bias": True}
_BLOOM = {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_MPT = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo": ("olmo", {**_COMMON, "intermediate_size": 48}),
    "olmo-tied": ("olmo", {**_GROUPED, "tie_word_embeddings": True}),
    "olmo-clipped-biases": ("olmo", {**_GROUPED, "clip_qkv": 0.5, "attention_bias": True}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo2-tied-biases": ("olmo2", {**_GROUPED, "tie_word_embeddings": True, "attention_bias": True}),
    "olmo2-multiquery": ("olmo2", {**_GROUPED, "num_key_value_heads": 1}),
    "olmo3": ("olmo3", {**_GROUPED, **_ALTERNATING}),
    "olmo3-tied-multihead": ("olmo3", {**_GROUPED, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "cohere": ("cohere", _GROUPED),
    "cohere-head-norms": ("cohere", {**_GROUPED, "use_qk_norm": True}),
    "cohere-untied-biases": ("cohere", {**_GROUPED, "tie_word_embeddings": False, "attention_bias": True}),
    "cohere2": ("cohere2", {**_GROUPED, **_ALTERNATING}),
    "cohere2-untied-multihead": ("cohere2", {**_GROUPED, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "falcon-40b": ("falcon", _40B),
    "falcon-40b-biases-untied": ("falcon", {**_40B, "bias": True, "tie_word_embeddings": False}),
    "falcon-40b-one-norm": ("falcon", {**_40B, "num_ln_in_parallel_attn": 1}),
    "falcon-40b-multihead": ("falcon", {**_40B, "num_kv_heads": 4}),
    "falcon-7b": ("falcon", _FALCON),
    "falcon-7b-biases": ("falcon", {**_FALCON, "bias": True, "num_kv_heads": 1, "tie_word_embeddings": False}),
    "falcon-7b-sequential": ("falcon", {**_FALCON, "parallel_attn": False}),
    "falcon-refined-web": ("falcon", {**_REFINED_WEB, "parallel_attn": False}),
    "falcon-refined-web-parallel": ("falcon", {**_REFINED_WEB, "bias": False}),
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "mixtral-tied-window": (
        "mixtral",
        {**_EXPERTS, "num_local_experts": 3, "head_dim": 16, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "qwen3-moe": ("qwen3_moe", {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16}),
    "qwen3-moe-tied-biases": (
        "qwen3_moe", {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, "norm_topk_prob": True,
                      "attention_bias": True, "tie_word_embeddings": True}
    ),
    "qwen3-moe-first-dense": (
        "qwen3_moe", {**_QWEN_EXPERTS, "head_dim": 8, "num_hidden_layers": 3, "mlp_only_layers": [0]}
    ),
    "qwen3-moe-every-second-tied": (
        "qwen3_moe", {**_QWEN_EXPERTS, "head_dim": 8, "num_hidden_layers": 4, "decoder_sparse_step": 2,
                      "mlp_only_layers": [1], "tie_word_embeddings": True}
    ),
    "qwen2-moe": ("qwen2_moe", {**_QWEN_EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen2-moe-every-second-tied": (
        "qwen2_moe", {**_QWEN_EXPERTS, "shared_expert_intermediate_size": 40, "num_hidden_layers": 4,
                      "decoder_sparse_step": 2, "qkv_bias": False, "use_sliding_window": True, "sliding_window": 8,
                      "max_window_layers": 3, "norm_topk_prob": True, "tie_word_embeddings": True}
    ),
    "olmoe": ("olmoe", {**_EXPERTS, "num_experts": 4}),
    "olmoe-tied-clipped": (
        "olmoe", {**_EXPERTS, "num_experts": 4, "clip_qkv": 0.5, "tie_word_embeddings": True, "norm_topk_prob": True}
    ),
}  # fmt: skip

# ALiBi keeps the number of heads, so these cannot grow in every width at once.
ALIBI: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", _BLOOM),
    "bloom-untied-post-norm": (
        "bloom", {**_BLOOM, "tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True}
    ),
    "mpt": ("mpt", _MPT),
    "mpt-untied-odd-heads": ("mpt", {**_MPT, "d_model": 48, "n_heads": 6, "tie_word_embeddings": False}),
}  # fmt: skip
