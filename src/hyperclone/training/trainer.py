"""transformers' Trainer with the least that a grown model needs: the law's param groups, our schedule, our order of
windows, checkpoints that are complete or absent, and logs that say tokens, speed, MFU and bits per byte. The loop,
accumulation, mixed precision, clipping, sharding, resuming and integrations are Trainer's and accelerate's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from hyperclone.errors import TrainingError
from hyperclone.evaluation import evaluate
from hyperclone.optim.load_state import load_state
from hyperclone.optim.param_groups import param_groups
from hyperclone.optim.plain_groups import plain_groups
from hyperclone.optim.rotated_adamw import rotated_adamw
from hyperclone.training import checkpoints, export, packing, rng, task_callback
from hyperclone.training.budget import Budget
from hyperclone.training.config import Training
from hyperclone.training.lr_schedule import factor, warmup_steps
from hyperclone.training.metrics import Clock, Metrics, bits_per_byte
from hyperclone.training.token_cache import Corpus

Watch = Callable[[str, dict[str, Any]], None]  # what happens, and its figures


@dataclass(frozen=True)
class Figures:
    """What logs are made with: operations of a token, the devices' peak (None: not known), and the held-out text."""

    flops: float
    peak: float | None
    held_out: Corpus


class GrownTrainer(Trainer):  # type: ignore[misc]
    """A Trainer of grown (or any other) causal language models.

    Attributes:
        law: the receipt's directory whose groups are used; None for one learning rate everywhere.
        drawn: whether the weights were drawn anew.
        early: whether the held-out loss is also measured after 1, 2, 4, ... steps.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        training: Training,
        budget: Budget,
        *,
        windows: packing.Windows,
        held_out: packing.Windows | None,
        law: Path | None,
        state: Path | None,
        figures: Figures,
        metrics: Metrics | None,
        watch: Watch | None,
        chosen: evaluate.Tasks | None,
        tokenizer: Any,
        place: Path,
    ) -> None:
        """Nothing runs yet.

        Args:
            model, args: as `arguments` made them.
            training, budget: the request and its sizes.
            windows, held_out: of the data.
            law: directory whose receipt gives the param groups; None for one learning rate everywhere.
            state: directory whose training state the optimizer starts from; None to start afresh.
            figures, metrics, watch: for logs; the last two in the main process only.
            chosen, tokenizer: tasks to run with every evaluation.
            place: directory of the model; its tokenizer and licence go into every checkpoint.
        """
        self._training, self._budget, self.law, self._place = training, budget, law, place
        self.early, self.drawn = training.eval_early, training.from_scratch
        self._figures, self._metrics, self._watch = figures, metrics, watch
        self.clock = Clock()
        self.last: dict[str, Any] = {} if metrics is None else dict(metrics.latest)
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=packing.Shuffled(windows, count=budget.steps * budget.windows, seed=training.seed),
            eval_dataset=held_out,
            data_collator=packing.collate,
            callbacks=[_Start(self, state), *([task_callback.TaskCallback(self, chosen, tokenizer)] if chosen else [])],
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # Shuffled has the order

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """AdamW with the law's groups, or with one learning rate everywhere; or RotatedAdamW."""
        if self.optimizer is None:
            told, model = self._training, self.model if model is None else model
            betas = (told.beta1, told.beta2)
            plain: dict[str, Any] = {"lr": told.lr, "weight_decay": told.weight_decay}
            law = {**plain, "lr_rule": told.lr_rule or "scaled", "receipt": self.law}
            if told.optimizer == "rotated":
                assert self.law is not None
                law |= {"difference_lr": told.difference_lr, "compile": self.args.torch_compile}
                self.optimizer = rotated_adamw(model, betas=betas, **law)
            else:
                groups = plain_groups(model, **plain) if self.law is None else param_groups(model, **law)
                self.optimizer = torch.optim.AdamW(
                    groups, betas=betas, fused=self.args.device.type == "cuda" or None, **plain
                )
            # Logs speak of the scheduler's first group: let it be the one with the source's learning rate.
            self.optimizer.param_groups.sort(key=lambda group: -group["lr"])
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Every group times the same factor."""
        if self.lr_scheduler is None:
            told, warmup = self._training, warmup_steps(self._training.warmup, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: factor(
                    step,
                    steps=num_training_steps,
                    warmup=warmup,
                    schedule=told.schedule,
                    least=told.min_lr,
                    decay=told.decay,
                ),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *args: Any, **values: Any) -> Any:
        """The held-out loss; it leaves random numbers as they were."""
        with rng.untouched():
            return super().evaluate(*args, **values)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **values: Any) -> Any:
        """The loss of a batch. The last one may be filled up with windows that have been before."""
        left = self.accelerator.gradient_state
        if self.args.world_size > 1 and left.end_of_dataloader and left.remainder > 0:
            return self._last_loss(model, inputs, left.remainder), None, None
        return super().prediction_step(model, inputs, *rest, **values)

    def _last_loss(self, model: nn.Module, inputs: dict[str, Any], windows: int) -> torch.Tensor:
        """Of the last batch: the mean over its windows in all processes, each once, as a single process has it.

        Trainer cuts the gathered losses to the number of windows, but divides each process's by the tokens of all
        processes, the windows that fill them up among them (transformers 5.24).
        """
        inputs = self._prepare_inputs(inputs)
        inputs["labels"][max(0, windows - self.args.process_index * self.args.per_device_eval_batch_size) :] = (
            packing.IGNORED
        )
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs).loss.detach().float()
        count = inputs["labels"][:, 1:].ne(packing.IGNORED).sum()
        total = torch.where(count > 0, loss * count, torch.zeros_like(loss))  # of no windows the mean is no number
        whole: torch.Tensor = self.accelerator.reduce(total) / self.accelerator.reduce(count)
        return whole

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs with tokens, speed, MFU and bits per byte; a line of metrics.jsonl.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        step = self.state.global_step
        line: dict[str, Any] = {}
        if "loss" in logs:
            rate = self.clock.rate()
            speed = None if rate is None else rate * self._budget.batch_tokens
            peak = None if self._figures.peak is None else self._figures.peak * self.args.world_size
            mfu = None if speed is None or peak is None else speed * self._figures.flops / peak
            line |= {
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm"),
                "tokens_per_second": speed and round(speed, 1),
                "mfu": mfu and round(mfu, 4),
            }
            kind = "log"
        elif "eval_loss" in logs:
            line |= {
                "eval_loss": logs["eval_loss"],
                "bits_per_byte": bits_per_byte(logs["eval_loss"], self._figures.held_out),
            }
            logs["eval_bits_per_byte"] = line["bits_per_byte"]
            kind = "eval"
        else:
            return  # Trainer's summary of the run
        self.note(kind, line)
        logs["tokens"] = step * self._budget.batch_tokens
        logs |= {name: line[name] for name in ("tokens_per_second", "mfu") if line.get(name) is not None}
        super().log(logs, start_time)
        loss = float(line["loss"] if kind == "log" else line["eval_loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss is no longer a number",
                found=f"{loss} at step {step}",
                cure="a lower --lr, a longer --warmup; checkpoints written before are whole",
            )

    def note(self, kind: str, line: dict[str, Any]) -> None:
        """A line for metrics.jsonl and whoever watches."""
        step = self.state.global_step
        line = {"step": step, "tokens": step * self._budget.batch_tokens, **line}
        self.last |= line
        if self._metrics is not None:
            line = self._metrics.add(line)
        self.tell(kind, line)

    def tell(self, kind: str, line: dict[str, Any]) -> None:
        """Something for whoever watches."""
        if self._watch is not None:
            self._watch(kind, line)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / checkpoints.PARTIAL)  # where _save_checkpoint writes

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output, main = Path(self.args.output_dir), bool(self.args.should_save)
        name = f"checkpoint-{self.state.global_step}"
        with checkpoints.writing(output, main=main) as partial:
            if main:
                checkpoints.clear(output)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if main:
                export.carry(self._place, partial / name, config=False, grown=not self.drawn)
                checkpoints.publish(partial / name, output / name)
        if main:
            checkpoints.clear(output)
            checkpoints.rotate(output, self._training.keep)
        self.accelerator.wait_for_everyone()
        self.tell("save", {"step": self.state.global_step, "checkpoint": name})


class _Start(TrainerCallback):  # type: ignore[misc]
    """Loads the grown optimizer state once everything is wrapped, and keeps the clock."""

    def __init__(self, trainer: GrownTrainer, state: Path | None) -> None:
        self._trainer, self._state = trainer, state

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if self._state is not None and state.global_step == 0:
            done = load_state(getattr(optimizer, "optimizer", optimizer), model, self._state)
            self._trainer.tell("state", {"step": done.step, "filled": done.filled, "fresh": len(done.fresh)})
        self._trainer.clock.skip()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.clock.step()
        self._trainer.tell("step", {"step": state.global_step, "steps": state.max_steps})
        step, early = state.global_step, self._trainer.early
        if early and step < state.eval_steps and step & (step - 1) == 0 and self._trainer.eval_dataset is not None:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.clock.skip()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.clock.skip()
