"""Proving a grown directory again, at any time: by its receipt, or without one."""

from __future__ import annotations

import os
from pathlib import Path

from hyperclone.architectures import family_file
from hyperclone.conversion import receipt
from hyperclone.errors import OptionError
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.files import digests
from hyperclone.io.streaming import Progress
from hyperclone.optimizer_state import writer
from hyperclone.planning.planner import make_plan, plan_from_sizes
from hyperclone.proof import family_validation
from hyperclone.proof.proof import Proof, check_kind, prove


def verify(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    proof: str = "full",
    threads: int | None = None,
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove that `destination` computes the function of `source`.

    The destination's receipt says how it was grown; without one, sizes are taken from both configs and an exact
    split is expected. Where the receipt holds hashes, every tensor must still have its own.

    A grown directory whose family is not built in holds the family file in its receipt. It is used, and the proof's
    notes say so, unless `family` gives a file to judge by instead; either is proved on a tiny random instance too.

    Raises:
        HypercloneError: one of the directories cannot be read, or one cannot be a growth of the other.
    """
    check_kind(proof)
    if proof == "none":
        raise OptionError("there is nothing to verify with proof 'none'", field="proof", expected="full, structural")
    target = Path(destination)
    told = receipt.read(target)
    own = family_file.read(family) if family is not None else told.family if told is not None else None
    origin = Checkpoint.open(hub.resolve(source, revision=revision), family=own)
    made = plan_from_sizes(origin, Checkpoint.open(target).config) if told is None else make_plan(origin, told.growth)
    result = prove(origin, target, made, kind=proof, threads=threads, progress=progress)
    if own is not None:
        if family is None:
            result.notes.append("What the tensors mean was read from the receipt; --family judges by a file of yours.")
        try:
            result.notes.append(family_validation.check(made))
        except family_validation.TrialFailed as failed:
            result.failures.append(str(failed).replace("\n", ";"))
    if told is not None:
        if told.proved and not told.output_sha256:
            result.failures.append("hyperclone.json: it speaks of a proof but holds no hashes")
        for side, hashes, now in (
            ("the output", told.output_sha256, result.structure.output_sha256),
            ("the source", told.source_sha256, result.structure.source_sha256),
        ):
            result.failures += [
                f"{name}: its bytes in {side} are not those that the receipt recorded"
                for name, value in hashes.items()
                if name in now and now[name] and now[name] != value
            ]
        there = [target / name for name in told.file_sha256 if (target / name).is_file()]
        now = digests(target, there)
        result.failures += [
            f"{name}: not the file that was carried over from the source"
            for name, value in told.file_sha256.items()
            if now.get(name) != value
        ]
        if told.optimizer_state is not None:
            result.failures += writer.compare_hashes(told.optimizer_state, target)
    return result
