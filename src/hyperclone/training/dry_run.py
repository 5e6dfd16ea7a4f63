"""`hyperclone train --dry-run`: what a run would do and what it takes, before anything is tokenized or loaded.

The rates of the groups are those of the run's own optimizer, made over the model on device meta. Memory and disk
follow from its parameters: training keeps weights and gradients in fp32, and the optimizer one fp32 number for each
parameter that Muon trains and two for each that AdamW does, rotated or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hyperclone.io import hub
from hyperclone.training import branch, flops, inputs, resume
from hyperclone.training import budget as budgets
from hyperclone.training.budget import Budget
from hyperclone.training.config import Training
from hyperclone.training.events import Weights
from hyperclone.training.inputs import Texts
from hyperclone.training.lr_schedule import warmup_steps
from hyperclone.training.mixture import SourceUse, one_epoch, uses
from hyperclone.training.optimizer import make_optimizer
from hyperclone.training.optimizer_names import OF_COPIES
from hyperclone.training.packing import Windows
from hyperclone.training.preparation import Choices, choose
from hyperclone.training.token_cache import Corpus

_FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text that a run reads.

    Attributes:
        files: how many; 0 of Hub datasets.
        nbytes: of these files, compressed ones as they are.
        documents, tokens: None where it has not been tokenized yet, or is streamed.
    """

    files: int
    nbytes: int
    documents: int | None
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """A param group: its name, what trains it ("adamw" or "muon"), its size, and its peak rates."""

    name: str
    trained_by: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process, without activations and the scratch memory of a step.

    Attributes:
        weights, gradients, optimizer_state: in fp32, or this process's shards of them.
        whole_weights: weights that are whole for a while, of sharded ones.
        buckets: copies of gradients that DistributedDataParallel sends.
    """

    weights: int
    gradients: int
    optimizer_state: int
    whole_weights: int
    buckets: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer_state + self.whole_weights + self.buckets


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A run as it would be.

    Attributes:
        model: its public name.
        training: the request, with the optimizer and the rate of differences that were chosen.
        weights: where they come from.
        parameters: how many.
        text, held_out: what it reads; None for no held-out text.
        mixture: what it takes of each of its sources; empty where the text has no weights.
        windows: of the text, once through; None where it has not been tokenized, or is streamed.
        budget: sizes of the run; its steps count only if `steps` is not None.
        steps: None where they are one epoch of a text that has not been tokenized (mixture.py: `one_epoch`).
        start: the step that it starts from.
        grown_moments: its optimizer starts from grown moments.
        groups: of the optimizer, the highest rate first.
        flops_per_token: floating-point operations.
        memory: of a process.
        checkpoint, output: bytes on disk of one checkpoint, and of the trained model.
        processes, precision, compiled, device: that it was planned for.
    """

    model: str
    training: Training
    weights: Weights
    parameters: int
    text: Text
    held_out: Text | None
    mixture: tuple[SourceUse, ...]
    windows: int | None
    budget: Budget
    steps: int | None
    start: int
    grown_moments: bool
    groups: tuple[Group, ...]
    flops_per_token: float
    memory: Memory
    checkpoint: int
    output: int
    processes: int
    precision: str
    compiled: bool
    device: str

    @property
    def tokens(self) -> int | None:
        """Tokens of the run."""
        return None if self.steps is None else self.steps * self.budget.batch_tokens

    @property
    def warmup(self) -> int | None:
        """Steps of the warm-up."""
        known = self.steps is not None or self.training.warmup >= 1 or not self.training.warmup
        return warmup_steps(self.training.warmup, self.steps or 0) if known else None

    @property
    def difference_lr(self) -> float | None:
        """Peak rate of the differences between copies; None for an optimizer that does not tell them apart."""
        apart = self.training.optimizer in OF_COPIES and self.weights == "grown"
        rate = self.training.difference_lr
        return (self.training.lr if rate is None else rate) if apart else None

    def summary(self) -> dict[str, Any]:
        """The dry run as plain JSON data."""
        budget, tokens = self.budget, self.tokens
        every = None if self.steps is None else budgets.intervals(self.training, self.steps)
        return {
            "model": self.model,
            "weights": self.weights,
            "parameters": self.parameters,
            "options": {
                **asdict(self.training), "seq_len": budget.seq_len, "batch_tokens": budget.batch_tokens,
                "micro_batch": budget.micro_batch, "precision": self.precision, "compile": self.compiled,
                "difference_lr": self.difference_lr,
            },
            "text": asdict(self.text),
            "held_out": self.held_out and asdict(self.held_out),
            "mixture": [asdict(source) for source in self.mixture],
            "windows": self.windows,
            "windows_of_a_step": budget.windows,
            "processes": self.processes,
            "accumulation": budget.accumulation,
            "steps": self.steps,
            "start": self.start,
            "tokens": tokens,
            "warmup_steps": self.warmup,
            "every": every and every._asdict(),
            "grown_moments": self.grown_moments,
            "groups": [asdict(group) for group in self.groups],
            "flops": {"token": self.flops_per_token, "run": tokens and tokens * self.flops_per_token},
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "disk": {"checkpoint": self.checkpoint, "output": self.output},
        }  # fmt: skip


def dry_run(training: Training) -> DryRun:
    """What a run would do. Nothing is written, but for the small files of a model on the Hub to the Hub's cache.

    Args:
        training: the request. The number of processes is $WORLD_SIZE, which torchrun sets.

    Raises:
        HypercloneError: it cannot be run as asked.
    """
    chosen = choose(training, dry_run=True)
    training, seq_len = chosen.training, chosen.seq_len
    texts = inputs.cached_texts(training, chosen.config, chosen.tokenizer, seq_len=seq_len)
    known = None if texts is None or training.streaming else texts.train
    windows = None if known is None else [len(Windows(corpus, seq_len)) for corpus in known]
    shares = [source.share for source in training.data_sources]
    available = budgets.UNKNOWN if windows is None else one_epoch(windows, shares)
    budget = budgets.plan(training, seq_len=seq_len, available=available, processes=chosen.processes)
    steps = None if windows is None and training.total_tokens is None else budget.steps
    model, dtype = inputs.empty_model(chosen.directory, training)
    optimizer = make_optimizer(training, model, directory=chosen.directory, receipt=chosen.receipt)
    in_state = sum(
        (1 if group.get("muon") else 2) * parameter.numel()
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held_out = training.eval_data or (training.held_out > 0 and training.data)
    return DryRun(
        model=hub.public_name(training.model),
        training=training,
        weights="random" if training.from_scratch else "stored" if chosen.receipt is None else "grown",
        parameters=parameters,
        text=_text([one for source in training.data_sources for one in source.spelled], known),
        held_out=_text(training.eval_data, None if texts is None else texts.held_out) if held_out else None,
        mixture=uses(
            training.data_sources,
            seq_len=seq_len,
            trained_windows=None if steps is None else steps * budget.windows,
            sizes=None if known is None else [(corpus.documents, corpus.tokens) for corpus in known],
        ),
        windows=None if windows is None else sum(windows),
        budget=budget,
        steps=steps,
        start=_start(chosen, budget, texts, steps),
        grown_moments=chosen.grown_moments is not None,
        groups=_groups(optimizer),
        flops_per_token=flops.per_token(model, seq_len),
        memory=_memory(model, chosen, parameters, in_state),
        checkpoint=_FP32 * (parameters + in_state),
        output=parameters * dtype.itemsize,
        processes=chosen.processes,
        precision=chosen.precision,
        compiled=torch.cuda.is_available() if training.compile is None else training.compile,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    )


def _text(spelled: Sequence[str], corpora: Sequence[Corpus] | None) -> Text:
    files = [file for source in inputs.text_sources(spelled) for file in source.files]
    return Text(
        files=len(files),
        nbytes=sum(file.stat().st_size for file in files),
        documents=None if corpora is None else sum(corpus.documents for corpus in corpora),
        tokens=None if corpora is None else sum(corpus.tokens for corpus in corpora),
    )


def _start(chosen: Choices, budget: Budget, texts: Texts | None, steps: int | None) -> int:
    """The step that the run starts from; what it would be refused for is, too, as far as it is known."""
    streamed = inputs.streamed_texts(chosen.training, chosen.config, chosen.tokenizer)
    digests = [] if texts is None else inputs.digests(texts, streamed)
    record = resume.make_record(chosen.training, budget, chosen.directory, digests)
    for field, known in (("texts", texts is not None), ("steps", steps is not None)):
        if not known:
            del record["curve"][field]
    checkpoint = branch.starting_checkpoint(chosen.training, chosen.output, record)
    return resume.step_of(checkpoint)


def _groups(optimizer: torch.optim.Optimizer) -> tuple[Group, ...]:
    """The highest rate first, as in a run."""
    return tuple(
        Group(
            name=group["name"],
            trained_by="muon" if group.get("muon") else "adamw",
            tensors=len(group["params"]),
            parameters=sum(parameter.numel() for parameter in group["params"]),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        for group in sorted(optimizer.param_groups, key=lambda group: -group["lr"])
    )


def _memory(model: Any, chosen: Choices, parameters: int, in_state: int) -> Memory:
    """As bench/scale.py: with full sharding the weights of two layers are whole at a time, else those of all."""
    sharding, processes = chosen.training.sharding, chosen.processes
    shards = 1 if sharding == "none" else processes
    whole, size = 0, 2 if chosen.precision == "bf16" else _FP32
    if sharding == "gradients":
        whole = size * parameters
    elif sharding == "full":
        in_layers = sum(p.numel() for name, p in model.named_parameters() if any(map(str.isdigit, name.split("."))))
        layers = int(model.config.get_text_config().num_hidden_layers)
        whole = size * (2 * in_layers // layers + parameters - in_layers)
    return Memory(
        weights=_FP32 * parameters // shards,
        gradients=_FP32 * parameters // shards,
        optimizer_state=_FP32 * in_state // shards,
        whole_weights=whole,
        buckets=_FP32 * parameters if sharding == "none" and processes > 1 else 0,
    )
