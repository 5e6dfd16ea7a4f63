"""The learning rate over the steps, as a share of the peak: one pure function, the same for every param group.

A linear warm-up that starts above zero, so that the first step learns something; then from the peak 1 to `least`:

    cosine    least + (1 - least) (1 + cos(pi p)) / 2       p = share of the steps after the warm-up
    linear    1 - (1 - least) p
    wsd       1, then linear over the last `decay` of all steps (warmup-stable-decay)
    constant  1
"""

from __future__ import annotations

import math

from hyperclone.training.config import ScheduleName


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of the warm-up: a number of them, or below 1 a share of all steps."""
    return int(warmup) if warmup >= 1 else math.ceil(warmup * steps)


def stable_until(schedule: ScheduleName, *, steps: int, decay: float) -> int:
    """The first step in which the learning rate may be below its peak, the warm-up aside; 0 if it has no such phase."""
    if schedule == "constant":
        return steps
    return steps - math.ceil(decay * steps) if schedule == "wsd" else 0


def factor(step: int, *, steps: int, warmup: int, schedule: ScheduleName, least: float, decay: float) -> float:
    """The learning rate of a step, over the peak.

    Args:
        step: 0 for the first.
        steps: of the run.
        warmup: steps of the warm-up.
        schedule: "cosine", "linear", "wsd" or "constant".
        least: where the schedule ends, over the peak.
        decay: share of the steps in which "wsd" decays.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = max(warmup, stable_until(schedule, steps=steps, decay=decay))
    done = min(max(step - start, 0) / max(steps - start, 1), 1.0)
    down = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return least + (1 - least) * down
