"""A request's fields as options of a command: `takes(Growth)` gives one for each field, with its help and default."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from hyperclone.errors import OptionError
from hyperclone.options import choices_of, flag_of, hints_of, option_fields, option_of

Command = Callable[..., None]
FromFile = Callable[[str, Mapping[str, Any]], Any]  # (a positional word, options that were typed) -> request, or None
_CONTEXT = "context"
_KEYWORD = inspect.Parameter.KEYWORD_ONLY  # in any order, whatever has a default


def takes(request: type[Any], *, from_file: FromFile | None = None) -> Callable[[Command], Command]:
    """Decorate a command that has one parameter of type `request`: it then takes an option for each field instead.

    Args:
        request: a dataclass whose fields are options (`hyperclone.options`).
        from_file: makes the request where the command's positional word names a file with its fields, else returns
            None. Options that were typed come before the file's, so each flag has a `--no-` form as well.
    """
    hints = hints_of(request)
    options = [_parameter(field, hints[field.name], files=from_file is not None) for field in option_fields(request)]
    several = {field.name for field in fields(request) if field.default == ()}
    positional = next((field.name for field in option_fields(request) if option_of(field).positional), "")

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
            if from_file is not None:
                typed = _typed(values.pop(_CONTEXT)) - {positional}
                made = from_file(given[positional], {name: given[name] for name in given if name in typed})
                if made is not None:
                    command(**{taken: made}, **values)
                    return
            given |= {name: () for name in several if given[name] is None}  # how the command line says "none given"
            _check_given(request, given)
            command(**{taken: request(**given)}, **values)

        if from_file is not None:
            parameters.append(inspect.Parameter(_CONTEXT, _KEYWORD, annotation=typer.Context))
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return replaced


def _typed(context: Any) -> set[str]:
    """Names of the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _check_given(request: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse a request that lacks a field, which the parser lets pass where a file may give it."""
    for field in fields(request):
        if field.default is MISSING and given[field.name] is None:
            flag, metavar = flag_of(field), option_of(field).metavar
            cure = f"give {flag} {metavar}, or a run file with {field.name} in place of MODEL"
            raise OptionError("this option is required", field=field.name, cure=cure)


def _parameter(field: Field[Any], hint: Any, *, files: bool) -> inspect.Parameter:
    """The parameter that typer makes an option of; `files`: a file may give it."""
    required = field.default is MISSING and (option_of(field).positional or not files)
    default = None if field.default is MISSING or field.default == () else field.default
    of_words = _type(field, hint, required=required)
    annotation: Any = Annotated[of_words, _typer_option(field, hint, files=files)]
    return inspect.Parameter(
        field.name, _KEYWORD, annotation=annotation, default=inspect.Parameter.empty if required else default
    )


def _typer_option(field: Field[Any], hint: Any, *, files: bool) -> Any:
    described, flag = option_of(field), flag_of(field)
    metavar = described.metavar or "|".join(choices_of(hint)) or None
    if described.positional:
        return typer.Argument(metavar=metavar, help=described.help)
    negated = hint is bool and files
    if hint == bool | None or negated:
        flag = f"{flag}/{flag.replace('--', '--no-', 1)}"
    flags = (flag,) if described.short is None else (flag, described.short)
    needed = " [required, here or in the file]" if files and field.default is MISSING else ""
    return typer.Option(
        *flags, metavar=metavar, help=described.help + needed, rich_help_panel=described.group, show_default=not negated
    )


def _type(field: Field[Any], hint: Any, *, required: bool) -> Any:
    """What typer makes of the words on the command line: it knows no unions, and lists instead of sequences."""
    if option_of(field).commas:
        return str | None
    if get_origin(hint) is Sequence:
        listed: Any = list[str]
        return listed if required else listed | None
    union = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if str in union or choices_of(hint):  # a number that may have a unit, or words that the request itself checks
        return str if type(None) not in union and (required or field.default is not MISSING) else str | None
    return hint
