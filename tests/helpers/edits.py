"""Changes to a model directory that a test owns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def edit_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None removes."""
    content = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def forget_growth(directory: Path) -> None:
    """Take away all that says how a model was grown: its receipt, and the field of its config."""
    (directory / "hyperclone.json").unlink()
    edit_json(directory / "config.json", hyperclone=None)
