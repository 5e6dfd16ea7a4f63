"""`hyperclone.train`: from a request to a trained model directory.

In the output: the model as a plain Hugging Face directory (written at the end, in the type that it came in),
`checkpoint-N` directories (weights in fp32 and all that resuming needs), `metrics.jsonl`, and `training.json`, which
records what was run and keeps a run from being resumed as another.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperclone.errors import TrainingError
from hyperclone.hf import memory
from hyperclone.io import hub, hub_upload
from hyperclone.training import doubts, export, flops, inputs, packing, progressive, resume, shard_reading
from hyperclone.training.anatomy_callback import RecordedAnatomyCallback
from hyperclone.training.config import Training
from hyperclone.training.events import Device, Event, RunStarted, Uploading, Watch
from hyperclone.training.metrics import MetricsFile
from hyperclone.training.mixture import uses
from hyperclone.training.model_card import trained_card
from hyperclone.training.preparation import PreparedRun, prepare
from hyperclone.training.progressive import SmallStage
from hyperclone.training.run_log import RunLog
from hyperclone.training.signals import Interruption
from hyperclone.training.token_cache import TextSize
from hyperclone.training.trainer import GrownTrainer
from hyperclone.training.trainer_arguments import quiet_logging, trainer_arguments


@dataclass(frozen=True)
class Trained:
    """What `train` has done.

    Attributes:
        path: the output.
        step, tokens: how far it came.
        metrics: the latest figures (loss, eval_loss, bits_per_byte, ...).
        interrupted: the signal that stopped it; None if it is finished.
        small_tokens: that its small model was trained on before, if it has grown on the way.
        address: of the model on the Hub; None if it was not uploaded from this process.
    """

    path: Path
    step: int
    tokens: int
    metrics: dict[str, Any]
    interrupted: int | None
    address: str | None = None
    small_tokens: int = 0


def train(training: Training, *, watch: Watch | None = None) -> Trained:
    """Train a model, alone or as one of the processes that torchrun or accelerate started.

    Args:
        training: the request.
        watch: called with every event (events.py), in the main process only.

    Raises:
        HypercloneError: it cannot be run as asked, the loss became infinite or NaN, a checkpoint could not be
            written, or the model, which is complete then, could not be uploaded.
    """
    tell = watch if _is_main() and watch is not None else _ignore
    if training.grow_at is not None:
        return progressive.train(training, _train, tell)
    return _train(training, tell, None)


def _train(training: Training, tell: Watch, small: SmallStage | None) -> Trained:
    """One training; `small`: what that of the small model took, which its own was grown from on the way."""
    main, prepared = _is_main(), prepare(training, watch=tell)
    prepared = replace(prepared, record={**prepared.record, **progressive.recorded(small)})
    unread = shard_reading.unread_model(prepared.directory, prepared.training)
    model, dtype = inputs.load_model(prepared.directory, prepared.training, unread=unread)
    arguments = trainer_arguments(prepared)
    if prepared.training.documents == "isolated" and unread is None:
        packing.check_isolated(model.to(arguments.device), precision=prepared.precision)
    run_log = _start(prepared, model, arguments, main=main, watch=tell)
    with Interruption() as interruption, quiet_logging():
        trainer = GrownTrainer(prepared, run_log, model=model, args=arguments, unread=unread)
        step = _run(prepared, trainer, run_log, interruption)
        finished = step >= prepared.budget.steps
        tokens = step * prepared.budget.batch_tokens
        if finished:
            card = trained_card(
                prepared.directory,
                prepared.record,
                run_log.latest,
                tokens=tokens,
                on_hub=not os.path.exists(training.model),
                from_scratch=training.from_scratch,
            )
            export.export(trainer, prepared, dtype, card=card)
    address = _upload(prepared, tell) if finished and main else None
    return Trained(
        prepared.output, step, tokens, run_log.latest, None if finished else interruption.signal, address,
        0 if small is None else small.tokens,
    )  # fmt: skip


def _upload(prepared: PreparedRun, watch: Watch) -> str | None:
    """Upload the model if that was asked for; its address."""
    repo = prepared.training.push_to_hub
    if repo is None:
        return None
    watch(Uploading(repo=repo))
    return hub_upload.upload(repo, prepared.output, export.exported_files(prepared))


def _start(prepared: PreparedRun, model: Any, arguments: Any, *, main: bool, watch: Watch) -> RunLog:
    """Write the record, tell that the run starts, and open its log."""
    training, budget = prepared.training, prepared.budget
    texts = prepared.texts
    text, held_out = (TextSize.of(corpora) if corpora else None for corpora in (texts.train, texts.held_out))
    peak = flops.peak(arguments.device, prepared.precision)
    before = None if prepared.checkpoint is None else prepared.checkpoint.parent  # the run that it goes on from
    arguments.distributed_state.wait_for_everyone()  # until all have seen the output as it was
    if main and prepared.step < budget.steps:  # a finished run keeps the record of where it ran
        resume.write_record(prepared.output, prepared.record, before=before)
    gpu = torch.cuda.is_available()
    watch(
        RunStarted(
            model=hub.public_name(training.model),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            weights=prepared.weights,
            scaled=prepared.scaled,
            training=training,
            budget=budget,
            windows=None if prepared.streamed else sum(map(len, prepared.windows)),
            mixture=uses(
                training.data_sources,
                seq_len=budget.seq_len,
                trained_windows=budget.steps * budget.windows,
                sizes=[(corpus.documents, corpus.tokens) for corpus in texts.train] or None,
            ),
            text=text,
            held_out=held_out,
            step=prepared.step,
            doubt=doubts.doubt(prepared, model),
            device=Device(
                name=torch.cuda.get_device_name(arguments.device) if gpu else "CPU",
                processes=prepared.processes,
                precision=prepared.precision,
                compiled=bool(arguments.torch_compile),
                peak_known=peak is not None,
                idle_gpus=torch.cuda.device_count() - 1 if gpu and prepared.processes == 1 else 0,
            ),
        )
    )
    return RunLog(
        batch_tokens=budget.batch_tokens,
        flops_per_token=flops.per_token(model, budget.seq_len),
        peak_flops=None if peak is None else peak * arguments.world_size,
        held_out=held_out,
        metrics=MetricsFile(prepared.output, step=prepared.step, before=before) if main else None,
        watch=watch,
    )


def _run(prepared: PreparedRun, trainer: GrownTrainer, run_log: RunLog, interruption: Interruption) -> int:
    """Train until the end or an interruption; the step that was reached. Of a finished run, only load the weights."""
    trainer.add_callback(interruption)
    if prepared.training.anatomy:
        trainer.add_callback(RecordedAnatomyCallback(prepared.receipt or prepared.directory, run_log))
    _check_sharding(prepared, sharded=trainer.is_fsdp_enabled)
    on_cpu = trainer.args.device.type == "cpu"
    with memory.kept() if on_cpu else nullcontext(), trainer.reading():
        trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if prepared.checkpoint else None)
    return int(trainer.state.global_step)


def _is_main() -> bool:
    """Whether this is the only process, or the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def _ignore(event: Event) -> None:
    """Watch nothing."""


def _check_sharding(prepared: PreparedRun, *, sharded: bool) -> None:
    sharding, checkpoint = prepared.training.sharding, prepared.checkpoint
    if sharding != "none" and not sharded:
        raise TrainingError(
            "accelerate shards over accelerators such as GPUs only",
            field="sharding",
            found=sharding,
            cure="leave --sharding out",
        )
    if checkpoint is not None and (checkpoint / export.SHARDS).is_dir() != sharded:
        raise TrainingError(
            "sharded and whole checkpoints cannot be resumed as each other",
            file=checkpoint,
            field="sharding",
            found="sharding" if sharded else "no sharding",
            cure="resume with --sharding as it began, on any number of processes "
            "(torchrun --nproc-per-node 1 is enough)",
        )
