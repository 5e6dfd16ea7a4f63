"""CSV tables of results: written whole or not at all, numbers rounded, and checked when they are read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.io.files import write_text

DIGITS = 8  # significant digits of a number: more than any figure shows, so that speed-ups round the same way


def write(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write or replace a table; without rows there is none. None becomes an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
        count += 1
    if count:
        write_text(file, stream.getvalue())
    else:
        file.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    """Whole numbers in full, others rounded."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() and abs(value) < 2**53 else f"{value:.{DIGITS}g}"


def rounded(value: float) -> float:
    """A number as it is read back from a table."""
    return float(_cell(value))


def read(
    file: Path, *, texts: Collection[str] = (), numbers: Collection[str] = (), optional: Collection[str] = (),
    prefix: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a table; none if there is no file.

    Args:
        file: the table.
        texts: columns that it must have.
        numbers: columns that it must have, with a number in each row.
        optional: columns that it must have, with a number or nothing (None).
        prefix: of further columns with a number or nothing.

    Raises:
        StudyError: a column or a number is missing, or a row has another length than the header.
    """
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows: list[dict[str, Any]] = list(reader)
            columns = reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise _corrupt(file, found=error) from None
    if absent := [name for name in (*texts, *numbers, *optional) if name not in columns]:
        raise _corrupt(file, found="no column " + ", ".join(absent))
    further = [name for name in columns if prefix is not None and name.startswith(prefix)]
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise _corrupt(file, found=f"line {line} has another length than the first")
        for name in numbers:
            row[name] = _number(file, line, name, row[name])
        for name in (*optional, *further):
            row[name] = _number(file, line, name, row[name]) if row[name] else None
    return rows


def _number(file: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _corrupt(file, field=f"{name}, line {line}", found=repr(text), expected="a number") from None


def _corrupt(file: Path, **details: Any) -> StudyError:
    cure = "restore it, or delete it and run the study again"
    return StudyError("this table is corrupt or truncated", file=file, cure=cure, **details)
