"""Execute a plan: read, expand and write in slices, then prove the result from disk and give it its name.

The noise depends on positions only, so the bytes depend on neither the slices nor the number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperclone import checkpoint, planning, shards
from hyperclone.checkpoint import DTYPES, Checkpoint
from hyperclone.destination import Destination, check_place
from hyperclone.errors import CheckpointError, HypercloneError
from hyperclone.growth import Growth
from hyperclone.planning import Plan, TensorPlan
from hyperclone.streaming import Progress, Weights, slices, write_shards

if TYPE_CHECKING:
    from torch import Tensor

    from hyperclone.expand import Recipe, TensorMap
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
    size = shards.parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    return planning.make(Checkpoint(checkpoint.resolve(source, revision=revision)), growth, shard_size=size)


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
        threads: readers and writers; by default twice the processors, eight at most.
        overwrite: replace a destination that an earlier run has made.
        proof: "full" (structural, and behavioural where memory allows), "structural", or "none".
        revision: branch, tag or commit of a Hub id.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the source cannot be grown like this, or the destination cannot be written.
        ProofFailed: the output is not the source's function.
    """
    from hyperclone import card, proving, receipt

    proving.check_kind(proof)
    place = checkpoint.resolve(source, revision=revision)
    check_place(Path(destination), source=place, overwrite=overwrite)
    origin = Checkpoint(place)
    size = shards.parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    made = planning.make(origin, growth, shard_size=size)
    for head, embedding in made.ties_to_check:
        check_tie(origin, head, embedding)
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
        name = checkpoint.public_name(source)
        target.write_text(receipt.FILE, receipt.to_json(receipt.make(made, name, evidence)))
        target.write_text("README.md", card.make(made, place, name, evidence, on_hub=place != Path(source)))
        target.publish()
    finally:
        target.close()
    return Grown(target.target, made, evidence)


def write(made: Plan, origin: Weights, target: Destination, *, threads: int | None, progress: Progress | None) -> None:
    """Write every weight file that is not finished yet."""
    from hyperclone.expand import tensor_map

    tensors = {tensor.name: tensor for tensor in made.tensors}
    recipe = recipe_of(made.growth)

    def pieces(name: str) -> Iterator[Tensor]:
        return grown_slices(tensors[name], tensor_map(tensors[name].layout, made.sizes), recipe, origin)

    write_shards(made.shards, target, pieces, stage="grow", threads=threads, progress=progress)


def grown_slices(tensor: TensorPlan, grown_map: TensorMap, recipe: Recipe, origin: Weights) -> Iterator[Tensor]:
    """The grown tensor in stored order, in pieces of about SLICE_BYTES."""
    from hyperclone.expand import Noise, expand, expand_rows

    power = _power(tensor, origin) if recipe.noise is Noise.GAUSSIAN and not grown_map.exact_repeat else None
    if len(tensor.shape) == 1 or grown_map.transposed:
        yield expand(_source_rows(tensor, origin), grown_map, recipe, name=tensor.name, power=power)
        return
    for rows in slices(tensor.shape, tensor.nbytes):
        wanted = grown_map.rows.source[rows.start : rows.stop]
        first, last = int(wanted.min()), int(wanted.max())
        block = _source_rows(tensor, origin, first, last + 1)
        # Rows of one run of copies stand in the file as they are needed; anything else is gathered.
        block = block if _consecutive(wanted) else block[wanted - first]
        yield expand_rows(block, grown_map, recipe, name=tensor.name, rows=rows, power=power)


def source_rows(tensor: TensorPlan, origin: Weights, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source in the output's type."""
    import torch

    rows = origin.read(tensor.source, start, stop)
    wanted: torch.dtype = getattr(torch, DTYPES[tensor.dtype][0])
    return rows if rows.dtype == wanted else rows.to(wanted)


def _source_rows(tensor: TensorPlan, origin: Weights, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source, checked to be finite before and after conversion."""
    rows = source_rows(tensor, origin, start, stop)
    if not bool(rows.isfinite().all()):
        stored = origin.read(tensor.source, start, stop)
        bad = (~rows.isfinite()).nonzero()[0].tolist()
        where = ", ".join(str(i + start if axis == 0 else i) for axis, i in enumerate(bad))
        finite = bool(stored[tuple(bad)].isfinite())
        raise CheckpointError(
            f"a weight does not fit into {tensor.dtype}" if finite else "a weight is not a finite number",
            file=origin.entries[tensor.source].file,
            tensor=f"{tensor.source}[{where}]",
            found=float(stored[tuple(bad)]),
            expected="a finite number",
            cure="choose a --dtype with more range" if finite else "the checkpoint is damaged or training diverged",
        )
    return rows


def _consecutive(index: Tensor) -> bool:
    return bool((index.diff() == 1).all())


def _power(tensor: TensorPlan, origin: Weights) -> float:
    """Mean square of the source tensor in fp64: row by row, and exactly over the rows, so that slices do not matter."""
    sums: list[float] = []
    for rows in slices(tensor.source_shape, origin.entries[tensor.source].nbytes):
        block = source_rows(tensor, origin, rows.start, rows.stop)
        sums += block.double().square().view(len(rows), -1).sum(1).tolist()
    return math.fsum(sums) / math.prod(tensor.source_shape)


def check_tie(origin: Weights, head: str, embedding: str) -> None:
    """A head that the config calls tied but that is stored as well must equal the embedding.

    Raises:
        CheckpointError: it differs.
    """
    a, b = origin.entries[head], origin.entries[embedding]
    same = a.shape == b.shape and a.dtype == b.dtype
    if same:
        for rows in slices(a.shape, a.nbytes):
            if not bool(origin.read(head, rows.start, rows.stop).equal(origin.read(embedding, rows.start, rows.stop))):
                same = False
                break
    if not same:
        raise CheckpointError(
            "the config ties the head to the embedding, but both are stored and they differ",
            file="config.json",
            field="tie_word_embeddings",
            tensor=head,
            found="true",
            expected=f"{head} equal to {embedding}",
            cure='set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the file if not',
        )


def recipe_of(growth: Growth) -> Recipe:
    """The part of a request that the arithmetic needs."""
    from hyperclone.expand import Expansion, Noise, Recipe

    return Recipe(
        expansion=Expansion(growth.expansion), noise=Noise(growth.noise), snr_db=growth.snr_db, seed=growth.seed
    )
