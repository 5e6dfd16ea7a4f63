"""What a training is asked to do, checked before anything is loaded. Needs neither torch nor transformers.

Defaults are the HyperCloning paper's where it gives them (AdamW with betas 0.9 and 0.999, weight decay 0.05, 1024
tokens, decay to a tenth of the peak), and common practice where it does not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hyperclone import units
from hyperclone.errors import OptionError, TrainingError

SCHEDULES = ("cosine", "linear", "wsd", "constant")
DOCUMENTS = ("packed", "isolated")
SAMPLES = ("document", "paragraph", "line")
SHARDINGS = ("none", "gradients", "full")
PRECISIONS = ("bf16", "fp32")
OPTIMIZER_STATES = ("auto", "none")
OPTIMIZERS = ("adamw", "rotated")
LR_RULES = ("scaled", "uniform")
_WHOLE = ("seq_len", "micro_batch", "log_every", "eval_every", "save_every")  # at least 1, or None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A request.

    Attributes:
        model: a model directory, or a Hub id.
        data: files, directories, globs, or Hub datasets (`org/name`, `org/name@config:split`).
        output: directory of the trained model, its checkpoints and metrics.jsonl.
        text_field: the column of jsonl, parquet and Hub data that holds the text.
        sample_by: what one document of a text file is: "document" (the file), "paragraph" or "line".
        eval_data: text to measure the held-out loss on; by default `held_out` of the data.
        held_out: share of the documents that is kept from training; 0 for none.
        cache: where tokenised data is kept; by default `~/.cache/hyperclone/tokens`.
        seq_len: tokens of a window; by default 1024, or as many as the model has positions.
        documents: "packed" (a window is one context) or "isolated" (no token attends to another document).
        tokens: to be trained on ("2B" or a number); by default the data once.
        batch_tokens: tokens of an optimizer step, over all processes; by default 64 windows.
        micro_batch: windows of one forward pass on one device; by default up to 8.
        lr: peak learning rate; of a grown model, the one its source was trained with.
        lr_rule: "scaled" (param groups by the scaling rule) or "uniform" (one learning rate everywhere); by default
            scaled where the model has a receipt and is not trained from scratch.
        optimizer: "adamw", or "rotated": AdamW on what copies have in common and on their differences (rotated.py); by
            default `usual_optimizer`'s.
        difference_lr: of "rotated": peak learning rate of the differences, such as one would train a model of this size
            with from random weights; by default `lr`.
        schedule: "cosine", "linear", "wsd" (constant, then linear over the last `decay` of the steps), "constant".
        warmup: steps, or below 1 a share of them.
        min_lr: where the schedule ends, as a share of the peak.
        decay: share of the steps in which "wsd" decays.
        weight_decay, beta1, beta2: AdamW's.
        max_grad_norm: gradients are clipped to this norm; 0 for no clipping.
        seed: of the order of the data, dropout, and the weights when they are drawn.
        from_scratch: draw the weights anew: the control arm.
        optimizer_state: "auto" (start from the grown optimizer state, if the model has one) or "none".
        precision: "bf16" (autocast, weights in fp32) or "fp32"; by default bf16 on a GPU that has it.
        attention: transformers' attn_implementation ("sdpa", "flash_attention_2", "eager", ...).
        compile: torch.compile; by default on a GPU.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        sharding: over processes: "none" (DDP), "gradients" (FSDP2, weights whole between forward and backward: like
            ZeRO-2), "full" (FSDP2, like ZeRO-3).
        log_every, eval_every, save_every: in steps; by default 1/100, 1/20 and 1/10 of the run.
        eval_early: measure the held-out loss after 1, 2, 4, 8, ... steps as well, so that a dip at the start is seen.
        anatomy: note the symmetry between the copies of a grown model at the start and with every evaluation.
        keep: newest checkpoints to keep; 0 for all.
        tasks: of lm-evaluation-harness, run whenever the held-out loss is measured.
        report: "tensorboard", "wandb", "trackio", ...: Trainer's integrations.
        resume: go on from the last checkpoint in `output`, if there is one.
    """

    model: str
    data: Sequence[str]
    output: str
    text_field: str = "text"
    sample_by: str = "document"
    eval_data: Sequence[str] = ()
    held_out: float = 0.01
    cache: str | None = None
    seq_len: int | None = None
    documents: str = "packed"
    tokens: str | int | None = None
    batch_tokens: str | int | None = None
    micro_batch: int | None = None
    lr: float = 3e-4
    lr_rule: str | None = None
    optimizer: str | None = None
    difference_lr: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.01
    min_lr: float = 0.1
    decay: float = 0.2
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 0
    from_scratch: bool = False
    optimizer_state: str = "auto"
    precision: str | None = None
    attention: str = "sdpa"
    compile: bool | None = None
    gradient_checkpointing: bool = False
    sharding: str = "none"
    log_every: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    eval_early: bool = False
    anatomy: bool = False
    keep: int = 2
    tasks: Sequence[str] = ()
    report: Sequence[str] = ()
    resume: bool = False

    def __post_init__(self) -> None:
        for field in ("data", "eval_data", "tasks", "report"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str | os.PathLike) else tuple(value))
        for field in ("model", "output", "cache"):
            if isinstance(value := getattr(self, field), os.PathLike):
                object.__setattr__(self, field, os.fspath(value))
        if not self.data:
            raise TrainingError("no data to train on", field="data", cure="--data PATH, repeatable")
        for field, allowed in (
            ("schedule", SCHEDULES),
            ("documents", DOCUMENTS),
            ("sample_by", SAMPLES),
            ("sharding", SHARDINGS),
            ("precision", (None, *PRECISIONS)),
            ("optimizer_state", OPTIMIZER_STATES),
            ("lr_rule", (None, *LR_RULES)),
            ("optimizer", (None, *OPTIMIZERS)),
        ):
            if (value := getattr(self, field)) not in allowed:
                raise TrainingError(
                    f"unknown {field}", field=field, found=value, expected=", ".join(str(a) for a in allowed if a)
                )
        for field in _WHOLE:
            _whole(field, getattr(self, field), least=1, optional=True)
        _whole("keep", self.keep, least=0)
        _whole("seed", self.seed, least=0)
        for field, least, most in (
            ("lr", 0.0, math.inf),
            ("warmup", 0.0, math.inf),
            ("min_lr", 0.0, 1.0),
            ("decay", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("max_grad_norm", 0.0, math.inf),
            ("held_out", 0.0, 0.5),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise TrainingError("out of range", field=field, found=value, expected=f"{least:g} to {most:g}")
        if self.lr == 0 or math.isinf(self.lr) or self.beta1 == 1 or self.beta2 == 1:
            raise TrainingError(
                "nothing can be learnt with this",
                field="lr, beta1, beta2",
                found=f"{self.lr}, {self.beta1}, {self.beta2}",
            )
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise TrainingError(
                "not a number of steps", field="warmup", found=self.warmup, expected="whole steps, or a share below 1"
            )
        if self.from_scratch and self.lr_rule == "scaled":
            raise TrainingError(
                "the scaling rule is for copies of trained weights, and randomly initialized weights are no copies",
                field="lr_rule",
                found="scaled",
                cure="leave --lr-rule out with --from-scratch",
            )
        if self.optimizer == "rotated" and self.from_scratch:
            raise TrainingError(
                "randomly initialized weights are no copies, and the rotated optimizer compares copies",
                field="optimizer",
                found="rotated",
                cure="leave --optimizer out with --from-scratch",
            )
        if (own := self.difference_lr) is not None:
            if self.optimizer == "adamw":
                raise TrainingError(
                    "only the rotated optimizer knows differences between copies",
                    field="difference_lr",
                    found=own,
                    cure="--optimizer rotated, or leave --difference-lr out",
                )
            if isinstance(own, bool) or not isinstance(own, int | float) or not 0 <= own < math.inf:
                raise TrainingError("out of range", field="difference_lr", found=own, expected="0 or more")
        _ = self.total_tokens, self.step_tokens  # raise if they are no numbers of tokens

    @property
    def total_tokens(self) -> int | None:
        """Tokens to train on, as a number."""
        return None if self.tokens is None else _count(self.tokens, "tokens")

    @property
    def step_tokens(self) -> int | None:
        """Tokens of an optimizer step, as a number."""
        return None if self.batch_tokens is None else _count(self.batch_tokens, "batch_tokens")


def usual_optimizer(*, grown: bool, first_copy_moments: bool, lr_rule: str | None) -> str:
    """The optimizer where none is asked for: what won in docs/findings.md.

    Args:
        grown: the model starts as a wider clone, so copies can be compared.
        first_copy_moments: it starts from moments of the first copies only, which make copies diverge under AdamW.
        lr_rule: as asked for; one learning rate everywhere is the published recipe, AdamW.
    """
    return "rotated" if grown and not first_copy_moments and lr_rule != "uniform" else "adamw"


def _count(value: str | int, field: str) -> int:
    try:
        return units.parse(value, field)
    except OptionError:
        raise TrainingError("not a number of tokens", field=field, found=value, expected="2B, 350M or 65_536") from None


def _whole(field: str, value: object, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TrainingError("not a whole number", field=field, found=value, expected=f"{least} or more")
