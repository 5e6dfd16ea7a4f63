"""The answer in words: what a study found, worded so that it cannot be misread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperclone.report.load import Results
from hyperclone.study.records import FAILED, FINISHED
from hyperclone.study.speedup import Speedup, Spread
from hyperclone.units import short_count


def answer(results: Results) -> tuple[str, list[str]]:
    """(the number, sentences): the speed-up of the headline arm over the control, then what belongs beside it."""
    arm, control = results.headline, results.control
    if control is None or arm is None or arm not in results.speedups or arm not in results.runs:
        return "–", [missing(results)]
    rows = results.speedups[arm]
    sentences = [
        _speedup(results, arm, control, rows),
        _efficiency(rows),
        _charged(rows, on_the_way="grow_at" in results.arms[arm]),
        _forgetting(rows),
        "One seed is a demonstration, not evidence." if len(rows) == 1 else "",
        standing(results),
    ]
    return _number(rows), [sentence for sentence in sentences if sentence]


def _number(rows: Sequence[Speedup]) -> str:
    factors = [row.speedup_tokens for row in rows]
    if all(value is None for value in factors):
        return "not reached"
    return factor(Spread.over(factors).median)


def _speedup(results: Results, arm: str, control: str, rows: Sequence[Speedup]) -> str:
    """How many tokens the arm needs to the control's last loss."""
    label, other = results.arms[arm]["label"], results.arms[control]["label"]
    target = f"the final held-out loss of the control arm, “{other}”"
    factors = [row.speedup_tokens for row in rows]
    reached = [value for value in factors if value is not None]
    seeds, never = _seeds(rows), len(factors) - len(reached)
    if not reached:
        tokens = short_count(results.runs[arm][0].curve.tokens[-1])
        gap = max(row.difference_to_target for row in rows)
        return (
            f"“{label}” does not reach {target}, in {tokens} tokens; it ends up to {gap:.3f} nats above it ({seeds})."
        )
    if not never and all(value == math.inf for value in reached):
        return (
            f"“{label}” starts at or below {target}: there is nothing left to speed up. "
            f"Train the control arm for longer to learn more ({seeds})."
        )
    median = Spread.over(factors).median
    if never and median == 0:
        fewer = f"with {spread(reached)} fewer tokens"
        return f"“{label}” reaches {target}, in {len(reached)} of {seeds}, {fewer}, and never in {never}."
    if never:
        return (
            f"“{label}” reaches {target}, in {len(reached)} of {seeds}, and never in {never}. "
            f"Its speed-up in tokens is {spread(factors)}, where never counts as 0."
        )
    if median < 1:
        needs = f"“{label}” needs more tokens than the control arm to reach {target}"
        return f"{needs}: its speed-up is {spread(factors)} ({seeds})."
    return f"“{label}” reaches {target}, with {spread(factors)} fewer tokens ({seeds})."


def _efficiency(rows: Sequence[Speedup]) -> str:
    known = [row.token_efficiency for row in rows if row.token_efficiency is not None]
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
        return f"{intro} it takes {spread(efficiency)} as many FLOPs."
    if any(value is not None for value in charged):
        if Spread.over(charged).median >= 1:
            return f"{intro} the speed-up in FLOPs is {spread(charged)}."
        return f"{intro} it takes more FLOPs than the control arm: a speed-up of {spread(charged)}."
    if any(value is not None for value in factors):
        return "What the source's own training took is not known, so it is not charged."
    return ""


def _forgetting(rows: Sequence[Speedup]) -> str:
    known = [row.forgetting for row in rows if row.forgetting is not None]
    if not known:
        return ""
    if max(known) <= 0:
        return "Its held-out loss never rises above the source's."
    return f"After the start its held-out loss rises at most {max(known):.4f} nats above the source's."


def _seeds(rows: Sequence[Speedup]) -> str:
    return "one seed" if len(rows) == 1 else f"{len(rows)} seeds"


def missing(results: Results) -> str:
    """Why there is no answer yet."""
    if results.control is None:
        return "This study has no control arm, so there is no speed-up to state."
    if now := standing(results):
        return f"{now} No speed-up can be stated yet."
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


def spread(values: Sequence[float | None]) -> str:
    """Median, and the range where there is one: 3.10x (2.90x to 3.30x)."""
    over = Spread.over(values)
    if over.low == over.high:
        return factor(over.median)
    return f"{factor(over.median)} ({factor(over.low)} to {factor(over.high)})"
