"""A request as it is typed on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any


def flags(request: type[Any], given: Mapping[str, Any], *, spelled: Mapping[str, str] | None = None) -> list[str]:
    """Options of a command from fields of its request; those at their default are left out.

    Args:
        request: the dataclass.
        given: values by field; None stands for an option that is not given.
        spelled: flags of fields that are not spelled like their field.
    """
    defaults = {field.name: field.default for field in fields(request)}
    typed: list[str] = []
    for name, value in given.items():
        default = defaults[name]
        if value is None or (default is not MISSING and value == default):
            continue
        flag = (spelled or {}).get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            typed.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            several = value if isinstance(value, list | tuple) else [value]
            typed += [part for one in several for part in (flag, str(one))]
    return typed
