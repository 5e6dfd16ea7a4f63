"""The typer application: its name, its help and `--version`. Commands register themselves (*_commands.py)."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hyperclone.version import __version__

_ORDER = ("plan", "grow", "verify", "collapse", "train", "groups", "eval", "anatomy", "study", "report", "demo")


class _InOrder(TyperGroup):
    """Lists commands in the order in which people meet them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_ORDER, *sorted(self.commands.keys() - set(_ORDER))]


app = typer.Typer(
    name="hyperclone",
    cls=_InOrder,
    help="Grow a trained language model into a wider one that computes the same function, and prove it.",
    epilog="Start with: hyperclone plan SRC --width 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

family_app = typer.Typer(
    name="family",
    help="Family files, which describe architectures.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(family_app)


def _version(value: bool) -> None:
    if value:
        print(f"hyperclone {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
