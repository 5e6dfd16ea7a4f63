"""The answer in words: the one number that a page opens with, worded so that it cannot be misread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperclone.report.load import Results
from hyperclone.study.records import FAILED, FINISHED
from hyperclone.study.speedup import Speedup, Spread
from hyperclone.units import short_count

SPEEDUP, EFFICIENCY, DIFFERENCE, END_DIFFERENCE = "speed-up", "efficiency", "equal tokens", "at the end"
LOWEST, RUNS = "lowest loss", "runs"
UNITS = {
    SPEEDUP: "speed-up in tokens",
    EFFICIENCY: "token efficiency relative to the control",
    DIFFERENCE: "nats of held-out loss, against the control at equal tokens",
    END_DIFFERENCE: "nats of held-out loss, against the control at its end",
    LOWEST: "nats per token, the lowest final held-out loss",
    RUNS: "runs finished",
}


@dataclass(frozen=True)
class Measure:
    """An arm against the control in the first number that exists.

    Attributes:
        kind: SPEEDUP, EFFICIENCY, DIFFERENCE, or END_DIFFERENCE where the two were not trained equally long.
        values: by seed; None is the speed-up of one that never reaches the control, the efficiency of one that ends
            lower.
    """

    kind: str
    values: Sequence[float | None]

    @property
    def median(self) -> float:
        """Over seeds; a seed that never reaches the control counts as 0."""
        if self.kind == SPEEDUP:
            return Spread.over(self.values).median
        return statistics.median(value for value in self.values if value is not None)

    @property
    def shown(self) -> str:
        """2.29x, or a difference with its sign: −0.031."""
        return factor(self.median) if self.kind in (SPEEDUP, EFFICIENCY) else signed(self.median)


@dataclass(frozen=True)
class Answer:
    """What a report opens with.

    Attributes:
        kind: of the number: one of UNITS, whose text says what it is.
        number, sentence: the answer, and what it means: against whom, over how many seeds, what is charged.
        caveats: why it may change: few seeds, runs that are missing.
        remarks: what belongs beside it.
    """

    kind: str
    number: str
    sentence: str
    caveats: Sequence[str] = ()
    remarks: Sequence[str] = ()


def measure(rows: Sequence[Speedup]) -> Measure | None:
    """The first of these that exists: speed-up in tokens, token efficiency, loss difference at equal tokens.

    A speed-up that is 0 (most seeds never reach the control) or infinite (they begin there) does not, nor does an
    efficiency that most seeds lack. The loss difference at the end, however long both were trained, always does.
    None if there are no seeds to compare.
    """
    if not rows:
        return None
    factors = [row.speedup_tokens for row in rows]
    if 0 < Spread.over(factors).median < math.inf:
        return Measure(SPEEDUP, factors)
    efficiencies = [row.token_efficiency for row in rows]
    known = [value for value in efficiencies if value is not None]
    if 2 * len(known) > len(rows) and statistics.median(known) > 0:
        return Measure(EFFICIENCY, efficiencies)
    differences = [row.difference_at_equal_tokens for row in rows]
    if all(value is not None for value in differences):
        return Measure(DIFFERENCE, differences)
    return Measure(END_DIFFERENCE, [row.difference_to_target for row in rows])


def answer(results: Results) -> Answer:
    """The number that the page opens with, for the headline arm; without a comparison, the lowest loss."""
    arm, control = results.headline, results.control
    rows = results.speedups.get(arm, []) if arm is not None and arm in results.runs else []
    found = measure(rows)
    if arm is None or control is None or found is None:
        return _uncompared(results)
    sentence = {
        SPEEDUP: _speedup, EFFICIENCY: _efficiency, DIFFERENCE: _difference, END_DIFFERENCE: _difference,
    }[found.kind](results, arm, control, rows)  # fmt: skip
    remarks = [
        _also_reached(rows) if found.kind != SPEEDUP else "",
        _also_efficient(rows) if found.kind != EFFICIENCY else "",
        _charged(rows, on_the_way="grow_at" in results.arms[arm]),
        _rise(rows),
    ]
    return Answer(found.kind, found.shown, sentence, _caveats(results, len(rows)), [one for one in remarks if one])


def _speedup(results: Results, arm: str, control: str, rows: Sequence[Speedup]) -> str:
    """How many tokens the arm needs to the control's last loss."""
    reaches = f"{_label(results, arm)} reaches {_target(results, control)},"
    factors = [row.speedup_tokens for row in rows]
    never, beside = factors.count(None), _beside(results, arm, rows)
    if never:
        return (
            f"{reaches} in {len(rows) - never} of {_seeds(rows)}, and never in {never}: its speed-up in tokens is "
            f"{spread(factors)}, where never counts as 0 ({beside})."
        )
    if Spread.over(factors).median < 1:
        needs = f"{_label(results, arm)} needs more tokens than the control arm to reach {_target(results, control)}"
        return f"{needs}: its speed-up is {spread(factors)} ({beside})."
    return f"{reaches} with {spread(factors)} fewer tokens ({beside})."


def _efficiency(results: Results, arm: str, control: str, rows: Sequence[Speedup]) -> str:
    known = [row.token_efficiency for row in rows if row.token_efficiency is not None]
    some = f"in {len(known)} of {_seeds(rows)}, otherwise it ends below the control"
    beside = _beside(results, arm, rows, over=some if len(known) < len(rows) else "")
    return (
        f"To the loss where {_label(results, arm)} ends, the control arm, {_label(results, control)}, takes "
        f"{spread(known)} as many tokens ({beside})."
    )


def _difference(results: Results, arm: str, control: str, rows: Sequence[Speedup]) -> str:
    equal = [row.difference_at_equal_tokens for row in rows if row.difference_at_equal_tokens is not None]
    values = equal if len(equal) == len(rows) else [row.difference_to_target for row in rows]
    middle = statistics.median(values)
    ends = f"{_label(results, arm)} ends {abs(middle):.3f} nats {'above' if middle > 0 else 'below'} the control arm"
    own, others = (short_count(results.runs[one][0].curve.tokens[-1]) for one in (arm, control))
    length = f"after {own} tokens each" if values is equal else f"after {own} tokens, against its {others}"
    start = ""
    if all(row.speedup_tokens == math.inf for row in rows):
        start = ", and starts at or below the control's end, so that no speed-up can be stated"
    return f"{ends}, {_label(results, control)}, {length}{start} ({_beside(results, arm, rows)})."


def _also_reached(rows: Sequence[Speedup]) -> str:
    """The seeds that reach the control although most do not."""
    reached = [row.speedup_tokens for row in rows if row.speedup_tokens not in (None, math.inf)]
    if not reached:
        return ""
    where = f"in {len(reached)} of {_seeds(rows)}"
    return f"It reaches the control's final loss {where}, with {spread(reached)} fewer tokens."


def _also_efficient(rows: Sequence[Speedup]) -> str:
    known = [row.token_efficiency for row in rows if row.token_efficiency]
    if not known:
        return ""
    some = f" (in {len(known)} of {_seeds(rows)}; otherwise it ends below the control)"
    return (
        f"To the loss where it ends, the control arm takes {spread(known)} as many tokens"
        f"{'' if len(known) == len(rows) else some}."
    )


def _charged(rows: Sequence[Speedup], *, on_the_way: bool) -> str:
    """The same in FLOPs, with the source's own training; that of an arm which grows on the way is in its figures."""
    factors = [row.speedup_tokens for row in rows]
    charged = [row.charged_flops for row in rows]
    efficiency = [row.charged_flop_efficiency for row in rows if row.charged_flop_efficiency is not None]
    intro = "Its small model's training counted," if on_the_way else "With the source's own training charged as well,"
    if Spread.over(factors).median == 0 and efficiency:  # most seeds have no speed-up: to the arm's end instead
        return f"{intro} the control arm takes {spread(efficiency)} as many FLOPs to the loss where it ends."
    if any(value is not None for value in charged):
        if Spread.over(charged).median >= 1:
            return f"{intro} the speed-up in FLOPs is {spread(charged)}."
        return f"{intro} it takes more FLOPs than the control arm: a speed-up of {spread(charged)}."
    if any(value is not None for value in factors):
        return "What the source's own training took is not known, so it is not charged."
    return ""


def _rise(rows: Sequence[Speedup]) -> str:
    known = [row.forgetting for row in rows if row.forgetting is not None]
    if not known:
        return ""
    if max(known) <= 0:
        return "Its held-out loss never rises above the source's."
    return f"After the start its held-out loss rises at most {max(known):.4f} nats above the source's."


def _uncompared(results: Results) -> Answer:
    """Without a control to compare with: the lowest final loss; before the first run has ended, how many have."""
    finished = [row.status for row in results.rows].count(FINISHED)
    if not results.runs:
        return Answer(RUNS, f"{finished}/{len(results.rows)}", f"{standing(results)} {missing(results)}".strip())
    last = final_losses(results)
    arm = min(last, key=lambda name: last[name])
    lengths = sorted(run.curve.tokens[-1] for runs in results.runs.values() for run in runs)
    low, high = short_count(lengths[0]), short_count(lengths[-1])
    trained = f"trained for {low} tokens" if low == high else f"trained for {low} to {high} tokens"
    rows = results.runs[arm]
    source = "" if results.arms[arm]["kind"] == "random" else "; the source's own training is not charged"
    every = f"{len(last)} {'arm' if len(last) == 1 else 'arms'}"
    sentence = (
        f"{_label(results, arm)} ends at the lowest held-out loss of {every}, {trained} "
        f"({'one seed' if len(rows) == 1 else f'median of {len(rows)} seeds'}{source})."
    )
    return Answer(LOWEST, f"{last[arm]:.3f}", sentence, [missing(results), *_caveats(results, len(rows))])


def final_losses(results: Results) -> Mapping[str, float]:
    """The last held-out loss of each arm with results, the median over its seeds."""
    return {arm: statistics.median(run.curve.loss[-1] for run in runs) for arm, runs in results.runs.items()}


def _caveats(results: Results, seeds: int) -> list[str]:
    said = ["One seed is a demonstration, not evidence." if seeds == 1 else "", standing(results)]
    return [one for one in said if one]


def _label(results: Results, arm: str) -> str:
    return f"“{results.arms[arm]['label']}”"


def _target(results: Results, control: str) -> str:
    return f"the final held-out loss of the control arm, {_label(results, control)}"


def _beside(results: Results, arm: str, rows: Sequence[Speedup], *, over: str = "") -> str:
    """Over how many seeds, and what is not charged."""
    source = results.arms[arm]["kind"] in ("clone", "source")
    return (over or _seeds(rows)) + ("; the source's own training is not charged" if source else "")


def _seeds(rows: Sequence[Speedup]) -> str:
    return "one seed" if len(rows) == 1 else f"{len(rows)} seeds"


def missing(results: Results) -> str:
    """Why nothing is compared."""
    if results.control is None:
        return "This study has no control arm, so there is no speed-up to state."
    if standing(results):
        return "No run of the headline arm and the control arm with the same seed is finished."
    return "This study has no clone to compare with its control arm."


def standing(results: Results) -> str:
    """How many runs a report lacks; nothing if all are there."""
    states = [row.status for row in results.rows]
    failed = states.count(FAILED)
    waiting = len(states) - failed - states.count(FINISHED)
    counts = [f"{count} of {len(states)} runs {'is' if count == 1 and verb == 'are' else verb} {rest}".rstrip()
            for count, verb, rest in ((waiting, "are", "not finished"), (failed, "failed", "")) if count]  # fmt: skip
    return "; ".join(counts) + "." if counts else ""


def factor(value: float) -> str:
    """A speed-up or an efficiency: 3.10x."""
    return "not reached" if value == 0 else "at the start" if value == math.inf else f"{value:.2f}x"


def signed(value: float) -> str:
    """A difference of losses, as it is set: −0.031."""
    return f"{value:+.3f}".replace("-", "−")


def spread(values: Sequence[float | None]) -> str:
    """Median, and the range where there is one: 3.10x (2.90x to 3.30x)."""
    over = Spread.over(values)
    if factor(over.low) == factor(over.high):
        return factor(over.median)
    return f"{factor(over.median)} ({factor(over.low)} to {factor(over.high)})"
