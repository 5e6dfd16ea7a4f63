"""Rows of MODELS (see conftest): dense decoders that differ from the better known ones in a few tensors each."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import MULTIHEAD, MULTIQUERY, TIED, UNTIED

_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_GPT = {
    "vocab_size": 300, "n_layer": 2, "n_positions": 64, "n_embd": 32, "n_head": 4, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_SCALED_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPE_OF_EACH = {"full_attention": _ROPE, "sliding_attention": _ROPE}
_MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.22, "logits_scaling": 0.5}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee-grouped-biases": ("arcee", {**UNTIED, "attention_bias": True, "mlp_bias": True}),
    "arcee-multihead-tied": ("arcee", {**TIED, **MULTIHEAD, "head_dim": 16}),
    "codegen": ("codegen", {**_GPT, "n_head": 8, "n_inner": 48, "rotary_dim": 4}),
    "codegen-tied-implied-ffn": ("codegen", {**_GPT, "rotary_dim": 8, "tie_word_embeddings": True}),
    "cohere_compass_text": (
        "cohere_compass_text", {**TIED, **_WINDOW, "head_dim": 8, "rope_parameters": _ROPE_OF_EACH}
    ),
    "cwm-biases-window": ("cwm", {**UNTIED, **_WINDOW, "head_dim": 8, "mlp_bias": True}),
    "diffllama": ("diffllama", {**UNTIED, "attention_bias": True}),
    "ernie4_5-grouped-tied": ("ernie4_5", {**TIED, "head_dim": 16}),
    "ernie4_5-biases": ("ernie4_5", {**UNTIED, **MULTIQUERY, "head_dim": 8, "use_bias": True}),
    "exaone-grouped-tied": ("exaone", TIED),
    "exaone-biases": ("exaone", {**UNTIED, "attention_bias": True, "mlp_bias": True}),
    "gpt-sw3": ("gpt-sw3", _GPT),
    "gpt_bigcode-multiquery": ("gpt_bigcode", {**_GPT, "n_inner": 48}),
    "gpt_bigcode-multihead-untied": ("gpt_bigcode", {**_GPT, "multi_query": False, "tie_word_embeddings": False}),
    "gpt_neo": (
        "gpt_neo",
        {"vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
         "intermediate_size": 48, "attention_types": [[["global", "local"], 1]], "window_size": 8,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**TIED, "partial_rotary_factor": 0.5}),
    "gpt_neox_japanese-untied": ("gpt_neox_japanese", UNTIED),
    "granite_swa": ("granite_swa", {**TIED, **_WINDOW, **_MULTIPLIERS, "attention_multiplier": 0.2}),
    "helium-grouped": ("helium", {**UNTIED, "head_dim": 8}),
    "helium-tied-biases": ("helium", {**TIED, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "hunyuan_v1_dense-grouped-tied": ("hunyuan_v1_dense", {**TIED, "head_dim": 16}),
    "hunyuan_v1_dense-biases": ("hunyuan_v1_dense", {**UNTIED, **MULTIHEAD, "head_dim": 8, "attention_bias": True}),
    "hyperclovax": ("hyperclovax", {**TIED, **_MULTIPLIERS}),
    "hyperclovax-no-post-norm": ("hyperclovax", {**UNTIED, "use_post_norm": False, "attention_multiplier": 0.2}),
    "internlm3": ("internlm3", {**UNTIED, "head_dim": 8, "qkv_bias": True, "bias": True}),
    "iquestcoder": ("iquestcoder", {**UNTIED, "head_dim": 16}),
    "jais2": ("jais2", {**UNTIED, **MULTIHEAD}),
    "jais2-tied-no-biases": ("jais2", {**TIED, "attention_bias": False, "mlp_bias": False}),
    "ministral": ("ministral", {**UNTIED, **_WINDOW, "head_dim": 16}),
    "ministral3": ("ministral3", {**TIED, "head_dim": 16, "rope_parameters": _SCALED_ROPE}),
    "modernbert-decoder": ("modernbert-decoder", {**TIED, **_WINDOW, "local_attention": 8, "pad_token_id": 0}),
    "modernbert-decoder-untied-biases": (
        "modernbert-decoder",
        {**UNTIED, "pad_token_id": 0, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
         "classifier_bias": True},
    ),
    "nanochat": ("nanochat", UNTIED),
    "nanochat-tied-multiquery-biases": ("nanochat", {**TIED, **MULTIQUERY, "attention_bias": True}),
    "openai-gpt": ("openai-gpt", _GPT),
    "openai-gpt-untied": ("openai-gpt", {**_GPT, "tie_word_embeddings": False}),
    "persimmon": ("persimmon", UNTIED),
    "persimmon-tied-no-norms": ("persimmon", {**TIED, "qk_layernorm": False}),
    "seed_oss-grouped": ("seed_oss", {**UNTIED, "head_dim": 8}),
    "seed_oss-tied-biases": (
        "seed_oss", {**TIED, "head_dim": 16, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}
    ),
}  # fmt: skip

_SCALED = {"vocab_size": 300, "num_hidden_layers": 3, "max_position_embeddings": 64, "hidden_size": 32}
# The embedding is multiplied by the root of the hidden size (tests/proof/test_rounded_families.py).
MULTIPLIED: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("biogpt", {**_SCALED, "num_attention_heads": 4, "intermediate_size": 48}),
    "vaultgemma": ("vaultgemma", {**TIED, **_SCALED, "head_dim": 16, "sliding_window": 8}),
}
