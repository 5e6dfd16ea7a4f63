"""Trainer's arguments for a run, and a context that keeps other libraries quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from hyperclone.hf.models import quiet
from hyperclone.hf.trainer import use_one_device
from hyperclone.training.budget import intervals
from hyperclone.training.config import Training
from hyperclone.training.preparation import PreparedRun


def trainer_arguments(prepared: PreparedRun) -> Any:
    """transformers.TrainingArguments of a run."""
    training, budget = prepared.training, prepared.budget
    gpu, every = torch.cuda.is_available(), intervals(training, budget.steps)
    evaluate = prepared.held_out_windows is not None
    sharding = _sharding(training)
    arguments = TrainingArguments(
        output_dir=training.output,
        per_device_train_batch_size=budget.micro_batch,
        per_device_eval_batch_size=budget.micro_batch,
        gradient_accumulation_steps=budget.accumulation,
        max_steps=budget.steps,
        learning_rate=training.lr,
        max_grad_norm=training.max_grad_norm,
        bf16=prepared.precision == "bf16",
        torch_compile=gpu if training.compile is None else training.compile,
        **{_recompute_option(): training.gradient_checkpointing and not sharding},
        logging_strategy="steps",
        logging_steps=every.log,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=every.evaluate,
        eval_on_start=evaluate and prepared.checkpoint is None,
        save_strategy="steps",
        save_steps=every.save,
        report_to=list(training.report_to) or "none",
        seed=training.seed,
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        accelerator_config={"split_batches": False, "dispatch_batches": False},
        use_cpu=not gpu,
        # accelerate refuses a backend for a single process
        ddp_backend=None if gpu or prepared.processes == 1 else "gloo",
        **sharding,
    )
    use_one_device(arguments)  # several GPUs take a process each (torchrun)
    return arguments


def _sharding(training: Training) -> dict[str, Any]:
    """Options of FSDP2; none for DDP."""
    if training.sharding == "none":
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "reshard_after_forward": training.sharding == "full",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": training.gradient_checkpointing,
        },
    }


def _recompute_option() -> str:
    """What this version of transformers calls the recomputation of activations in the backward pass."""
    known = {field.name for field in fields(TrainingArguments)}
    return "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Without the warnings and log lines of transformers and accelerate about their own code."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with quiet():
        yield
