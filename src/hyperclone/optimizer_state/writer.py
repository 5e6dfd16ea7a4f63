"""The grown optimizer state on disk: `optimizer_state.safetensors` beside the model, and its part of the receipt.

Moments have the name of their tensor and their kind (`model.norm.weight.exp_avg`). What has no past has no entry and
starts afresh, step count included: layers added by depth-mode identity (they add nothing yet, so their originals'
statistics are not theirs), and head and embedding when a tie is cut (the source has only the sum of their gradients).
Step counts are in the receipt.
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
from hyperclone.io.files import to_json
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
    """What is to be written.

    Attributes:
        made: the model's plan.
        source: the optimizer state that it grows from.
        treatment: what copies get of the source's moments; one of moments.TREATMENTS.
        moments: every moment, by its name on disk.
        shards: the output files.
        fresh: tensors that start without moments.
    """

    made: Plan
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
        """Of every tensor that has moments, where they are counted."""
        steps = self.source.steps
        return {m.tensor.name: steps[m.tensor.source] for m in self.moments.values() if m.tensor.source in steps}

    @property
    def step(self) -> int | None:
        """Of most tensors: those that did not always have a gradient have fewer."""
        return Counter(self.source.steps.values()).most_common(1)[0][0] if self.source.steps else None

    @property
    def sentence(self) -> str:
        """What it is, for people."""
        kept = len({m.tensor.name for m in self.moments.values()})
        after = f" after {self.step:,} steps" if self.step is not None else ""
        return (
            f"{self.source.optimizer}{after}, {self.treatment}: {kept} tensors with moments, {len(self.fresh)} afresh"
        )


def plan(
    made: Plan, origin: Checkpoint, where: str | os.PathLike[str] | None, *, treatment: str, shard_size: str | int
) -> StatePlan:
    """Plan the growth of an optimizer state.

    Args:
        made, origin: the model's plan and its source.
        where: the checkpoint that holds the source's optimizer state.
        treatment: one of moments.TREATMENTS.
        shard_size: largest file.

    Raises:
        OptionError: an unknown treatment, or one without an optimizer state.
        GrowthError: the source's moments say nothing about this growth.
        CheckpointError: there is no optimizer state of this source.
    """
    if treatment not in moments.TREATMENTS:
        raise OptionError("unknown treatment of the moments", field="moments", found=treatment,
                          expected=", ".join(moments.TREATMENTS))  # fmt: skip
    if where is None:
        raise OptionError("no optimizer state, so there are no moments to treat like this", field="moments",
                          found=treatment, cure="give --optimizer-state CHECKPOINT")  # fmt: skip
    for impossible, field, why in (
        (
            made.growth.recipe.expansion is Expansion.DIAGONAL,
            "expansion",
            "copies of a diagonal expansion get different gradients",
        ),
        (made.growth.experts is not None, "experts", "an expert sees only some of what the dense layer has seen"),
    ):
        if impossible and treatment != "reset":
            raise GrowthError(f"the source's moments say nothing here: {why}", field=field,
                              found=getattr(made.growth, field), cure="--moments reset")  # fmt: skip
    source = reader.read(Path(where), origin)
    cut = {made.family.tie.embedding} if made.untied and made.family.tie else set()
    stack = made.growth.stacks
    found: dict[str, MomentPlan] = {}
    fresh = []
    for tensor in made.tensors:
        past = source.moments.get(tensor.source, {})
        if treatment == "reset" or not past or tensor.source in cut or not (tensor.original or stack):
            fresh.append(tensor.name)
            continue
        for kind, like in past.items():
            moment = MomentPlan(tensor, kind, like.dtype)
            found[moment.name] = moment
    stored = [TensorHeader(m.name, m.stored, m.tensor.shape, m.nbytes) for m in found.values()]
    shards = lay_out(stored, shard_size=shard_size, stem=STEM) if stored else []
    return StatePlan(made, source, treatment, found, tuple(shards), tuple(fresh))


def write(made: StatePlan, target: Destination, *, threads: int | None, progress: Progress | None) -> None:
    """Write every file that is not finished yet."""

    def pieces(name: str) -> Iterator[Tensor]:
        return moments.grown_slices(made.moments[name], made.made, made.source, made.treatment)

    write_shards(made.shards, target, pieces, stage="state", threads=threads, progress=progress)
    if len(made.shards) > 1:
        weight_map = {name: shard.file for shard in made.shards for name in shard.offsets}
        target.write_text(_INDEX, to_json({"metadata": {"total_size": made.nbytes}, "weight_map": weight_map}))


def prove(made: StatePlan, place: Path) -> list[str]:
    """What is wrong with the state on disk: it must collapse to the source's moments."""
    output = opened(place)
    return [
        f"{name}: {wrong}"
        for name, moment in made.moments.items()
        if (
            wrong := moments.compare(output, moment, made.made, made.source, made.treatment)
            if name in output.entries
            else "missing from the optimizer state"
        )
    ]


def record(made: StatePlan, place: Path) -> dict[str, Any]:
    """The receipt's part: optimizer, treatment of the moments, steps, the source's settings, and hashes."""
    output = opened(place)
    return {
        "optimizer": made.source.optimizer,
        "moments": made.treatment,
        "step": made.step,
        "steps": {name: own for name, own in made.steps.items() if own != made.step},
        "settings": made.source.settings,
        "fresh": list(made.fresh),
        "sha256": {name: digest(output, name) for name in made.moments},
    }


def files(place: Path) -> dict[str, Path]:
    """Every moment in a directory, and the file that holds it; empty if it holds no optimizer state."""
    return {name: place / entry.file for name, entry in opened(place).entries.items()}


def opened(place: Path) -> TensorFiles:
    """The moments in a directory, to be read.

    Raises:
        CheckpointError: a file is not sound.
    """
    found: dict[str, Entry] = {}
    for file in sorted(place.glob(f"{STEM}*.safetensors")):
        found |= read_header(file)
    return TensorFiles(place, found)


def compare_hashes(told: dict[str, Any], place: Path) -> list[str]:
    """What is wrong with a directory's optimizer state by its receipt; nothing if it has been taken away altogether."""
    there = opened(place)
    return [
        f"{name}: "
        + ("missing from the optimizer state" if name not in there.entries else "not the moments that were written")
        for name, value in told["sha256"].items()
        if there.entries and (name not in there.entries or digest(there, name) != value)
    ]
