"""Rows of MODELS (see conftest): dense families that need nothing beyond the core."""

from __future__ import annotations

from typing import Any

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # config classes have them beyond this vocabulary
_COMMON = {
    "vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, **_IDS,
}  # fmt: skip
TIED = {**_COMMON, "tie_word_embeddings": True}
UNTIED = {**_COMMON, "tie_word_embeddings": False}
MULTIHEAD = {"num_key_value_heads": 4}
MULTIQUERY = {"num_key_value_heads": 1}
_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
_QWEN3 = {**_COMMON, "head_dim": 8}
_GRANITE = {
    **_COMMON, "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}  # fmt: skip
_GPT = {"vocab_size": 300, "n_layer": 2, "n_positions": 64, "n_embd": 32, "n_head": 4, "n_inner": 48, **_IDS}
_GPTJ = {**_GPT, "rotary_dim": 4}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-grouped-tied": ("qwen2", TIED),
    "qwen2-multihead-untied": ("qwen2", {**UNTIED, **MULTIHEAD}),
    "qwen2-multiquery-tied": ("qwen2", {**TIED, **MULTIQUERY}),
    "qwen2-window": ("qwen2", {**UNTIED, **_WINDOW}),
    "qwen2-max-window-layers": (
        "qwen2",
        {**TIED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3-grouped-tied": ("qwen3", {**_QWEN3, "tie_word_embeddings": True}),
    "qwen3-multihead-untied": ("qwen3", {**_QWEN3, **MULTIHEAD, "tie_word_embeddings": False}),
    "qwen3-multiquery-tied": ("qwen3", {**_QWEN3, **MULTIQUERY, "tie_word_embeddings": True}),
    "qwen3-free-head-dim": ("qwen3", {**_QWEN3, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases-window": ("qwen3", {**_QWEN3, **_WINDOW, "attention_bias": True}),
    "phi-multihead-untied": ("phi", {**UNTIED, **MULTIHEAD}),
    "phi-grouped-tied": ("phi", TIED),
    "phi-multiquery-untied": ("phi", {**UNTIED, **MULTIQUERY}),
    "phi-qk-norms": ("phi", {**UNTIED, "qk_layernorm": True}),
    "phi3-multihead-untied": ("phi3", {**UNTIED, **MULTIHEAD}),
    "phi3-grouped-tied": ("phi3", TIED),
    "phi3-multiquery-untied": ("phi3", {**UNTIED, **MULTIQUERY}),
    "phi3-window-partial-rotary": ("phi3", {**UNTIED, "sliding_window": 8, "partial_rotary_factor": 0.5}),
    "phi3-longrope": ("phi3", {**TIED, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 16}),
    "gptj-untied": ("gptj", _GPTJ),
    "gptj-tied": ("gptj", {**_GPTJ, "tie_word_embeddings": True}),
    "gptj-implied-ffn": ("gptj", {**_GPTJ, "n_inner": None, "rotary_dim": 8}),
    "gpt2-tied": ("gpt2", _GPT),
    "gpt2-untied": ("gpt2", {**_GPT, "tie_word_embeddings": False}),
    "gpt2-implied-ffn": ("gpt2", {**_GPT, "n_inner": None}),
    "gpt2-other-scales": ("gpt2", {**_GPT, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    "granite-grouped-tied": ("granite", {**_GRANITE, "tie_word_embeddings": True}),
    "granite-multihead-untied": ("granite", {**_GRANITE, **MULTIHEAD, "tie_word_embeddings": False}),
    "granite-multiquery-tied": ("granite", {**_GRANITE, **MULTIQUERY, "tie_word_embeddings": True}),
    "granite-biases": ("granite", {**_GRANITE, "attention_bias": True, "mlp_bias": True}),
    "smollm3-grouped-tied": ("smollm3", {**TIED, "no_rope_layers": [1, 0]}),
    "smollm3-multihead-untied": ("smollm3", {**UNTIED, **MULTIHEAD, "no_rope_layer_interval": 2}),
    "smollm3-multiquery-biases": ("smollm3", {**TIED, **MULTIQUERY, "attention_bias": True, "mlp_bias": True}),
    "smollm3-window": ("smollm3", {**TIED, "use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [0, 1]}),
    "stablelm-grouped-untied": ("stablelm", UNTIED),
    "stablelm-multihead-parallel-tied": ("stablelm", {**TIED, **MULTIHEAD, "use_parallel_residual": True}),
    "stablelm-multiquery-bias": ("stablelm", {**UNTIED, **MULTIQUERY, "use_qkv_bias": True}),
    "stablelm-parallel-bias-half-rotary": (
        "stablelm",
        {**TIED, "use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    ),
    "starcoder2-grouped-tied": ("starcoder2", TIED),
    "starcoder2-multihead-untied": ("starcoder2", {**UNTIED, **MULTIHEAD}),
    "starcoder2-multiquery-no-bias": ("starcoder2", {**TIED, **MULTIQUERY, "use_bias": False}),
    "starcoder2-window": ("starcoder2", {**UNTIED, "sliding_window": 8}),
}
