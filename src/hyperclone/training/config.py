"""What a training is asked to do, checked before anything is loaded. Needs neither torch nor transformers.

Defaults are the HyperCloning paper's where it gives them (AdamW with betas 0.9 and 0.999, weight decay 0.05, 1024
tokens, decay to a tenth of the peak), and common practice where it does not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hyperclone import units
from hyperclone.errors import OptionError, TrainingError
from hyperclone.options import check, option
from hyperclone.planning.growth import Growth, Width
from hyperclone.planning.scaling_rule import LrRule
from hyperclone.training import mixture
from hyperclone.training.config_checks import check_training
from hyperclone.training.optimizer_names import OptimizerName

ScheduleName = Literal["cosine", "linear", "wsd", "constant"]
PrecisionName = Literal["bf16", "fp32"]

_SEVERAL = ("data", "eval_data", "tasks", "report_to")  # one value stands for a tuple of it
_NAMES = ("tasks", "report_to")  # or of several, separated by commas
_PATHS = ("model", "output", "cache", "receipt", "branch_from")
# Headings of `hyperclone train --help`.
_FILES, _SIZES, _START = "Text and output", "Sizes", "Start"
_OPTIMIZER, _SCHEDULE = "Optimizer", "Learning rate schedule"
_COMPUTING, _REPORTS = "Computing", "Measuring and saving"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A request. The metadata of each field says what it means; `hyperclone train --help` prints the same.

    Raises:
        TrainingError: a value that cannot be, or options that contradict each other.
    """

    model: str = field(
        metadata=option("Model directory, or Hub id; or RUN.toml, a run file.", metavar="MODEL", positional=True)
    )
    data: Sequence[str] = field(
        metadata=option(
            "Text to train on: a file, directory or glob (txt, md, rst, jsonl, json, parquet, also compressed), "
            "or a Hub dataset NAME[@CONFIG][:SPLIT]. Repeatable; SOURCE=WEIGHT for each: a mixture by weights.",
            metavar="SOURCE",
            group=_FILES,
        )
    )
    eval_data: Sequence[str] = field(
        default=(),
        metadata=option(
            "Held-out text, to measure the loss on [a share of the data]. Repeatable.", metavar="SOURCE", group=_FILES
        ),
    )
    held_out: float = field(
        default=0.01,
        metadata=option(
            "Share of the documents that is held out of training to measure the loss on; 0 for none.", group=_FILES
        ),
    )
    text_field: str = field(
        default="text", metadata=option("Column of jsonl, parquet and Hub data that holds the text.", group=_FILES)
    )
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document",
        metadata=option(
            "What is one document in a text file: the whole file (document), a paragraph, or a line.", group=_FILES
        ),
    )
    cache: str | None = field(
        default=None,
        metadata=option("Where tokenized text is cached [~/.cache/hyperclone/tokens].", metavar="DIR", group=_FILES),
    )
    streaming: bool = field(
        default=False,
        metadata=option(
            "Read and tokenize the text while training goes on, and cache nothing: for text that does not fit the "
            "disk. Needs --tokens, and --eval-data or --held-out 0; the order is shuffled less.",
            group=_FILES,
        ),
    )
    output: str = field(
        metadata=option(
            "Directory for the trained model, its checkpoints and metrics.jsonl.",
            short="-o",
            metavar="DIR",
            group=_FILES,
        )
    )
    push_to_hub: str | None = field(
        default=None,
        metadata=option(
            "Upload the trained model to the Hub at the end, without checkpoints: NAMESPACE/MODEL, or MODEL for your "
            "own; private if it is new.",
            metavar="REPO",
            group=_FILES,
        ),
    )
    seq_len: int | None = field(
        default=None,
        metadata=option(
            "Sequence length: tokens of a training window [1024, or as many as the model can take].",
            least=1,
            group=_SIZES,
        ),
    )
    documents: Literal["packed", "isolated"] = field(
        default="packed",
        metadata=option(
            "Documents that share a window: packed (one context), or isolated (no token attends to another document).",
            group=_SIZES,
        ),
    )
    tokens: str | int | None = field(
        default=None, metadata=option("Tokens to train on: 2B, 350M, ... [one epoch].", metavar="COUNT", group=_SIZES)
    )
    skip_tokens: str | int | None = field(
        default=None,
        metadata=option(
            "Tokens of the data's order that another run with this seed and sequence length has read already: this one "
            "begins with the window after them [none].",
            metavar="COUNT",
            group=_SIZES,
        ),
    )
    batch_tokens: str | int | None = field(
        default=None,
        metadata=option(
            "Tokens of an optimizer step, over all processes: 0.5M, 65_536, ... [64 windows].",
            metavar="COUNT",
            group=_SIZES,
        ),
    )
    micro_batch: int | None = field(
        default=None,
        metadata=option("Windows of one forward pass on one device [up to 8].", least=1, group=_SIZES),
    )
    from_scratch: bool = field(
        default=False,
        metadata=option(
            "Initialize the weights randomly: the control arm, with the same data and sizes; one learning rate for all "
            "parameters, so give it an --lr of its own.",
            group=_START,
        ),
    )
    grow_at: str | float | None = field(
        default=None,
        metadata=option(
            "With --from-scratch: train MODEL at a constant rate up to here (a share of --tokens below 1, or a number "
            "of tokens), grow it with its optimizer state, and train the clone on the tokens that are left.",
            metavar="SHARE|COUNT",
            group=_START,
        ),
    )
    grow_width: Width | None = field(
        default=None,
        metadata=option(
            "With --grow-at: factor for hidden size, feed-forward size and heads together [2; a run file may have a "
            "table [grow] with any option of `hyperclone grow`].",
            metavar="FACTOR",
            group=_START,
        ),
    )
    grow: Growth | None = None  # with grow_at: how; in a run file a table, on the command line --grow-width
    receipt: str | None = field(
        default=None,
        metadata=option(
            "Grown directory whose hyperclone.json says how this model was grown, if it was saved without that and its "
            "config does not say it either.",
            metavar="DIR",
            group=_START,
        ),
    )
    branch_from: str | None = field(
        default=None,
        metadata=option(
            "Run of another length with the same settings and a stable phase (wsd, constant): begin from its last "
            "checkpoint before either learning rate decays, as if this run had come so far itself.",
            metavar="RUN",
            group=_START,
        ),
    )
    grown_moments: Literal["auto", "none"] = field(
        default="auto",
        metadata=option(
            "auto: start the optimizer from the moments that `grow --optimizer-state` wrote beside the model, if there "
            "are any; none: start it without.",
            group=_START,
        ),
    )
    seed: int = field(
        default=0,
        metadata=option("Seed of the order of the data, of dropout and of random weights.", least=0, group=_START),
    )
    optimizer: OptimizerName | None = field(
        default=None,
        metadata=option(
            "muon: Muon for the matrices in the layers, of a clone on the common part of copies and on their "
            "differences, which brings the added width into use, and rotated for the rest; rotated: AdamW on these "
            "parts; adamw; plain-muon: Muon on whole matrices, and adamw for the rest "
            "[muon; adamw with the uniform rule, and where the architecture is not known].",
            group=_OPTIMIZER,
        ),
    )
    lr: float = field(
        default=3e-4,
        metadata=option(
            "Peak learning rate. For a grown model: the rate with which you would continue to train its source, or "
            "half of it; from it the scaling rule derives each parameter's.",
            group=_OPTIMIZER,
        ),
    )
    lr_rule: LrRule | None = field(
        default=None,
        metadata=option(
            "scaled: learning rate, weight decay and epsilon of each parameter by the scaling rule, so that the grown "
            "model follows its source; uniform: the same for all, as in the HyperCloning paper [scaled for a grown "
            "model].",
            group=_OPTIMIZER,
        ),
    )
    difference_lr: float | None = field(
        default=None,
        metadata=option(
            "Peak learning rate of the differences between copies, which start untrained: about the rate with which "
            "you would train a model of the grown size from random weights. For rotated and muon only [the source's "
            "peak rate, if it is known, times old over new hidden size; else --lr].",
            group=_OPTIMIZER,
        ),
    )
    source_lr: float | None = field(
        default=None,
        metadata=option(
            "Peak learning rate that the source was trained with from random weights, which gives the rate of the "
            "differences [from the receipt, where the source had a record of its training].",
            group=_OPTIMIZER,
        ),
    )
    weight_decay: float = field(default=0.05, metadata=option("AdamW's and Muon's weight decay.", group=_OPTIMIZER))
    beta1: float = field(default=0.9, metadata=option("AdamW's beta 1.", group=_OPTIMIZER))
    beta2: float = field(default=0.999, metadata=option("AdamW's beta 2.", group=_OPTIMIZER))
    momentum: float = field(default=0.95, metadata=option("Muon's momentum.", group=_OPTIMIZER))
    max_grad_norm: float = field(
        default=1.0, metadata=option("Gradients are clipped to this norm; 0 for no clipping.", group=_OPTIMIZER)
    )
    schedule: ScheduleName = field(
        default="cosine",
        metadata=option(
            "Learning rate after the warm-up; wsd (warmup-stable-decay) is constant, then falls linearly.",
            group=_SCHEDULE,
        ),
    )
    warmup: float = field(
        default=0.01, metadata=option("Warm-up: steps, or below 1 a share of all steps.", group=_SCHEDULE)
    )
    min_lr: float = field(
        default=0.1, metadata=option("Where the schedule ends, as a share of the peak.", group=_SCHEDULE)
    )
    decay: float = field(default=0.2, metadata=option("Share of the steps in which wsd decays.", group=_SCHEDULE))
    precision: PrecisionName | None = field(
        default=None,
        metadata=option("bf16 (autocast, weights in fp32) or fp32 [bf16 on a GPU that has it].", group=_COMPUTING),
    )
    attention: str = field(
        default="sdpa",
        metadata=option(
            "Attention implementation of transformers: sdpa, flash_attention_2, eager, ...", group=_COMPUTING
        ),
    )
    compile: bool | None = field(default=None, metadata=option("Use torch.compile [on a GPU].", group=_COMPUTING))
    gradient_checkpointing: bool = field(
        default=False,
        metadata=option(
            "Recompute activations in the backward pass: less memory, a third more time.", group=_COMPUTING
        ),
    )
    sharding: Literal["none", "gradients", "full"] = field(
        default="none",
        metadata=option(
            "Over processes: none (DDP), gradients (FSDP2, like ZeRO-2) or full (FSDP2, like ZeRO-3).",
            group=_COMPUTING,
        ),
    )
    log_every: int | None = field(
        default=None, metadata=option("Steps between logs [1/100 of the run].", least=1, group=_REPORTS)
    )
    eval_every: int | None = field(
        default=None, metadata=option("Steps between evaluations [1/20 of the run].", least=1, group=_REPORTS)
    )
    eval_early: bool = field(
        default=False,
        metadata=option(
            "Evaluate after 1, 2, 4, 8, ... steps as well, to see a rise of the loss right after growing.",
            group=_REPORTS,
        ),
    )
    anatomy: bool = field(
        default=False,
        metadata=option(
            "Measure how far the copies have diverged, at the start and at every evaluation.", group=_REPORTS
        ),
    )
    tasks: Sequence[str] = field(
        default=(),
        metadata=option(
            "Tasks of lm-evaluation-harness, separated by commas, run at every evaluation [none].",
            commas=True,
            metavar="NAME,...",
            group=_REPORTS,
        ),
    )
    report_to: Sequence[str] = field(
        default=(),
        metadata=option(
            "Log to these as well, separated by commas: tensorboard, wandb, trackio, ... (transformers' integrations).",
            commas=True,
            metavar="NAME,...",
            group=_REPORTS,
        ),
    )
    save_every: int | None = field(
        default=None, metadata=option("Steps between checkpoints [1/10 of the run].", least=1, group=_REPORTS)
    )
    keep: int = field(default=2, metadata=option("Newest checkpoints to keep; 0 for all.", least=0, group=_REPORTS))
    resume: bool = field(
        default=False,
        metadata=option("Resume from the last checkpoint in the output, if there is one.", group=_REPORTS),
    )

    def __post_init__(self) -> None:
        for name in _SEVERAL:
            value = getattr(self, name)
            if isinstance(value, str) and name in _NAMES:
                value = [part.strip() for part in value.split(",") if part.strip()]
            object.__setattr__(self, name, (value,) if isinstance(value, str | os.PathLike) else tuple(value))
        for name in _PATHS:
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if not self.data:
            raise TrainingError("no data to train on", field="data", cure="--data PATH, repeatable")
        mixture.check(self.data, self.eval_data)
        check(self, TrainingError)
        check_training(self)
        _ = self.total_tokens, self.step_tokens, self.skipped_tokens  # raise if they are no numbers of tokens

    @property
    def data_sources(self) -> tuple[mixture.DataSource, ...]:
        """The sources of the data with their shares; one with all of the text if they have no weights."""
        return mixture.sources_of(self.data)

    @property
    def total_tokens(self) -> int | None:
        """Tokens to train on, as a number."""
        return None if self.tokens is None else _count(self.tokens, "tokens")

    @property
    def step_tokens(self) -> int | None:
        """Tokens of an optimizer step, as a number."""
        return None if self.batch_tokens is None else _count(self.batch_tokens, "batch_tokens")

    @property
    def growth(self) -> Growth | None:
        """How the model is grown in the course of its training; None if it is not."""
        if self.grow_at is None:
            return None
        if self.grow_width is None:
            return self.grow or Growth(width=2)
        return replace(self.grow or Growth(), width=self.grow_width)

    @property
    def skipped_tokens(self) -> int:
        """Tokens that are passed over, as a number; 0 for none."""
        return skipped(self.skip_tokens)


def skipped(value: str | int | None) -> int:
    """What `skip_tokens` means as a number, in which alone 0 stands for none.

    Raises:
        TrainingError: it is no number of tokens.
    """
    if value is None or (not isinstance(value, bool) and str(value).strip() == "0"):
        return 0
    return _count(value, "skip_tokens")


def _count(value: str | int, field: str) -> int:
    try:
        return units.parse(value, field)
    except OptionError:
        raise TrainingError("not a number of tokens", field=field, found=value, expected="2B, 350M or 65_536") from None
