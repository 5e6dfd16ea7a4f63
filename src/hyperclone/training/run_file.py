"""A run file: the options of `hyperclone train` as fields of a TOML file, relative paths relative to the file.

model = "smollm2-480m"             # a directory or Hub id
data = ["corpus/*.jsonl.gz"]
output = "run"
tokens = "2B"
lr = 1e-4
difference_lr = 3e-4

[grow]                             # with grow_at: options of `hyperclone grow`
width = 2

Options on the command line come before the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError, TrainingError
from hyperclone.io.files import user_path
from hyperclone.io.option_files import OptionFile
from hyperclone.options import flag_of, option_of
from hyperclone.planning.growth import Growth
from hyperclone.training.config import Training

PATHS = {
    "model": True,
    "data": True,
    "eval_data": True,
    "output": False,
    "cache": False,
    "receipt": False,
    "branch_from": False,
}  # True: or names on the Hub
PLACEHOLDERS = {"model": "-", "data": ("-",), "output": "-"}
_INSTEAD = ({"difference_lr", "source_lr"},)  # of these, one that is typed is instead of the file's other
_OF_STUDIES = ("arms", "sources", "seeds")


def is_run_file(model: str) -> bool:
    """Whether what stands in a model's place is a run file: its name ends in .toml, and it is no directory."""
    return model.lower().endswith(".toml") and not user_path(model).is_dir()


def read(file: Path, given: Mapping[str, Any]) -> Training:
    """The request of a run file.

    Args:
        file: its path.
        given: options that were given besides, by field; they come before the file's.

    Raises:
        TrainingError: it cannot be read, a field is unknown or has a value that it cannot have, or one is missing.
    """
    reader = OptionFile(file, error=TrainingError, what="run file")
    table = reader.toml()
    if study := next((name for name in _OF_STUDIES if name in table), None):
        raise reader.wrong("this is a study, not a run file", study, cure=f"hyperclone study {file}")
    growth = _growth(reader, table)
    known = [field.name for field in fields(Training)]
    options = reader.options(Training, table, "", known=known, placeholders=PLACEHOLDERS, paths=PATHS) | growth
    instead = {name for pair in _INSTEAD for name in pair if pair & given.keys()}
    options = {name: value for name, value in options.items() if name not in instead} | dict(given)
    for field in fields(Training):
        if field.default is MISSING and field.name not in options:
            flag = "" if option_of(field).positional else f", or {flag_of(field)} on the command line"
            raise reader.wrong("a field is missing", field.name, cure=f"give {field.name} in the file{flag}")
    try:
        return Training(**options)
    except HypercloneError as error:
        at = error.details.get("field")
        raise reader.wrong_option(error) if at in table and at not in given else error from None


def _growth(reader: OptionFile, table: dict[str, Any]) -> dict[str, Growth]:
    """The field `grow`, taken out of a file's table; nothing if it has none."""
    if "grow" not in table:
        return {}
    known = [field.name for field in fields(Growth)]
    return {"grow": Growth(**reader.options(Growth, table.pop("grow"), "grow", known=known, placeholders={}, paths={}))}
