"""The model types that the installed transformers has, read from its source text: `plan` does not import it."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

_TABLE = r"^{name} = OrderedDict\(\n(.*?)^\)"
_ENTRY = re.compile(r"^\s*\(\"([^\"]+)\",", re.MULTILINE)


@cache
def causal_model_types() -> frozenset[str] | None:
    """Types with a causal language model; None where the text is not as expected."""
    return _types("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@cache
def model_types() -> frozenset[str] | None:
    """Types with a model of any kind; None where the text is not as expected."""
    return _types("MODEL_MAPPING_NAMES")


def _types(table: str) -> frozenset[str] | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "models/auto/modeling_auto.py").read_text("utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(_TABLE.format(name=table), text, re.MULTILINE | re.DOTALL)
    return frozenset(_ENTRY.findall(found[1])) if found else None
