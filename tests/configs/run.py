"""What hyperclone does with released models as people have them: a small one is made of each released config and grown.

    python -m tests.configs.run            writes docs/released-models.md (some twenty minutes on one core)
    python -m tests.configs.run mpt phi3   prints the rows of these types

Unmodified transformers builds and saves each small model, and loads it again by the released names. hyperclone's proof
compares the grown model with it in unmodified transformers; for fp32 weights their logits are compared here as well.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.drafting.draft import draft
from hyperclone.errors import reason_with_class
from hyperclone.hf.models import quiet
from hyperclone.hf.tiny_models import build_model, randomize_parameters
from tests.configs.released import Released, released, small_config
from tests.helpers.unmodified import SAME, distance, logits

PAGE = Path(__file__).parents[2] / "docs" / "released-models.md"
WORKS = "works"
WITH = "with options"
DRAFTED = "a drafted family file"


@dataclass(frozen=True)
class Outcome:
    """What came of one request.

    Attributes:
        option: what it took beyond `--width`, as the messages say; "" for nothing.
        refusal: the message, where it cannot be grown like this; "" where it works.
    """

    option: str = ""
    refusal: str = ""

    @property
    def kind(self) -> str:
        return "refused" if self.refusal else WITH if self.option else WORKS


@dataclass(frozen=True)
class Row:
    """A released config and what came of each request: 2x in fp32, 2x in the released type, 1.5x in fp32."""

    model: Released
    outcomes: tuple[Outcome, Outcome, Outcome]


def released_dtype(model: Released) -> str:
    """The type of the released weights: float32 where the config names none, as in transformers."""
    return str(model.config.get("dtype") or model.config.get("torch_dtype") or "float32")


def try_model(model: Released) -> Row:
    """Grow a small one by the three requests."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "fp32"
        save_small(model, source, torch.float32)
        two = try_growth(source, 2.0)
        half = try_growth(source, 1.5)
        if released_dtype(model) == "float32":
            return Row(model, (two, two, half))
        short = Path(scratch) / "short"
        save_small(model, short, getattr(torch, released_dtype(model)))
        return Row(model, (two, try_growth(short, 2.0), half))


def save_small(model: Released, path: Path, dtype: torch.dtype) -> None:
    """A small model with random weights, saved by transformers, with the released config.json at small sizes.

    Raises:
        AssertionError: transformers does not load it by that config, or not to finite logits.
    """
    config = small_config(model.config)
    with quiet(errors=True):
        randomize_parameters(build_model(config), seed=0).to(dtype).save_pretrained(path)
        (path / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
        assert bool(logits(path).isfinite().all()), model.name


def try_growth(source: Path, factor: float) -> Outcome:
    """Grow by the width alone; where the message names an option, with that."""
    growth = Growth(width=factor)
    try:
        grow_and_compare(source, growth)
    except HypercloneError as error:
        return _with_option(source, growth, error)
    return Outcome()


def grow_and_compare(source: Path, growth: Growth, *, family: Path | None = None) -> None:
    """Grow with the full proof, and compare the logits of fp32 models by unmodified transformers alone.

    Raises:
        HypercloneError: refused, or the proof failed.
        AssertionError: the proof passed, and it is another function.
    """
    with tempfile.TemporaryDirectory() as scratch:
        grown = Path(scratch) / "grown"
        result = hyperclone.grow(source, grown, growth, family=family)
        assert result.proof is not None
        assert result.proof.verdict == "proved", result.proof.verdict
        if source.name == "fp32":
            with quiet():
                off = distance(grown, source)
            assert off < SAME, off


def _with_option(source: Path, growth: Growth, error: HypercloneError) -> Outcome:
    """The same with what the message names: options, one after the other, or a drafted family file."""
    if "family draft" in error.details.get("cure", ""):
        return _with_draft(source, growth)
    added = ""
    while named := [option for option in _options(growth) if option[0].split()[0] in _unmet(error, added)]:
        option, growth = named[0]
        added = f"{added} {option}".strip()
        try:
            grow_and_compare(source, growth)
        except HypercloneError as next_error:
            error = next_error
        else:
            return Outcome(option=f"`{added}`")
    return Outcome(refusal=(f"with `{added}`: " if added else "") + _sentence(error))


def _unmet(error: HypercloneError, added: str) -> str:
    """A message without the options that are given already."""
    return " ".join(word for word in str(error).split() if word.strip("(),;") not in added.split())


def _options(growth: Growth) -> list[tuple[str, Growth]]:
    """Options that messages name, with the factor of this request, the better ones first."""
    factor = f"{growth.width:g}x"
    return [
        (f"--head-dim {factor}", replace(growth, head_dim=factor)),
        ("--dtype fp32", replace(growth, dtype="fp32")),
        ("--allow-rounding", replace(growth, allow_rounding=True)),
    ]


def _with_draft(source: Path, growth: Growth) -> Outcome:
    """The same with a family file that is drafted for the model; one draft serves all its requests."""
    file, failure = source.with_suffix(".toml"), source.with_suffix(".failure")
    if not file.exists() and not failure.exists():
        try:
            drafted = draft(source)
            failures = drafted.failures
            file.write_text(drafted.text, "utf-8")
        except HypercloneError as error:
            failures = [_sentence(error)]
        if failures:
            failure.write_text(failures[0], "utf-8")
    if failure.exists():
        return Outcome(refusal=f"this architecture is not known, and no draft is proved: {failure.read_text('utf-8')}")
    try:
        grow_and_compare(source, growth, family=file)
    except HypercloneError as error:
        return Outcome(refusal=f"with {DRAFTED}: {_sentence(error)}")
    return Outcome(option=DRAFTED)


def _sentence(error: HypercloneError) -> str:
    """A message in one line, without the file, which is a temporary one, and without the list of known types."""
    found, cure = error.details.get("found"), error.details.get("cure")
    known = error.details.get("field") == "model_type"
    parts = [error.problem, f"found {found}" if found and not known else "", cure or ""]
    return "; ".join(part for part in parts if part)


def page(rows: Sequence[Row]) -> str:
    """docs/released-models.md."""
    messages = list(dict.fromkeys(o.refusal for row in rows for o in row.outcomes if o.refusal))
    counts = [Counter(row.outcomes[i].kind for row in rows) for i in range(3)]
    kinds = [[kind, *(str(count[kind]) for count in counts)] for kind in (WORKS, WITH, "refused")]
    numbered = [[str(number), plain(message)] for number, message in enumerate(messages, 1)]
    return _PAGE.format(
        models=len(rows),
        types=len({row.model.model_type for row in rows}),
        version=transformers.__version__,
        summary=_table(["", *_REQUESTS], kinds),
        table=_table(["Model", "Type", "Weights", *_REQUESTS], [_cells(row, messages) for row in rows]),
        messages=_table(["", "Message"], numbered),
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def _cells(row: Row, messages: Sequence[str]) -> list[str]:
    name = row.model.name + ("" if row.model.complete else " \\*")
    cells = [_said(outcome, messages) for outcome in row.outcomes]
    return [name, f"`{row.model.model_type}`", _SHORT[released_dtype(row.model)], *cells]


def _said(outcome: Outcome, messages: Sequence[str]) -> str:
    if outcome.refusal:
        return f"refused ({messages.index(outcome.refusal) + 1})"
    return f"with {outcome.option}" if outcome.option else WORKS


def plain(message: str) -> str:
    return re.sub(r"\s+", " ", message).replace("|", "\\|")


_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_REQUESTS = ("2x in fp32", "2x in the released type", "1.5x in fp32")
_PAGE = """# Released models

What `hyperclone grow` does with {models} released models of {types} types, by their own config.json.
This page is written by `python -m tests.configs.run`.

The configs are in `tests/configs/released/`, with where each was read.
Of each a small one is made that differs in its sizes alone; every other field is as released.
Unmodified transformers {version} builds a model of it with random weights, saves it and loads it again.
Then it is grown: by `--width 2` in fp32, by `--width 2` in the released type, and by `--width 1.5` in fp32.

* *works*: no other option was given, and the proof passed in unmodified transformers.
* *with* options: the messages named them, and with them the proof passed.
* *refused*: the number is that of the message, at the end of this page.

A star marks a config of which the text that it was read in has only a part.
*Weights* is the type that the config names, and fp32 where it names none, as in transformers.
Whether 1.5 times the real sizes are whole numbers is another question, which `hyperclone plan` answers.

{summary}

## By model

{table}

## Messages

{messages}
"""


def main(types: Sequence[str]) -> None:
    """Try the models of these types, or all and write the page."""
    rows = []
    for model in released():
        if not types or model.model_type in types:
            start = time.perf_counter()
            try:
                row = try_model(model)
            except Exception as error:  # a fault: say so and go on
                row = Row(model, (Outcome(refusal=f"A FAULT: {reason_with_class(error)}"),) * 3)
            rows.append(row)
            said = " / ".join(outcome.refusal or outcome.option or WORKS for outcome in row.outcomes)
            print(f"{time.perf_counter() - start:5.1f} s  {model.model_type}  {model.name}: {said}", flush=True)
    if not types:
        PAGE.write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
