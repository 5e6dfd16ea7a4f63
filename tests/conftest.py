"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import examples  # noqa: F401 - it registers the profiles of hypothesis
from tests.helpers.models import build, save_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_dir(name, dtype=..., seed=...) -> a saved model with tokenizer; made once. Do not write into it."""
    made: dict[tuple[str, ...], Path] = {}

    def get(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, shard: str = "5GB") -> Path:
        key = (name, str(dtype), str(seed), shard)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            build(name, seed=seed, dtype=dtype).save_pretrained(made[key], max_shard_size=shard)
            save_tokenizer(made[key])
        return made[key]

    return get
