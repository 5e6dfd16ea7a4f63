"""What tokens are worth along the way, against a law that is known in closed form and against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from hyperclone.study.frontier import Frontier, Pair, along, at_ratio, farthest, pairs
from hyperclone.study.speedup import Contender, Cost, Curve

CONTROL_LAW: Callable[[float], float] = lambda tokens: 3.0 - 0.2 * math.log(tokens / 1000)  # noqa: E731
WORTH = 0.75  # of the arm's tokens, which begins where the control is after 4,000
SOURCE = CONTROL_LAW(4000)


def curve(points: list[tuple[float, float]], *, flops: float = 6.0, rate: float = 100.0) -> Curve:
    tokens, loss = zip(*points, strict=True)
    return Curve(tokens, loss, [one / rate for one in tokens], flops)


def run_to(tokens: float, law: Callable[[float], float]) -> Curve:
    """A run whose loss is above the law's until its learning rate has decayed."""
    return curve([(0, 9.0), (tokens / 2, law(tokens / 2) + 0.3), (tokens, law(tokens))])


def arm_law(tokens: float) -> float:
    return CONTROL_LAW(4000 + WORTH * tokens)


def test_branches_give_the_law_of_their_ends() -> None:
    frontier = Frontier.of([run_to(16000, CONTROL_LAW), run_to(4000, CONTROL_LAW), run_to(8000, CONTROL_LAW)])
    assert frontier.annealed
    for tokens in (4000, 5000, 8000, 11000, 16000):
        assert frontier.at(tokens) == pytest.approx(CONTROL_LAW(tokens), abs=1e-12)
        assert frontier.reach(CONTROL_LAW(tokens)) == pytest.approx(tokens, rel=1e-9)
    assert frontier.reach(CONTROL_LAW(3999)) is frontier.reach(CONTROL_LAW(16001)) is None
    assert frontier.at(3999) is frontier.at(16001) is None
    assert frontier.seconds_at(6000) == pytest.approx(60)


def test_one_run_gives_its_smoothed_evaluations() -> None:
    frontier = Frontier.of([curve([(0, 5.0), (100, 4.0), (200, 4.4), (300, 3.0), (400, 3.2), (500, 2.0)])])
    assert not frontier.annealed
    # Medians of three: 5.0, 4.4, 4.0, 3.2, 3.0, 2.0
    assert frontier.loss == pytest.approx([5.0, 4.4, 4.0, 3.2, 3.0, 2.0])
    assert frontier.reach(3.6) == pytest.approx(250)
    assert frontier.at(250) == pytest.approx(3.6)


def test_a_loss_that_rises_in_between_is_no_progress() -> None:
    frontier = Frontier.of([curve([(0, 3.0), (100, 3.2), (200, 3.2), (300, 2.8), (400, 2.6)])])
    assert frontier.loss == pytest.approx([3.0, 3.0, 3.0, 2.8, 2.6])
    pair = Pair(arm=frontier, control=Frontier.of([curve([(0, 4.0), (1000, 3.0), (2000, 2.0)])]), source=3.0)
    assert [worth.tokens for worth in along(pair)] == [300, 400]


@pytest.fixture
def pair() -> Pair:
    control = Frontier.of([run_to(tokens, CONTROL_LAW) for tokens in (3000, 8000, 16000)])
    arm = Frontier.of([run_to(tokens, arm_law) for tokens in (2000, 4000)])
    return Pair(arm=arm, control=control, source=SOURCE, cost=Cost(30_000.0, 20.0))


def test_a_token_past_the_head_start_is_worth_what_the_law_says(pair: Pair) -> None:
    assert pair.head_start == pytest.approx(4000)
    for worth, tokens in zip(along(pair), (2000, 4000), strict=True):
        matched = 4000 + WORTH * tokens
        assert worth.matched == pytest.approx(matched)
        assert worth.token_worth == pytest.approx(WORTH)
        assert worth.speedup_tokens == pytest.approx(matched / tokens)
        assert worth.speedup_tokens == pytest.approx(WORTH * matched / (matched - 4000))  # s = g T / (T - D0)
        assert worth.speedup_flops == pytest.approx(matched / tokens)  # tokens cost the same here
        assert worth.charged_flops == pytest.approx(matched * 6 / (tokens * 6 + 30_000))
        assert worth.charged_seconds == pytest.approx(matched / 100 / (tokens / 100 + 20))


def test_at_equal_distance(pair: Pair) -> None:
    worth = at_ratio(pair, 1.5)
    assert worth is not None
    assert worth.matched == pytest.approx(6000)
    # The arm has the law itself at its two ends only: 2,000 and 4,000 tokens to the losses of 5,500 and 7,000.
    share = math.log(6000 / 5500) / math.log(7000 / 5500)
    assert worth.tokens == pytest.approx(2000 * 2**share)
    assert at_ratio(pair, 1.2) is None  # before the arm's first end
    assert at_ratio(pair, 2) is None  # past its last
    assert at_ratio(pair, 5) is None  # past the control's


@pytest.mark.parametrize(("ratio", "holds"), [(1.2, True), (1.23, True), (1.24, False), (2.0, False)])
def test_how_far_a_speedup_holds(ratio: float, holds: bool) -> None:
    """4x with a worth of 0.75 to T / D0 = 4 / 3.25 = 1.2308."""
    assert (ratio <= farthest(4, WORTH)) == holds == (WORTH * ratio / (ratio - 1) >= 4)
    assert farthest(2, 2.5) == math.inf


def test_what_the_control_has_not_is_not_said(pair: Pair) -> None:
    unknown = Pair(arm=pair.arm, control=pair.control, source=CONTROL_LAW(2000), cost=Cost(None, None))
    assert unknown.head_start is None
    assert at_ratio(unknown, 1.5) is None
    assert [(worth.token_worth, worth.charged_flops) for worth in along(unknown)] == [(None, None)] * 2


def contender(arm: str, seed: int, run: Curve, *, kind: str = "clone") -> Contender:
    return Contender(arm=arm, seed=seed, kind=kind, source="" if kind == "random" else "small", curve=run, cost=None)


def test_runs_are_paired_with_the_control_of_their_seed_branches_with_their_trunk() -> None:
    runs = [
        contender("random", seed, run_to(tokens, CONTROL_LAW), kind="random") for seed in (1, 2) for tokens in (16000,)
    ]
    runs += [contender("random-8k", 1, run_to(8000, CONTROL_LAW), kind="random")]
    runs += [contender("clone", seed, curve([(0, SOURCE), (2000, arm_law(2000))])) for seed in (1, 3)]
    runs += [contender("stacked", 1, curve([(0, 8.0), (2000, 2.6)]))]
    runs += [contender("continued", 1, curve([(0, SOURCE), (2000, 2.7)]), kind="source")]
    found = pairs(runs, "random", {"random-8k": "random"})
    assert {arm: len(seeds) for arm, seeds in found.items()} == {"clone": 1, "stacked": 1, "continued": 1}
    assert found["clone"][0].control.tokens == (8000, 16000)
    assert found["stacked"][0].source == SOURCE  # the source's own, not what a stack of its layers begins with
