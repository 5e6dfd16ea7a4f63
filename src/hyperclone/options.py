"""The options of a growth, spelled once: a command that takes a `growth: Growth` gets one option for each field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any

import typer

from hyperclone.growth import Growth

_Size = str | None

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


def takes_growth(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `growth` is read from the options above, each with the default of its field."""
    defaults = {field.name: field.default for field in fields(Growth)}
    assert list(OPTIONS) == list(defaults)
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "growth":
            parameters.append(parameter)
            continue
        for name, option in OPTIONS.items():
            parameters.append(parameter.replace(name=name, annotation=option, default=defaults[name]))

    @wraps(command)
    def run(**values: Any) -> None:
        growth = Growth(**{name: values.pop(name) for name in OPTIONS})
        command(growth=growth, **values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flags(growth: Growth) -> str:
    """A growth as it is typed: every option that is not at its default."""
    typed = []
    for field in fields(Growth):
        value = getattr(growth, field.name)
        if value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            typed.append(flag if value is True else f"{flag} {value}")
    return " ".join(typed)
