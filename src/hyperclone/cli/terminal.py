"""What reaches the terminal: text of checkpoints, files and models can neither move the cursor nor clear the screen."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hyperclone.errors import printable


class Terminal(Console):
    """rich's console; control characters come from rich alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text in which every character is printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
