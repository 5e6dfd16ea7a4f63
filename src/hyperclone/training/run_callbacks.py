"""Callbacks of every run: the grown optimizer state, the clock of its steps, and early evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hyperclone.optim.load_state import load_state
from hyperclone.training.events import OptimizerStateLoaded, StepTaken
from hyperclone.training.run_log import RunLog


class OptimizerStateCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Loads the optimizer state that was grown with the model, once model and optimizer are wrapped."""

    def __init__(self, directory: Path, run_log: RunLog) -> None:
        self._directory, self._run_log = directory, run_log

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Load it, unless the run is resumed."""
        if state.global_step == 0:  # a resumed run has its own
            loaded = load_state(getattr(optimizer, "optimizer", optimizer), model, self._directory)
            event = OptimizerStateLoaded(step=loaded.step, filled=loaded.filled, fresh=len(loaded.fresh))
            self._run_log.tell(event)


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the clock, and reports every step."""

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Setting up is no time of a step."""
        self._run_log.clock.skip()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        self._run_log.clock.step()
        self._run_log.tell(StepTaken(step=state.global_step, steps=state.max_steps))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluating is no time of a step."""
        self._run_log.clock.skip()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saving is no time of a step."""
        self._run_log.clock.skip()


class EarlyEvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates after 1, 2, 4, 8, ... steps as well, up to the first regular evaluation."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for an evaluation after a power of two."""
        step = state.global_step
        if step < state.eval_steps and step & (step - 1) == 0:
            control.should_evaluate = True
