"""CSV tables of results: numbers rounded when they are written, every cell checked when they are read back."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError

DIGITS = 8  # significant digits of a number: more than any figure shows, so that speed-ups round the same way
RESTORE = "restore this file, from git or from a backup"

_WHOLE = re.compile(r"\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?(e[+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Column:
    """What the cells of a column hold.

    Attributes:
        parse: the value of a cell's text; raises ValueError for any other text.
        expected: the same in words, for errors.
    """

    parse: Callable[[str], Any]
    expected: str


def _name(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _positive(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise ValueError
    return value


def _number_or_infinity(text: str) -> float:
    return math.inf if text == "inf" else _number(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(" "))


TEXT = Column(str, "text")
NAME = Column(_name, "text that is not empty")
WHOLE = Column(_whole, "a whole number")
NUMBER = Column(_number, "a number")
POSITIVE = Column(_positive, "a number above zero")
NUMBER_OR_INFINITY = Column(_number_or_infinity, "a number or inf")
NUMBERS = Column(_numbers, "numbers with one space between them")


def optional(column: Column) -> Column:
    """A column whose cells may also be empty (None)."""
    return Column(lambda text: column.parse(text) if text else None, f"{column.expected}, or nothing")


def one_of(*words: str) -> Column:
    """A column of some words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Column(parse, "one of " + ", ".join(words))


def render(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table as text; empty without rows, for then there is none. None becomes an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
        count += 1
    return stream.getvalue() if count else ""


def _cell(value: Any) -> Any:
    """Whole numbers in full, others rounded."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() and abs(value) < 2**53 else f"{value:.{DIGITS}g}"


def rounded(value: float) -> float:
    """A number as it is read back from a table."""
    return float(_cell(value))


def read(file: Path, columns: Mapping[str, Column], *, further: tuple[str, Column] | None = None) -> list[
    dict[str, Any]
]:  # fmt: skip
    """Rows of a table, every cell as its column says; none if there is no file.

    Args:
        file: the table.
        columns: those that it has, by name.
        further: the beginning of the names of any further columns, and what they hold.

    Raises:
        StudyError: it cannot be read, its last line is incomplete, a column is missing, unknown or there twice, a row
            has another length than the header, there are no rows, or a cell holds something else than its column.
    """
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise corrupt(file, found=error) from None
    if not text.endswith("\n"):
        raise corrupt(file, found="an incomplete last line", expected="a line end at the end of the file")
    (_, header), *lines = _lines(file, text)
    parsers = _parsers(file, header, columns, further)
    if not lines:
        raise corrupt(file, found="no rows", expected="one or more; a table without rows is not written")
    return [_row(file, number, cells, parsers) for number, cells in lines]


def _lines(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each record; at least the header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise corrupt(file, field=f"line {reader.line_num}", found=error, expected="a line of CSV") from None


def _parsers(
    file: Path, header: Sequence[str], columns: Mapping[str, Column], further: tuple[str, Column] | None
) -> dict[str, Column]:
    """The columns of a table in the order of its header."""
    if absent := [name for name in columns if name not in header]:
        raise corrupt(file, field="line 1", found="no column " + ", ".join(absent))
    found = {}
    for name in header:
        column = columns.get(name)
        if column is None and further is not None and name.startswith(further[0]):
            column = further[1]
        if column is None or name in found:
            raise corrupt(file, field="line 1", found=f"the column {name!r}" + (" twice" if name in found else ""),
                          expected=", ".join(columns))  # fmt: skip
        found[name] = column
    return found


def _row(file: Path, number: int, cells: Sequence[str], columns: Mapping[str, Column]) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise corrupt(file, field=f"line {number}", found=f"{len(cells)} cells", expected=f"{len(columns)}")
    row = {}
    for (name, column), cell in zip(columns.items(), cells, strict=True):
        try:
            row[name] = column.parse(cell)
        except ValueError:
            raise corrupt(file, field=f"{name}, line {number}", found=repr(cell), expected=column.expected) from None
    return row


def corrupt(file: Path, *, cure: str = RESTORE, **details: Any) -> StudyError:
    """The error for a file of results that is not as it was written."""
    return StudyError("this file is corrupt or truncated", file=file, cure=cure, **details)
