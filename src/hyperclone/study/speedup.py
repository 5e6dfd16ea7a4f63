"""Speed-up, defined once.

A run is a curve: the held-out loss L (nats per token, on one fixed text) at evaluations after
t_0 = 0 < t_1 < ... tokens.

**Smoothing.** L~_i is the median of L_{i-1}, L_i, L_{i+1}; the first and the last stay as they are. It takes out a
single spike and leaves a monotone curve alone, so that it favors nobody.

**Target.** L* is the last L~ of the control arm (random initialization) with the same seed and data order.

**Reach.** t* is where the arm's L~ first comes to L* or below, on the straight line between evaluations; 0 if it starts
there; none if it never does.

**Speed-up** is the control's whole training over what the arm needed up to t*:

    in tokens    T / t*
    in FLOPs     T f_control / (t* f_arm),                     charged: T f_control / (t* f_arm + F_source)
    in seconds   the same with the time that steps took,       charged with the source's

f is the cost of a token (training/flops.py), F_source that of the source's own training. Of a model that was grown on
the way, t f is the sum over both sizes, each with its own tokens. A control that began from a source is charged with it
as well. Tokens are not charged: a small model's tokens cost less. Uncharged figures answer "I have a small model
already"; charged ones "I have nothing yet". The published 2.2x to 4x (arXiv 2409.12903) are uncharged, in tokens, of
single runs and task accuracy.

**Token efficiency relative to the control.** An arm that got fewer tokens than the control may end above the target.
Its token efficiency is the number of tokens that the control needs until its L~ first is at the arm's last, over the
arm's own; FLOP efficiency likewise, with the source charged:

    tokens    t_match / t_arm,                     FLOPs, charged    t_match f_control / (t_arm f_arm + F_source)

Undefined where the control never comes so low: there, the speed-up says more.

**Forgetting** is the highest L after the start minus the source's own loss, not smoothed, at least 0.

Between seeds: the median, and the range from lowest to highest. A seed that never reaches the target counts as 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run.

    Attributes:
        tokens: (evaluations,) trained on before each; the first is 0, ascending.
        loss: (evaluations,) held-out, nats per token.
        seconds: (evaluations,) of training steps before each.
        flops_per_token: operations for each token of training.
        small_tokens, small_flops_per_token: tokens that a model which was grown on the way was trained on while it was
            small, the first ones, and their operations; 0 for every other run.
        step: (evaluations,) optimizer steps before each; empty where they are not needed.
        bits_per_byte: (evaluations,) held-out; empty where it is not needed.
        tasks: (evaluations,) accuracies by task, None where a task was not run.
    """

    tokens: Sequence[float]
    loss: Sequence[float]
    seconds: Sequence[float]
    flops_per_token: float
    step: Sequence[int] = ()
    bits_per_byte: Sequence[float] = ()
    tasks: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    small_tokens: float = 0
    small_flops_per_token: float = 0

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.loss) == len(self.seconds) > 0
        assert all(a < b for a, b in zip(self.tokens, self.tokens[1:], strict=False))

    @property
    def flops(self) -> list[float]:
        """(evaluations,) operations before each."""
        return [self.flops_at(tokens) for tokens in self.tokens]

    def flops_at(self, tokens: float) -> float:
        """Operations for the first tokens of the training."""
        small = min(tokens, self.small_tokens)
        return small * self.small_flops_per_token + (tokens - small) * self.flops_per_token


@dataclass(frozen=True)
class Cost:
    """What a source's own training took; None where it is not known."""

    flops: float | None = None
    seconds: float | None = None


def charged(kind: str, source: Cost | None) -> Cost | None:
    """What an arm is charged with for its source; None for random weights, which have none.

    Args:
        kind: of the arm: "random", "source", "clone" or "model" (made elsewhere, at an unknown cost).
        source: what its source's training took; None where that is not known.
    """
    if kind == "random":
        return None
    return Cost() if kind == "model" or source is None else source


@dataclass(frozen=True)
class Speedup:
    """An arm against the control, one seed.

    Attributes:
        target: the control's final smoothed loss.
        tokens, flops, seconds: until the arm reaches it; None if it never does.
        speedup_tokens, speedup_flops, speedup_seconds: the control's whole training over these; infinite at the start.
        charged_flops, charged_seconds: with the source's training; None where its cost is not known.
        difference_at_equal_tokens: final loss minus the control's; None if they were not trained equally long.
        difference_to_target: final smoothed loss minus the target, however long the arm was trained.
        token_efficiency: tokens of the control to the arm's final loss, over the arm's; None if it never gets there.
        charged_flop_efficiency: the same in FLOPs, the source's training charged.
        forgetting: highest loss above the source's after the start; None without a source.
        start, final: first and last loss.
    """

    target: float
    tokens: float | None
    flops: int | None
    seconds: float | None
    speedup_tokens: float | None
    speedup_flops: float | None
    speedup_seconds: float | None
    charged_flops: float | None
    charged_seconds: float | None
    difference_at_equal_tokens: float | None
    difference_to_target: float
    token_efficiency: float | None
    charged_flop_efficiency: float | None
    forgetting: float | None
    start: float
    final: float


def smooth(loss: Sequence[float]) -> list[float]:
    """(evaluations,) medians of three; the ends as they are."""
    inner = [statistics.median(loss[i - 1 : i + 2]) for i in range(1, len(loss) - 1)]
    return [loss[0], *inner, loss[-1]] if len(loss) > 1 else list(loss)


def reach(curve: Curve, target: float) -> float | None:
    """Tokens until the smoothed loss first is at the target; None if it never is."""
    loss = smooth(curve.loss)
    if loss[0] <= target:
        return 0.0
    for i in range(1, len(loss)):
        if loss[i] <= target:
            share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
            return curve.tokens[i - 1] + share * (curve.tokens[i] - curve.tokens[i - 1])
    return None


def forgetting(loss: Sequence[float], source: float) -> float:
    """How far the loss rises above the source's after the start."""
    return max(0.0, *(value - source for value in loss[1:])) if len(loss) > 1 else 0.0


def compare(
    arm: Curve,
    control: Curve,
    *,
    source: float | None = None,
    cost: Cost | None = None,
    control_cost: Cost | None = None,
) -> Speedup:
    """An arm against the control of the same seed.

    Args:
        arm, control: their curves.
        source: held-out loss of the source itself; None for arms without one.
        cost: of the source's training; None for arms without a source (nothing is charged).
        control_cost: of the training of the control's source, likewise.
    """
    target = smooth(control.loss)[-1]
    tokens = reach(arm, target)
    cost = Cost(0.0, 0.0) if cost is None else cost
    base = Cost(0.0, 0.0) if control_cost is None else control_cost
    whole = (control.tokens[-1], control.flops_at(control.tokens[-1]), control.seconds[-1])
    needed = None if tokens is None else (tokens, arm.flops_at(tokens), _at(arm.tokens, arm.seconds, tokens))
    plain = [None if needed is None else _ratio(a, b) for a, b in zip(whole, needed or whole, strict=True)]
    charged = [
        None if needed is None or added is None or more is None else _ratio(a + more, b + added)
        for a, more, b, added in zip(
            whole[1:], (base.flops, base.seconds), (needed or whole)[1:], (cost.flops, cost.seconds), strict=True
        )
    ]
    matched, spent = reach(control, smooth(arm.loss)[-1]), arm.tokens[-1]
    alike = math.isclose(arm.tokens[-1], control.tokens[-1])
    return Speedup(
        target=target,
        tokens=tokens,
        flops=None if needed is None else round(needed[1]),
        seconds=None if needed is None else needed[2],
        speedup_tokens=plain[0],
        speedup_flops=plain[1],
        speedup_seconds=plain[2],
        charged_flops=charged[0],
        charged_seconds=charged[1],
        difference_at_equal_tokens=arm.loss[-1] - control.loss[-1] if alike else None,
        difference_to_target=smooth(arm.loss)[-1] - target,
        token_efficiency=None if matched is None or not spent else matched / spent,
        charged_flop_efficiency=None
        if matched is None or cost.flops is None or base.flops is None or not spent
        else (control.flops_at(matched) + base.flops) / (arm.flops_at(spent) + cost.flops),
        forgetting=None if source is None else forgetting(arm.loss, source),
        start=arm.loss[0],
        final=arm.loss[-1],
    )


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float | None]) -> Spread:
        """Of a speed-up or an efficiency: None, a seed that never reaches the target, counts as 0.

        Raises:
            ValueError: there are no values.
        """
        known = [0.0 if value is None else value for value in values]
        return cls(statistics.median(known), min(known), max(known))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A finished run, as far as comparing it with others goes.

    Attributes:
        arm, seed: which.
        kind: of the arm: "random", "source", "clone" or "model" (made elsewhere).
        source: key of its source's record (records.py); empty for random weights and models made elsewhere.
        curve: its evaluations.
        cost: what it is charged with for its source (`charged`).
    """

    arm: str
    seed: int
    kind: str
    source: str
    curve: Curve
    cost: Cost | None


def source_loss(runs: Sequence[Contender], run: Contender) -> float | None:
    """The loss of the source that a run began from; None if it began from none.

    It is that of the source itself where that was trained on, too: a stacked clone does not start there.
    """
    if run.kind not in ("clone", "source"):
        return None
    same = (one for one in runs if (one.kind, one.source, one.seed) == ("source", run.source, run.seed))
    return next(same, run).curve.loss[0]


def compare_with_control(runs: Sequence[Contender], control: str) -> list[tuple[Contender, Speedup]]:
    """Every run whose seed the control has too, against the control of that seed."""
    controls = {run.seed: run for run in runs if run.arm == control}
    compared = []
    for run in runs:
        if (base := controls.get(run.seed)) is None:
            continue
        speedup = compare(run.curve, base.curve, source=source_loss(runs, run), cost=run.cost, control_cost=base.cost)
        compared.append((run, speedup))
    return compared


def _ratio(whole: float, needed: float) -> float:
    return whole / needed if needed else math.inf


def _at(x: Sequence[float], values: Sequence[float], at: float) -> float:
    """The straight line between points, at an x within them."""
    for i in range(1, len(x)):
        if at <= x[i]:
            share = (at - x[i - 1]) / (x[i] - x[i - 1])
            return values[i - 1] + share * (values[i] - values[i - 1])
    return values[-1]
