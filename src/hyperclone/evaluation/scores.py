"""What models answered, and what can be said of it: metrics, standard errors, and two models compared.

A clone and its source answer the same documents, so each document is compared with itself: the standard error of the
difference of two means is that of the mean of differences,

    sd(a_i - b_i) / sqrt(N),

which is far below that of either accuracy, and zero at the start. Perplexity is exp(-m), m
the mean log-likelihood, so its standard error is the perplexity times that of m.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_METRICS = ("acc", "acc_norm", "perplexity", "f1")  # in this order, then whatever else there is
# One number for each task: length-normalised accuracy where the choices are sentences or phrases of unlike length.
_NORMALISED = ("arc_challenge", "hellaswag", "logiqa", "logiqa2", "openbookqa")


@dataclass(frozen=True)
class TaskAnswers:
    """What a model gave for one task.

    Attributes:
        task: its name in the harness.
        metrics: {metric: value}, as the harness aggregates them.
        outcomes: {metric: its value for each document (acc: 0 or 1; perplexity: a log-likelihood)}.
        likelihoods: for each document, the log-likelihood of each of its choices.
    """

    task: str
    metrics: dict[str, float]
    outcomes: dict[str, list[float]]
    likelihoods: list[list[float]]

    def error(self, metric: str) -> float | None:
        """Standard error; None where it is not known how."""
        each = self.outcomes.get(metric, [])
        if len(each) < 2 or metric not in ("acc", "acc_norm", "perplexity"):
            return None
        error = statistics.stdev(each) / math.sqrt(len(each))
        return error * self.metrics[metric] if metric == "perplexity" else error


@dataclass(frozen=True)
class Row:
    """One metric of one task: of the model, of the source where there is one, and model less source.

    `error` and `difference_error` are standard errors; the latter is of paired documents. `main`: the task's part in
    the mean accuracy.
    """

    task: str
    metric: str
    documents: int
    value: float
    error: float | None
    source: float | None = None
    source_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    main: bool = False


def task_answers(task: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskAnswers:
    """From the harness's results; of several filters the first is meant."""
    metrics: dict[str, float] = {}
    for key, value in results.items():
        name = key.partition(",")[0]
        if isinstance(value, int | float) and "," in key and not name.endswith("_stderr"):
            metrics.setdefault(name, float(value))
    each = sorted({sample["doc_id"]: sample for sample in reversed(samples)}.items())
    outcomes = {
        name: [float(sample[name]) for _, sample in each]
        for name in metrics
        if all(isinstance(sample.get(name), int | float) for _, sample in each)
    }
    likelihoods = [[float(r[0]) for r in _pairs(sample["filtered_resps"])] for _, sample in each]
    return TaskAnswers(task, metrics, outcomes, likelihoods)


def _pairs(responses: Any) -> list[Any]:
    """Log-likelihoods with their flags; nothing for tasks that generate text."""
    return [response for response in responses if isinstance(response, tuple | list) and len(response) == 2]


def rows(mine: TaskAnswers, source: TaskAnswers | None) -> Iterator[Row]:
    order = [m for m in _METRICS if m in mine.metrics] + [m for m in mine.metrics if m not in _METRICS]
    main = "acc_norm" if mine.task in _NORMALISED else "acc"
    for metric in order:
        row: dict[str, Any] = {"value": mine.metrics[metric], "error": mine.error(metric), "main": metric == main}
        if source is not None:
            row |= {
                "source": source.metrics[metric],
                "source_error": source.error(metric),
                "difference": mine.metrics[metric] - source.metrics[metric],
                "difference_error": _paired(mine, source, metric),
            }
        yield Row(mine.task, metric, len(mine.likelihoods), **row)


def _paired(mine: TaskAnswers, source: TaskAnswers, metric: str) -> float | None:
    """Standard error of the difference, over documents that both have answered."""
    if mine.error(metric) is None:
        return None
    # exp(-m) of each side, so that its error follows m times the value
    scale = [-side.metrics[metric] if metric == "perplexity" else 1.0 for side in (mine, source)]
    pairs = zip(mine.outcomes[metric], source.outcomes[metric], strict=True)
    gaps = [scale[0] * a - scale[1] * b for a, b in pairs]
    return statistics.stdev(gaps) / math.sqrt(len(gaps))


def gap(mine: Mapping[str, TaskAnswers], source: Mapping[str, TaskAnswers]) -> tuple[float | None, int]:
    """(largest difference of a log-likelihood, documents that one side has right and the other wrong)."""
    gaps = [
        abs(a - b)
        for name in mine
        for ours, theirs in zip(mine[name].likelihoods, source[name].likelihoods, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    changed = sum(
        a != b
        for name in mine
        for a, b in zip(mine[name].outcomes.get("acc", []), source[name].outcomes.get("acc", []), strict=True)
    )
    return max(gaps, default=None), changed
