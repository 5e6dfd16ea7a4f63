"""`hyperclone.train`: from a request to a trained model directory.

In the output: the model as a plain Hugging Face directory (written at the end, in the type that it came in),
`checkpoint-N` directories (weights in fp32 and all that resuming needs), `metrics.jsonl`, and `training.json`, which
says what was run and keeps a run from being resumed as another.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperclone.conversion import receipt
from hyperclone.errors import TrainingError
from hyperclone.hf import models
from hyperclone.io import hub
from hyperclone.io.destination import check_place
from hyperclone.optimizer_state import writer
from hyperclone.training import budget, flops, inputs, packing, run_record
from hyperclone.training.config import Training, usual_optimizer
from hyperclone.training.packing import Windows


@dataclass(frozen=True)
class Trained:
    """What `train` has done.

    Attributes:
        path: the output.
        step, tokens: how far it came.
        metrics: the latest figures (loss, eval_loss, bits_per_byte, ...).
        interrupted: the signal that stopped it; None if it is finished.
    """

    path: Path
    step: int
    tokens: int
    metrics: dict[str, Any]
    interrupted: int | None


def train(training: Training, *, watch: Any = None) -> Trained:
    """Train a model, alone or as one of the processes that torchrun or accelerate started.

    Args:
        training: the request.
        watch: called in the main process with (what happens, its figures): "tokenise", "start", "state", "step", "log",
            "eval", "anatomy", "tasks", "save".

    Raises:
        HypercloneError: it cannot be run as asked, or a checkpoint could not be written.
    """
    _check_installed(training)
    processes, main = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    tell = watch if main and watch is not None else _nobody
    if training.sharding != "none" and "LOCAL_RANK" not in os.environ:
        raise TrainingError(
            "there is nothing to shard over in one process",
            field="sharding",
            found=training.sharding,
            cure="torchrun --nproc-per-node N -m hyperclone train ...",
        )
    place, output = hub.resolve(training.model), Path(training.output)
    if not output.exists():
        check_place(output, source=place, overwrite=False)
    config, tokenizer = inputs.config(place), inputs.tokenizer(place)
    grown = (place / receipt.FILE).exists()
    for field, asked, so in (
        ("lr-rule", training.lr_rule == "scaled", "there is no scaling rule for it"),
        ("optimizer", training.optimizer == "rotated", "it has no copies to compare"),
        ("difference-lr", training.difference_lr is not None, "it has no copies to compare"),
        ("anatomy", training.anatomy, "it has no copies to compare"),
    ):
        if asked and not grown:
            raise TrainingError(
                f"no receipt says how this model was grown, so {so}",
                file=place,
                field=field,
                cure=f"leave --{field} out",
            )
    law = place if grown and not training.from_scratch else None
    state = place if law and training.optimizer_state == "auto" and writer.files(place) else None
    if state is not None:
        inputs.check_state(state)
    training = _with_optimizer(training, output, law, moments=state is not None)
    seq_len = budget.sequence_length(training.seq_len, models.positions(config))
    text, held_out = inputs.texts(training, config, tokenizer, seq_len, tell)
    isolated = training.documents == "isolated"
    windows = Windows(text, seq_len, isolated=isolated)
    test = Windows(held_out, seq_len, isolated=isolated) if held_out else None
    sizes = budget.plan(training, seq_len=seq_len, available=len(windows), processes=processes)
    settings = run_record.settings(training, sizes, place, [one.digest[:20] for one in (text, held_out) if one])
    start = run_record.take_up(output, settings, resume=training.resume)
    step = int(start.name.rpartition("-")[2]) if start else 0
    model, dtype = inputs.model(place, training)

    from hyperclone.training import anatomy_callback, export, metrics, model_card, task_callback, trainer_arguments
    from hyperclone.training import signals as interruption
    from hyperclone.training import trainer as ours

    chosen = task_callback.choose(training.tasks, processes=processes)
    gpu = torch.cuda.is_available()
    precision = training.precision or ("bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32")
    asked = trainer_arguments.arguments(
        training, sizes, evaluate=test is not None, fresh=start is None, precision=precision, processes=processes
    )
    if isolated:
        packing.check_isolated(model.to(asked.device), precision=precision)
    figures = ours.Figures(flops.per_token(model, seq_len), flops.peak(asked.device, precision), held_out or text)
    asked.distributed_state.wait_for_everyone()  # all have seen the output as it was
    if main and step < sizes.steps:  # what has ended keeps the record of where it ran
        run_record.write(output, settings, resumed=start is not None)
    tell(
        "start",
        {
            "model": hub.public_name(training.model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "weights": "drawn" if training.from_scratch else "grown" if law else "trained",
            "law": law is not None and training.lr_rule != "uniform",
            "optimizer": training.optimizer,
            "lr": training.lr,
            "difference_lr": training.difference_lr,
            "windows": len(windows),
            "text": text,
            "held_out": held_out,
            "sizes": sizes,
            "step": step,
            "processes": processes,
            "device": torch.cuda.get_device_name(asked.device) if gpu else "CPU",
            "precision": precision,
            "compile": bool(asked.torch_compile),
            "mfu": figures.peak is not None,
            "idle": torch.cuda.device_count() - 1 if gpu and processes == 1 else 0,
        },
    )
    with interruption.Interruption() as signals, trainer_arguments.quiet_logging():
        made = ours.GrownTrainer(
            model,
            asked,
            training,
            sizes,
            windows=windows,
            held_out=test,
            law=law,
            tokenizer=tokenizer,
            place=place,
            state=state,
            figures=figures,
            chosen=chosen,
            metrics=metrics.Metrics(output, step=step) if main else None,
            watch=tell if main else None,
        )
        made.add_callback(signals)
        if training.anatomy:
            made.add_callback(anatomy_callback.noting(made, place))
        _check_sharding(training, start, sharded=made.is_fsdp_enabled)
        made.train(resume_from_checkpoint=str(start) if start else None)  # of a finished run: loads it, and that is all
        done = made.state.global_step
        if done >= sizes.steps:
            about = model_card.trained_card(
                place, settings, made.last, tokens=done * sizes.batch_tokens, on_hub=not os.path.exists(training.model),
                from_scratch=training.from_scratch,
            )  # fmt: skip
            export.export(made, place, output, dtype, told_card=about)
    return Trained(output, done, done * sizes.batch_tokens, made.last, signals.signal if done < sizes.steps else None)


def _with_optimizer(training: Training, output: Path, law: Path | None, *, moments: bool) -> Training:
    """The request with its optimizer: as asked for, as the run began, or the usual one."""
    told = receipt.read(law) if law else None
    asymmetric = moments and told is not None and told.first_copy_moments
    usual = usual_optimizer(
        grown=told is not None and told.growth.wider, asymmetric=asymmetric, lr_rule=training.lr_rule
    )
    chosen = training.optimizer or (run_record.optimizer(output) if training.resume else None) or usual
    if chosen == "rotated" and asymmetric:
        raise TrainingError(
            "asymmetric moments part copies under AdamW; the rotated optimizer has coordinates for that",
            file=law,
            field="optimizer",
            found=chosen,
            cure="--optimizer-state none begins without them; --optimizer adamw with them",
        )
    if chosen == "adamw" and training.difference_lr is not None:
        cure = "--optimizer rotated, or leave --difference-lr out"
        if training.from_scratch:
            cure = "leave --difference-lr out: drawn weights are no copies"
        elif asymmetric:
            cure = "--optimizer-state none begins without the asymmetric moments, which are AdamW's"
        raise TrainingError(
            "AdamW knows no differences between copies",
            file=law,
            field="difference_lr",
            found=training.difference_lr,
            cure=cure,
        )
    return replace(training, optimizer=chosen)


def _nobody(kind: str, figures: dict[str, Any]) -> None:
    pass


def _check_sharding(training: Training, start: Path | None, *, sharded: bool) -> None:
    if training.sharding != "none" and not sharded:
        raise TrainingError(
            "accelerate shards on GPUs (and the like) only",
            field="sharding",
            found=training.sharding,
            cure="leave --sharding out",
        )
    if start is not None and (start / "pytorch_model_fsdp_0").is_dir() != sharded:
        raise TrainingError(
            "sharded and whole checkpoints cannot be resumed as each other",
            file=start,
            field="sharding",
            found="sharding" if sharded else "no sharding",
            cure="resume with --sharding as it began, on any number of processes "
            "(torchrun --nproc-per-node 1 is enough)",
        )


def _check_installed(training: Training) -> None:
    extras = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
    for package in ("accelerate", "datasets", *(extras[name] for name in training.report if name in extras)):
        if importlib.util.find_spec(package) is None:
            own = package in ("accelerate", "datasets")
            raise TrainingError(
                f"{package} is not installed",
                field=None if own else "report",
                cure="pip install 'hyperclone[train]'" if own else f"pip install {package}",
            )
