"""What tests of studies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.studies import save_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a study's text and a small model."""
    save_model(tmp_path)
    for number, name in enumerate(("train", "held_out", "pretrain", "validation")):
        (tmp_path / f"{name}.txt").write_text(f"text {number} " * 100)
    return tmp_path
