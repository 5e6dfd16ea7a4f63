"""All that a run needs besides its weights: the request, checked against model, text, machine and output."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperclone.conversion import receipt, source_rate
from hyperclone.conversion.receipt import Receipt
from hyperclone.errors import TrainingError
from hyperclone.evaluation import evaluate
from hyperclone.hf.models import max_positions
from hyperclone.io import hub, hub_upload
from hyperclone.io.destination import check_target
from hyperclone.io.files import user_path
from hyperclone.optimizer_state import writer
from hyperclone.training import branch, budget, inputs, resume, task_callback
from hyperclone.training.budget import Budget
from hyperclone.training.config import PrecisionName, Training
from hyperclone.training.events import Watch, Weights
from hyperclone.training.inputs import Texts
from hyperclone.training.known_matrices import matrices_known
from hyperclone.training.mixture import one_epoch
from hyperclone.training.optimizer_names import OF_COPIES, STARTS_FROM, usual_optimizer
from hyperclone.training.packing import Windows
from hyperclone.training.streamed_text import StreamedText

_REQUIRED = ("accelerate", "datasets")
_REPORTERS = ("tensorboard", "wandb", "trackio")  # Trainer's integrations that are a package of the same name


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can start.

    Attributes:
        training: the request, with the optimizer that was chosen.
        directory: the model's.
        output: directory of the run.
        tokenizer: the model's.
        texts: the tokenized text.
        windows: of each source of the mixture; of all the text where there are no weights; none of streamed text.
        streamed: text that is streamed, of each source; none of text that is not.
        held_out_windows: of the held-out text; None if none is wanted.
        budget: sizes of the run.
        receipt: directory whose receipt gives the param groups and the copies, as `param_groups` takes it; None if
            the model was not grown, or is trained from scratch.
        grown_moments: directory whose grown moments the optimizer starts from; None to start without.
        record: content of training.json.
        checkpoint: that it goes on from, its own or that of the run that it branches off from; None to start at step 0.
        tasks: to run at every evaluation; None if there are none.
        processes: that share each batch.
        precision: "bf16" (autocast) or "fp32".
    """

    training: Training
    directory: Path
    output: Path
    tokenizer: Any
    texts: Texts
    windows: tuple[Windows, ...]
    streamed: tuple[StreamedText, ...]
    held_out_windows: torch.utils.data.Dataset[dict[str, torch.Tensor]] | None
    budget: Budget
    receipt: Path | None
    grown_moments: Path | None
    record: dict[str, Any]
    checkpoint: Path | None
    tasks: evaluate.Tasks | None
    processes: int
    precision: PrecisionName

    @property
    def step(self) -> int:
        """That it starts at."""
        return resume.step_of(self.checkpoint)

    @property
    def weights(self) -> Weights:
        """Where its weights come from."""
        return "random" if self.training.from_scratch else "stored" if self.receipt is None else "grown"

    @property
    def scaled(self) -> bool:
        """Whether param groups follow the scaling rule."""
        return self.receipt is not None and self.training.lr_rule != "uniform"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is settled before any text is read; the attributes are those of `PreparedRun`.

    Attributes:
        config: the model's, as transformers reads it.
        seq_len: tokens of a window.
    """

    training: Training
    directory: Path
    output: Path
    config: Any
    tokenizer: Any
    receipt: Path | None
    grown_moments: Path | None
    seq_len: int
    processes: int
    precision: PrecisionName


def choose(training: Training, *, dry_run: bool = False) -> Choices:
    """Check the request against model, machine and output, and choose what it leaves open.

    Args:
        training: the request.
        dry_run: nothing is to be trained: no weights are downloaded, and it need not be launched for sharding.

    Raises:
        HypercloneError: it cannot be run as asked.
    """
    _check_installed(training)
    if not dry_run:
        _check_launched(training)
    if training.push_to_hub is not None and os.environ.get("RANK", "0") == "0":  # who uploads
        training = replace(training, push_to_hub=hub_upload.check(training.push_to_hub))
    directory, output = hub.resolve(training.model, weights=not dry_run), user_path(training.output)
    if not output.exists():
        check_target(output, source=directory, overwrite=False)
    config, tokenizer = inputs.load_config(directory), inputs.load_tokenizer(directory)
    grown = _receipt(training, directory)
    grown_moments = _grown_moments(training, grown)
    return Choices(
        training=_with_optimizer(training, directory, output, grown, moments=grown_moments is not None),
        directory=directory,
        output=output,
        config=config,
        tokenizer=tokenizer,
        receipt=grown,
        grown_moments=grown_moments,
        seq_len=budget.sequence_length(training.seq_len, max_positions(config)),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        precision=training.precision or _usual_precision(),
    )


def prepare(training: Training, *, watch: Watch) -> PreparedRun:
    """Read and check all but the weights; nothing is written but the cache of tokens.

    Args:
        training: the request.
        watch: called while text is tokenized.

    Raises:
        HypercloneError: it cannot be run as asked.
    """
    chosen = choose(training)
    training, seq_len, isolated = chosen.training, chosen.seq_len, training.documents == "isolated"
    texts = inputs.load_texts(training, chosen.config, chosen.tokenizer, seq_len=seq_len, watch=watch)
    windows, held_out = (
        tuple(Windows(corpus, seq_len, isolated=isolated) for corpus in corpora)
        for corpora in (texts.train, texts.held_out)
    )
    streamed = inputs.streamed_texts(training, chosen.config, chosen.tokenizer)
    shares = [source.share for source in training.data_sources]
    available = budget.UNKNOWN if streamed else one_epoch([len(one) for one in windows], shares)
    sizes = budget.plan(training, seq_len=seq_len, available=available, processes=chosen.processes)
    record = resume.make_record(training, sizes, chosen.directory, inputs.digests(texts, streamed))
    return PreparedRun(
        training=training,
        directory=chosen.directory,
        output=chosen.output,
        tokenizer=chosen.tokenizer,
        texts=texts,
        windows=windows,
        streamed=streamed,
        held_out_windows=torch.utils.data.ConcatDataset(held_out) if held_out else None,
        budget=sizes,
        receipt=chosen.receipt,
        grown_moments=chosen.grown_moments,
        record=record,
        checkpoint=branch.starting_checkpoint(training, chosen.output, record),
        tasks=task_callback.choose(training.tasks),
        processes=chosen.processes,
        precision=chosen.precision,
    )


def _check_installed(training: Training) -> None:
    for package in (*_REQUIRED, *(name for name in training.report_to if name in _REPORTERS)):
        if importlib.util.find_spec(package) is None:
            required = package in _REQUIRED
            raise TrainingError(
                f"{package} is not installed",
                field=None if required else "report_to",
                cure="pip install 'hyperclone[train]'" if required else f"pip install {package}",
            )


def _check_launched(training: Training) -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1", "yes"):
        raise TrainingError(
            "DeepSpeed flattens parameters, so an optimizer cannot see where copies lie in them",
            field="ACCELERATE_USE_DEEPSPEED",
            found=os.environ["ACCELERATE_USE_DEEPSPEED"],
            cure="torchrun --nproc-per-node N -m hyperclone train ... --sharding gradients (FSDP2, like ZeRO-2) "
            "or --sharding full (like ZeRO-3)",
        )
    if training.sharding != "none" and "LOCAL_RANK" not in os.environ:
        raise TrainingError(
            "a single process has nothing to shard over",
            field="sharding",
            found=training.sharding,
            cure="torchrun --nproc-per-node N -m hyperclone train ...",
        )


def _receipt(training: Training, directory: Path) -> Path | None:
    """The directory whose receipt or config says how the model was grown, if one does and its weights are used.

    Raises:
        TrainingError: something is asked for that needs a receipt, and there is none.
    """
    if training.receipt is not None:
        named = user_path(training.receipt)
        if receipt.read(named) is None:
            raise TrainingError("no receipt here says how a model was grown", file=named, field="receipt",
                                expected=f"a grown directory, with {receipt.FILE}")  # fmt: skip
        return named
    if receipt.read(directory) is not None:
        return None if training.from_scratch else directory
    for option, asked, why in (
        ("lr-rule", training.lr_rule == "scaled", "the scaling rule has no multipliers for it"),
        ("optimizer", training.optimizer == "rotated", "it has no copies to compare"),
        ("difference-lr", training.difference_lr is not None, "it has no copies to compare"),
        ("source-lr", training.source_lr is not None, "it has no copies to compare"),
        ("anatomy", training.anatomy, "it has no copies to compare"),
    ):
        if asked:
            raise TrainingError(
                f"no receipt says how this model was grown, so {why}",
                file=directory,
                field=option,
                cure="--receipt DIR with the directory that it was grown into, if it was grown and saved elsewhere; "
                f"else leave --{option} out",
            )
    return None


def _grown_moments(training: Training, grown: Path | None) -> Path | None:
    """The directory of the grown moments that the optimizer starts from."""
    if grown is None or training.grown_moments == "none" or not writer.moment_files(grown):
        return None
    if training.receipt is not None:
        return None  # the weights have been trained since
    inputs.check_grown_moments(grown)
    return grown


def _with_optimizer(
    training: Training, directory: Path, output: Path, grown: Path | None, *, moments: bool
) -> Training:
    """The request with its optimizer: as asked for, as in the run that is resumed, or the usual one.

    Raises:
        TrainingError: options that this optimizer, or these moments, cannot have.
    """
    recorded = receipt.read(grown) if grown else None
    first_copy = moments and recorded is not None and recorded.first_copy_moments
    known = recorded is not None or matrices_known(directory)
    usual = usual_optimizer(matrices_known=known, first_copy_moments=first_copy, lr_rule=training.lr_rule)
    begun = user_path(training.branch_from) if training.branch_from is not None else output if training.resume else None
    earlier = None if begun is None else resume.recorded_optimizer(begun)
    optimizer = training.optimizer or earlier or usual
    state = recorded.optimizer_state if moments and recorded is not None else None
    kind = "none" if state is None else str(state["optimizer"])
    fitting = [name for name in STARTS_FROM.get(kind, ()) if not (first_copy and name in OF_COPIES)]
    instead = f"; --optimizer {' or '.join(fitting)} uses them" if fitting else ""
    if optimizer in OF_COPIES and first_copy:
        raise TrainingError(
            "moments of the first copies only make copies diverge under AdamW; this optimizer has coordinates for "
            "their differences",
            file=grown,
            field="optimizer",
            found=optimizer,
            cure=f"--grown-moments none starts without them{instead}",
        )
    if state is not None and optimizer not in fitting:
        raise TrainingError(
            f"the model was grown with the optimizer state of {kind}, which this optimizer cannot start from",
            file=grown,
            field="optimizer",
            found=optimizer,
            expected=", ".join(fitting) or None,
            cure=f"--grown-moments none starts without it{instead.replace('them', 'it')}",
        )
    asked = next((name for name in ("difference_lr", "source_lr") if getattr(training, name) is not None), None)
    if (optimizer not in OF_COPIES or recorded is None) and asked is not None:
        leave_out = f"leave --{asked.replace('_', '-')} out"
        cure = f"--optimizer rotated or muon, or {leave_out}"
        if training.from_scratch:
            cure = f"{leave_out}: randomly initialized weights are no copies"
        elif first_copy:
            cure = "--grown-moments none starts without the moments of the first copies, which are AdamW's"
        raise TrainingError(
            "nothing here tells differences between copies apart",
            file=grown,
            field=asked,
            found=getattr(training, asked),
            cure=cure,
        )
    if optimizer in OF_COPIES and recorded is not None and training.difference_lr is None:
        training = replace(training, difference_lr=_difference_lr(training, recorded), source_lr=None)
    if not known and optimizer in STARTS_FROM["muon"]:
        raise TrainingError(
            "the matrices of this architecture, which Muon would train, are not known",
            file=directory / "config.json",
            field="optimizer",
            found=f"{optimizer}, of model_type {hub.config(directory).get('model_type')}",
            expected="a model type that `hyperclone families` lists",
            cure="--optimizer adamw",
        )
    return replace(training, optimizer=optimizer)


def _difference_lr(training: Training, recorded: Receipt) -> float | None:
    """The rate of the differences that follows from the source's; None where that is not known."""
    source_lr = recorded.source_lr if training.source_lr is None else training.source_lr
    if source_lr is None:
        return None
    old, new = recorded.plan.sizes["hidden"]
    return source_rate.difference_lr(source_lr, old, new)


def _usual_precision() -> PrecisionName:
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
