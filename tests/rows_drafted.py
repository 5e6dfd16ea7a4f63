"""Rows of MODELS (see conftest): families whose files began as drafts of `hyperclone family draft`."""

from __future__ import annotations

from typing import Any

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # config classes have them beyond this vocabulary
_COMMON = {
    "vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, **_IDS,
}  # fmt: skip
_TIED = {**_COMMON, "tie_word_embeddings": True}
_UNTIED = {**_COMMON, "tie_word_embeddings": False}
_MULTIHEAD = {"num_key_value_heads": 4}
_MULTIQUERY = {"num_key_value_heads": 1}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm-grouped-untied": ("glm", {**_UNTIED, "head_dim": 8}),
    "glm-multihead-tied-no-bias": ("glm", {**_TIED, **_MULTIHEAD, "head_dim": 16, "attention_bias": False}),
    "glm4-grouped-untied": ("glm4", {**_UNTIED, "head_dim": 16}),
    "glm4-multiquery-tied": ("glm4", {**_TIED, **_MULTIQUERY, "head_dim": 8}),
    "nemotron-grouped-untied": ("nemotron", _UNTIED),
    "nemotron-multihead": ("nemotron", {**_UNTIED, **_MULTIHEAD}),  # tied: test_rounded_families.py
    "nemotron-multiquery-biases": ("nemotron", {**_UNTIED, **_MULTIQUERY, "attention_bias": True, "mlp_bias": True}),
    "exaone4-grouped-window": ("exaone4", {**_UNTIED, **_WINDOW}),
    "exaone4-multihead-tied": (
        "exaone4",
        {**_TIED, **_MULTIHEAD, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
}
