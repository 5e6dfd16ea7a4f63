"""Rows of MODELS (see conftest): dense families that need nothing beyond the core."""

from __future__ import annotations

from typing import Any

ROWS: dict[str, tuple[str, dict[str, Any]]] = {}
