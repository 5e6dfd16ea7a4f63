"""The proof that a directory holds a model that computes its source's function, from the files on disk.

*Structural*: collapse(destination) equals the source, streaming, any size. *Behavioural*: both models run through
stock transformers on text and random tokens. The first finds any wrong weight and names it; the second does not
trust our own reading of the architecture. Each would catch what the other cannot.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperclone import family_file, hub, planning, receipt
from hyperclone.behaviour import Behaviour, prove_behaviour
from hyperclone.checkpoint import Checkpoint
from hyperclone.errors import GrowthError
from hyperclone.plans import Plan
from hyperclone.streaming import Progress
from hyperclone.structure import Structure, prove_structure

KINDS = ("full", "structural", "none")


@dataclass
class Proof:
    """Both halves of the proof.

    Attributes:
        structure: the structural half.
        behaviour: the behavioural half; None when it was not asked for.
        keeps_function: the growth is one that keeps the function; otherwise behaviour is measured, not judged.
        failures: everything that is wrong, each naming its tensor, field or measurement.
        notes: where the knowledge of the architecture came from, if not from hyperclone itself.
    """

    structure: Structure
    behaviour: Behaviour | None
    keeps_function: bool
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return not self.failures and self.structure.passed

    def summary(self) -> dict[str, Any]:
        """The proof's figures as plain JSON data."""
        structure = asdict(self.structure)
        structure.pop("output_sha256")
        structure.pop("source_sha256")
        return {
            "passed": self.passed,
            "keeps_function": self.keeps_function,
            "structure": structure,
            "behaviour": asdict(self.behaviour) if self.behaviour else None,
            "notes": self.notes,
        }


def check_kind(kind: str) -> None:
    """Raises GrowthError unless `kind` is "full", "structural" or "none"."""
    if kind not in KINDS:
        raise GrowthError("unknown kind of proof", field="proof", found=kind, expected=", ".join(KINDS))


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
        raise GrowthError("there is nothing to verify with proof 'none'", field="proof", expected="full, structural")
    target = Path(destination)
    told = receipt.read(target)
    own = family_file.read(family) if family is not None else told.family if told is not None else None
    origin = Checkpoint(hub.resolve(source, revision=revision), family=own)
    if told is None:
        made = planning.from_sizes(origin, Checkpoint(target).config)
    else:
        made = planning.make(origin, told.growth)
    result = prove(origin, target, made, kind=proof, threads=threads, progress=progress)
    if own is not None:
        from hyperclone import trial

        if family is None:
            result.notes.append("What the tensors mean was read from the receipt; --family judges by a file of yours.")
        try:
            result.notes.append(trial.check(made))
        except trial.TrialFailed as failed:
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
        now = receipt.digests(target, there)
        result.failures += [
            f"{name}: not the file that was carried over from the source"
            for name, value in told.file_sha256.items()
            if now.get(name) != value
        ]
        if told.state is not None:
            from hyperclone.training import writing

            result.failures += writing.compare_hashes(told.state, target)
    return result


def prove(
    origin: Checkpoint,
    path: Path,
    made: Plan,
    *,
    kind: str = "full",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Both halves for a directory that should be `made`. A failed structure is not run: its behaviour is moot."""
    structure = prove_structure(origin, path, made, threads=threads, progress=progress)
    behaviour = None
    if kind == "full" and structure.passed:
        behaviour = prove_behaviour(origin, path, made, progress=progress)
    return Proof(
        structure, behaviour, made.keeps_function, structure.failures + (behaviour.failures if behaviour else [])
    )
