"""The answer in words: what a study found, said so that it cannot be misread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperclone.report.canvas import human
from hyperclone.report.load import Results
from hyperclone.study.speedup import over_seeds


def answer(results: Results) -> tuple[str, list[str]]:
    """(the number, sentences): the speed-up of the headline arm over the control, then what has to be said with it."""
    arm, control = results.headline, results.control
    if control is None or arm is None or arm not in results.speedups or arm not in results.curves:
        return "–", [missing(results)]
    rows = results.speedups[arm]
    plain = [row["speedup_tokens"] for row in rows]
    label = results.arms[arm]["label"]
    other = f"the final held-out loss of the control arm, “{results.arms[control]['label']}”,"
    seeds = "one seed" if len(rows) == 1 else f"{len(rows)} seeds"
    reached = [value for value in plain if value is not None]
    start = results.curves[arm][0]
    said = []
    if not reached:
        gap = max(row["difference_to_target"] or 0.0 for row in rows)
        number = "not reached"
        said.append(f"“{label}” does not reach {other} in {human(start.tokens[-1])} tokens; "
                    f"it ends up to {gap:.3f} nats above it ({seeds}).")  # fmt: skip
    elif all(value == math.inf for value in reached) and len(reached) == len(plain):
        number = "at the start"
        said.append(f"“{label}” starts at or below {other[:-1]}: there is nothing left to speed up. "
                    f"Train the control arm for longer to learn more ({seeds}).")  # fmt: skip
    else:
        number = times(plain)
        never = len(plain) - len(reached)
        if never and over_seeds(plain)[0] == 0:
            said.append(f"“{label}” reaches {other} in {len(reached)} of {seeds}, with {spread(reached)} fewer tokens, "
                        f"and never in {never}.")  # fmt: skip
        elif never:
            said.append(f"“{label}” reaches {other} in {len(reached)} of {seeds}, and never in {never}. Its speed-up "
                        f"in tokens is {spread(plain)}, where never counts as 0.")  # fmt: skip
        elif over_seeds(plain)[0] < 1:
            said.append(f"“{label}” needs more tokens than the control arm to reach {other[:-1]}: its speed-up is "
                        f"{spread(plain)} ({seeds}).")  # fmt: skip
        else:
            said.append(f"“{label}” reaches {other} with {spread(plain)} fewer tokens ({seeds}).")
    if worth := [value for row in rows if (value := row["worth_tokens"]) is not None]:
        where = "" if len(worth) == len(rows) else f" (in {len(worth)} of {seeds}; else it ends below the control)"
        said.append(f"To where it ends, the control arm takes {spread(worth)} as many tokens{where}.")
    charged = [row["charged_flops"] for row in rows]
    paid = [value for row in rows if (value := row["worth_charged"]) is not None]
    # Where most seeds have no speed-up, what is charged is the way to the arm's end.
    if over_seeds(plain)[0] == 0 and paid:
        said.append(f"With the source's own training charged as well, it takes {spread(paid)} as many FLOPs.")
    elif any(value is not None for value in charged):
        verdict = (
            "the speed-up in FLOPs is" if over_seeds(charged)[0] >= 1 else
            "it takes, from nothing, more FLOPs than the control arm: a speed-up of"
        )  # fmt: skip
        said.append(f"With the source's own training charged as well, {verdict} {spread(charged)}.")
    elif reached:
        said.append("What the source's own training took is not known, so it is not charged.")
    forgot = [row["forgetting"] for row in rows if row["forgetting"] is not None]
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
    states = [run["status"] for run in results.study.get("runs", [])]
    failed = states.count("failed")
    waiting = len(states) - failed - states.count("finished")
    told = [f"{count} of {len(states)} runs {'is' if count == 1 and verb == 'are' else verb} {rest}".rstrip()
            for count, verb, rest in ((waiting, "are", "not finished"), (failed, "failed", "")) if count]  # fmt: skip
    return "; ".join(told) + "." if told else ""


def times(values: Sequence[float | None]) -> str:
    """The median as a factor."""
    median = over_seeds(values)[0]
    return "not reached" if median == 0 else "at the start" if median == math.inf else f"{median:.2f}x"


def spread(values: Sequence[float | None]) -> str:
    """Median, and the range where there is one: 3.10x (2.90x to 3.30x)."""
    median, low, high = over_seeds(values)
    if len(values) == 1 or low == high:
        return times(values)
    return f"{times([median])} ({times([low or None])} to {times([high or None])})"
