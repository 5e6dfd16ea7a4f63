"""Paths with a weight after the last "=", such as `old/*.parquet=0.3`, unless something has the whole as its name."""

from __future__ import annotations

import glob
from pathlib import Path

from hyperclone.io.files import exists, user_path

_OF_PATHS = "/*?["  # what follows the last "=" of lang=en/*.parquet is no weight


def split_weight(spelled: str, *, beside: Path | None = None) -> tuple[str, str | None]:
    """A path or name, and the weight that is written after it; None if there is none.

    Args:
        spelled: as the user wrote it.
        beside: the directory that relative paths are relative to; None for the working directory.

    Returns:
        Both as they are written: whether the weight is a number is not checked.
    """
    name, _, weight = spelled.rpartition("=")
    if not name or any(letter in weight for letter in _OF_PATHS) or _exists(spelled, beside or Path()):
        return spelled, None
    return name, weight


def _exists(spelled: str, beside: Path) -> bool:
    """Whether something has this name, or matches it."""
    path = beside / user_path(spelled)
    return exists(path) or (glob.has_magic(spelled) and any(glob.iglob(str(path), recursive=True)))
