"""Options of a request: what a field of a dataclass says about itself, once, for code, command line and study files."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hyperclone.errors import HypercloneError

_KEY = "option"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}  # of values in files


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field as an option.

    Attributes:
        help: what it means, in a line or two; what a default of None stands for comes last, in brackets.
        flag: on the command line; None for `--` and the field's name.
        metavar: what stands for its value in help; None for its choices (of a Literal) or its type.
        least: smallest whole number that it can be.
        short: its one-letter flag.
        commas: of several values: they are typed in one, separated by commas; else the flag is repeated.
        group: heading that it stands under in help.
        positional: it is an argument of the command, without a flag.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    least: int | None = None
    group: str | None = None
    positional: bool = False
    short: str | None = None
    commas: bool = False


def option(
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    least: int | None = None,
    group: str | None = None,
    positional: bool = False,
    short: str | None = None,
    commas: bool = False,
) -> Mapping[str, Option]:
    """Metadata of a field that is an option (`Option` has the arguments)."""
    return {
        _KEY: Option(
            help=help,
            flag=flag,
            metavar=metavar,
            least=least,
            group=group,
            positional=positional,
            short=short,
            commas=commas,
        )
    }


def option_fields(request: type[Any]) -> tuple[Field[Any], ...]:
    """The fields that are options; a field without such metadata is for Python, or a table of a file, alone."""
    return tuple(field for field in fields(request) if _KEY in field.metadata)


def option_of(field: Field[Any]) -> Option:
    """What a field says about itself."""
    described = field.metadata[_KEY]
    assert isinstance(described, Option)
    return described


def flag_of(field: Field[Any]) -> str:
    """A field's flag on the command line."""
    return option_of(field).flag or f"--{field.name.replace('_', '-')}"


def flags(request: type[Any], given: Mapping[str, Any]) -> list[str]:
    """A request as it is typed on a command line, in the parts that a process gets; defaults are left out.

    Args:
        request: a dataclass whose fields are options.
        given: values by field; None stands for an option that is not given.
    """
    by_name = {field.name: field for field in fields(request)}
    typed: list[str] = []
    for name, value in given.items():
        field = by_name[name]
        if value is None or (field.default is not MISSING and value == field.default):
            continue
        if isinstance(value, bool):
            typed.append(flag_of(field) if value else flag_of(field).replace("--", "--no-", 1))
        else:
            several = value if isinstance(value, list | tuple) else [value]
            if option_of(field).commas and several:
                several = [",".join(map(str, several))]
            typed += [part for item in several for part in (flag_of(field), str(item))]
    return typed


def hints_of(request: type[Any]) -> Mapping[str, Any]:
    """The types of a request's fields."""
    return get_type_hints(request)


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a type allows: those of a Literal, alone or in a union; empty for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in choices_of(part))


def fits(hint: Any, value: Any) -> bool:
    """Whether a value from a file is of a field's type; choices and ranges are the request's to check."""
    if (parts := _parts(hint)) != (hint,):
        return any(fits(part, value) for part in parts)
    if get_origin(hint) is Sequence:
        several = value if isinstance(value, list | tuple) else [value]
        return all(fits(get_args(hint)[0], one) for one in several)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def kind_of(hint: Any) -> str:
    """A field's type, for people who write a file."""
    parts, choices = _parts(hint), choices_of(hint)
    kinds = [_KINDS[part] for part in parts if part in _KINDS]
    lists = [f"{kind_of(get_args(part)[0])}, or a list of such" for part in parts if get_origin(part) is Sequence]
    return " or ".join([*kinds, *lists, *([", ".join(choices)] if choices else [])])


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type alone for any other."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def check(request: Any, error: type[HypercloneError]) -> None:
    """Check values that need nothing else to be judged: choices and whole numbers.

    Args:
        request: an instance of a dataclass whose fields are options.
        error: to raise.

    Raises:
        HypercloneError: a value that is none of the choices, or no whole number of at least `least`.
    """
    hints = hints_of(type(request))
    for field in option_fields(type(request)):
        described, value, choices = option_of(field), getattr(request, field.name), choices_of(hints[field.name])
        if value is None and field.default is None:
            continue
        if choices and value not in choices:
            raise error(f"unknown {field.name}", field=field.name, found=value, expected=", ".join(choices))
        if described.least is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < described.least
        ):
            raise error("not a whole number", field=field.name, found=value, expected=f"{described.least} or more")
