"""A request's fields as options of a command: `takes(Growth)` gives one for each field, with its help and default."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from hyperclone.options import choices_of, flag_of, hints_of, option_of

Command = Callable[..., None]
_KEYWORD = inspect.Parameter.KEYWORD_ONLY  # in any order, whatever has a default


def takes(request: type[Any]) -> Callable[[Command], Command]:
    """Decorate a command that has one parameter of type `request`: it then takes an option for each field instead.

    Args:
        request: a dataclass whose fields are options (`hyperclone.options`).
    """
    hints = hints_of(request)
    options = [_parameter(field, hints[field.name]) for field in fields(request)]
    several = {field.name for field in fields(request) if field.default == ()}

    def replaced(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        (taken,) = (name for name, parameter in signature.parameters.items() if parameter.annotation is request)
        parameters = [
            replacement
            for name, parameter in signature.parameters.items()
            for replacement in (options if name == taken else [parameter.replace(kind=_KEYWORD)])
        ]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {option.name: values.pop(option.name) for option in options}
            given |= {name: () for name in several if given[name] is None}  # how the command line says "none given"
            command(**{taken: request(**given)}, **values)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return replaced


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """The parameter that typer makes an option of."""
    default = inspect.Parameter.empty if field.default is MISSING else None if field.default == () else field.default
    return inspect.Parameter(
        field.name, _KEYWORD, annotation=Annotated[_type(field, hint), _typer_option(field, hint)], default=default
    )


def _typer_option(field: Field[Any], hint: Any) -> Any:
    described, flag = option_of(field), flag_of(field)
    metavar = described.metavar or "|".join(choices_of(hint)) or None
    if described.positional:
        return typer.Argument(metavar=metavar, help=described.help)
    if hint == bool | None:
        flag = f"{flag}/{flag.replace('--', '--no-', 1)}"
    flags = (flag,) if described.short is None else (flag, described.short)
    return typer.Option(*flags, metavar=metavar, help=described.help, rich_help_panel=described.group)


def _type(field: Field[Any], hint: Any) -> Any:
    """What typer makes of the words on the command line: it knows no unions, and lists instead of sequences."""
    if option_of(field).commas:
        return str | None
    if get_origin(hint) is Sequence:
        listed: Any = list[str]
        return listed if field.default is MISSING else listed | None
    union = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if str in union or choices_of(hint):  # a number that may have a unit, or words that the request itself checks
        return str | None if type(None) in union else str
    return hint
