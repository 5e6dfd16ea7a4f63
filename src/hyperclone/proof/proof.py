"""The proof that a directory holds a model that computes its source's function, from the files on disk.

*Structural*: collapsing the destination gives the source; streaming, so at any size. *Behavioral*: both models are run
by unmodified transformers on text and random tokens. The first finds any wrong weight and names it; the second does not
depend on our understanding of the architecture. Each catches errors that the other cannot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hyperclone.errors import OptionError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Progress
from hyperclone.planning.plan import Plan
from hyperclone.proof.behavioral import Behavior, prove_behavior
from hyperclone.proof.structural import Structure, prove_structure

ProofToRun = Literal["full", "structural"]
ProofKind = Literal["full", "structural", "none"]
Verdict = Literal["proved", "changed", "failed"]


@dataclass
class Proof:
    """Both halves of the proof.

    Attributes:
        structure: the structural half.
        behavior: the behavioral half; None where it was not requested.
        keeps_function: the growth should keep the function; otherwise the change is measured, not judged.
        failures: everything that is wrong, each naming its tensor, field or measurement.
        notes: which family file was used, if not one of hyperclone's.
    """

    structure: Structure
    behavior: Behavior | None
    keeps_function: bool
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """proved: it computes the source's function; changed: as planned, another function; failed: not as planned."""
        if self.failures or not self.structure.passed:
            return "failed"
        return "proved" if self.keeps_function else "changed"

    @property
    def passed(self) -> bool:
        """It is proved that it computes the source's function."""
        return self.verdict == "proved"

    def summary(self) -> dict[str, Any]:
        """The proof's figures as plain JSON data."""
        structure = asdict(self.structure)
        structure.pop("output_sha256")
        structure.pop("source_sha256")
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "keeps_function": self.keeps_function,
            "structure": structure,
            "behavior": asdict(self.behavior) if self.behavior else None,
            "notes": self.notes,
        }


def check_kind(kind: str, kinds: tuple[str, ...] = get_args(ProofKind)) -> None:
    """Raise OptionError unless `kind` is one of `kinds`."""
    if kind not in kinds:
        raise OptionError("unknown kind of proof", field="proof", found=kind, expected=", ".join(kinds))


def prove(
    source: Checkpoint,
    directory: Path,
    plan: Plan,
    *,
    kind: ProofKind = "full",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove that `directory` is what `plan` makes of `source`. After a failed structural proof no model is run."""
    structure = prove_structure(source, directory, plan, threads=threads, progress=progress)
    behavior = None
    if kind == "full" and structure.passed:
        behavior = prove_behavior(source, directory, plan, progress=progress)
    failures = structure.failures + (behavior.failures if behavior else [])
    return Proof(structure, behavior, plan.keeps_function, failures)
