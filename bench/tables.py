"""The tables of docs/performance.md, from bench/results.

    python -m bench.tables            # write them
    python -m bench.tables --check    # exit code 1 if the page has other figures

A table lies between the lines `<!-- table: NAME -->` and `<!-- end -->`. Cells are medians over rounds; ratios are
taken within a round, with the lowest and the highest in brackets.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
_BETWEEN = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = PAGE.read_text("utf-8")
    if parser.parse_args().check:
        sys.exit(text != with_tables(text))
    PAGE.write_text(with_tables(text), "utf-8")


def with_tables(text: str) -> str:
    """The page with the tables of the committed results."""
    return _BETWEEN.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def commands() -> str:
    """What each command of `bench/grow.py model` takes."""
    figures = _figures("grow-1b")
    return _table(
        ["command", "wall", "to the copy", "user", "system", "memory"],
        (
            [
                name,
                _seconds(seconds),
                _range(figures["ratio_to_copy"].get(name)),
                _seconds([figures["user_seconds"][name]]),
                _seconds([figures["system_seconds"][name]]),
                f"{figures['peak_MB'][name] / 1000:.2f} GB",
            ]
            for name, seconds in figures["seconds"].items()
        ),
    )


def kinds() -> str:
    """Every kind of growth, against a copy of its own output."""
    return _table(
        ["growth", "output", "grow", "copy", "ratio", "user", "memory"],
        (
            [
                kind,
                f"{one['output_bytes'] / 1e9:.1f} GB",
                _seconds(one["seconds"]["grow"]),
                _seconds(one["seconds"]["copy"]),
                _range(one["ratio_to_copy"]["grow"]),
                _seconds([one["user_seconds"]["grow"]]),
                f"{one['peak_MB']['grow'] / 1000:.2f} GB",
            ]
            for kind, one in _figures("grow-kinds").items()
        ),
    )


TABLES: dict[str, Callable[[], str]] = {"grow-1b": commands, "grow-kinds": kinds}


def _figures(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / f"bench/results/{name}.json").read_text("utf-8"))["figures"]
    return figures


def _seconds(rounds: list[float]) -> str:
    return f"{median(rounds):.1f} s"


def _range(ratio: list[float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    aligned = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, aligned, *rows))


if __name__ == "__main__":
    main()
