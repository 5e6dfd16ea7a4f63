"""Whether Muon can be told which matrices a model has: its architecture must be known. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from hyperclone.architectures import registry
from hyperclone.conversion import receipt
from hyperclone.errors import FamilyError
from hyperclone.io import hub
from hyperclone.io.files import exists


def matrices_known(directory: Path) -> bool:
    """Whether the architecture of a model directory is known, or its receipt has the family file that describes it.

    Of a directory without a config too: that the model is missing is for those to say who read it.
    """
    if not exists(directory / "config.json"):
        return True
    recorded = receipt.read(directory)
    try:
        registry.of_config(hub.config(directory), user_family=None if recorded is None else recorded.family)
    except FamilyError:
        return False
    return True
