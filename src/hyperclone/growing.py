"""Execute a plan: read, expand and write in slices, then prove the result from disk and give it its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperclone import hub, planning, shards
from hyperclone.checkpoint import Checkpoint
from hyperclone.destination import Destination, check_place
from hyperclone.errors import HypercloneError
from hyperclone.growth import Growth
from hyperclone.planning import Plan
from hyperclone.streaming import Progress, Weights, write_shards

if TYPE_CHECKING:
    from torch import Tensor

    from hyperclone.proving import Proof


class ProofFailed(HypercloneError):
    """The grown model is not the source's function; `proof` says where. The destination was not created."""

    def __init__(self, proof: Proof, partial: Path) -> None:
        self.proof = proof
        super().__init__(
            "the proof failed, so the destination was not created", file=partial, found="; ".join(proof.failures)
        )


@dataclass(frozen=True)
class Grown:
    """What `grow` has done: where the model is, its plan and its proof (None if no proof was asked for)."""

    path: Path
    plan: Plan
    proof: Proof | None


def plan(
    source: str | os.PathLike[str],
    growth: Growth,
    *,
    shard_size: str | int = planning.DEFAULT_SHARD_SIZE,
    revision: str | None = None,
) -> Plan:
    """What growing a model would give; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        growth: the request.
        shard_size: largest weight file, in bytes or as "5GB".
        revision: branch, tag or commit of a Hub id.

    Raises:
        HypercloneError: the source cannot be grown like this.
    """
    return planning.make(hub.headers(source, revision=revision), growth, shard_size=shard_size)


def grow(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    growth: Growth,
    *,
    shard_size: str | int = planning.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    proof: str = "full",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Grown:
    """Grow a model directory into a wider one that computes the same function, and prove it from the files.

    Args:
        source: a local model directory or a Hub id.
        destination: the directory to create. It appears complete, or not at all; a rerun continues.
        growth: widths, expansion, noise.
        shard_size: largest weight file, in bytes or as "5GB".
        threads: readers and writers; by default one for each processor, two to eight.
        overwrite: replace a destination that an earlier run has made.
        proof: "full" (structural, and behavioural where memory allows), "structural", or "none".
        revision: branch, tag or commit of a Hub id.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the source cannot be grown like this, or the destination cannot be written.
        ProofFailed: the output is not the source's function.
    """
    from hyperclone import card, producing, proving, receipt

    proving.check_kind(proof)
    place = hub.resolve(source, revision=revision)
    check_place(Path(destination), source=place, overwrite=overwrite)
    origin = Checkpoint(place)
    made = planning.make(origin, growth, shard_size=shard_size)
    for head, embedding in made.ties_to_check:
        producing.check_tie(origin, head, embedding)
    target = Destination(
        Path(destination),
        source=place,
        fingerprint=f"{made.fingerprint}:{origin.identity}",
        nbytes=made.nbytes,
        overwrite=overwrite,
    )
    try:
        write(made, origin, target, threads=threads, progress=progress)
        target.carry(origin.carried_files, root=place)
        target.write_text("config.json", receipt.to_json(made.config))
        if (content := shards.index(made.shards, planning.stored(made.tensors))) is not None:
            target.write_text("model.safetensors.index.json", receipt.to_json(content))
        evidence = None
        if proof != "none":
            evidence = proving.prove(origin, target.partial, made, kind=proof, threads=threads, progress=progress)
            if not evidence.passed:
                target.forget()
                raise ProofFailed(evidence, target.partial)
        name = hub.public_name(source)
        target.write_text(
            receipt.FILE,
            receipt.to_json(receipt.make(made, name, evidence, receipt.digests(place, origin.carried_files))),
        )
        target.write_text("README.md", card.make(made, place, name, evidence, on_hub=place != Path(source)))
        target.publish()
    finally:
        target.close()
    return Grown(target.target, made, evidence)


def write(made: Plan, origin: Weights, target: Destination, *, threads: int | None, progress: Progress | None) -> None:
    """Write every weight file that is not finished yet."""
    from hyperclone.producing import grown_slices

    tensors = {tensor.name: tensor for tensor in made.tensors}

    def pieces(name: str) -> Iterator[Tensor]:
        return grown_slices(tensors[name], made, origin)

    write_shards(made.shards, target, pieces, stage="grow", threads=threads, progress=progress)
