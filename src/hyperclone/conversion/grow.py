"""Execute a plan: write the grown model, prove it from disk, and give it its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hyperclone.architectures import family_file
from hyperclone.conversion.source_rate import SourceRate, note_on_rate, source_rate
from hyperclone.errors import OptionError, ProofFailed
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination, check_target
from hyperclone.io.files import digests, to_json, user_path
from hyperclone.io.streaming import Progress
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.growth_options import GrowthOptions, requested
from hyperclone.planning.plan import Plan

if TYPE_CHECKING:
    from hyperclone.optimizer_state.moments import Treatment
    from hyperclone.optimizer_state.writer import StatePlan
    from hyperclone.proof.proof import Proof, ProofKind


@dataclass(frozen=True)
class Grown:
    """What `grow` has written.

    Attributes:
        path: where the model is.
        plan: of the model.
        proof: None where none was requested.
        optimizer_state: plan of the optimizer state; None where there is none.
    """

    path: Path
    plan: Plan
    proof: Proof | None
    optimizer_state: StatePlan | None = None


def grow(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    growth: Growth | None = None,
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    proof: ProofKind = "full",
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    optimizer_state: str | os.PathLike[str] | None = None,
    moments: Treatment = "copy",
    text_model: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    **options: Unpack[GrowthOptions],
) -> Grown:
    """Grow a model directory into a wider one that computes the same function, and prove it from the files.

    Args:
        source: a local model directory or a Hub id.
        destination: the directory to create, with those above it. It appears complete, or not at all; after an
            interruption, the same call resumes.
        growth: widths, expansion, noise; or give its fields as keywords: width=2.
        shard_size: largest weight file, in bytes or as "5GB".
        threads: readers and writers; by default one for each processor, two to eight.
        overwrite: replace a destination that an earlier run has made.
        proof: "full" (structural, and behavioral where memory allows), "structural", or "none".
        revision: branch, tag or commit of a Hub id.
        family: a family file of your own; it is proved on a tiny random instance before anything is written.
        optimizer_state: a Trainer or torch distributed checkpoint with the source's optimizer state, to be grown too.
        moments: "copy" (every copy gets the source's moments), "first-copy" (only the first does) or "reset" (none).
        text_model: of a model that also sees images, its text model is grown on its own.
        on_plan: called with the plan before anything is written; an exception that it raises stops the growth.
        progress: called with (stage, bytes done, bytes in all).
        options: the fields of `Growth`, where no `growth` is given.

    Raises:
        OptionError: an option has a value that it cannot have.
        ProofFailed: the output is not the source's function.
        HypercloneError: the source cannot be grown like this, or the destination cannot be written.
    """
    from hyperclone.conversion import receipt
    from hyperclone.expansion import grown_tensors, writer
    from hyperclone.optimizer_state import writer as state_writer
    from hyperclone.proof import family_validation
    from hyperclone.proof import proof as proofs

    growth = requested(growth, options)
    proofs.check_kind(proof)
    user_family = None if family is None else family_file.read(family)
    if user_family is not None and proof == "none":
        raise OptionError(
            "a family file of your own is not used without a proof", field="proof", found=proof,
            expected="full, or structural",
        )  # fmt: skip
    if text_model and (optimizer_state is not None or moments != "copy"):
        raise OptionError("the optimizer state is that of the whole model, not of its text model", field="text_model",
                          found=text_model, cure="omit --optimizer-state and --moments")  # fmt: skip
    directory, found = hub.fetch(source, revision=revision)
    check_target(user_path(destination), source=directory, overwrite=overwrite)
    checkpoint = Checkpoint.open(directory, family=user_family, text_model=text_model, dequantize=True, notes=found)
    plan = planner.make_plan(checkpoint, growth, shard_size=shard_size)
    rate = source_rate(directory)
    plan = replace(plan, notes=(*plan.notes, *note_on_rate(rate, plan)))
    if on_plan is not None:
        on_plan(plan)
    for head, embedding in plan.ties_to_check:
        grown_tensors.check_tie(checkpoint, head, embedding)
    notes = [family_validation.validate(plan)] if user_family is not None else []
    state_plan = None
    if optimizer_state is not None or moments != "copy":
        state_plan = state_writer.plan_state(
            plan, checkpoint, optimizer_state, treatment=moments, shard_size=shard_size
        )
    target = Destination(
        user_path(destination),
        source=directory,
        fingerprint=f"{plan.fingerprint}:{checkpoint.identity}" + (f":{state_plan.fingerprint}" if state_plan else ""),
        nbytes=plan.nbytes + (state_plan.nbytes if state_plan else 0),
        overwrite=overwrite,
    )
    try:
        said = receipt.config_field(plan, text_model=checkpoint.left_out is not None)
        config = {**plan.config, receipt.CONFIG_FIELD: said}
        writer.write(plan, checkpoint, target, config=config, threads=threads, progress=progress)
        if state_plan:
            state_writer.write_state(state_plan, target, threads=threads, progress=progress)
        evidence = None
        if proof != "none":
            evidence = proofs.prove(checkpoint, target.partial, plan, kind=proof, threads=threads, progress=progress)
            evidence.notes += notes
            if state_plan:
                evidence.failures += state_writer.prove_state(state_plan, target.partial)
            if evidence.verdict == "failed":
                target.forget()
                raise ProofFailed(evidence, target.partial)
        checkpoint.check_unchanged()
        _write_receipt_and_card(target, source, checkpoint, plan, evidence, state_plan, rate)
        target.publish()
    finally:
        target.close()
    return Grown(target.target, plan, evidence, state_plan)


def _write_receipt_and_card(
    target: Destination,
    source: str | os.PathLike[str],
    checkpoint: Checkpoint,
    plan: Plan,
    proof: Proof | None,
    state_plan: StatePlan | None,
    rate: SourceRate | None,
) -> None:
    from hyperclone.conversion import model_card, receipt
    from hyperclone.optimizer_state import writer as state_writer

    name = hub.public_name(source)
    carried = digests(checkpoint.path, checkpoint.carried_files)
    state = state_writer.receipt_part(state_plan, target.partial) if state_plan else None
    content = receipt.make_receipt(
        plan, name, proof, files=carried, optimizer_state=state, text_model=checkpoint.left_out is not None,
        rate=rate,
    )  # fmt: skip
    target.write_text(receipt.FILE, to_json(content))
    target.write_text("README.md", model_card.make_card(plan, checkpoint, name, proof, on_hub=hub.on_hub(source)))
