"""study.json: what a study asked for when its tables were written, and how many rows each of them has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hyperclone.study.tables import corrupt

STUDY = "study.json"
KINDS = ("random", "source", "clone", "model")

_Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: Any) -> bool:
    return value in KINDS


def _group(value: Any) -> bool:
    return value is None or _text(value) or (isinstance(value, list) and all(map(_text, value)))


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value)) and len({*value}) == len(value)


def _tuned(value: Any) -> bool:
    rate = value.get("lr") if _table(value) else None
    return value is None or (isinstance(rate, int | float) and math.isfinite(rate) and rate > 0)


def _counts(value: Any) -> bool:
    return _table(value) and all(map(_whole, value.values()))


def _or_nothing(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


_STUDY: Mapping[str, tuple[_Check, str]] = {
    "name": (_text, "text"), "note": (_or_nothing(_text), "text or null"), "hyperclone": (_text, "a version"),
    "control": (_or_nothing(_text), "an arm or null"), "headline": (_or_nothing(_text), "an arm or null"),
    "seeds": (_seeds, "different whole numbers"), "train": (_table, "a table"),
    "tune": (_or_nothing(_table), "a table or null"), "sources": (_table, "a table"), "arms": (_table, "a table"),
    "rows": (_counts, "the number of rows of each table"),
}  # fmt: skip
_SOURCE: Mapping[str, tuple[_Check, str]] = {
    "key": (_or_nothing(_text), "a key or null"), "train": (_or_nothing(_table), "a table or null"),
}  # fmt: skip
_ARM: Mapping[str, tuple[_Check, str]] = {
    "label": (_text, "text"), "kind": (_kind, "one of " + ", ".join(KINDS)), "group": (_group, "text, texts or null"),
    "source": (_or_nothing(_text), "a source or null"), "growth": (_or_nothing(_table), "a table or null"),
    "moments": (_or_nothing(_text), "text or null"), "train": (_table, "a table"),
    "tuned": (_tuned, "a learning rate or null"), "like": (_or_nothing(_text), "an arm or null"),
}  # fmt: skip


def read(directory: Path) -> dict[str, Any] | None:
    """The content of study.json; None if there is none.

    Raises:
        StudyError: it cannot be read, or a field is missing or holds something else.
    """
    file = directory / STUDY
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text("utf-8"), parse_constant=_refuse)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except (OSError, ValueError, RecursionError) as error:
        raise corrupt(file, found=error) from None
    if not isinstance(content, dict):
        raise corrupt(file, found=type(content).__name__, expected="a JSON object")
    _check(file, content, _STUDY, "")
    for name, source in content["sources"].items():
        _check(file, source, _SOURCE, f"sources.{name}")
    for name, arm in content["arms"].items():
        _check(file, arm, _ARM, f"arms.{name}")
        for field, known in (("source", content["sources"]), ("like", content["arms"]), ("branch_of", content["arms"])):
            _check_known(file, f"arms.{name}.{field}", arm.get(field), known)
    for field in ("control", "headline"):
        _check_known(file, field, content[field], content["arms"])
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _check(file: Path, content: Any, fields: Mapping[str, tuple[_Check, str]], path: str) -> None:
    if not isinstance(content, dict):
        raise corrupt(file, field=path, found=content, expected="a table")
    for name, (check, expected) in fields.items():
        if name not in content or not check(content[name]):
            raise corrupt(file, field=f"{path}.{name}".lstrip("."), expected=expected,
                          found=json.dumps(content[name])[:200] if name in content else "nothing")  # fmt: skip


def _check_known(file: Path, field: str, name: str | None, known: Mapping[str, Any]) -> None:
    if name is not None and name not in known:
        raise corrupt(file, field=field, found=name, expected=", ".join(known))
