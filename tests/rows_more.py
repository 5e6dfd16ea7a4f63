"""Rows of MODELS (see conftest): families with fused, nested or per-expert tensors."""

from __future__ import annotations

from typing import Any

ROWS: dict[str, tuple[str, dict[str, Any]]] = {}
