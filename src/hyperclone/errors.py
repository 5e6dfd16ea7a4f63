"""Errors a user can cause. Each says where, what was found, what was expected, and the cure.

`assert` is for bugs in hyperclone. Errors raised here are about the input or the request; the command line prints them
without a traceback and exits with their code.
"""

from __future__ import annotations

import re
from typing import Any

# Control characters but for tab and newline, characters that change the direction of text, and halves of characters
# (surrogates, from file names that are no UTF-8, which cannot be printed at all).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, line: bool = False) -> str:
    """Text from a checkpoint, a file name or a model as a terminal may show it: it cannot move, clear or fake anything.

    Args:
        text: any.
        line: it is a part of one line, so that newlines and tabs are replaced as well.

    Returns:
        The text with one visible character in place of each that is not.
    """
    shown = _UNPRINTABLE.sub(_picture, text)
    return re.sub("[\t\n]", _picture, shown) if line else shown


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def reason(error: BaseException) -> str:
    """The first line of what another library raised; the error's class where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def reason_with_class(error: BaseException) -> str:
    """The same after the error's class, without which many messages say little."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class HypercloneError(Exception):
    """The request cannot be carried out; the message says why and what to do instead.

    Args:
        problem: one sentence, what is wrong.
        file, tensor, field: where; each is optional.
        found, expected: the two sides of the disagreement, when there is one.
        cure: what to do next.

    Attributes:
        exit_code: of the command line (1 is a failed proof, 3 a bug in hyperclone).
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        tensor: str | None = None,
        field: str | None = None,
        found: object = None,
        expected: object = None,
        cure: str | None = None,
    ) -> None:
        self.problem = problem
        self.details: dict[str, str] = {
            label: printable(str(value), line=True)
            for label, value in (
                ("file", file),
                ("tensor", tensor),
                ("field", field),
                ("found", found),
                ("expected", expected),
                ("cure", cure),
            )
            if value is not None
        }
        super().__init__(
            "\n".join([problem, *(f"  {label + ':':<10}{value}" for label, value in self.details.items())])
        )


class CheckpointError(HypercloneError):
    """The source (or a directory to verify) is not a readable safetensors model directory."""


class UnreadableError(CheckpointError):
    """The operating system refuses to read a file that is there: that says nothing about what is in it."""


class FamilyError(HypercloneError):
    """The architecture is unknown, or its tensors do not fit the family file."""


class UnknownArchitectureError(FamilyError):
    """No family file is for this model type."""


class OptionError(HypercloneError):
    """An option has a value that it cannot have, whatever the model: an unknown choice, or not a number or size."""


class GrowthError(HypercloneError):
    """This model cannot be grown as requested."""


class DestinationError(HypercloneError):
    """The output cannot be written to the requested path."""


class CollapseError(HypercloneError):
    """The directory does not collapse to a smaller model: its copies differ, or it has no receipt."""


class TrainingError(HypercloneError):
    """A training cannot be run as asked: its data, sizes or settings do not fit."""


class NonFiniteLossError(TrainingError):
    """The loss of a training became infinite or NaN. Whoever tries learning rates tells it by its exit code."""

    exit_code = 4


class StudyError(HypercloneError):
    """A study file asks for something that does not exist, or one of its commands failed."""


class ProofFailed(HypercloneError):
    """The grown model is not the source's function; `proof` (a hyperclone.Proof) says where.

    The destination was not created.
    """

    sentence = "the proof failed, so the destination was not created"

    def __init__(self, proof: Any, file: object) -> None:
        self.proof = proof
        super().__init__(self.sentence, file=file, found="; ".join(proof.failures))
