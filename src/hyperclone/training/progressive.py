"""Training that grows its model on the way (`train --grow-at`): from random weights to a large model, for less.

1. A small model is trained from random weights: after the warm-up, at a constant rate.
2. Its last checkpoint is grown with the optimizer state, and the growth is proved.
3. The clone reads on where the small model has stopped, with a warm-up of its own, and its learning rate decays once.

Everything lies below one directory: `small` (the run of 1), `grown` (the clone as it was grown), and the run of 3 in
the directory itself, which so ends as a plain model directory. Each part is complete or absent, and a training that is
resumed goes on with the first that is not complete.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.conversion import grow as growing
from hyperclone.conversion import receipt
from hyperclone.errors import DestinationError, TrainingError
from hyperclone.hf.models import max_positions
from hyperclone.io import hub
from hyperclone.io.files import exists, to_json, user_path
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.training import budget, checkpoints, export, flops, inputs, metrics, resume
from hyperclone.training.config import Training
from hyperclone.training.dry_run import DryRun, dry_run
from hyperclone.training.events import ModelGrown, StageStarted, Watch
from hyperclone.training.growing_checks import share_or_tokens
from hyperclone.training.lr_schedule import stable_until, warmup_steps
from hyperclone.training.optimizer_names import OF_COPIES, usual_optimizer
from hyperclone.training.preparation import choose, prepare

if TYPE_CHECKING:
    from hyperclone.training.run import Trained

SMALL, GROWN = resume.STAGES
_LOOK_EVERY = 1.0  # seconds between looks of processes that wait for the clone


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The two trainings of one request, and what is between them.

    Attributes:
        small: of the small model.
        growth: how its last checkpoint is grown.
        large: of the clone.
    """

    small: Training
    growth: Growth
    large: Training

    @property
    def total_tokens(self) -> int:
        """Tokens of both trainings."""
        return (self.small.total_tokens or 0) + (self.large.total_tokens or 0)


@dataclass(frozen=True, kw_only=True)
class SmallStage:
    """What the training of the small model took; training.json of the whole has it as `small`.

    Attributes:
        model: public name of the one whose architecture it has.
        tokens, parameters, flops_per_token, flops: its size and its cost.
        seconds: of its run; None where its metrics are gone.
    """

    model: str
    tokens: int
    parameters: int
    flops_per_token: int
    flops: int
    seconds: float | None


RunStage = Callable[[Training, Watch, SmallStage | None], "Trained"]


def train(training: Training, run: RunStage, watch: Watch) -> Trained:
    """Train a model that grows on the way.

    Args:
        training: the request, with `grow_at`.
        run: trains one stage.
        watch: called with every event; does nothing in processes other than the main one.

    Raises:
        HypercloneError: one of the stages cannot be run as asked; what can be known of that is known at the start.
    """
    stages, output = plan(training), user_path(training.output)
    _check_output(output)
    _check_text(training)
    with _shape_of_clone(stages) as shape:
        choose(replace(stages.large, model=str(shape)), dry_run=True)
    if not _is_finished(stages.small, watch):
        watch(StageStarted(stage="small", tokens=stages.small.total_tokens or 0, total_tokens=stages.total_tokens))
        trained = run(stages.small, watch, None)
        if trained.interrupted is not None:
            return trained
    _grow(stages, output, watch)
    watch(StageStarted(stage="grown", tokens=stages.large.total_tokens or 0, total_tokens=stages.total_tokens))
    return run(stages.large, watch, _cost(stages.small))


def dry_runs(training: Training) -> tuple[DryRun, DryRun]:
    """What the two stages would do. Nothing is written, but for a directory without weights that is removed again.

    Raises:
        HypercloneError: they cannot be run as asked.
    """
    stages = plan(training)
    _check_output(user_path(training.output))
    _check_text(training)
    small = dry_run(stages.small)
    with _shape_of_clone(stages) as shape:
        large = dry_run(replace(stages.large, model=str(shape)))
    training = replace(large.training, model=stages.large.model)
    return small, replace(large, model=GROWN, training=training, grown_moments=True)


def plan(training: Training) -> Stages:
    """The two trainings of a request.

    Both have its data order, batches and peak rate. The warm-up is as many steps in both, and a share is one of all
    steps, as it is for the decay.

    Raises:
        TrainingError: the growth would come too early or too late.
    """
    assert training.total_tokens is not None
    assert training.growth is not None
    assert training.grow_at is not None
    config = inputs.load_config(hub.resolve(training.model, weights=False))
    seq_len = budget.sequence_length(training.seq_len, max_positions(config))
    batch = training.step_tokens or budget.WINDOWS * seq_len
    steps = training.total_tokens // batch
    point = share_or_tokens(training.grow_at)
    before = round(point / batch) if isinstance(point, int) else round(point * steps)
    warmup = warmup_steps(training.warmup, steps)
    stable = stable_until(training.schedule, steps=steps, decay=training.decay) or steps
    _check_point(training, before, steps, least=max(1, warmup), most=min(stable, steps - max(1, warmup)))
    shared: dict[str, Any] = {"grow_at": None, "grow_width": None, "grow": None, "warmup": float(warmup)}
    small = replace(
        training, **shared, output=os.path.join(training.output, SMALL), tokens=before * batch, schedule="constant",
        optimizer="adamw" if training.optimizer == "rotated" else training.optimizer, difference_lr=None,
        source_lr=None, lr_rule=None, anatomy=False, push_to_hub=None,
    )  # fmt: skip
    large = replace(
        training, **shared, model=os.path.join(training.output, GROWN), from_scratch=False,
        tokens=(steps - before) * batch, skip_tokens=before * batch, decay=_share(steps - stable, steps - before),
        **_source_lr(training),
    )  # fmt: skip
    return Stages(small=small, growth=training.growth, large=large)


def _check_point(training: Training, before: int, steps: int, *, least: int, most: int) -> None:
    if not least <= before <= most:
        raise TrainingError(
            "the model cannot be grown at this step: the small one's warm-up has to end before, and the clone needs "
            "time for its own, and for the decay of the learning rate",
            field="grow_at",
            found=f"{training.grow_at}, step {before} of {steps}",
            expected=f"a step from {least} to {most}" if least <= most else "more steps",
            cure=f"--grow-at {(least + most) / 2 / steps:.2g}, a shorter --warmup, or a shorter --decay"
            if least <= most
            else "more --tokens, or a shorter --warmup",
        )


def _share(part: int, steps: int) -> float:
    """The share of so many steps that `stable_until` takes for `part` of them."""
    share = part / steps
    return share if math.ceil(share * steps) == part else math.nextafter(share, 0.0)


def _source_lr(training: Training) -> dict[str, Any]:
    """The option of the clone that gives its differences the rate that follows from the small model's."""
    assert training.growth is not None
    usual = usual_optimizer(matrices_known=True, first_copy_moments=False, lr_rule=training.lr_rule)
    given = training.difference_lr is not None or training.source_lr is not None
    return {} if given or (training.optimizer or usual) not in OF_COPIES else {"source_lr": training.lr}


def _check_output(output: Path) -> None:
    """What is there already must be of such a training; whether it may be resumed, each stage says itself."""
    begun = exists(output / SMALL / resume.RECORD_FILE)
    if output.is_dir() and not begun and any(entry.name not in resume.STAGES for entry in output.iterdir()):
        raise DestinationError(
            "the output exists and does not hold a training that grows its model", file=output,
            expected=f"a directory {SMALL} with a training run", cure="choose another directory",
        )  # fmt: skip


def _check_text(training: Training) -> None:
    """The text must be the same for both stages, which are of different lengths."""
    of_data = [one for source in training.data_sources for one in source.spelled]
    inputs.check_files([*of_data, *training.eval_data], field="grow_at")


@contextmanager
def _shape_of_clone(stages: Stages) -> Iterator[Path]:
    """A directory that has all of the clone but its weights, for as long as the context lasts.

    Raises:
        HypercloneError: the model cannot be grown like this.
    """
    source = hub.resolve(stages.small.model, weights=False)
    config = {name: value for name, value in hub.config(source).items() if name != receipt.CONFIG_FIELD}
    config |= {name: "float32" for name in planner.DTYPE_FIELDS if name in config}  # as checkpoints are
    made = planner.make_plan(hub.Headers.from_config(config, dtype="F32"), stages.growth)
    with tempfile.TemporaryDirectory() as scratch:
        shape = Path(scratch) / GROWN
        shape.mkdir()
        export.carry(source, shape, config=False, grown=None)
        said = receipt.config_field(made)
        (shape / "config.json").write_text(to_json({**made.config, receipt.CONFIG_FIELD: said}))
        yield shape


def _is_finished(small: Training, watch: Watch) -> bool:
    """Whether the small model has been trained to the end, with these settings.

    Raises:
        HypercloneError: there is one with other settings, or it may not be resumed.
    """
    output = user_path(small.output)
    if not exists(output / resume.RECORD_FILE):
        return False
    prepared = prepare(small, watch=watch)
    return prepared.step >= prepared.budget.steps and any(output.glob("*.safetensors"))


def _grow(stages: Stages, output: Path, watch: Watch) -> None:
    """Grow the small model's last checkpoint, unless that is done; other processes wait for the main one."""
    target = output / GROWN
    if exists(target / receipt.FILE):
        _check_grown(target, stages.growth)
        return
    if os.environ.get("RANK", "0") != "0":
        while not exists(target / receipt.FILE):  # if the main process fails, its launcher ends this one
            time.sleep(_LOOK_EVERY)
        return
    checkpoint = checkpoints.last(user_path(stages.small.output))
    assert checkpoint is not None  # every run saves its last step
    grown = growing.grow(checkpoint, target, stages.growth, optimizer_state=checkpoint, moments="copy")
    assert grown.proof is not None
    assert grown.optimizer_state is not None
    watch(
        ModelGrown(
            path=str(target), checkpoint=checkpoint.name, source_parameters=grown.plan.source_parameters,
            parameters=grown.plan.parameters, proved=grown.proof.passed,
            optimizer_state=grown.optimizer_state.sentence,
        )
    )  # fmt: skip


def _check_grown(target: Path, growth: Growth) -> None:
    recorded = receipt.read(target)
    assert recorded is not None
    if recorded.growth != growth:
        raise TrainingError(
            "the model was grown otherwise before", file=target / receipt.FILE, field="grow",
            found=growth.flags(), expected=recorded.growth.flags(),
            cure="repeat this growth, or choose another directory",
        )  # fmt: skip


def _cost(small: Training) -> SmallStage:
    """What the small model's training took."""
    output = user_path(small.output)
    model, _ = inputs.empty_model(output, small)
    curve = resume.curve(output)
    tokens = int(curve["steps"]) * int(curve["batch_tokens"])
    per_token = round(flops.per_token(model, int(curve["seq_len"])))
    return SmallStage(
        model=hub.public_name(small.model),
        tokens=tokens,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token=per_token,
        flops=tokens * per_token,
        seconds=max((line["seconds"] for line in metrics.read(output)), default=None),
    )


def recorded(small: SmallStage | None) -> dict[str, Any]:
    """What training.json of the clone says of the small model; nothing for a run without one."""
    return {} if small is None else {"small": asdict(small)}
