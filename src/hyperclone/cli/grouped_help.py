"""Help of a command with many options, under headings. Plain text: rich would make `--help` slow."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class GroupedCommand(TyperCommand):
    """Lists options under the heading of their `rich_help_panel`, in the order in which they are declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, headed options, and the other options last."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            heading = getattr(parameter, "rich_help_panel", None)
            if parameter.param_type_name == "argument":
                sections["Arguments"].append(record)
            elif heading is not None:
                sections.setdefault(heading, []).append(record)
            else:
                others.append(record)
        for heading, records in {**sections, "Options": others}.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
