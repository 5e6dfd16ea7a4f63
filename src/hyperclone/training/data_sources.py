"""Where text comes from: files and Hub datasets, streamed through `datasets` one document at a time.

A source is spelled as a path, a directory (every file of a known kind below it), a glob, or a Hub dataset:
`org/name`, `org/name:validation`, `org/name@config:split`. A text file is one document, or one for each paragraph or
line (`sample_by`); jsonl and parquet hold one document in each row. Files may be compressed.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.errors import TrainingError, reason_with_class

_KINDS = {
    "txt": "text",
    "md": "text",
    "rst": "text",
    "text": "text",
    "jsonl": "json",
    "json": "json",
    "parquet": "parquet",
}
_COMPRESSED = {"gz", "bz2", "xz", "zst"}
_HUB = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:+-]+))?")


@dataclass(frozen=True)
class TextSource:
    """One source of text.

    Attributes:
        spelled: as the user spelled it.
        kind: "text", "json", "parquet" or "hub".
        files: of a local source.
        name, config, split: of a Hub dataset.
    """

    spelled: str
    kind: str
    files: tuple[Path, ...] = ()
    name: str = ""
    config: str | None = None
    split: str = "train"

    @property
    def identity(self) -> list[Any]:
        """Changes when the files do: their paths, sizes and times; of a Hub dataset, its name."""
        stats = [(str(file.resolve()), (s := file.stat()).st_size, s.st_mtime_ns) for file in self.files]
        return [self.kind, self.name, self.config, self.split, stats]

    @property
    def content(self) -> list[Any]:
        """Names and sizes of its files, wherever they lie; of a Hub dataset, its name."""
        return [self.kind, self.name, self.config, self.split, [(f.name, f.stat().st_size) for f in self.files]]

    @property
    def nbytes(self) -> int | None:
        """Bytes of the files; None where these are not bytes of text: Hub datasets, compressed files, parquet."""
        if (
            not self.files
            or self.kind == "parquet"
            or any(file.suffix[1:].lower() in _COMPRESSED for file in self.files)
        ):
            return None
        return sum(file.stat().st_size for file in self.files)


def find(spelled: str) -> list[TextSource]:
    """The sources that one `--data` stands for, one for each kind of file.

    Raises:
        TrainingError: there are no such files, or files of an unknown kind.
    """
    path = Path(spelled).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and _kind(file)]
        if not files:
            raise TrainingError("no text in this directory", file=path, expected=_expected())
    elif path.is_file():
        files = [path]
    elif glob.has_magic(spelled):
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not files:
            raise TrainingError("no file matches", field="data", found=spelled)
    elif _kind(path) is None and not spelled.startswith((".", "/", "~")) and (hub := _HUB.fullmatch(spelled)):
        return [TextSource(spelled, "hub", name=hub["name"], config=hub["config"], split=hub["split"] or "train")]
    else:
        raise TrainingError("no such file or directory", field="data", found=spelled)
    kinds: dict[str, list[Path]] = {}
    for file in files:
        if (kind := _kind(file)) is None:
            raise TrainingError("a file of an unknown kind", file=file, expected=_expected())
        kinds.setdefault(kind, []).append(file)
    return [TextSource(spelled, kind, tuple(files)) for kind, files in kinds.items()]


class Documents:
    """The documents of a source, in order. Empty ones are left out.

    Args:
        source: where they come from.
        field, sample_by: as in Training.
        place: where to go on, as `place` of other documents of the same source gave it; None for the first.
    """

    def __init__(self, source: TextSource, *, field: str, sample_by: str, place: dict[str, Any] | None = None) -> None:
        self._source, self._sample_by, self._start = source, sample_by, place
        self._column = "text" if source.kind == "text" else field
        self._origin: Any = source.files[0] if len(source.files) == 1 else source.spelled
        self._rows: Any = None

    def __iter__(self) -> Iterator[str]:
        """Read them.

        Raises:
            TrainingError: it is not text, has no such column, or cannot be read.
        """
        try:
            self._rows = _rows(self._source, self._sample_by)
            if self._rows is None:
                return
            if self._start is not None:
                self._rows.load_state_dict(self._start)
            for number, row in enumerate(self._rows):
                text = self._text(row, number)
                if text and not text.isspace():
                    yield text
        except TrainingError:
            raise
        except UnicodeDecodeError as error:
            file = _not_utf8(self._source) or self._origin
            raise TrainingError("this is not UTF-8 text", file=file, found=error) from None
        except Exception as error:  # every format's reader and the network have their own errors
            raise TrainingError(
                "the data cannot be read",
                file=self._origin,
                found=reason_with_class(error.__cause__ or error),
                cure=None if self._source.files else "is it the name of a Hub dataset, and can it be reached?",
            ) from error

    def place(self) -> dict[str, Any] | None:
        """Where the document after the last one is, as plain data; None for the first document."""
        state: dict[str, Any] | None = self._start if self._rows is None else self._rows.state_dict()
        return state

    def _text(self, row: Mapping[str, Any], number: int) -> str | None:
        if self._column not in row:
            raise TrainingError(
                "no such column in the data",
                file=self._origin,
                field=self._column,
                found=", ".join(row),
                cure="--text-field",
            )
        text = row[self._column]
        if text is not None and not isinstance(text, str):
            raise TrainingError(
                "this column holds no text",
                file=self._origin,
                field=self._column,
                found=f"{type(text).__name__} in row {number}",
                cure="--text-field",
            )
        return text


def texts(source: TextSource, *, field: str, sample_by: str) -> Iterator[str]:
    """All documents of a source, in order. Empty ones are left out.

    Raises:
        TrainingError: it is not text, has no such column, or cannot be read.
    """
    yield from Documents(source, field=field, sample_by=sample_by)


def _rows(source: TextSource, sample_by: str) -> Any:
    """The rows of a source as `datasets` streams them; None where all of its files are empty."""
    import datasets

    datasets.disable_progress_bars()
    if source.kind == "hub":
        return datasets.load_dataset(source.name, source.config, split=source.split, streaming=True)
    options = {"sample_by": sample_by, "keep_linebreaks": True} if source.kind == "text" else {}
    files = [str(file) for file in source.files if file.stat().st_size]  # an empty file has no columns
    if not files:
        return None
    return datasets.load_dataset(source.kind, data_files=files, split="train", streaming=True, **options)


def is_text(name: str) -> bool:
    """Whether a file of this name is of a known kind."""
    return _kind(Path(name)) is not None


def _not_utf8(source: TextSource) -> Path | None:
    """The file that is not UTF-8."""
    for file in source.files:
        try:
            with file.open(encoding="utf-8") as stream:
                while stream.read(1 << 20):
                    pass
        except UnicodeDecodeError:
            return file
    return None


def _kind(file: Path) -> str | None:
    parts = file.name.lower().split(".")
    return _KINDS.get(parts[-2] if len(parts) > 2 and parts[-1] in _COMPRESSED else parts[-1])


def _expected() -> str:
    return ", ".join(f".{suffix}" for suffix in _KINDS) + ", also compressed"
