"""Speed-up means what its definition says, for every curve."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperclone.study.speedup import (
    Contender,
    Cost,
    Curve,
    Spread,
    compare,
    compare_with_control,
    forgetting,
    reach,
    smooth,
)
from tests.helpers.examples import examples

losses = st.lists(st.floats(0.5, 10), min_size=2, max_size=12)


def curve(loss: list[float], *, flops: float = 1.0, step: float = 100.0) -> Curve:
    """Evaluations every `step` tokens, at 10 tokens a second."""
    tokens = [step * i for i in range(len(loss))]
    return Curve(tokens, loss, [t / 10 for t in tokens], flops)


def test_an_arm_that_falls_twice_as_fast_is_twice_as_fast() -> None:
    control = curve([8, 7, 6, 5, 4])
    arm = curve([8, 6, 4, 3, 2.5])
    found = compare(arm, control)
    assert found.target == 4
    assert (found.tokens, found.speedup_tokens) == (200, 2.0)
    assert found.speedup_seconds == 2.0
    assert found.difference_at_equal_tokens == -1.5


def test_the_target_is_reached_between_evaluations() -> None:
    assert reach(curve([5, 4, 2]), 3) == 150


def test_flops_count_what_a_token_costs_and_the_charge_is_the_sources_training() -> None:
    control, arm = curve([8, 6, 4], flops=4.0), curve([5, 4, 3.5], flops=2.0)
    found = compare(arm, control, source=5.0, cost=Cost(flops=600.0, seconds=10.0))
    assert found.speedup_tokens == 2.0  # 200 tokens against 100
    assert found.speedup_flops == 4.0  # 800 against 200
    assert found.charged_flops == 1.0  # 800 against 200 + 600
    assert found.charged_seconds == 1.0  # 20 s against 10 + 10


def test_flops_are_a_whole_number_wherever_the_target_is_reached() -> None:
    assert compare(curve([5, 3], flops=7), curve([5, 4], flops=7)).flops == 350
    flops = compare(curve([6, 3], flops=7), curve([5, 4], flops=7)).flops
    assert flops == 467  # 2/3 of 100 tokens at 7 each
    assert isinstance(flops, int)


def test_a_cost_that_is_not_known_is_not_taken_for_nothing() -> None:
    found = compare(curve([5, 3]), curve([8, 4]), source=5.0, cost=Cost())
    assert found.charged_flops is None
    assert found.charged_seconds is None


def test_an_arm_that_never_gets_there_has_no_speedup() -> None:
    found = compare(curve([9, 8]), curve([8, 4]))
    assert (found.tokens, found.flops, found.speedup_tokens, found.charged_flops) == (None, None, None, None)
    assert found.difference_to_target == 4


def test_token_efficiency_is_what_the_control_needs_to_the_same_loss() -> None:
    control = curve([8, 7, 6, 5, 4], flops=6.0)
    short = curve([6.5, 6, 5.5], flops=3.0)  # ends, after 200 tokens, where the control is after 250
    found = compare(short, control, source=6.5, cost=Cost(900.0, 0.0))
    assert (found.speedup_tokens, found.token_efficiency) == (None, 1.25)
    assert found.charged_flop_efficiency == 250 * 6 / (200 * 3 + 900)
    below = compare(curve([5, 3]), control, source=5.0, cost=Cost())
    assert (below.token_efficiency, below.charged_flop_efficiency) == (None, None)
    assert compare(control, control).token_efficiency == 1


def test_an_arm_that_starts_there_is_infinitely_fast_but_not_when_its_source_is_charged() -> None:
    found = compare(curve([3, 2]), curve([8, 4], flops=6.0), source=3.0, cost=Cost(300.0, 5.0))
    assert found.speedup_tokens == math.inf
    assert found.charged_flops == 2.0  # 600 against 300


def test_arms_trained_for_other_lengths_are_not_compared_at_equal_tokens() -> None:
    assert compare(curve([5, 3]), curve([8, 6, 4])).difference_at_equal_tokens is None


def test_one_lucky_evaluation_is_not_reaching() -> None:
    assert reach(curve([9, 8, 3, 8, 7]), 5) is None
    assert reach(curve([9, 8, 3, 3, 7]), 5) == 160  # 8 -> 3 on the smoothed curve


@given(losses)
def test_smoothing_is_numpys_median_inside_and_nothing_at_the_ends(loss: list[float]) -> None:
    found = smooth(loss)
    expected = [loss[0], *(float(np.median(loss[i - 1 : i + 2])) for i in range(1, len(loss) - 1)), loss[-1]]
    assert found == expected


@given(losses)
def test_smoothing_leaves_a_falling_curve_alone(loss: list[float]) -> None:
    falling = sorted(loss, reverse=True)
    assert smooth(falling) == falling


@examples(100)
@given(losses, st.floats(0.5, 10))
@example([0.5000000000000001, 0.5], 0.5)
def test_reaching_agrees_with_looking_at_every_token(loss: list[float], target: float) -> None:
    found = reach(curve(loss), target)
    evaluated = 100.0 * np.arange(len(loss))
    tokens = np.union1d(np.linspace(0, evaluated[-1], 4001), evaluated)  # a curve may touch the target in one of these
    exact = [Fraction(value) for value in smooth(loss)]  # a curve may fall by less than any tolerance in all its length

    def below(token: float) -> bool:
        i = min(int(token // 100), len(exact) - 2)
        return exact[i] + (Fraction(token) / 100 - i) * (exact[i + 1] - exact[i]) <= target

    first = next((token for token in tokens.tolist() if below(token)), None)
    if found is None or first is None:
        assert found is first is None
        assert min(smooth(loss)) > target
    else:
        assert abs(first - found) <= evaluated[-1] / 4000 + 1e-6


@given(losses)
def test_the_control_against_itself_is_never_slower_than_once(loss: list[float]) -> None:
    found = compare(curve(loss), curve(loss))
    assert found.speedup_tokens is not None
    assert found.speedup_tokens >= 1
    assert found.difference_at_equal_tokens == 0


@given(losses, st.floats(0.5, 10))
def test_forgetting_is_the_highest_point_after_the_start(loss: list[float], source: float) -> None:
    assert forgetting(loss, source) == max(0.0, max(np.asarray(loss[1:]) - source))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0, 3.0, 4.0], (3.0, 2.0, 4.0)), ([2.0, None, 4.0], (2.0, 0.0, 4.0)), ([None], (0.0, 0.0, 0.0))],
)
def test_over_seeds_a_run_that_never_arrives_counts_as_zero(
    values: list[float | None], expected: tuple[float, float, float]
) -> None:
    assert Spread.over(values) == Spread(*expected)


def contender(arm: str, kind: str, loss: list[float], *, seed: int = 1) -> Contender:
    cost = None if kind == "random" else Cost(0.0, 0.0)
    return Contender(arm=arm, seed=seed, kind=kind, source="small", curve=curve(loss), cost=cost)


def test_runs_are_compared_with_the_control_of_their_seed_and_forget_what_their_source_knew() -> None:
    control = contender("random", "random", [8, 6, 4])
    source, stacked = contender("continued", "source", [5, 4.5, 4.4]), contender("stack", "clone", [7, 5.25, 4])
    alone = contender("stack", "clone", [7, 5, 4], seed=2)
    found = {run.arm: speedup for run, speedup in compare_with_control([control, source, stacked, alone], "random")}
    assert {*found} == {"random", "continued", "stack"}  # of the second seed there is no control
    assert found["stack"].forgetting == 0.25  # above the source itself, not above where the clone starts
    assert found["random"].forgetting is None
    assert found["stack"].speedup_tokens == 1.0
