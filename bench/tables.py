"""The tables of docs/performance.md, from bench/results.

    python -m bench.tables            # write them
    python -m bench.tables --check    # exit code 1 if the page has other figures

A table lies between the lines `<!-- table: NAME -->` and `<!-- end -->`. Cells are medians over rounds; ratios are
taken within a round, with the lowest and the highest in brackets. What has not been measured is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "bench/results"
_BETWEEN = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)
Row = tuple[str, str, str]  # what, its figure, against what and how much


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
    return _BETWEEN.sub(lambda found: f"{found[1]}{_written(found[2])}\n{found[3]}", text)


def _written(name: str) -> str:
    if name == "overview":
        return overview(RESULTS)
    content = _content(RESULTS, name)
    return "Not measured yet (`make bench`)." if content is None else TABLES[name](content)


def overview(results: Path) -> str:
    """All measurements in one table; those that are not there are left out."""
    rows = (row for name, found in OVERVIEW.items() if (c := _content(results, name)) for row in found(c))
    return _table(["measurement", "figure", "ratio"], ([*row] for row in rows))


def commands(content: dict[str, Any]) -> str:
    """What each command of `bench/grow.py model` takes."""
    figures = content["figures"]
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


def kinds(content: dict[str, Any]) -> str:
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
            for kind, one in content["figures"].items()
        ),
    )


def memory(content: dict[str, Any]) -> str:
    """Peak memory of models of several depths."""
    return _table(
        ["source", "output", "grow", "memory", "verify", "memory"],
        (
            [
                f"{one['source_GB']:.1f} GB",
                f"{one['output_GB']:.1f} GB",
                f"{one['grow_seconds']:.1f} s",
                f"{one['grow_peak_MB'] / 1000:.2f} GB",
                f"{one['verify_seconds']:.1f} s",
                f"{one['verify_peak_MB'] / 1000:.2f} GB",
            ]
            for one in content["figures"]
        ),
    )


def parts(content: dict[str, Any]) -> str:
    """What a growth spends its time on: medians, without what a part's process contains besides."""
    units = [content["figures"][unit] for unit in ("seconds", "user_seconds", "system_seconds")]
    columns = [net(unit) for unit in units]
    return _table(
        ["part", "wall", "user", "system"],
        ([part, *(f"{max(column[part], 0.0):.1f} s" for column in columns)] for part in columns[0]),
    )


def net(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the parts of `bench/parts.py`, each without the parts that its process contains besides."""
    whole = {part: median(values) for part, values in seconds.items()}
    return {
        "starting Python, torch and numba": whole["start"],
        "reading": whole["read"] - whole["start"],
        "arithmetic": whole["read, split"] - whole["read"],
        "drawing": whole["read, split, draw"] - whole["read, split"],
        "copying into the page cache": whole["page cache"] - whole["start"],
        "the disk": whole["page cache, disk"] - whole["page cache"],
        "the whole growth": whole["grow"],
    }


def _growths(content: dict[str, Any]) -> Iterator[Row]:
    figures = content["figures"]
    size = f"{figures['output_bytes'] / 1e9:.1f} GB"
    for name, seconds in figures["seconds"].items():
        ratio = "" if name in ("copy", "start-up") else f"{_range(figures['ratio_to_copy'][name])} of the copy"
        yield f"{name}, {size}", _seconds(seconds), ratio
    yield "verify", "", f"{_range(figures['verify_to_read_and_hash'])} of reading and hashing"


def _kinds(content: dict[str, Any]) -> Iterator[Row]:
    for kind, one in content["figures"].items():
        yield f"grow, {kind}", _seconds(one["seconds"]["grow"]), f"{_range(one['ratio_to_copy']['grow'])} of the copy"


def _memory(content: dict[str, Any]) -> Iterator[Row]:
    for one in content["figures"]:
        yield f"memory of grow, {one['output_GB']:.1f} GB", f"{one['grow_peak_MB'] / 1000:.2f} GB", ""


def _parts(content: dict[str, Any]) -> Iterator[Row]:
    for part, seconds in net(content["figures"]["seconds"]).items():
        yield f"part of a growth: {part}", f"{max(seconds, 0.0):.1f} s", ""


def _plans(content: dict[str, Any]) -> Iterator[Row]:
    for name, one in content["figures"].items():
        what = f"plan, {name}, {one['tensors']:,} tensors" if "tensors" in one else name
        yield what, f"{one['median_cpu_seconds']:.2f} s of a core", ""


def _optimizer(content: dict[str, Any]) -> Iterator[Row]:
    for name, one in content["nanoseconds_per_weight"].items():
        ratio = content["ratio_to_fused_adamw"].get(name)
        against = f"{_spread(ratio)} of fused AdamW" if ratio else "1.00"
        yield f"optimizer step, {name}", f"{one['median']:.1f} ns a weight", against


def _training(content: dict[str, Any]) -> Iterator[Row]:
    for prefix, what in (("", "training"), ("evaluation_", "evaluation")):
        for kind, base in (("hyperclone", "plain"), ("rotated", "hyperclone")):
            one, ratio = (
                content[kind].get(f"{prefix}tokens_per_cpu_second"),
                content["run by run"].get(f"{prefix}tokens_per_cpu_second, {kind} over {base}"),
            )
            if one and ratio:
                against = "a plain loop's" if base == "plain" else "AdamW's"
                yield (f"{what}, {kind}", f"{one['median']:,.0f} tokens a CPU second", f"{_spread(ratio)} of {against}")


def _tokenizing(content: dict[str, Any]) -> Iterator[Row]:
    figures = content["figures"]
    for clock, what in (("wall", "s"), ("cpu", "s of a core")):
        seconds = figures["seconds"]["hyperclone"][clock]["median"]
        ratio = _spread(figures["ratio"][clock])
        yield (
            f"tokenizing {content['characters'] / 1e6:.1f} MB of text",
            f"{seconds:.1f} {what}",
            f"{ratio} of datasets.map",
        )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "grow-1b": commands, "grow-kinds": kinds, "grow-threads": kinds, "grow-memory": memory, "parts": parts,
}  # fmt: skip
OVERVIEW: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "grow-1b": _growths, "grow-kinds": _kinds, "grow-threads": _kinds, "grow-memory": _memory, "parts": _parts,
    "plan": _plans, "optimizer": _optimizer, "train": _training, "tokens": _tokenizing,
}  # fmt: skip


def _content(results: Path, name: str) -> dict[str, Any] | None:
    file = results / f"{name}.json"
    content: dict[str, Any] | None = json.loads(file.read_text("utf-8")) if file.exists() else None
    return content


def _seconds(rounds: list[float]) -> str:
    return f"{median(rounds):.1f} s"


def _range(ratio: list[float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def _spread(ratio: dict[str, float]) -> str:
    return _range([ratio["median"], ratio["lowest"], ratio["highest"]])


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    aligned = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, aligned, *rows))


if __name__ == "__main__":
    main()
