"""Execute a plan: write the grown model, prove it from disk, and give it its name."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyperclone import units
from hyperclone.architectures import family_file
from hyperclone.errors import OptionError, ProofFailed
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination, check_target
from hyperclone.io.files import digests, to_json
from hyperclone.io.streaming import Progress
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.notes import notes_on_tokens
from hyperclone.planning.plan import Plan

if TYPE_CHECKING:
    from hyperclone.optimizer_state.writer import StatePlan
    from hyperclone.proof.proof import Proof


@dataclass(frozen=True)
class Grown:
    """What `grow` has done: where the model is, its plan, proof and optimizer state (None where not asked for)."""

    path: Path
    plan: Plan
    proof: Proof | None
    optimizer_state: StatePlan | None = None


def plan(
    source: str | os.PathLike[str],
    growth: Growth,
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    revision: str | None = None,
    tokens: str | int | None = None,
    family: str | os.PathLike[str] | None = None,
) -> Plan:
    """What growing a model would give; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        growth: the request.
        shard_size: largest weight file, in bytes or as "5GB".
        revision: branch, tag or commit of a Hub id.
        tokens: planned for training the grown model ("26B" or a number), for a remark on how many that is.
        family: a family file of your own, for an architecture that is not built in, or to be used in its place.

    Raises:
        HypercloneError: the source cannot be grown like this.
    """
    own = None if family is None else family_file.read(family)
    planned = None if tokens is None else units.parse(tokens, "tokens")
    made = planner.make_plan(hub.headers(source, revision=revision, family=own), growth, shard_size=shard_size)
    if planned is None:
        return made
    texts = notes_on_tokens(planned, made.parameters)
    return replace(made, notes=made.notes + texts.notes, warnings=made.warnings + texts.warnings)


def grow(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    growth: Growth,
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    proof: str = "full",
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    optimizer_state: str | os.PathLike[str] | None = None,
    moments: str = "copy",
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
        family: a family file of your own; it is proved on a tiny random instance before anything is written.
        optimizer_state: a Trainer or torch distributed checkpoint with the source's optimizer state, to be grown too.
        moments: "copy" (every copy gets the source's moments), "first-copy" (only the first does) or "reset" (none).
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the source cannot be grown like this, or the destination cannot be written.
        ProofFailed: the output is not the source's function.
    """
    from hyperclone.conversion import model_card, receipt
    from hyperclone.expansion import grown_tensors, writer
    from hyperclone.proof import family_validation
    from hyperclone.proof import proof as proofs

    proofs.check_kind(proof)
    own = None if family is None else family_file.read(family)
    if own is not None and proof == "none":
        raise OptionError(
            "a family file of your own is not used without a proof", field="proof", found=proof,
            expected="full, or structural",
        )  # fmt: skip
    place = hub.resolve(source, revision=revision)
    check_target(Path(destination), source=place, overwrite=overwrite)
    origin = Checkpoint.open(place, family=own)
    made = planner.make_plan(origin, growth, shard_size=shard_size)
    for head, embedding in made.ties_to_check:
        grown_tensors.check_tie(origin, head, embedding)
    notes = [family_validation.check(made)] if own is not None else []
    past = None
    if optimizer_state is not None or moments != "copy":
        from hyperclone.optimizer_state import writer as state_writer

        past = state_writer.plan_state(made, origin, optimizer_state, treatment=moments, shard_size=shard_size)
    target = Destination(
        Path(destination),
        source=place,
        fingerprint=f"{made.fingerprint}:{origin.identity}" + (f":{past.fingerprint}" if past else ""),
        nbytes=made.nbytes + (past.nbytes if past else 0),
        overwrite=overwrite,
    )
    try:
        writer.write(made, origin, target, threads=threads, progress=progress)
        if past:
            state_writer.write_state(past, target, threads=threads, progress=progress)
        evidence = None
        if proof != "none":
            evidence = proofs.prove(origin, target.partial, made, kind=proof, threads=threads, progress=progress)
            evidence.notes += notes
            if past:
                evidence.failures += state_writer.prove_state(past, target.partial)
            if not evidence.passed:
                target.forget()
                raise ProofFailed(evidence, target.partial)
        name = hub.public_name(source)
        carried = digests(place, origin.carried_files)
        told = state_writer.receipt_part(past, target.partial) if past else None
        target.write_text(receipt.FILE, to_json(receipt.make(made, name, evidence, carried, told)))
        target.write_text("README.md", model_card.make(made, place, name, evidence, on_hub=place != Path(source)))
        target.publish()
    finally:
        target.close()
    return Grown(target.target, made, evidence, past)
