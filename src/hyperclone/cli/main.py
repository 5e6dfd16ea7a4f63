"""Entry point: an error that a user can cause becomes one message, and every outcome has its exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from hyperclone.cli import family_commands, grow_commands, study_commands, train_commands
from hyperclone.cli.app import app
from hyperclone.cli.arguments import say, say_error, show_proof
from hyperclone.cli.stopping import Stopped, stopped_by_signals
from hyperclone.errors import HypercloneError, ProofFailed

__all__ = ["app", "main"]
# Errors of the operating system that say nothing about our code, and the cure.
_REFUSALS = {
    errno.ENOSPC: "free some space, or set TMPDIR to a larger disk",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "close some programs: the machine has too many open files",
    errno.ENOMEM: "free some memory",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk: it could not be read or written",
}
# What torch, the dynamic loader and Python say when there is no memory, in other classes than MemoryError.
_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "can't start new thread",
                  "out of memory")  # fmt: skip
COMMANDS = (grow_commands, family_commands, train_commands, study_commands)  # importing them adds their commands


def main() -> None:
    """Entry point: errors that a user can cause become one message and their exit code."""
    # Threads of OpenMP that spin while they wait make a busy machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(_run())


def _run() -> int:
    """Run the command; its exit code."""
    try:
        with stopped_by_signals():
            return int(app(args=[_expanded(word) for word in sys.argv[1:]], standalone_mode=False) or 0)
    except ProofFailed as error:
        show_proof(error.proof)
        say_error(error)
        return 1
    except HypercloneError as error:
        say_error(error)
        return error.exit_code
    except Stopped as stop:
        say(f"\nInterrupted. {stop.kept} Rerun the same command to resume or to start again.", error=True)
        return stop.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has closed the pipe
        return 0
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # of the option parser
            error.show()
            return int(error.exit_code)
        if (refusal := _of_the_machine(error)) is not None:
            say_error(refusal)
            return refusal.exit_code
        say(traceback.format_exc(), error=True)
        say("hyperclone: this is a bug, please report it with the lines above", error=True)
        return 3


def _expanded(word: str) -> str:
    """A word of the command line with the home directory for `~`, which shells leave alone after an option's `=`."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (os.path.expanduser(value) if value.startswith("~") else value)


def _of_the_machine(error: Exception) -> HypercloneError | None:
    """What the machine lacks; None for an error of ours."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return HypercloneError("not enough memory", cure="free some, use fewer --threads, or a larger machine")
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return HypercloneError("the operating system refused to go on", file=error.filename, found=error.strerror,
                               cure=_REFUSALS[error.errno])  # fmt: skip
    return None
