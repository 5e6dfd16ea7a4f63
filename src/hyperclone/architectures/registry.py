"""The families that ship with the package, and which of them a model is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hyperclone.architectures import family_file
from hyperclone.architectures.family import Family
from hyperclone.architectures.heads import with_head
from hyperclone.errors import FamilyError, UnknownArchitectureError


@cache
def families() -> dict[str, Family]:
    """Every family that ships with the package, by model type."""
    by_type: dict[str, Family] = {}
    for entry in sorted(
        resources.files("hyperclone.architectures").joinpath("families").iterdir(), key=lambda e: e.name
    ):
        if entry.name.endswith(".toml"):
            file = f"families/{entry.name}"
            family = family_file.parse(entry.read_text("utf-8"), name=Path(file).stem, file=file)
            by_type.update(dict.fromkeys(family.model_types, family))
    return by_type


def known(config: Mapping[str, Any], user_family: Family | None = None) -> Family | None:
    """The family of a model: the user's where one is given, else the one that ships; None if there is none.

    It has the head that the config's `architectures` name.
    """
    model_type = config.get("model_type")
    family = user_family or (families().get(model_type) if isinstance(model_type, str) else None)
    return None if family is None else with_head(family, config)


def of_config(config: Mapping[str, Any], *, user_family: Family | None = None) -> Family:
    """The family of a model: the user's where one is given, else the one that ships for its model type.

    Raises:
        FamilyError: the architecture is not known, or not the given file's; the message lists the known ones.
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
            expected="one of " + ", ".join(sorted(families())),
            cure="`hyperclone family draft SRC -o my.toml` proposes a family file; --family my.toml uses it",
        )
    return family
