"""transformers' Trainer with the little that a grown model needs besides.

That is: param groups by the scaling rule, our schedule and order of windows, checkpoints that are complete or absent,
and logs with tokens, speed, MFU and bits per byte. The loop, accumulation, mixed precision, clipping, sharding,
resuming and integrations are those of Trainer and accelerate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from hyperclone.errors import NonFiniteLossError
from hyperclone.hf.unread_model import UnreadModel
from hyperclone.training import checkpoints, export, packing, rng, streaming
from hyperclone.training.budget import windows_to_skip
from hyperclone.training.events import CheckpointSaved, TextEnded
from hyperclone.training.lr_schedule import factor, warmup_steps
from hyperclone.training.optimizer import make_optimizer
from hyperclone.training.preparation import PreparedRun
from hyperclone.training.run_callbacks import EarlyEvaluationCallback, OptimizerStateCallback, StepCallback
from hyperclone.training.run_log import RunLog
from hyperclone.training.shard_reading import ShardReadingCallback
from hyperclone.training.streaming import Streamed
from hyperclone.training.task_callback import TaskCallback


class GrownTrainer(Trainer):  # type: ignore[misc]
    """A Trainer of grown (or any other) causal language models."""

    def __init__(
        self, prepared: PreparedRun, run_log: RunLog, *, model: Any, args: Any, unread: UnreadModel | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            prepared: the run.
            run_log: reports what is measured.
            model: its weights, in fp32.
            args: of `trainer_arguments`.
            unread: the model, where its weights are read once it is sharded.
        """
        self._prepared, self._run_log = prepared, run_log
        self._operations: dict[tuple[int, ...], int] = {}
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=_windows(prepared, run_log),
            eval_dataset=prepared.held_out_windows,
            data_collator=packing.collate,
            callbacks=_callbacks(prepared, run_log, unread),
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # which has the order

    def get_train_dataloader(self) -> Any:
        """Trainer's; streamed text is read by the main process alone, which sends the others their windows."""
        loading = self.accelerator.dataloader_config
        loading.dispatch_batches = bool(self._prepared.streamed)
        try:
            return super().get_train_dataloader()
        finally:
            loading.dispatch_batches = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Afterwards, no text is read any more."""
        try:
            yield
        finally:
            if isinstance(self.train_dataset, Streamed):
                self.train_dataset.close()

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The run's optimizer, over the wrapped model."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                self._prepared.training,
                self.model if model is None else model,
                directory=self._prepared.directory,
                receipt=self._prepared.receipt,
                fused=self.args.device.type == "cuda",
                compiled=self.args.torch_compile,
                replicated=self.args.world_size > 1 and not self.is_fsdp_enabled,
            )
            # Logs show the first group's learning rate: let it be the highest, that of the source.
            self.optimizer.param_groups.sort(key=lambda group: -group["lr"])
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Every group's learning rate times the same factor."""
        if self.lr_scheduler is None:
            training, warmup = self._prepared.training, warmup_steps(self._prepared.training.warmup, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: factor(
                    step,
                    steps=num_training_steps,
                    warmup=warmup,
                    schedule=training.schedule,
                    least=training.min_lr,
                    decay=training.decay,
                ),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As Trainer counts them, which walks through all modules: once for each shape of a batch."""
        shape = tuple(inputs["input_ids"].shape)
        if shape not in self._operations:
            self._operations[shape] = super().floating_point_ops(inputs)
        return self._operations[shape]

    def evaluate(self, *args: Any, **values: Any) -> Any:
        """The held-out loss; it consumes no random numbers."""
        with rng.preserved():
            return super().evaluate(*args, **values)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **values: Any) -> Any:
        """The loss of a batch. With several processes, the last one may be padded with windows that came before."""
        gradient_state = self.accelerator.gradient_state
        if self.args.world_size > 1 and gradient_state.end_of_dataloader and gradient_state.remainder > 0:
            return self._last_loss(model, inputs, gradient_state.remainder), None, None
        return super().prediction_step(model, inputs, *rest, **values)

    def _last_loss(self, model: nn.Module, inputs: dict[str, Any], windows: int) -> torch.Tensor:
        """Of the last batch: the mean over its windows in all processes, each once, as a single process has it.

        Trainer cuts the gathered losses to the number of windows, but divides each process's by the tokens of all
        processes, the windows that pad them among them (transformers 5.24).
        """
        inputs = self._prepare_inputs(inputs)
        first_padding = max(0, windows - self.args.process_index * self.args.per_device_eval_batch_size)
        inputs["labels"][first_padding:] = packing.IGNORED
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs).loss.detach().float()
        count = inputs["labels"][:, 1:].ne(packing.IGNORED).sum()
        total = torch.where(count > 0, loss * count, torch.zeros_like(loss))  # the mean over no windows is NaN
        mean: torch.Tensor = self.accelerator.reduce(total) / self.accelerator.reduce(count)
        return mean

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs with tokens, speed, MFU and bits per byte; reported as well.

        Raises:
            NonFiniteLossError: the loss is no longer a finite number.
        """
        step = self.state.global_step
        if "loss" in logs:
            measured = self._run_log.loss(
                step, loss=logs["loss"], lr=logs["learning_rate"], grad_norm=logs.get("grad_norm")
            )
            loss, speed = measured.loss, {"tokens_per_second": measured.tokens_per_second, "mfu": measured.mfu}
            logs["tokens"] = measured.tokens
            logs |= {name: value for name, value in speed.items() if value is not None}
        elif "eval_loss" in logs:
            evaluated = self._run_log.held_out_loss(step, logs["eval_loss"])
            loss = evaluated.eval_loss
            logs |= {"eval_bits_per_byte": evaluated.bits_per_byte, "tokens": evaluated.tokens}
        else:
            return  # Trainer's summary of the run
        super().log(logs, start_time)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                "the loss is no longer a number",
                found=f"{loss} at step {step}",
                cure="a lower --lr, a longer --warmup; checkpoints written before are whole",
            )

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / checkpoints.PARTIAL)  # where _save_checkpoint writes

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output, main = self._prepared.output, bool(self.args.should_save)
        name = f"checkpoint-{self.state.global_step}"
        with checkpoints.writing(output, main=main) as partial:
            if main:
                checkpoints.clear(output)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if main:
                if isinstance(self.train_dataset, Streamed):
                    window = self.state.global_step * self._prepared.budget.windows
                    self.train_dataset.save(partial / name / streaming.FILE, window=window)
                export.carry(self._prepared.directory, partial / name, config=False, grown=self._prepared.receipt)
                checkpoints.publish(partial / name, output / name)
        if main:
            checkpoints.clear(output)
            checkpoints.rotate(output, self._prepared.training.keep)
        self.accelerator.wait_for_everyone()
        self._run_log.tell(CheckpointSaved(step=self.state.global_step, checkpoint=name))


def _windows(prepared: PreparedRun, run_log: RunLog) -> torch.utils.data.Dataset[dict[str, torch.Tensor]]:
    """The windows of the training, in its order."""
    budget, training = prepared.budget, prepared.training
    shares, count = [source.share for source in training.data_sources], budget.steps * budget.windows
    if not prepared.streamed:
        skip = windows_to_skip(training, budget.seq_len)
        return packing.Mixed(prepared.windows, shares, count=count, seed=training.seed, skip=skip)
    return Streamed(
        prepared.streamed,
        shares,
        seq_len=budget.seq_len,
        isolated=training.documents == "isolated",
        count=count,
        batch=budget.windows,
        seed=training.seed,
        start=None if prepared.checkpoint is None else prepared.checkpoint / streaming.FILE,
        ended=lambda name, passes: run_log.tell(TextEnded(text=name, passes=passes)),
    )


def _callbacks(prepared: PreparedRun, run_log: RunLog, unread: UnreadModel | None) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if unread is not None:
        callbacks.append(ShardReadingCallback(unread, prepared))
    if prepared.grown_moments is not None:
        callbacks.append(OptimizerStateCallback(prepared.grown_moments, run_log))
    callbacks.append(StepCallback(run_log))
    if prepared.training.eval_early and prepared.held_out_windows is not None:
        callbacks.append(EarlyEvaluationCallback())
    if prepared.tasks is not None:
        callbacks.append(TaskCallback(prepared.tasks, prepared.tokenizer, run_log))
    return callbacks
