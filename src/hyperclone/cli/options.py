"""Requests as options, each spelled once: a command that takes a `growth: Growth` gets one option for each field."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any

import typer

from hyperclone.planning.growth import Growth

Command = Callable[..., None]
_Size = str | None
_KEYWORD = inspect.Parameter.KEYWORD_ONLY  # in any order, whatever has a default

OPTIONS: dict[str, Any] = {
    "width": Annotated[_Size, typer.Option(help="Factor for hidden, feed-forward and heads together: 2, 1.5, ...")],
    "hidden": Annotated[_Size, typer.Option(help="Hidden size: a factor (2x) or a size (1152).")],
    "ffn": Annotated[_Size, typer.Option(help="Feed-forward size: a factor or a size.")],
    "heads": Annotated[_Size, typer.Option(help="Attention heads: a factor or a number.")],
    "kv_heads": Annotated[_Size, typer.Option(help="Key-value heads; by default they follow --heads.")],
    "head_dim": Annotated[
        _Size,
        typer.Option(
            help="Head dimension, where positions allow it (OPT, GPT-2, BLOOM, MPT); --width leaves heads then."
        ),
    ],
    "layers": Annotated[_Size, typer.Option(help="Layers: a factor (1.5x) or a number.")],
    "depth_mode": Annotated[
        str, typer.Option(help="identity (new layers add nothing yet: exact) or stack (not exact).")
    ],
    "experts": Annotated[
        int | None,
        typer.Option(help="Make a dense model a mixture of this many experts (Llama, Mistral: Mixtral; Qwen 3)."),
    ],
    "top_k": Annotated[int, typer.Option(help="Experts for each token, with --experts.")],
    "expansion": Annotated[str, typer.Option(help="symmetric, or diagonal.")],
    "noise": Annotated[
        str, typer.Option(help="What tells the copies apart: split (exact), gaussian (the paper's), none.")
    ],
    "snr_db": Annotated[float, typer.Option(help="Weights over noise, in dB of power.")],
    "seed": Annotated[int, typer.Option(help="Seed of the noise: same seed, same bytes.")],
    "untie": Annotated[bool, typer.Option("--untie", help="Write the head as a tensor of its own.")],
    "dtype": Annotated[str | None, typer.Option(help="bf16, fp16, fp32 or fp64; by default the source's.")],
    "allow_rounding": Annotated[
        bool, typer.Option("--allow-rounding", help="Accept growths that bf16 or fp16 cannot hold exactly.")
    ],
}


def takes(request: type[Any], options: Mapping[str, Any]) -> Callable[[Command], Command]:
    """A command whose one parameter of type `request`, a dataclass, is read from options, with its defaults.

    An empty tuple, the default of fields that hold several values, is None at the command line.
    """
    defaults = {field.name: field.default for field in fields(request)}
    assert list(options) == list(defaults)

    def replaced(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.annotation is not request:
                parameters.append(parameter)
                continue
            taken = parameter.name
            for name, option in options.items():
                default = defaults[name]
                default = inspect.Parameter.empty if default is MISSING else None if default == () else default
                parameters.append(inspect.Parameter(name, _KEYWORD, annotation=option, default=default))

        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            several = {name: () for name, value in given.items() if value is None and defaults[name] == ()}
            command(**{taken: request(**given | several)}, **values)

        ordered = [parameter.replace(kind=_KEYWORD) for parameter in parameters]
        run.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return replaced


takes_growth = takes(Growth, OPTIONS)
