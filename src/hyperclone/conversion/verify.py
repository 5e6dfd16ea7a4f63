"""Prove a grown directory again, at any time: by its receipt, or without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from hyperclone.architectures import family_file
from hyperclone.conversion import receipt as receipts
from hyperclone.conversion.provenance import open_source, plan_without_receipt
from hyperclone.conversion.receipt import Receipt
from hyperclone.errors import GrowthError, HypercloneError
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint, carried_files
from hyperclone.io.files import digests, user_path
from hyperclone.io.streaming import Progress
from hyperclone.optimizer_state import writer
from hyperclone.planning.planner import make_plan
from hyperclone.proof import family_validation
from hyperclone.proof.proof import Proof, ProofToRun, check_kind, prove
from hyperclone.proof.structural import Structure


def verify(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    proof: ProofToRun = "full",
    threads: int | None = None,
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove that `destination` computes the function of `source`.

    The destination's receipt says how it was grown; without one, sizes are taken from both configs and an exact
    split is expected. Where the receipt holds hashes, every tensor must still have its hash.

    The receipt of a directory whose family is not built in holds the family file. It is used, and the proof's notes say
    so, unless `family` gives another file; either is also proved on a tiny random instance.

    Raises:
        OptionError: an option has a value that it cannot have.
        HypercloneError: one of the directories cannot be read, or one cannot be a growth of the other.
    """
    check_kind(proof, get_args(ProofToRun))
    target = user_path(destination)
    receipt = receipts.read(target)
    stored_family = receipt.family if receipt is not None else None
    user_family = family_file.read(family) if family is not None else stored_family
    directory = hub.resolve(source, revision=revision)
    output = Checkpoint.open(target) if receipt is None else None
    checkpoint = open_source(directory, receipt, output.config if output else {}, family=user_family)
    if receipt is not None:
        _check_source(receipt, checkpoint, hub.public_name(source))
    if receipt is not None:
        plan = make_plan(checkpoint, receipt.growth)
    else:
        assert output is not None
        plan = plan_without_receipt(checkpoint, output)
    result = prove(checkpoint, target, plan, kind=proof, threads=threads, progress=progress)
    if checkpoint.left_out is not None:
        result.notes.append("The source was compared by its text model alone, from which this model was grown.")
    if user_family is not None:
        if family is None:
            result.notes.append("The family file was read from the receipt; --family uses one of your own instead.")
        try:
            result.notes.append(family_validation.validate(plan))
        except family_validation.FamilyValidationFailed as failed:
            result.failures.append(str(failed).replace("\n", ";"))
    if receipt is not None:
        result.failures = [
            *_another_source(receipt, result.structure),
            *result.failures,
            *_changes_since(receipt, result.structure, target),
        ]
    differences = list(_compare_carried(checkpoint.path, target))
    if (target / receipts.FILE).exists():
        result.failures += differences
    else:  # another program saved the model, and may have saved the tokenizer in its own way
        result.notes += differences
    return result


def _check_source(receipt: Receipt, source: Checkpoint, name: str) -> None:
    """Raise where the model was grown from one of another type or of other sizes than the source, called `name`."""
    old, new = (config.get("model_type") for config in (receipt.source_config, source.config))
    difference = None if old == new else ("model_type", new, old)
    if difference is None:
        try:
            sizes = [source.family.sizes(config) for config in (receipt.source_config, source.config)]
            depths = [source.family.depth(config) for config in (receipt.source_config, source.config)]
        except HypercloneError:  # of a config that was edited; the proof says what differs
            return
        recorded, found = ({**size, "layers": depth} for size, depth in zip(sizes, depths, strict=True))
        difference = next(((axis, found.get(axis), n) for axis, n in recorded.items() if found.get(axis) != n), None)
    if difference is not None:
        field, now, recorded_value = difference
        recorded_name = f"{receipt.source} ({old})" if receipt.source else f"another model ({old})"
        instead = f"not from {name} ({new})" if old != new else f"which had other sizes than {name}"
        raise GrowthError(
            f"this model was grown from {recorded_name}, {instead}",
            field=field,
            found=now,
            expected=recorded_value,
            cure="name the model that it was grown from, then the grown directory",
        )


def _another_source(receipt: Receipt, structure: Structure) -> Iterator[str]:
    """A sentence where most of the source's tensors are not those that the receipt recorded."""
    both = receipt.source_sha256.keys() & structure.source_sha256.keys()
    other = sum(receipt.source_sha256[name] != structure.source_sha256[name] for name in both)
    if 2 * other > len(both):
        name = f" ({receipt.source})" if receipt.source else ""
        yield (
            f"this is not the source that the model was grown from{name}: of its tensors, {other} of {len(both)} are "
            "others than the receipt recorded"
        )


def _compare_carried(source: Path, directory: Path) -> Iterator[str]:
    """What differs between the files beside the weights (tokenizer, templates, license), one sentence each."""
    ours, theirs = (digests(root, carried_files(root)) for root in (directory, source))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            yield f"{name}: the source has no such file"
        elif name not in ours:
            yield f"{name}: missing, and the source has it"
        elif ours[name] != theirs[name]:
            yield f"{name}: not the source's"


def _changes_since(receipt: Receipt, structure: Structure, directory: Path) -> Iterator[str]:
    """What differs from the hashes that a receipt recorded, one sentence each."""
    if receipt.proved and not receipt.output_sha256:
        yield "hyperclone.json: it records a proof but holds no hashes"
    for side, recorded, current in (
        ("the output", receipt.output_sha256, structure.output_sha256),
        ("the source", receipt.source_sha256, structure.source_sha256),
    ):
        for name, value in recorded.items():
            if current.get(name) and current[name] != value:
                yield f"{name}: its bytes in {side} are not those that the receipt recorded"
    if receipt.optimizer_state is not None:
        yield from writer.compare_hashes(receipt.optimizer_state, directory)
