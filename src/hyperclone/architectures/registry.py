"""The families that ship with the package, and which of them a model is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hyperclone.architectures import family_file
from hyperclone.architectures.family import Family
from hyperclone.architectures.heads import with_head
from hyperclone.errors import FamilyError, UnknownArchitectureError

_UPCYCLED = re.compile(r"^\[upcycled", re.MULTILINE)
_MODEL_TYPES = re.compile(r"^model_types\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)


@cache
def families() -> dict[str, Family]:
    """Every family that ships with the package, by model type."""
    return {model_type: _family(file) for model_type, file in _files().items()}


@cache
def _files() -> dict[str, str]:
    """The family file of every model type, found without parsing them: a plan needs one of a hundred."""
    return {
        model_type: name
        for name, text in _texts().items()
        for model_type in re.findall(r'"([^"]+)"', _MODEL_TYPES.findall(text)[0])
    }


@cache
def _texts() -> dict[str, str]:
    directory = resources.files("hyperclone.architectures").joinpath("families")
    return {
        entry.name: entry.read_text("utf-8")
        for entry in sorted(directory.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


@cache
def _family(file: str) -> Family:
    return family_file.parse(_texts()[file], name=Path(file).stem, file=f"families/{file}")


def upcycled() -> list[Family]:
    """The families of mixtures that a dense model can become; no other file is parsed."""
    return [_family(file) for file, text in _texts().items() if _UPCYCLED.search(text)]


def shipped(model_type: object) -> Family | None:
    """The family of this model type that ships with the package, None where there is none."""
    file = _files().get(model_type) if isinstance(model_type, str) else None
    return None if file is None else _family(file)


def known(config: Mapping[str, Any], user_family: Family | None = None) -> Family | None:
    """The family of a model: the user's where one is given, else the one that ships; None if there is none.

    It has the head that the config's `architectures` name.
    """
    family = user_family or shipped(config.get("model_type"))
    return None if family is None else with_head(family, config)


def _some_of(model_type: str) -> str:
    """What could have been found: the types that look like it, of all of them."""
    known_types = sorted(_files())
    alike = difflib.get_close_matches(model_type, known_types, n=4)
    return f"one of the {len(known_types)} types that `hyperclone families` lists" + (
        f", as {', '.join(alike)}" if alike else ""
    )


def of_config(config: Mapping[str, Any], *, user_family: Family | None = None) -> Family:
    """The family of a model: the user's where one is given, else the one that ships for its model type.

    Raises:
        FamilyError: the architecture is not known, or not the given file's; the message names known ones like it.
    """
    model_type = config.get("model_type")
    if user_family is not None:
        if model_type not in user_family.model_types:
            raise FamilyError(
                "this family file is not for this model",
                file=user_family.file,
                field="model_types",
                found=", ".join(user_family.model_types),
                expected=model_type,
                cure="if the architecture is the same, add its model_type to the file",
            )
        return with_head(user_family, config)
    family = known(config)
    if family is None:
        raise UnknownArchitectureError(
            "this architecture is not known" if model_type else "config.json names no model_type",
            file="config.json",
            field="model_type",
            found=model_type,
            expected=_some_of(str(model_type)),
            cure="`hyperclone family draft SRC -o my.toml` proposes a family file; --family my.toml uses it",
        )
    return family
