"""Rows of MODELS (see conftest): mixtures that store all experts of a layer in one tensor."""

from __future__ import annotations

from typing import Any

from tests.helpers.rows_dense import TIED, UNTIED

_LOCAL = {"num_experts_per_tok": 2, "num_local_experts": 4}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("gpt_oss", {**UNTIED, **_LOCAL, **_WINDOW, "head_dim": 8, "swiglu_limit": 2.0}),
    "gpt_oss-tied": ("gpt_oss", {**TIED, **_LOCAL, **_WINDOW, "head_dim": 16, "attention_bias": False}),
}  # fmt: skip
