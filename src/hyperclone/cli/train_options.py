"""The options of a training, spelled once: a command that takes `training: Training` gets one option for each field."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hyperclone.cli.options import takes
from hyperclone.training.config import Training

_List = list[str] | None

OPTIONS: dict[str, Any] = {
    "model": Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, or Hub id.")],
    "data": Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="File, directory, glob (txt, md, jsonl, parquet) or Hub dataset NAME[@CONFIG][:SPLIT]; repeatable.",
        ),
    ],
    "output": Annotated[
        str, typer.Option(metavar="DIR", help="Directory for the model, checkpoints and metrics.jsonl.")
    ],
    "text_field": Annotated[str, typer.Option(help="Column that holds the text.")],
    "sample_by": Annotated[
        str, typer.Option(help="What a document of a text file is: document (the file), paragraph, line.")
    ],
    "eval_data": Annotated[
        _List, typer.Option(metavar="SOURCE", help="Held-out text; by default a share of --data. Repeatable.")
    ],
    "held_out": Annotated[float, typer.Option(help="Share of the documents that is held out; 0 for none.")],
    "cache": Annotated[str | None, typer.Option(metavar="DIR", help="Tokenised data [~/.cache/hyperclone/tokens].")],
    "seq_len": Annotated[int | None, typer.Option(help="Tokens of a window [1024, or the model's positions].")],
    "documents": Annotated[
        str, typer.Option(help="packed (a window is one context), or isolated (attention stays inside a document).")
    ],
    "tokens": Annotated[str | None, typer.Option(help="Tokens to train on: 2B, 350M, ... [the data once].")],
    "batch_tokens": Annotated[str | None, typer.Option(help="Tokens of a step, over all processes [64 windows].")],
    "micro_batch": Annotated[
        int | None, typer.Option(min=1, help="Windows of a forward pass on one device [up to 8].")
    ],
    "lr": Annotated[float, typer.Option(help="Peak learning rate: the source's; --lr-rule scales it.")],
    "lr_rule": Annotated[
        str | None,
        typer.Option(
            help="scaled (param groups by the scaling rule), or uniform (one rate everywhere) "
            "[scaled, if there is a receipt]."
        ),
    ],
    "optimizer": Annotated[
        str | None,
        typer.Option(
            help="rotated (AdamW on what copies have in common and on their differences), or adamw "
            "[rotated for a wider clone, if --lr-rule and moments allow]."
        ),
    ],
    "difference_lr": Annotated[
        float | None,
        typer.Option(help="Of rotated: peak rate of the differences; about what random weights would want [--lr]."),
    ],
    "schedule": Annotated[str, typer.Option(help="cosine, linear, wsd (warm-up, stable, decay), constant.")],
    "warmup": Annotated[float, typer.Option(help="Warm-up: steps, or below 1 a share of them.")],
    "min_lr": Annotated[float, typer.Option(help="Where the schedule ends, as a share of the peak.")],
    "decay": Annotated[float, typer.Option(help="Share of the steps in which wsd decays.")],
    "weight_decay": Annotated[float, typer.Option(help="AdamW's.")],
    "beta1": Annotated[float, typer.Option(help="AdamW's.")],
    "beta2": Annotated[float, typer.Option(help="AdamW's.")],
    "max_grad_norm": Annotated[float, typer.Option(help="Clip gradients to this norm; 0 for no clipping.")],
    "seed": Annotated[int, typer.Option(help="Seed of the data's order, dropout, and weights drawn anew.")],
    "from_scratch": Annotated[
        bool, typer.Option("--from-scratch", help="Draw the weights anew: the control arm, same data and settings.")
    ],
    "optimizer_state": Annotated[
        str, typer.Option(help="auto (start from the grown optimizer state, if there is one), or none.")
    ],
    "precision": Annotated[str | None, typer.Option(help="bf16 (autocast), or fp32 [bf16 on a GPU].")],
    "attention": Annotated[str, typer.Option(help="sdpa, flash_attention_2, eager, ...")],
    "compile": Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile [on a GPU].")],
    "gradient_checkpointing": Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ],
    "sharding": Annotated[
        str, typer.Option(help="Over processes: none (DDP), gradients (like ZeRO-2), full (like ZeRO-3); FSDP2.")
    ],
    "log_every": Annotated[int | None, typer.Option(min=1, help="Steps [1/100 of the run].")],
    "eval_every": Annotated[int | None, typer.Option(min=1, help="Steps [1/20].")],
    "save_every": Annotated[int | None, typer.Option(min=1, help="Steps [1/10].")],
    "eval_early": Annotated[
        bool, typer.Option("--eval-early", help="Measure the held-out loss after 1, 2, 4, 8, ... steps as well.")
    ],
    "anatomy": Annotated[
        bool,
        typer.Option("--anatomy", help="Note how far the copies have moved apart, at the start and with evaluations."),
    ],
    "keep": Annotated[int, typer.Option(min=0, help="Newest checkpoints to keep; 0 for all.")],
    "tasks": Annotated[
        _List,
        typer.Option(
            "--task", metavar="NAME", help="Task of lm-evaluation-harness, run with every evaluation. Repeatable."
        ),
    ],
    "report": Annotated[_List, typer.Option(metavar="NAME", help="tensorboard, wandb, trackio, ... Repeatable.")],
    "resume": Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output, if there is one.")
    ],
}

takes_training = takes(Training, OPTIONS)
