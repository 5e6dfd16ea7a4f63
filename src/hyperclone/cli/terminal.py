"""What reaches the terminal: text of checkpoints, files and models can neither move the cursor nor clear the screen."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hyperclone.errors import printable

UNBOUNDED = 100_000  # columns of what is not a terminal, where lines are not wrapped
_DETAIL = re.compile(r"  [a-z]+: +")  # how a line of an error's details begins (errors.py)
_LEAST = 40  # columns: narrower text is wrapped by the terminal


def wrapped(text: str, *, width: int) -> str:
    """Lines of at most `width` columns, broken between words; a detail goes on below where its text begins.

    A word that is longer, such as a path, stays whole.
    """
    if width < _LEAST:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        label = _DETAIL.match(line)
        indent = " " * len(label[0]) if label else "  "
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        ) or [""]
    return "\n".join(lines)


class Terminal(Console):
    """rich's console; control characters come from rich alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text in which every character is printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
