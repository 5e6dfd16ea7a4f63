"""training.json: what a run computes, so that nothing else is resumed in its place.

What may change between the parts of a run is where and how it computes (processes, precision, sharding, compilation),
and how often it logs, evaluates and saves. What would change the curve may not.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError, TrainingError
from hyperclone.io import hub
from hyperclone.io.files import read_json
from hyperclone.training import checkpoints, hardware
from hyperclone.training.budget import Budget
from hyperclone.training.config import Training
from hyperclone.version import __version__

FILE = "training.json"
_CURVE = (
    "held_out",
    "documents",
    "lr",
    "lr_rule",
    "optimizer",
    "difference_lr",
    "schedule",
    "warmup",
    "min_lr",
    "decay",
    "weight_decay",
    "beta1",
    "beta2",
    "max_grad_norm",
    "seed",
    "from_scratch",
    "optimizer_state",
)


def settings(training: Training, sizes: Budget, place: Path, texts: list[str]) -> dict[str, Any]:
    """What determines the curve, and what else is good to know of a run.

    Args:
        training, sizes: the request.
        place: the model's directory.
        texts: digests of the tokenised text, so that a run goes on wherever its files lie.
    """
    told = asdict(training)
    return {
        "hyperclone": __version__,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate", "datasets")
        },
        "hardware": [hardware.this_machine()],
        "model": hub.public_name(training.model),
        "data": [hub.public_name(one) for one in training.data],
        "curve": {
            "config": hashlib.sha256((place / "config.json").read_bytes()).hexdigest()[:20],
            "texts": texts,
            "seq_len": sizes.seq_len,
            "batch_tokens": sizes.batch_tokens,
            "steps": sizes.steps,
            **{name: told[name] for name in _CURVE},
        },
        "run": {
            name: told[name] for name in ("precision", "attention", "compile", "gradient_checkpointing", "sharding")
        },
    }


def take_up(output: Path, told: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from; None to begin.

    Raises:
        DestinationError: the output holds something else, or a run that was not asked to go on.
        TrainingError: it holds another run.
    """
    if not output.exists() or not any(output.iterdir()):
        return None
    if not (output / FILE).is_file():
        raise DestinationError(
            "the output exists and is no training of ours", file=output, cure="choose another directory"
        )
    if not resume:
        raise DestinationError(
            "the output holds a training already",
            file=output,
            cure="--resume goes on with it; or choose another directory",
        )
    before = read_json(output / FILE).get("curve", {})
    usual = {field.name: field.default for field in fields(Training)}  # options that are newer than the record
    usual["optimizer"] = "adamw"
    for field, value in json.loads(json.dumps(told["curve"])).items():
        if (was := before.get(field, usual.get(field))) != value:
            raise TrainingError(
                "this output holds a training with other settings",
                file=output / FILE,
                field=field,
                found=value,
                expected=was,
                cure="repeat its settings, or choose another directory",
            )
    return checkpoints.last(output)


def optimizer(output: Path) -> str | None:
    """The optimizer that a run in the output began with; None if there is none."""
    if not (output / FILE).is_file():
        return None
    return str(read_json(output / FILE).get("curve", {}).get("optimizer", "adamw"))


def write(output: Path, told: dict[str, Any], *, resumed: bool) -> None:
    """Make the output and say what runs in it; where it ran before stays known."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        before = read_json(output / FILE).get("hardware", []) if resumed else []
        told = {**told, "hardware": hardware.distinct([*before, *told["hardware"]])}
        checkpoints.clear(output)
        (output / FILE).write_text(json.dumps(told, indent=2) + "\n")
    except OSError as error:
        raise DestinationError("the output cannot be written", file=output, found=error.strerror) from None
