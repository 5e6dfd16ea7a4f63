"""Why a causal language model of transformers has no family file: not_grown.toml, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources


@cache
def reasons() -> Mapping[str, str]:
    """Model type -> what it is about it that no family file describes; completes "..., because"."""
    text = resources.files("hyperclone.architectures").joinpath("not_grown.toml").read_text("utf-8")
    return {model_type: reason for reason, types in tomllib.loads(text).items() for model_type in types}
