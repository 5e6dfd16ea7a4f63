"""Rows of MODELS (see conftest): families whose files began as drafts of `hyperclone family draft`."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import MULTIHEAD, MULTIQUERY, TIED, UNTIED

_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm-grouped-untied": ("glm", {**UNTIED, "head_dim": 8}),
    "glm-multihead-tied-no-bias": ("glm", {**TIED, **MULTIHEAD, "head_dim": 16, "attention_bias": False}),
    "glm4-grouped-untied": ("glm4", {**UNTIED, "head_dim": 16}),
    "glm4-multiquery-tied": ("glm4", {**TIED, **MULTIQUERY, "head_dim": 8}),
    "nemotron-grouped-untied": ("nemotron", UNTIED),
    "nemotron-multihead": ("nemotron", {**UNTIED, **MULTIHEAD}),  # tied: test_rounded_families.py
    "nemotron-multiquery-biases": ("nemotron", {**UNTIED, **MULTIQUERY, "attention_bias": True, "mlp_bias": True}),
    "exaone4-grouped-window": ("exaone4", {**UNTIED, **_WINDOW}),
    "exaone4-multihead-tied": (
        "exaone4",
        {**TIED, **MULTIHEAD, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
}
