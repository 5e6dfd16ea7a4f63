"""Small files: read with a reason where they cannot be, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hyperclone.errors import CheckpointError
from hyperclone.io import files

OLD, NEW = "the old text\n", "the new text, which is longer: ü\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file that holds OLD."""
    file = tmp_path / "results.json"
    file.write_text(OLD, "utf-8")
    return file


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "new.txt"
    files.write_text(file, "one\r\ntwo\n\nü")
    assert file.read_bytes() == b"one\r\ntwo\n\n\xc3\xbc"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text(OLD)
    files.write_text(tmp_path / "ours", OLD)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_reader_that_has_the_old_file_open_keeps_the_old_text(written: Path) -> None:
    """Fails for a writer that truncates the file and writes in place."""
    with written.open(encoding="utf-8") as reader:
        assert reader.read(4) == OLD[:4]
        files.write_text(written, NEW)
        assert reader.read() == OLD[4:]
    assert written.read_text("utf-8") == NEW


def test_the_file_under_its_name_is_never_a_part(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call to the operating system that syncs or renames, the name stands for the whole old text."""
    seen = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*arguments: object, name: str = name, real: object = real) -> None:
            seen.append((name, written.read_text("utf-8")))
            real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, spy)
    files.write_text(written, NEW)
    assert seen == [("fsync", OLD), ("replace", OLD)]
    assert written.read_text("utf-8") == NEW


def test_the_whole_text_is_synced_before_it_gets_its_name(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor)))
    files.write_text(written, NEW)
    (status,) = synced
    assert (status.st_ino, status.st_size) == (written.stat().st_ino, len(NEW.encode()))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(
    written: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        files.write_text(written, NEW)
    assert written.read_text("utf-8") == OLD
    assert list(written.parent.iterdir()) == [written]


def test_where_there_is_no_directory_the_operating_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "missing" / "file", NEW)


def test_a_json_object_is_read(tmp_path: Path) -> None:
    content = {"name": "ü", "sizes": [1, 2]}
    (tmp_path / "a.json").write_text(files.to_json(content), "utf-8")
    assert files.read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such config"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[1]", "not a JSON object"),
    ],
    ids=["missing", "cut off", "not UTF-8", "nested too deeply", "a list"],
)
def test_what_is_no_json_object_is_refused_by_its_path(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        files.read_json(file, missing="no such config")
    assert caught.value.details["file"] == str(file)


def test_json_is_written_as_hugging_face_writes_it() -> None:
    assert files.to_json({"a": 1, "b": "ü"}) == '{\n  "a": 1,\n  "b": "ü"\n}\n'


def test_a_name_that_is_too_long_stands_for_nothing(tmp_path: Path) -> None:
    assert files.exists(tmp_path)
    assert not files.exists(tmp_path / "missing")
    assert not files.exists(tmp_path / ("x" * 5000))


def test_digests_are_by_the_path_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    file = tmp_path / "templates" / "chat.jinja"
    file.write_bytes(b"abc")
    assert files.digests(tmp_path, [file]) == {"templates/chat.jinja": hashlib.sha256(b"abc").hexdigest()}
