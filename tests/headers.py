"""Configs and headers of the models of conftest, without their weights: all that a plan reads."""

from __future__ import annotations

import json
import math

from conftest import MODELS

from hyperclone.checkpoint import Entry
from hyperclone.family import of_config
from hyperclone.hub import Headers


def headers(name: str) -> Headers:
    """A source for planning, in fp32."""
    from transformers import AutoConfig

    model_type, fields = MODELS[name]
    config = json.loads(AutoConfig.for_model(model_type, **fields).to_json_string(use_diff=False))
    fam = of_config(config)
    entries = {}
    for key, layout in fam.tensors(config).items():
        shape = layout.shape(fam.sizes(config))
        entries[key] = Entry("model.safetensors", "F32", shape, 0, 4 * math.prod(shape))
    return Headers(config, entries)
