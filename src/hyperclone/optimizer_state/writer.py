"""The grown optimizer state on disk: `optimizer_state.safetensors` beside the model, and its part of the receipt.

A moment's name is that of its tensor and its kind (`model.norm.weight.exp_avg`). Tensors without moments start fresh,
with step 0: layers added by depth-mode identity, whose output is zero, so that the moments of the layers that they copy
do not apply; and head and embedding that are untied, because the source has only the sum of their gradients. Step
counts are in the receipt.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hyperclone.errors import GrowthError, OptionError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.files import to_json, user_path
from hyperclone.io.shards import Shard, TensorHeader, lay_out
from hyperclone.io.streaming import Progress, digest, write_shards
from hyperclone.io.tensor_files import Entry, TensorFiles, read_header
from hyperclone.optimizer_state import moments, reader
from hyperclone.optimizer_state.moments import MomentPlan
from hyperclone.optimizer_state.reader import SourceState
from hyperclone.planning.plan import Plan
from hyperclone.planning.recipe import Expansion

STEM = "optimizer_state"
_INDEX = f"{STEM}.safetensors.index.json"


@dataclass(frozen=True)
class StatePlan:
    """The optimizer state to write.

    Attributes:
        model: the model's plan.
        source: the optimizer state that it grows from.
        treatment: what copies get of the source's moments; one of moments.TREATMENTS.
        moments: every moment, by its name on disk.
        shards: the output files.
        fresh: tensors that start without moments.
    """

    model: Plan
    source: SourceState
    treatment: str
    moments: dict[str, MomentPlan]
    shards: tuple[Shard, ...]
    fresh: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Changes when the bytes to be written do."""
        stat = self.source.file.stat()
        headers = [hashlib.sha256(shard.header).hexdigest() for shard in self.shards]
        times = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        return f"{self.source.file.resolve()}:{times}:{self.treatment}:{headers}"

    @property
    def steps(self) -> dict[str, int]:
        """Steps of every tensor with moments, if the optimizer counts them."""
        steps = self.source.steps
        return {m.tensor.name: steps[m.tensor.source] for m in self.moments.values() if m.tensor.source in steps}

    @property
    def step(self) -> int | None:
        """Steps of most tensors; those that had no gradient at times have fewer."""
        return Counter(self.source.steps.values()).most_common(1)[0][0] if self.source.steps else None

    @property
    def sentence(self) -> str:
        """Optimizer, step, treatment and numbers of tensors, in words."""
        kept = len({m.tensor.name for m in self.moments.values()})
        after = f" after {self.step:,} steps" if self.step is not None else ""
        tensors = f"{kept} tensors with moments, {len(self.fresh)} start fresh"
        return f"{self.source.optimizer}{after}, {self.treatment}: {tensors}"


def plan_state(
    model: Plan, source: Checkpoint, checkpoint: str | os.PathLike[str] | None, *, treatment: str, shard_size: str | int
) -> StatePlan:
    """Plan the growth of an optimizer state.

    Args:
        model, source: the model's plan and its source.
        checkpoint: with the source's optimizer state.
        treatment: one of moments.TREATMENTS.
        shard_size: largest file.

    Raises:
        OptionError: an unknown treatment, or a treatment without a checkpoint.
        GrowthError: the source's moments do not apply to this growth.
        CheckpointError: there is no optimizer state of this source.
    """
    if treatment not in moments.TREATMENTS:
        raise OptionError("unknown treatment of the moments", field="moments", found=treatment,
                          expected=", ".join(moments.TREATMENTS))  # fmt: skip
    if checkpoint is None:
        raise OptionError("no optimizer state to take moments from", field="moments",
                          found=treatment, cure="give --optimizer-state CHECKPOINT")  # fmt: skip
    for impossible, field, reason in (
        (
            model.growth.recipe.expansion is Expansion.DIAGONAL,
            "expansion",
            "copies of a diagonal expansion get different gradients",
        ),
        (
            model.growth.experts is not None,
            "experts",
            "an expert gets only some of the tokens that the dense layer got",
        ),
    ):
        if impossible and treatment != "reset":
            raise GrowthError(f"the source's moments do not apply to this growth: {reason}", field=field,
                              found=getattr(model.growth, field), cure="--moments reset")  # fmt: skip
    state = reader.read_state(user_path(checkpoint), source)
    untied = {model.family.tie.embedding} if model.untied and model.family.tie else set()
    stack = model.growth.stacks
    planned: dict[str, MomentPlan] = {}
    fresh = []
    for tensor in model.tensors:
        by_kind = state.moments.get(tensor.source, {})
        if treatment == "reset" or not by_kind or tensor.source in untied or not (tensor.original or stack):
            fresh.append(tensor.name)
            continue
        for kind, like in by_kind.items():
            moment = MomentPlan(tensor, kind, like.dtype)
            planned[moment.name] = moment
    headers = [TensorHeader(m.name, m.stored_dtype, m.tensor.shape, m.nbytes) for m in planned.values()]
    shards = lay_out(headers, shard_size=shard_size, stem=STEM) if headers else []
    return StatePlan(model, state, treatment, planned, tuple(shards), tuple(fresh))


def write_state(plan: StatePlan, target: Destination, *, threads: int | None, progress: Progress | None) -> None:
    """Write every file that is not finished yet."""

    def pieces(name: str) -> Iterator[Tensor]:
        return moments.grown_slices(plan.moments[name], plan.model, plan.source, plan.treatment)

    write_shards(plan.shards, target, pieces, stage="state", threads=threads, progress=progress)
    if len(plan.shards) > 1:
        weight_map = {name: shard.file for shard in plan.shards for name in shard.offsets}
        target.write_text(_INDEX, to_json({"metadata": {"total_size": plan.nbytes}, "weight_map": weight_map}))


def prove_state(plan: StatePlan, directory: Path) -> list[str]:
    """Failures of the state on disk to collapse to the source's moments."""
    output = open_moments(directory)
    return [
        f"{name}: {failure}"
        for name, moment in plan.moments.items()
        if (
            failure := moments.compare(output, moment, plan.model, plan.source, plan.treatment)
            if name in output.entries
            else "missing from the optimizer state"
        )
    ]


def receipt_part(plan: StatePlan, directory: Path) -> dict[str, Any]:
    """The receipt's part: optimizer, treatment of the moments, steps, the source's settings, and hashes."""
    output = open_moments(directory)
    return {
        "optimizer": plan.source.optimizer,
        "moments": plan.treatment,
        "step": plan.step,
        "steps": {name: step for name, step in plan.steps.items() if step != plan.step},
        "settings": plan.source.settings,
        "fresh": list(plan.fresh),
        "sha256": {name: digest(output, name) for name in plan.moments},
    }


def moment_files(directory: Path) -> dict[str, Path]:
    """The file of every moment in a directory; empty if it holds no optimizer state."""
    return {name: directory / entry.file for name, entry in open_moments(directory).entries.items()}


def open_moments(directory: Path) -> TensorFiles:
    """The moments in a directory, ready to be read.

    Raises:
        CheckpointError: a file is corrupt or truncated.
    """
    entries: dict[str, Entry] = {}
    for file in sorted(directory.glob(f"{STEM}*.safetensors")):
        entries |= read_header(file)
    return TensorFiles(directory, entries)


def compare_hashes(record: dict[str, Any], directory: Path) -> list[str]:
    """Differences of a directory's optimizer state from its receipt; none if all of its files have been removed.

    Args:
        record: the receipt's part.
        directory: the grown model.
    """
    stored = open_moments(directory)
    return [
        f"{name}: "
        + ("missing from the optimizer state" if name not in stored.entries else "not the moments that were written")
        for name, value in record["sha256"].items()
        if stored.entries and (name not in stored.entries or digest(stored, name) != value)
    ]
