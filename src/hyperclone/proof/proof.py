"""The proof that a directory holds a model that computes its source's function, from the files on disk.

*Structural*: collapse(destination) equals the source, streaming, any size. *Behavioural*: both models run through
stock transformers on text and random tokens. The first finds any wrong weight and names it; the second does not
trust our own reading of the architecture. Each would catch what the other cannot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperclone.errors import OptionError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Progress
from hyperclone.planning.plan import Plan
from hyperclone.proof.behavioral import Behaviour, prove_behaviour
from hyperclone.proof.structural import Structure, prove_structure

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
    """Raises OptionError unless `kind` is "full", "structural" or "none"."""
    if kind not in KINDS:
        raise OptionError("unknown kind of proof", field="proof", found=kind, expected=", ".join(KINDS))


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
