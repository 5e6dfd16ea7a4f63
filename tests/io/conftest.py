"""Models that the tests of reading may damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def victim(model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A valid model that a test may damage."""
    return shutil.copytree(model_dir("llama-grouped-tied"), tmp_path / "victim")
