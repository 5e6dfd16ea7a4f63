"""A refusal for rounding names growths that are exact: each that it names is, and the ones that must be there are."""

from __future__ import annotations

from typing import Any

import pytest

from hyperclone.errors import GrowthError
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from tests.helpers import models
from tests.helpers.headers import headers
from tests.proof.test_rounded_families import ROWS

# (model, type, request) -> growths that the message must name
NAMED: dict[tuple[str, str, str], set[str]] = {
    ("gemma", "bf16", "--width 2"): {"--width 2 --hidden 1x", "--width 2 --hidden 4x", "--width 4x"},
    ("gemma2", "bf16", "--width 2"): {"--width 2 --hidden 1x", "--width 2 --hidden 4x", "--width 4x"},
    ("gemma3", "bf16", "--width 2"): {"--width 2 --hidden 1x", "--width 2 --hidden 4x", "--width 4x"},
    ("gemma3", "bf16", "--hidden 2x"): {"--hidden 4x"},
    ("gemma", "bf16", "--width 5"): {"--width 5 --hidden 1x", "--width 5 --hidden 4x", "--width 5 --hidden 16x",
                                     "--width 4x", "--width 16x"},
    ("gemma2", "bf16", "--width 3"): {"--width 4x"},  # transformers wants hidden / heads to be a whole number
    ("gemma", "fp16", "--width 4"): {"--width 4 --hidden 1x"},  # a half may round in fp16
    ("gemma", "fp16", "--width 64"): {"--width 64 --hidden 1x"},  # 65x would be too large a factor
    ("qwen3-grouped-tied", "bf16", "--width 1.5"): {"--width 1.5 --hidden 1x", "--width 1.5 --hidden 2x", "--width 2x"},
    ("qwen3-grouped-tied", "bf16", "--width 2.5"): {"--width 2.5 --hidden 1x", "--width 2.5 --hidden 2x",
                                                    "--width 2.5 --hidden 3x", "--width 2x", "--width 3x"},
    ("opt-untied", "bf16", "--width 1.5 --head-dim 1.5x"): {"--width 1.5 --hidden 4x --head-dim 4x", "--width 2x"},
    ("opt-untied", "bf16", "--hidden 2x --head-dim 2x"): {"--hidden 4x --head-dim 4x", "--hidden 2x --heads 2x"},
}  # fmt: skip


def request(flags: str) -> Growth:
    """A request as it is typed."""
    words = flags.split()
    return Growth(**{name.removeprefix("--").replace("-", "_"): value  # type: ignore[arg-type]
                     for name, value in zip(words[::2], words[1::2], strict=True)})  # fmt: skip


@pytest.mark.parametrize("untie", [False, True], ids=["", "untie"])
@pytest.mark.parametrize("case", NAMED, ids=" ".join)
def test_what_a_refusal_names_as_exact_is_exact(
    case: tuple[str, str, str], untie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, dtype, flags = case
    monkeypatch.setattr("tests.helpers.headers.MODELS", models.MODELS | ROWS)
    given: dict[str, Any] = {"dtype": dtype, "untie": untie}
    source = headers(name)
    growth = request(flags)
    with pytest.raises(GrowthError) as refused:
        planner.make_plan(source, Growth(**{**vars(growth), **given}))
    named = refused.value.details["cure"].partition("; else ")[0].partition(": ")[2].split(", or ")
    tail = f" --dtype {dtype}"
    ways = {way.replace(" --untie", "").removesuffix(tail) for way in named}
    assert ways == NAMED[case]
    assert all((" --untie" in way) == untie for way in named)
    for way in ways:
        assert not planner.make_plan(source, Growth(**{**vars(request(way)), **given})).rounds


def test_padding_channels_are_told_to_be_of_no_whole_multiple_and_roots_of_no_power_of_four(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.helpers.headers.MODELS", models.MODELS | ROWS)
    notes = " ".join(planner.make_plan(headers("qwen3-grouped-tied"), Growth(width=1.5)).notes)
    assert "Whole multiples are exact." in notes
    assert "square root" not in notes
    notes = " ".join(planner.make_plan(headers("gemma"), Growth(width=1.5)).notes)
    assert "Whole multiples are exact." not in notes
    assert "1x, 4x or 16x" in notes
