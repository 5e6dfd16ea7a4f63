"""Where the fuzzing's files are: in memory where there is such a place. Without torch, so that it is imported first."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PLACE = "HYPERCLONE_FUZZING_PLACE"  # environment variable: the directory, which whoever set it removes


def parent_directory() -> Path:
    """Where temporary directories are made."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
