"""Text to train on in tests: short documents of made-up sentences, the same every time."""

from __future__ import annotations

import json
import random
from pathlib import Path

_TEXT = "the old model grows wide and learns new words while small copies drift apart in deep warm layers of light"


def documents(count: int = 40, *, seed: int = 0) -> list[str]:
    """`count` documents of 60 to 240 characters."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(_TEXT.split(), k=draw.randint(12, 48))) + "." for _ in range(count)]


def jsonl(path: Path, texts: list[str], *, field: str = "text") -> Path:
    """A jsonl file with a document in each line."""
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path
