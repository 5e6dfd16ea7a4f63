"""TOML files whose fields are the options of a request: run files and studies. Complaints name file and field."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError
from hyperclone.io.files import exists, read_bytes
from hyperclone.io.weighted_paths import split_weight
from hyperclone.options import fits, hints_of, kind_of

_LONGEST = 60  # characters of a value that a complaint shows


class OptionFile:
    """Reads and checks one file.

    Args:
        file: its path.
        error: class of its complaints.
        what: what the file is, for people, such as "study".
    """

    def __init__(self, file: Path, *, error: type[HypercloneError], what: str) -> None:
        self._file, self._error, self._what = file, error, what

    def toml(self) -> dict[str, Any]:
        """The file's content.

        Raises:
            HypercloneError: it cannot be read, or is not TOML.
        """
        try:
            return tomllib.loads(read_bytes(self._file).decode("utf-8"))
        except OSError as error:
            raise self._error(f"the {self._what} cannot be read", file=self._file, found=error.strerror) from None
        except (ValueError, RecursionError) as error:
            raise self._error("this is not TOML", file=self._file, found=error) from None

    def wrong(self, problem: str, field: str, **details: Any) -> HypercloneError:
        """A complaint about a field."""
        return self._error(problem, file=self._file, field=field, **details)

    def wrong_option(self, error: HypercloneError, path: str = "") -> HypercloneError:
        """A request's complaint about one of its options, as one about the table at `path` of this file."""
        at, details = error.details.get("field"), error.details
        return self._error(
            error.problem,
            file=self._file,
            field=".".join(part for part in (path, at) if part) or None,
            **{name: details.get(name) for name in ("found", "expected", "cure")},
        )

    def check_keys(self, table: Mapping[str, Any], path: str, known: Sequence[str]) -> None:
        """Refuse fields that are not known.

        Raises:
            HypercloneError: there is one; it names the known field that is most like it, or all of them.
        """
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1)
                raise self.wrong(
                    "unknown field", f"{path}.{key}".lstrip("."), found=shown(table[key]),
                    expected=", ".join(near or known), cure=f"did you mean {near[0]}?" if near else None,
                )  # fmt: skip

    def options(
        self,
        request: type[Any],
        table: Any,
        path: str,
        *,
        known: Sequence[str],
        placeholders: Mapping[str, Any],
        paths: Mapping[str, bool],
    ) -> dict[str, Any]:
        """A table of options: each checked by its type and by the request, paths made absolute.

        Args:
            request: a dataclass whose fields are options.
            table: field -> value.
            path: where it stands in the file; "" for the whole file.
            known: fields that it may have.
            placeholders: values of fields that the request cannot do without, and the table may.
            paths: fields that are paths, and whether such a value may be a name on the Hub as well.

        Raises:
            HypercloneError: an unknown field, a value of the wrong type, or one that the request refuses.
        """
        if not isinstance(table, dict):
            raise self.wrong("not a table of options", path, found=shown(table))
        self.check_keys(table, path, known)
        hints = hints_of(request)
        for key, value in table.items():
            if not fits(hints[key], value):
                raise self.wrong("a value of the wrong type", f"{path}.{key}".lstrip("."), found=shown(value),
                                 expected=kind_of(hints[key]))  # fmt: skip
        options = {
            key: self.path(value, f"{path}.{key}".lstrip("."), hub=paths[key]) if key in paths else value
            for key, value in table.items()
        }
        try:
            request(**{**placeholders, **options})
        except HypercloneError as error:
            raise self.wrong_option(error, path) from None
        return options

    def path(self, value: Any, field: str, *, hub: bool = True) -> Any:
        """A path as the file means it, which is relative to the file; of a list, each. A weight after it is kept.

        Args:
            value: as written, with `~` and `$NAME`; what is no text stays as it is.
            field: where it stands.
            hub: it may be a name on the Hub. That is taken for one if nothing of this name is beside the file.
        """
        if isinstance(value, list | tuple):
            return tuple(self.path(one, field, hub=hub) for one in value)
        if not isinstance(value, str):
            return value
        if "\0" in value:
            raise self.wrong("a path cannot hold a null character", field, found=repr(value))
        spelled = os.path.expandvars(os.path.expanduser(value))
        name, weight = split_weight(spelled, beside=self._file.parent) if hub else (spelled, None)
        return self._resolved(name, hub=hub) + ("" if weight is None else f"={weight}")

    def _resolved(self, spelled: str, *, hub: bool) -> str:
        near = self._file.parent / spelled
        local = not hub or exists(near) or any(letter in spelled for letter in "*?[") or spelled.startswith((".", "/"))
        # A directory of this name in the working directory is not what the file means.
        return os.path.abspath(near) if local or exists(Path(spelled)) else spelled


def shown(value: Any) -> str:
    """A value of a file in a complaint: on one line, and not longer than that."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
