"""The command line: `call` in this process, `run` in one of its own, as a user's shell does it.

A new process imports torch and transformers again, which takes more than most commands; so messages, exit codes and
files are tested with `call`, and a few tests for each command use `run`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import pytest

_WIDE = {"COLUMNS": "100"}  # so that no message is wrapped elsewhere than here


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `hyperclone ARGUMENTS` prints and its exit code, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from hyperclone.cli.main import main; main()", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **_WIDE, **environment},
    )  # fmt: skip


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in this process; a warning is an error here, as in all tests."""
    from hyperclone.cli.main import main

    command = ["hyperclone", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, {**_WIDE, **environment}),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(command, ended.value.code, out.getvalue(), err.getvalue())
