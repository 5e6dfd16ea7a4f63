"""Answers of models: metrics, standard errors, and the comparison of two models.

A grown model and its source answer the same documents, so differences are paired: the standard error of the difference
of two means is that of the mean of the differences,

    sd(a_i - b_i) / sqrt(N),

which is far below that of either accuracy, and zero before training. Perplexity is exp(-m), with m the mean
log-likelihood, so its standard error is the perplexity times that of m.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_METRICS = ("acc", "acc_norm", "perplexity", "f1")  # in this order, then all others
# Tasks whose accuracy is normalized by length, since their choices are sentences or phrases of different lengths.
_NORMALIZED = ("arc_challenge", "hellaswag", "logiqa", "logiqa2", "openbookqa")


@dataclass(frozen=True)
class TaskAnswers:
    """A model's answers to one task.

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
        """Standard error of a metric; None if there is no formula for it, or too few documents."""
        outcomes = self.outcomes.get(metric, [])
        if len(outcomes) < 2 or metric not in ("acc", "acc_norm", "perplexity"):
            return None
        error = statistics.stdev(outcomes) / math.sqrt(len(outcomes))
        return error * self.metrics[metric] if metric == "perplexity" else error


@dataclass(frozen=True)
class Row:
    """One metric of one task: of the model, of the source if there is one, and model minus source.

    `error`, `source_error` and `difference_error` are standard errors; the last is of paired documents. `main`: whether
    this is the metric of the task that the mean accuracy is taken of.
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
    """The answers in the harness's results; of several filters, the first one.

    Args:
        task: its name.
        results: the harness's aggregated metrics.
        samples: the harness's record of each document.
    """
    metrics: dict[str, float] = {}
    for key, value in results.items():
        name = key.partition(",")[0]
        if isinstance(value, int | float) and "," in key and not name.endswith("_stderr"):
            metrics.setdefault(name, float(value))
    documents = [sample for _, sample in sorted({sample["doc_id"]: sample for sample in reversed(samples)}.items())]
    outcomes = {
        name: [float(sample[name]) for sample in documents]
        for name in metrics
        if all(isinstance(sample.get(name), int | float) for sample in documents)
    }
    likelihoods = [[float(pair[0]) for pair in _pairs(sample["filtered_resps"])] for sample in documents]
    return TaskAnswers(task, metrics, outcomes, likelihoods)


def _pairs(responses: Any) -> list[Any]:
    """(log-likelihood, whether it is the greedy choice) of each response; empty for tasks that generate text."""
    return [response for response in responses if isinstance(response, tuple | list) and len(response) == 2]


def rows(model: TaskAnswers, source: TaskAnswers | None) -> Iterator[Row]:
    """A row for each metric of a task."""
    order = [m for m in _METRICS if m in model.metrics] + [m for m in model.metrics if m not in _METRICS]
    main = "acc_norm" if model.task in _NORMALIZED else "acc"
    for metric in order:
        row: dict[str, Any] = {"value": model.metrics[metric], "error": model.error(metric), "main": metric == main}
        if source is not None:
            row |= {
                "source": source.metrics[metric],
                "source_error": source.error(metric),
                "difference": model.metrics[metric] - source.metrics[metric],
                "difference_error": _paired_error(model, source, metric),
            }
        yield Row(model.task, metric, len(model.likelihoods), **row)


def _paired_error(model: TaskAnswers, source: TaskAnswers, metric: str) -> float | None:
    """Standard error of the difference, over paired documents."""
    if model.error(metric) is None:
        return None
    # d exp(-m) = -exp(-m) dm: a perplexity changes by the value times the change of m
    scale = [-side.metrics[metric] if metric == "perplexity" else 1.0 for side in (model, source)]
    pairs = zip(model.outcomes[metric], source.outcomes[metric], strict=True)
    differences = [scale[0] * a - scale[1] * b for a, b in pairs]
    return statistics.stdev(differences) / math.sqrt(len(differences))


def differences(model: Mapping[str, TaskAnswers], source: Mapping[str, TaskAnswers]) -> tuple[float | None, int]:
    """(largest difference of a log-likelihood, number of documents that only one of them has right), over all tasks."""
    gaps = [
        abs(a - b)
        for name in model
        for choices, source_choices in zip(model[name].likelihoods, source[name].likelihoods, strict=True)
        for a, b in zip(choices, source_choices, strict=True)
    ]
    changed = sum(
        a != b
        for name in model
        for a, b in zip(model[name].outcomes.get("acc", []), source[name].outcomes.get("acc", []), strict=True)
    )
    return max(gaps, default=None), changed
