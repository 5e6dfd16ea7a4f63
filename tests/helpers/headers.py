"""Configs and headers of the models of conftest, without their weights: all that a plan reads."""

from __future__ import annotations

import json

from hyperclone.io.hub import Headers
from tests.helpers.models import MODELS


def headers(name: str) -> Headers:
    """A source for planning, in fp32."""
    from transformers import AutoConfig

    model_type, fields = MODELS[name]
    config = json.loads(AutoConfig.for_model(model_type, **fields).to_json_string(use_diff=False))
    return Headers.from_config(config, dtype="F32")
