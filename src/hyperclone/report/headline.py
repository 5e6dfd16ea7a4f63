"""The answer in words: what a study found, said so that it cannot be misread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperclone.report.load import Results
from hyperclone.study.speedup import Spread
from hyperclone.units import short_count


def answer(results: Results) -> tuple[str, list[str]]:
    """(the number, sentences): the speed-up of the headline arm over the control, then what has to be said with it."""
    arm, control = results.headline, results.control
    if control is None or arm is None or arm not in results.speedups or arm not in results.runs:
        return "–", [missing(results)]
    rows = results.speedups[arm]
    plain = [row.speedup_tokens for row in rows]
    label = results.arms[arm]["label"]
    other = f"the final held-out loss of the control arm, “{results.arms[control]['label']}”,"
    seeds = "one seed" if len(rows) == 1 else f"{len(rows)} seeds"
    reached = [value for value in plain if value is not None]
    start = results.curves[arm][0]
    said = []
    if not reached:
        gap = max(row.difference_to_target for row in rows)
        number = "not reached"
        said.append(f"“{label}” does not reach {other} in {short_count(start.tokens[-1])} tokens; "
                    f"it ends up to {gap:.3f} nats above it ({seeds}).")  # fmt: skip
    elif all(value == math.inf for value in reached) and len(reached) == len(plain):
        number = "at the start"
        said.append(f"“{label}” starts at or below {other[:-1]}: there is nothing left to speed up. "
                    f"Train the control arm for longer to learn more ({seeds}).")  # fmt: skip
    else:
        number = factor(Spread.over(plain).median)
        never = len(plain) - len(reached)
        if never and Spread.over(plain).median == 0:
            said.append(f"“{label}” reaches {other} in {len(reached)} of {seeds}, with {spread(reached)} fewer tokens, "
                        f"and never in {never}.")  # fmt: skip
        elif never:
            said.append(f"“{label}” reaches {other} in {len(reached)} of {seeds}, and never in {never}. Its speed-up "
                        f"in tokens is {spread(plain)}, where never counts as 0.")  # fmt: skip
        elif Spread.over(plain).median < 1:
            said.append(f"“{label}” needs more tokens than the control arm to reach {other[:-1]}: its speed-up is "
                        f"{spread(plain)} ({seeds}).")  # fmt: skip
        else:
            said.append(f"“{label}” reaches {other} with {spread(plain)} fewer tokens ({seeds}).")
    if efficiency := [value for row in rows if (value := row.token_efficiency) is not None]:
        some = f" (in {len(efficiency)} of {seeds}; otherwise it ends below the control)"
        said.append(f"To the loss where it ends, the control arm takes {spread(efficiency)} as many tokens"
                    f"{'' if len(efficiency) == len(rows) else some}.")  # fmt: skip
    charged = [row.charged_flops for row in rows]
    paid = [value for row in rows if (value := row.charged_flop_efficiency) is not None]
    # Where most seeds have no speed-up, what is charged is the way to the arm's end.
    if Spread.over(plain).median == 0 and paid:
        said.append(f"With the source's own training charged as well, it takes {spread(paid)} as many FLOPs.")
    elif any(value is not None for value in charged):
        verdict = (
            "the speed-up in FLOPs is" if Spread.over(charged).median >= 1 else
            "it takes, from nothing, more FLOPs than the control arm: a speed-up of"
        )  # fmt: skip
        said.append(f"With the source's own training charged as well, {verdict} {spread(charged)}.")
    elif reached:
        said.append("What the source's own training took is not known, so it is not charged.")
    forgot = [row.forgetting for row in rows if row.forgetting is not None]
    if forgot:
        most = max(forgot)
        said.append("Its held-out loss never rises above the source's." if most <= 0 else
                    f"After the start its held-out loss rises at most {most:.4f} nats above the source's.")  # fmt: skip
    if len(rows) == 1:
        said.append("One seed is a demonstration, not evidence.")
    if now := standing(results):
        said.append(now)
    return number, said


def missing(results: Results) -> str:
    """Why there is no answer yet."""
    if results.control is None:
        return "This study has no control arm, so there is no speed-up to state."
    if now := standing(results):
        return f"{now} No speed-up can be stated yet."
    return "This study has no clone to compare with its control arm."


def standing(results: Results) -> str:
    """How many runs a report lacks; nothing if all are there."""
    states = [run["status"] for run in results.standings]
    failed = states.count("failed")
    waiting = len(states) - failed - states.count("finished")
    told = [f"{count} of {len(states)} runs {'is' if count == 1 and verb == 'are' else verb} {rest}".rstrip()
            for count, verb, rest in ((waiting, "are", "not finished"), (failed, "failed", "")) if count]  # fmt: skip
    return "; ".join(told) + "." if told else ""


def factor(value: float) -> str:
    """A speed-up or an efficiency: 3.10x."""
    return "not reached" if value == 0 else "at the start" if value == math.inf else f"{value:.2f}x"


def spread(values: Sequence[float | None]) -> str:
    """Median, and the range where there is one: 3.10x (2.90x to 3.30x)."""
    over = Spread.over(values)
    if over.low == over.high:
        return factor(over.median)
    return f"{factor(over.median)} ({factor(over.low)} to {factor(over.high)})"
