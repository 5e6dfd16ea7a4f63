"""What tokens of an arm are worth in tokens of the control, along the way: a speed-up at every loss.

A speed-up at one loss says little of another. The whole curve needs one function of the control, its **frontier**:
T(L), the tokens that it needs to the held-out loss L.

* Of an arm with branches (runs of several lengths that share their stable phase) its points are the ends of its runs,
  each after a whole decay. Between two of them L is taken for a straight line over log T, as a power law is over a
  short range.
* Of an arm with one run, its smoothed evaluations, on straight lines. In the middle of a schedule the rate has not
  decayed yet, so the loss is above that of a run which ends there: T(L) of a control is too large, and the t of an arm
  as well.

Nothing is said beyond the ends: neither of losses below the last point, nor above the first.

For an arm with the loss L after t tokens, and L_0 of its source (all of one seed):

    head start            D0 = T(L_0)            what the control takes to where the arm begins
    speed-up              s  = T(L) / t
    worth of a token      g  = (T(L) - D0) / t   tokens of the control for each of the arm, past the head start

so that s = g T / (T - D0): near the source s is large whatever the arm does, far away it nears g. A speed-up of S or
more holds just as far as T / D0 <= S / (S - g). In FLOPs and seconds, s is the ratio of those; charged, the arm's have
those of its source added, and the control's of its own, if it began from one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hyperclone.study.speedup import Contender, Cost, Curve, smooth, source_loss

RATIOS = (1.1, 1.33, 2.0, 4.0)  # of T to the head start, at which a speed-up is stated


@dataclass(frozen=True)
class Frontier:
    """The least loss that an arm has by its number of tokens, with one seed.

    Attributes:
        tokens: (points,) ascending.
        loss: (points,) nats per token, never rising.
        seconds: (points,) of training steps.
        flops_at: operations for its first tokens, as of `Curve`.
        annealed: whether every point is the end of a run. Between points, loss is straight over the logarithm of
            tokens then, else over tokens.
    """

    tokens: Sequence[float]
    loss: Sequence[float]
    seconds: Sequence[float]
    flops_at: Callable[[float], float]
    annealed: bool

    @classmethod
    def of(cls, runs: Sequence[Curve]) -> Frontier:
        """Of the runs of one arm with one seed: one run, or one and its branches."""
        if len(runs) == 1:
            run = runs[0]
            least = list(accumulate(smooth(run.loss), min))
            return cls(run.tokens, least, run.seconds, run.flops_at, annealed=False)
        ends = sorted((run.tokens[-1], run.loss[-1], run.seconds[-1]) for run in runs)
        tokens, loss, seconds = zip(*ends, strict=True)
        return cls(tokens, list(accumulate(loss, min)), seconds, runs[0].flops_at, annealed=True)

    def reach(self, loss: float) -> float | None:
        """Tokens to a loss; None beyond the ends."""
        if loss > self.loss[0] or loss < self.loss[-1]:
            return None
        for i, below in enumerate(self.loss):
            if below <= loss:
                if i == 0:
                    return self.tokens[0]
                share = (self.loss[i - 1] - loss) / (self.loss[i - 1] - below)
                return self._between(i, share)
        return None

    def at(self, tokens: float) -> float | None:
        """The loss after so many tokens; None beyond the ends."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        scale = math.log if self.annealed else float
        i = max(1, next(i for i, more in enumerate(self.tokens) if more >= tokens))
        low, high = self.tokens[i - 1], self.tokens[i]
        share = (scale(tokens) - scale(low)) / (scale(high) - scale(low))
        return self.loss[i - 1] + share * (self.loss[i] - self.loss[i - 1])

    def seconds_at(self, tokens: float) -> float:
        """Seconds of training to so many tokens within the ends: a straight line between points."""
        points = [(0.0, 0.0), *zip(self.tokens, self.seconds, strict=True)]
        for (low, before), (high, after) in pairwise(points):
            if low < high and tokens <= high:
                return before + (tokens - low) / (high - low) * (after - before)
        return self.seconds[-1]

    def _between(self, i: int, share: float) -> float:
        low, high = self.tokens[i - 1], self.tokens[i]
        return low * (high / low) ** share if self.annealed else low + share * (high - low)


@dataclass(frozen=True)
class Worth:
    """An arm at one of its points, in terms of the control with the same seed.

    Attributes:
        tokens, loss: of the arm.
        matched: tokens of the control to that loss.
        head_start: tokens of the control to the loss of the arm's source; None where that is beyond its frontier, and
            for arms without a source.
        speedup_tokens, speedup_flops, speedup_seconds: s.
        charged_flops, charged_seconds: with what the sources took; None where that is not known.
        token_worth: g; None without a head start.
    """

    tokens: float
    loss: float
    matched: float
    head_start: float | None
    speedup_tokens: float
    speedup_flops: float
    speedup_seconds: float
    charged_flops: float | None
    charged_seconds: float | None
    token_worth: float | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An arm and the control, of one seed.

    Attributes:
        arm, control: their frontiers.
        source: loss of the arm's source; None without one.
        cost, control_cost: what the training of their sources took; None without one.
    """

    arm: Frontier
    control: Frontier
    source: float | None = None
    cost: Cost | None = None
    control_cost: Cost | None = None

    @property
    def head_start(self) -> float | None:
        """D0; None where the source's loss is beyond the control's frontier, and without a source."""
        return None if self.source is None else self.control.reach(self.source)


def pairs(runs: Sequence[Contender], control: str, branch_of: Mapping[str, str]) -> dict[str, list[Pair]]:
    """By arm, its seeds that the control has, too; of the control and of branches none.

    Args:
        runs: finished ones.
        control: name of the control arm.
        branch_of: arms from whose stable phase the runs of other arms begin, by these.
    """
    together: dict[tuple[str, int], list[Contender]] = {}
    for run in runs:
        together.setdefault((branch_of.get(run.arm, run.arm), run.seed), []).append(run)
    found: dict[str, list[Pair]] = {}
    for (arm, seed), its_runs in together.items():
        if arm == control or (control, seed) not in together:
            continue
        base, one = together[control, seed], its_runs[0]
        pair = Pair(
            arm=Frontier.of([run.curve for run in its_runs]), control=Frontier.of([run.curve for run in base]),
            source=source_loss(runs, one), cost=one.cost, control_cost=base[0].cost,
        )  # fmt: skip
        found.setdefault(arm, []).append(pair)
    return found


def along(pair: Pair) -> list[Worth]:
    """The arm at each of its points whose loss the control has, too."""
    return [
        _worth(pair, tokens, loss, matched)
        for tokens, loss in _new_lows(pair.arm)
        if tokens > 0 and (matched := pair.control.reach(loss)) is not None
    ]


def at_ratio(pair: Pair, ratio: float) -> Worth | None:
    """The arm at the loss that the control has after `ratio` times the head start; None if one has no such point."""
    start = pair.head_start
    loss = None if start is None else pair.control.at(ratio * start)
    tokens = None if loss is None else pair.arm.reach(loss)
    if start is None or loss is None or not tokens:
        return None
    return _worth(pair, tokens, loss, ratio * start)


def farthest(speedup: float, token_worth: float) -> float:
    """The T / D0 up to which an arm with this worth of a token has this speed-up; infinite if it always has."""
    return math.inf if token_worth >= speedup else speedup / (speedup - token_worth)


def _worth(pair: Pair, tokens: float, loss: float, matched: float) -> Worth:
    start, nothing = pair.head_start, Cost(0.0, 0.0)
    added, base = pair.cost or nothing, pair.control_cost or nothing
    flops = pair.control.flops_at(matched), pair.arm.flops_at(tokens)
    seconds = pair.control.seconds_at(matched), pair.arm.seconds_at(tokens)
    return Worth(
        tokens=tokens,
        loss=loss,
        matched=matched,
        head_start=start,
        speedup_tokens=matched / tokens,
        speedup_flops=flops[0] / flops[1],
        speedup_seconds=seconds[0] / seconds[1] if seconds[1] else math.inf,
        charged_flops=_charged(flops, base.flops, added.flops),
        charged_seconds=_charged(seconds, base.seconds, added.seconds),
        token_worth=None if start is None else (matched - start) / tokens,
    )


def _charged(spent: tuple[float, float], base: float | None, added: float | None) -> float | None:
    if base is None or added is None or not spent[1] + added:
        return None
    return (spent[0] + base) / (spent[1] + added)


def _new_lows(arm: Frontier) -> Iterator[tuple[float, float]]:
    """Its points, without those after which the loss was lower before."""
    least = math.inf
    for tokens, loss in zip(arm.tokens, arm.loss, strict=True):
        if loss < least:
            yield tokens, loss
            least = loss
