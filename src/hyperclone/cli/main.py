"""Entry point: an error that a user can cause becomes one message, and every outcome has its exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from hyperclone.cli import family_commands, grow_commands, study_commands, train_commands
from hyperclone.cli.app import app
from hyperclone.cli.arguments import show_proof
from hyperclone.errors import HypercloneError, ProofFailed

__all__ = ["app", "main"]
COMMANDS = (grow_commands, family_commands, train_commands, study_commands)  # importing them adds their commands


def main() -> None:
    """Entry point: errors that a user can cause become one message and their exit code."""
    # Threads of OpenMP that spin while they wait make a busy machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except ProofFailed as error:
        show_proof(error.proof)
        print(f"{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except HypercloneError as error:
        print(f"hyperclone: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        print("\nInterrupted. Nothing was damaged. Rerun the same command to resume or to start again.",
              file=sys.stderr)  # fmt: skip
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has closed the pipe
        raise SystemExit(0) from None
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # of the option parser
            error.show()
            raise SystemExit(error.exit_code) from None
        traceback.print_exc()
        print("hyperclone: this is a bug, please report it with the lines above", file=sys.stderr)
        raise SystemExit(3) from None
    raise SystemExit(code or 0)
