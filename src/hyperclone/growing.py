"""Execute a plan: read, expand and write in slices, with several threads, within a fixed amount of memory.

A thread takes one output tensor at a time and works through it in slices of rows, so what is in memory is a few
slices for each thread, whatever the model's size. The noise depends on positions only, so the bytes depend on
neither the slices nor the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperclone import checkpoint, planning, shards
from hyperclone.checkpoint import DTYPES, Checkpoint
from hyperclone.destination import Destination, check_place
from hyperclone.errors import CheckpointError, HypercloneError
from hyperclone.growth import Growth
from hyperclone.planning import Plan, TensorPlan
from hyperclone.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

    from hyperclone.expand import Recipe, TensorMap
    from hyperclone.proving import Proof

SLICE_BYTES = 16 << 20  # of output, in each thread
Progress = Callable[[str, int, int], None]  # (what is being done, units done so far, units in all)


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
    source: str | os.PathLike[str], growth: Growth, *, shard_size: str | int = planning.DEFAULT_SHARD_SIZE
) -> Plan:
    """What growing a model would give; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        growth: the request.
        shard_size: largest weight file, in bytes or as "5GB".

    Raises:
        HypercloneError: the source cannot be grown like this.
    """
    size = shards.parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    return planning.make(Checkpoint(checkpoint.resolve(source)), growth, shard_size=size)


def grow(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    growth: Growth,
    *,
    shard_size: str | int = planning.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    proof: str = "full",
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
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the source cannot be grown like this, or the destination cannot be written.
        ProofFailed: the output is not the source's function.
    """
    from hyperclone import card, proving, receipt

    proving.check_kind(proof)
    place = checkpoint.resolve(source)
    check_place(Path(destination), source=place, overwrite=overwrite)
    origin = Checkpoint(place)
    size = shards.parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    made = planning.make(origin, growth, shard_size=size)
    target = Destination(
        Path(destination),
        source=place,
        fingerprint=f"{made.fingerprint}:{_identity(origin)}",
        nbytes=made.nbytes,
        overwrite=overwrite,
    )
    try:
        for head, embedding in made.ties_to_check:
            check_tie(origin, head, embedding)
        write(made, origin, target, threads=threads, progress=progress)
        target.carry(origin.carried_files, root=place)
        target.write_text("config.json", receipt.to_json(made.config))
        if (content := shards.index(made.shards, planning.stored(made.tensors))) is not None:
            target.write_text("model.safetensors.index.json", receipt.to_json(content))
        evidence = None
        if proof != "none":
            evidence = proving.prove(origin, target.partial, made, kind=proof, threads=threads, progress=progress)
            if not evidence.passed:
                raise ProofFailed(evidence, target.partial)
        target.write_text(receipt.FILE, receipt.to_json(receipt.make(made, str(source), evidence)))
        target.write_text("README.md", card.make(made, place, str(source), evidence))
        target.publish()
    finally:
        target.close()
    return Grown(target.target, made, evidence)


def write(made: Plan, origin: Checkpoint, target: Destination, *, threads: int | None, progress: Progress | None) -> None:
    """Write every shard that is not finished yet."""
    todo = [shard for shard in made.shards if shard.file not in target.finished]
    tensors = {tensor.name: tensor for tensor in made.tensors}
    total = sum(shard.nbytes for shard in made.shards)
    done = total - sum(shard.nbytes for shard in todo)
    lock = threading.Lock()

    def advance(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            if progress:
                progress("grow", done, total)

    advance(0)
    with worker_pool(threads) as pool:
        for shard in todo:
            descriptor = target.create(shard.file, nbytes=shard.nbytes)
            os.pwrite(descriptor, shard.header, 0)
            advance(len(shard.header))
            run_all(
                pool,
                # Largest first, so that no thread is left alone with a large tensor at the end.
                [
                    lambda t=tensors[name], d=descriptor, s=shard: write_tensor(t, made, origin, d, s, advance)
                    for name in sorted(shard.offsets, key=lambda n: -tensors[n].nbytes)
                ],
            )
            target.finish_shard(shard.file, descriptor)


def write_tensor(
    tensor: TensorPlan, made: Plan, origin: Checkpoint, descriptor: int, shard: Shard, advance: Callable[[int], None]
) -> None:
    """Read, expand and write one tensor, slice by slice."""
    from hyperclone.expand import tensor_map

    grown_map = tensor_map(tensor.layout, made.sizes)
    position = shard.offsets[tensor.name]
    for piece in grown_slices(tensor, grown_map, recipe_of(made.growth), origin):
        data = memoryview(_bytes(piece))
        while data:
            count = os.pwrite(descriptor, data, position)
            data, position = data[count:], position + count
            advance(count)


def grown_slices(
    tensor: TensorPlan, grown_map: TensorMap, recipe: Recipe, origin: Checkpoint
) -> Iterator[Tensor]:
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


def slices(shape: tuple[int, ...], nbytes: int) -> Iterator[range]:
    """Ranges of rows of about SLICE_BYTES each."""
    step = max(1, shape[0] * SLICE_BYTES // max(nbytes, 1))
    for start in range(0, shape[0], step):
        yield range(start, min(start + step, shape[0]))


def source_rows(tensor: TensorPlan, origin: Checkpoint, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor's source in the output's type."""
    import torch

    rows = origin.read(tensor.source, start, stop)
    wanted: torch.dtype = getattr(torch, DTYPES[tensor.dtype][0])
    return rows if rows.dtype == wanted else rows.to(wanted)


def _source_rows(tensor: TensorPlan, origin: Checkpoint, start: int = 0, stop: int | None = None) -> Tensor:
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


def _power(tensor: TensorPlan, origin: Checkpoint) -> float:
    """Mean square of the source tensor in fp64, over fixed slices so that it does not depend on anything else."""
    total, count = 0.0, 0
    for rows in slices(tensor.source_shape, origin.entries[tensor.source].nbytes):
        block = source_rows(tensor, origin, rows.start, rows.stop)
        total += float(block.double().square().sum())
        count += block.numel()
    return total / count


def check_tie(origin: Checkpoint, head: str, embedding: str) -> None:
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
            file=origin.path / "config.json",
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


def _identity(origin: Checkpoint) -> str:
    """Changes when the source's files change: their names, sizes and times."""
    facts = [(f, (s := (origin.path / f).stat()).st_size, s.st_mtime_ns) for f in ("config.json", *origin.files)]
    return f"{origin.path.resolve()}:{facts}"


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


@contextmanager
def worker_pool(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that each run torch on one processor; torch's own setting is put back afterwards."""
    import torch

    count = threads or min(8, 2 * (os.cpu_count() or 1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="hyperclone", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def run_all(pool: ThreadPoolExecutor, jobs: list[Callable[[], None]]) -> None:
    """Run jobs side by side; the first error stops those that have not started."""
    futures = [pool.submit(job) for job in jobs]
    finished, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    wait(waiting)
    for future in finished:
        future.result()
