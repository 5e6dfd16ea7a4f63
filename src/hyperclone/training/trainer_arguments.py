"""Trainer's arguments for a request, and a context that keeps other libraries quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from hyperclone.hf import models
from hyperclone.hf.trainer import use_one_device
from hyperclone.training.budget import Budget
from hyperclone.training.config import Training


def arguments(
    training: Training, budget: Budget, *, evaluate: bool, fresh: bool, precision: str, processes: int
) -> Any:
    """Trainer's arguments for a request."""
    gpu = torch.cuda.is_available()
    known = {field.name for field in fields(TrainingArguments)}
    recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    sharding: dict[str, Any] = {}
    if training.sharding != "none":
        sharding = {
            "fsdp": True,
            "fsdp_config": {
                "fsdp_version": 2,
                "reshard_after_forward": training.sharding == "full",
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "SHARDED_STATE_DICT",
                "activation_checkpointing": training.gradient_checkpointing,
            },
        }
    made = TrainingArguments(
        output_dir=training.output,
        per_device_train_batch_size=budget.micro_batch,
        per_device_eval_batch_size=budget.micro_batch,
        gradient_accumulation_steps=budget.accumulation,
        max_steps=budget.steps,
        learning_rate=training.lr,
        max_grad_norm=training.max_grad_norm,
        bf16=precision == "bf16",
        torch_compile=gpu if training.compile is None else training.compile,
        **{recompute: training.gradient_checkpointing and not sharding},
        logging_strategy="steps",
        logging_steps=training.log_every or -(-budget.steps // 100),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=training.eval_every or -(-budget.steps // 20),
        eval_on_start=evaluate and fresh,
        save_strategy="steps",
        save_steps=training.save_every or -(-budget.steps // 10),
        report_to=list(training.report) or "none",
        seed=training.seed,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        accelerator_config={"split_batches": False, "dispatch_batches": False},
        use_cpu=not gpu,
        ddp_backend=None if gpu or processes == 1 else "gloo",  # a backend for one process is an error of accelerate
        **sharding,
    )
    use_one_device(made)  # several GPUs take a process each (torchrun)
    return made


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Without the warnings and log lines of transformers and accelerate about their own code."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with models.quiet():
        yield
