"""Tokenizing for `hyperclone train`, against `datasets.map` of the same tokenizer over the same text with all cores.

    python -m bench.tokens [--tokenizer DIR] [--megabytes 24] [--rounds 3] [-o bench/results/tokens.json]

The text is Python's standard library in documents of 4,000 characters, in a jsonl file; the tokenizer, unless another
is given, that of the model that ships with hyperclone. `hyperclone` is what a training does before its first step: read
the file, tokenize it, and write tokens, starts of documents and their SHA-256. `datasets.map` (batched, a process for
each core) is measured without reading the file, which `load_dataset` has turned into a table before; its output is a
table of ids on disk. Each is a process of its own, in turn; CPU seconds include those of the processes that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import hyperclone
from bench.grow import publish
from bench.train import spread

TOKENIZER = Path(hyperclone.__file__).parent / "demo/seedling"


def write_text(file: Path, megabytes: float) -> int:
    """Write the text; its characters."""
    characters = 0
    with file.open("w") as stream:
        for module in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            text = "" if "site-packages" in module.parts else module.read_text("utf-8", errors="ignore")
            for start in range(0, len(text), 4000):
                document = text[start : start + 4000]
                stream.write(json.dumps({"text": document}) + "\n")
                characters += len(document)
                if characters >= megabytes * 1e6:
                    return characters
    return characters


def ours(text: Path, tokenizer: Any, scratch: Path) -> int:
    """As a training does it; the number of tokens."""
    from hyperclone.training import data_sources, token_cache

    reading = token_cache.ReadingOptions("text", "document", 0.0)
    sources = data_sources.find(str(text))
    corpus, _ = token_cache.prepare(sources, reading, tokenizer, end=tokenizer.eos_token_id, cache=scratch)
    return corpus.tokens - corpus.documents  # an end-of-text token follows each


def mapped(text: Path, tokenizer: Any, scratch: Path) -> int:
    """By `datasets.map`; the number of tokens."""
    import datasets

    table = datasets.load_dataset("json", data_files=[str(text)], split="train", cache_dir=str(scratch))
    begin = _clocks()
    ids = table.map(
        lambda rows: {"input_ids": tokenizer(rows["text"], return_attention_mask=False)["input_ids"]},
        batched=True, num_proc=os.cpu_count(), remove_columns=table.column_names,
    )  # fmt: skip
    _report(begin)
    return sum(len(row) for row in ids["input_ids"])


def one(kind: str, text: Path, tokenizer: Path) -> None:
    """One run in this process; prints its figures."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    with tempfile.TemporaryDirectory(dir=text.parent) as scratch:
        if kind == "hyperclone":
            begin = _clocks()
            tokens = ours(text, loaded, Path(scratch))
            _report(begin)
        else:
            tokens = mapped(text, loaded, Path(scratch))
    print(tokens)


def _clocks() -> tuple[float, float]:
    """Wall and CPU seconds, those of ended children included."""
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def _report(begin: tuple[float, float]) -> None:
    print(json.dumps([round(now - then, 3) for now, then in zip(_clocks(), begin, strict=True)]))


def main() -> None:
    """Both in turn; medians, ranges, ratios within a round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="a directory")
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--one", choices=["hyperclone", "datasets.map"], help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.text, args.tokenizer)
        return
    runs: dict[str, list[list[float]]] = {"hyperclone": [], "datasets.map": []}
    counts = set()
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.jsonl"
        characters = write_text(text, args.megabytes)
        for _ in range(args.rounds):
            for kind in runs:
                command = [sys.executable, "-m", "bench.tokens", "--one", kind, "--text", text,
                           "--tokenizer", args.tokenizer]  # fmt: skip
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
                runs[kind].append(json.loads(printed[-2]))
                counts.add(int(printed[-1]))
    assert len(counts) == 1, f"not the same tokens: {counts}"
    pairs = list(zip(runs["hyperclone"], runs["datasets.map"], strict=True))
    clocks = ("wall", "cpu")
    publish(
        {
            "what": "tokenizing", "tokenizer": args.tokenizer.name, "characters": characters, "tokens": counts.pop(),
            "figures": {
                "seconds": {kind: {clock: spread([run[n] for run in found]) for n, clock in enumerate(clocks)}
                            for kind, found in runs.items()},
                "ratio": {clock: spread([round(a[n] / b[n], 3) for a, b in pairs]) for n, clock in enumerate(clocks)},
            },
        },
        args.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
