"""How a run resumes: training.json records what it computes, and only the same may continue from its last checkpoint.

`train --resume` on an output with a run compares the request with that run's training.json (`checkpoint_to_resume`).
What would change the loss curve must be equal, and the text must have the same tokens. What may change is where and how
it computes (processes, precision, sharding, compilation), and how often it logs, evaluates and saves.
Then preparation.py passes the newest complete checkpoint (checkpoints.py) to run.py, and Trainer loads weights,
optimizer, schedule and random states from it. The order of the data is a function of seed and step (packing.py);
of streamed text, the checkpoint says where to go on (streaming.py).
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
from hyperclone.io.files import read_json, write_text
from hyperclone.training import checkpoints, hardware, metrics
from hyperclone.training.budget import Budget
from hyperclone.training.config import Training
from hyperclone.training.optimizer_names import OptimizerName
from hyperclone.version import __version__

RECORD_FILE = "training.json"
STAGES = ("small", "grown")  # directories in the output of a run that goes on from a small model (progressive.py)
_CURVE = (
    "held_out",
    "streaming",
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
    "momentum",
    "max_grad_norm",
    "seed",
    "from_scratch",
    "grown_moments",
)
# Of options that came later than a record they are what it ran with.
_DEFAULTS = {"skip_tokens": 0, **{field.name: field.default for field in fields(Training) if field.name in _CURVE}}
_RUN = ("precision", "attention", "compile", "gradient_checkpointing", "sharding")
_PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def make_record(training: Training, budget: Budget, directory: Path, texts: list[str]) -> dict[str, Any]:
    """The content of training.json: under `curve` what determines the loss curve, and what else is good to know.

    Args:
        training, budget: the request and its sizes.
        directory: the model's.
        texts: digests of the text, so that a run can be resumed wherever its files lie.
    """
    options, sources = asdict(training), training.data_sources
    return {
        "hyperclone": __version__,
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "hardware": [hardware.this_machine()],
        "model": hub.public_name(training.model),
        "data": [hub.public_name(spelled) for source in sources for spelled in source.spelled],
        "curve": {
            "data_shares": [str(source.share) for source in sources] if len(sources) > 1 else None,
            "config": hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()[:20],
            "texts": texts,
            "seq_len": budget.seq_len,
            "batch_tokens": budget.batch_tokens,
            "steps": budget.steps,
            **{name: options[name] for name in _CURVE},
            **({"skip_tokens": training.skipped_tokens} if training.skipped_tokens else {}),
        },
        "run": {name: options[name] for name in _RUN},
        **({} if training.branch_from is None else {"branch_from": Path(training.branch_from).name}),
    }


def checkpoint_to_resume(output: Path, record: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint that a run starts from; None to start at step 0.

    Args:
        output: the directory of the run, there or not.
        record: what is to be run.
        resume: whether an earlier run in it may be resumed.

    Raises:
        DestinationError: the output holds something else, or a run that was not to be resumed.
        TrainingError: it holds a run with other settings.
    """
    if output.exists() and not output.is_dir():
        raise DestinationError("the output is no directory", file=output, cure="choose another path")
    if not output.exists() or all(entry.name in STAGES for entry in output.iterdir()):
        return None
    if not (output / RECORD_FILE).is_file():
        raise DestinationError(
            "the output exists and does not hold a training run", file=output, cure="choose another directory"
        )
    if not resume:
        raise DestinationError(
            "the output already holds a training run",
            file=output,
            cure="--resume continues it; or choose another directory",
        )
    before = curve(output)
    for field, value in curve_of(record).items():
        if before.get(field) != value:
            raise TrainingError(
                "this output holds a training run with other settings",
                file=output / RECORD_FILE,
                field=field,
                found=value,
                expected=before.get(field),
                cure="repeat its settings, or choose another directory",
            )
    return checkpoints.last(output)


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 for none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def recorded_optimizer(output: Path) -> OptimizerName | None:
    """The optimizer of the run in the output; None if there is none."""
    return curve(output).get("optimizer") if (output / RECORD_FILE).is_file() else None


def write_record(output: Path, record: dict[str, Any], *, before: Path | None) -> None:
    """Make the output and write its training.json.

    Args:
        output: directory of the run.
        record: what is to be written.
        before: directory of the run that it goes on from, whose machines are kept: this one, or another; None if none.

    Raises:
        DestinationError: it cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = [] if before is None else read_json(before / RECORD_FILE).get("hardware", [])
        record = {**record, "hardware": hardware.distinct([*earlier, *record["hardware"]])}
        checkpoints.clear(output)
        write_text(output / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise DestinationError("the output cannot be written", file=output, found=error.strerror) from None


def remove_record(output: Path) -> None:
    """Undo the beginning of a run that took no step, so that another one may have its output."""
    for name in (RECORD_FILE, metrics.FILE):
        (output / name).unlink(missing_ok=True)


def curve(output: Path) -> dict[str, Any]:
    """What determines the loss curve of the run in a directory."""
    return curve_of(read_json(output / RECORD_FILE))


def curve_of(record: dict[str, Any]) -> dict[str, Any]:
    """What determines the loss curve of a run, from its record, written or not."""
    recorded: dict[str, Any] = json.loads(json.dumps(record.get("curve", {})))
    return recorded | {name: value for name, value in _DEFAULTS.items() if name not in recorded}
