"""The number that a report opens with exists, and its sentence says what it means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hyperclone.report import headline, load
from hyperclone.report.load import Results
from tests.report.made import compared, edited, results, study


def answered(found: Results) -> tuple[str, str]:
    answer = headline.answer(found)
    assert "reached" not in answer.number
    return answer.number, " ".join([answer.sentence, *answer.caveats, *answer.remarks])


def test_the_answer_is_the_median_with_its_range_and_what_it_leaves_out(runs: Path) -> None:
    number, said = answered(results(runs))
    assert number == "5.00x"
    assert "5.00x (4.00x to 6.00x) fewer tokens (3 seeds; the source's own training is not charged)." in said
    assert "the final held-out loss of the control arm, “random weights”, with" in said
    assert "With the source's own training charged as well, the speed-up in FLOPs is 1.00x." in said
    assert "0.0200 nats above the source's" in said


@pytest.mark.parametrize(
    ("values", "number", "words"),
    [
        ([None, None], "1.50x", "takes 1.50x as many tokens (2 seeds; the source's own training is not charged)."),
        ([math.inf, math.inf], "1.50x", "To the loss where"),
        (
            [2.0, None],
            "1.00x",
            "in 1 of 2 seeds, and never in 1: its speed-up in tokens is 1.00x (not reached to 2.00x), where never",
        ),
        ([None, None, 2.0], "1.50x", "It reaches the control's final loss in 1 of 3 seeds, with 2.00x fewer tokens."),
        (
            [None, None, 2.0],
            "1.50x",
            "With the source's own training charged as well, the control arm takes 0.50x as many FLOPs",
        ),
        ([0.7, 0.8, 0.9], "0.80x", "needs more tokens than the control arm"),
        ([math.inf, 5.0, 4.0], "5.00x", "5.00x (4.00x to at the start) fewer tokens"),
        ([2.0], "2.00x", "One seed is a demonstration"),
    ],
)
def test_other_endings_are_said_as_they_are(
    tmp_path: Path, values: list[float | None], number: str, words: str
) -> None:
    runs = study(tmp_path / "r", seeds=len(values))
    found, said = answered(results(runs, {"random": [1.0] * len(values), "clone": values}))
    assert found == number
    assert words in said


@pytest.mark.parametrize(
    ("other", "kind", "number"),
    [
        ({}, headline.EFFICIENCY, "1.50x"),
        ({"token_efficiency": None}, headline.DIFFERENCE, "−0.100"),
        ({"token_efficiency": 0.0}, headline.DIFFERENCE, "−0.100"),
        (
            {"token_efficiency": None, "difference_at_equal_tokens": None, "difference_to_target": 0.2},
            headline.END_DIFFERENCE,
            "+0.200",
        ),
    ],
)
@pytest.mark.parametrize("factor", [None, math.inf], ids=["never", "start"])
def test_what_does_not_exist_gives_way_to_the_next(
    factor: float | None, other: dict[str, float | None], kind: str, number: str
) -> None:
    found = headline.measure([compared(factor, **other)] * 3)
    assert found is not None
    assert (found.kind, found.shown) == (kind, number)


def test_a_speed_up_of_most_seeds_comes_first_and_an_efficiency_of_few_does_not_count() -> None:
    most = headline.measure([compared(3.0), compared(2.0), compared(None)])
    assert most is not None
    assert (most.kind, most.median) == (headline.SPEEDUP, 2.0)
    few = headline.measure([compared(None), *[compared(None, token_efficiency=None)] * 2])
    assert few is not None
    assert few.kind == headline.DIFFERENCE
    assert headline.measure([]) is None


def test_a_difference_says_against_whom_and_why_there_is_no_speed_up(runs: Path) -> None:
    speedups: dict[str, list[float | None]] = {"random": [1.0] * 3, "clone": [math.inf] * 3}
    number, said = answered(results(runs, speedups, token_efficiency=None))
    assert number == "−0.100"
    assert "ends 0.100 nats below the control arm, “random weights”, after 40k tokens each" in said
    assert "starts at or below the control's end, so that no speed-up can be stated (3 seeds; the source's own" in said


def test_without_a_control_the_lowest_loss_is_the_answer(runs: Path) -> None:
    content = json.loads((runs / "study.json").read_text())
    (runs / "study.json").write_text(json.dumps({**content, "control": None}))
    found = load.read(runs)
    number, said = answered(found)
    lowest = 3.1 + 0.5 * math.exp(-4) + 0.02  # made.py: the clone's end, its second of three seeds
    assert number == f"{lowest:.3f}"
    assert "ends at the lowest held-out loss of 4 arms, trained for 40k tokens (median of 3 seeds" in said
    assert "no control arm" in said


def test_before_the_first_run_has_ended_the_answer_is_how_many_have(runs: Path) -> None:
    edited(runs / "runs.csv", "status", lambda row: "waiting")
    number, said = answered(load.read(runs))
    assert number == "0/15"
    assert "is finished" in said


def test_runs_that_are_missing_are_counted_beside_the_answer(runs: Path) -> None:
    edited(runs / "runs.csv", "status", lambda row: "interrupted" if row["key"] == "plain-1" else row["status"])
    number, said = answered(results(runs))
    assert number == "5.00x"
    assert "1 of 15 runs is not finished; 3 of 15 runs failed." in said


def test_a_source_that_costs_more_than_it_saves_is_said(runs: Path) -> None:
    said = answered(results(runs, charged_flops=0.5))[1]
    assert "it takes more FLOPs than the control arm: a speed-up of 0.50x." in said


def test_a_cost_that_is_not_known_is_said_to_be_left_out(runs: Path) -> None:
    edited(runs / "sources.csv", "flops", lambda row: "")
    head = results(runs, charged_flops=None)
    assert "What the source's own training took is not known, so it is not charged." in answered(head)[1]
    assert all(one.charged_flops is None for one in load.read(runs).speedups["clone"])
