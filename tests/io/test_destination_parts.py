"""The parts of a destination by themselves: journal, shards, carried files, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hyperclone.errors import DestinationError
from hyperclone.io.destination import RECEIPT, Destination, beside, missing_parents

ONE, TWO = {"shard": "one.safetensors", "bytes": 3}, {"shard": "two.safetensors", "bytes": 5}


def build(target: Path, *, fingerprint: str = "mine", nbytes: int = 0, overwrite: bool = False) -> Any:
    """An output that is closed in the end."""
    source = target.with_name("source")
    return closing(Destination(target, source=source, fingerprint=fingerprint, nbytes=nbytes, overwrite=overwrite))


def left_behind(target: Path, journal: str | bytes, *, files: dict[str, str] | None = None) -> Path:
    """What a run that was killed has left: a journal, and files with their content."""
    partial, _ = beside(target)
    partial.mkdir(parents=True)
    (partial / "journal.jsonl").write_bytes(journal if isinstance(journal, bytes) else journal.encode())
    for name, content in (files or {"one.safetensors": "abc", "two.safetensors": "abcde"}).items():
        (partial / name).write_text(content)
    return partial


def lines(*content: Any) -> str:
    """A journal."""
    return "".join(json.dumps(line) + "\n" for line in content)


def journal_of(partial: Path) -> list[Any]:
    """The lines of a journal."""
    return [json.loads(line) for line in (partial / "journal.jsonl").read_text().splitlines()]


MINE = {"fingerprint": "mine"}
JOURNALS: dict[str, tuple[str | bytes, list[Any]]] = {
    "two shards": (lines(MINE, ONE, TWO), [ONE, TWO]),
    "one shard": (lines(MINE, TWO), [TWO]),
    "another plan": (lines({"fingerprint": "other"}, ONE, TWO), []),
    "no plan": (lines(ONE, TWO), []),
    "more than a plan": (lines({**MINE, "more": 1}, ONE, TWO), []),
    "nothing": ("", []),
    "half a line": (lines(MINE, ONE) + '{"shard": "two', [ONE]),
    "half a line in between": (lines(MINE) + '{"shard": "one\n' + lines(TWO), []),
    "bytes that are no text": (lines(MINE, ONE).encode() + b"\xff\xfe\n", [ONE]),
    "too deep to be read": (lines(MINE, ONE) + "[" * 100_000, [ONE]),
    "another size": (lines(MINE, {**ONE, "bytes": 4}, TWO), [TWO]),
    "a file that is gone": (lines(MINE, ONE, {"shard": "three.safetensors", "bytes": 3}), [ONE]),
    "no number": (lines(MINE, {**ONE, "bytes": "3"}, TWO), [TWO]),
    "no name": (lines(MINE, {**ONE, "shard": 1}, TWO), [TWO]),
    "a path": (lines(MINE, {**ONE, "shard": "./one.safetensors"}, TWO), [TWO]),
    "other lines": (lines(MINE, 7, "x", [ONE], {"shard": "one.safetensors"}, TWO), [TWO]),
}


@pytest.mark.parametrize(("journal", "kept"), JOURNALS.values(), ids=JOURNALS)
def test_shards_count_as_finished_where_the_journal_of_this_plan_says_so(
    journal: str | bytes, kept: list[Any], tmp_path: Path
) -> None:
    partial = left_behind(tmp_path / "out", journal)
    with build(tmp_path / "out") as output:
        assert output.finished == {line["shard"] for line in kept}
        assert {path.name for path in partial.iterdir()} == {"journal.jsonl", *output.finished}
        assert journal_of(partial) == [MINE, *kept]
    assert partial.exists() == bool(kept)


def test_links_and_directories_are_no_shards_and_what_a_link_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("abc")
    partial = left_behind(tmp_path / "out", lines(MINE, ONE, TWO), files={"other": "x"})
    (partial / "one.safetensors").symlink_to(tmp_path / "mine/thesis.txt")
    (partial / "two.safetensors").mkdir()
    (partial / "two.safetensors/file").write_text("x")
    (partial / "link").symlink_to(tmp_path / "mine")
    with build(tmp_path / "out") as output:
        assert output.finished == frozenset()
        assert [path.name for path in partial.iterdir()] == ["journal.jsonl"]
    assert (tmp_path / "mine/thesis.txt").read_text() == "abc"


def write(output: Destination, file: str, content: bytes) -> None:
    """Write a shard."""
    with output.shard(file, nbytes=len(content)) as descriptor:
        assert os.fstat(descriptor).st_size == len(content)  # the disk has the space before anything is written
        os.pwrite(descriptor, content, 0)


def test_a_shard_is_finished_when_it_is_written_and_gone_when_it_fails(tmp_path: Path) -> None:
    partial, _ = beside(tmp_path / "out")
    with build(tmp_path / "out") as output:
        assert output.target == tmp_path / "out"
        assert output.partial == partial == tmp_path / ".out.partial"
        write(output, "one.safetensors", b"abc")
        with pytest.raises(KeyboardInterrupt), output.shard("two.safetensors", nbytes=5):
            raise KeyboardInterrupt
        assert journal_of(partial) == [MINE, ONE]
        assert (partial / "one.safetensors").stat().st_mode & 0o777 == 0o644 & ~umask()
    assert {path.name for path in partial.iterdir()} == {"journal.jsonl", "one.safetensors"}
    (partial / "two.safetensors").write_bytes(b"longer than it will be")
    with build(tmp_path / "out") as output:
        assert output.finished == {"one.safetensors"}
        write(output, "two.safetensors", b"abcde")
        output.forget()
        assert journal_of(partial) == []
    with build(tmp_path / "out") as output:
        assert output.finished == frozenset()


def umask() -> int:
    """The process's."""
    os.umask(mask := os.umask(0))
    return mask


def test_a_shard_is_written_over_what_is_left_of_it(tmp_path: Path) -> None:
    with build(tmp_path / "out") as output:
        (output.partial / "one.safetensors").write_bytes(b"longer than it will be")
        write(output, "one.safetensors", b"abc")
        assert (output.partial / "one.safetensors").read_bytes() == b"abc"


def test_small_files_and_carried_ones_keep_their_places(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "chat_templates").mkdir(parents=True)
    carried = [source / "tokenizer.json", source / "chat_templates/a.jinja", source / "chat_templates/b.jinja"]
    for file in carried:
        file.write_text(file.name)
    with build(tmp_path / "deep/er/out") as output:
        output.carry(carried, root=source)
        output.write_text("config.json", "{}")
        output.publish()
    target = tmp_path / "deep/er/out"
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "chat_templates/a.jinja", "chat_templates/b.jinja", "config.json", "tokenizer.json",
    ]  # fmt: skip
    assert (target / "chat_templates/b.jinja").read_text() == "b.jinja"
    assert (target / "config.json").read_text() == "{}"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_closing_twice_or_without_anything_finished_leaves_nothing(tmp_path: Path) -> None:
    with build(tmp_path / "out") as output:
        output.write_text("config.json", "{}")
        output.close()
        assert (output.partial / "config.json").exists()  # a rerun clears it
    with build(tmp_path / "out") as output:
        output.close()
        assert not output.partial.exists()
    assert list(tmp_path.iterdir()) == []


def finished(output: Destination, text: str) -> None:
    """Write a whole output."""
    output.write_text("config.json", text)
    output.write_text(RECEIPT, "{}")
    output.publish()


def test_an_old_output_is_replaced_and_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text, overwrite in (("old", False), ("new", True)):
        with build(target, overwrite=overwrite) as output:
            if overwrite:
                (target / "kept").mkdir()
                (target / "link").symlink_to(tmp_path)
                assert (target / "config.json").read_text() == "old"
            finished(output, text)
    assert (target / "config.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["out", "config.json", RECEIPT])


@pytest.mark.parametrize("there", [True, False])
def test_an_old_output_that_a_killed_run_had_moved_away_is_removed_in_the_end(there: bool, tmp_path: Path) -> None:
    target, (_, replaced) = tmp_path / "out", beside(tmp_path / "out")
    replaced.mkdir()
    (replaced / RECEIPT if there else replaced / "thesis.txt").write_text("{}")
    with build(target) as output:
        finished(output, "new")
    assert replaced.exists() is not there  # without a receipt it is somebody else's


def test_an_old_output_returns_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with build(target) as output:
        finished(output, "old")
    rename = os.rename

    def second_fails(old: Any, new: Any) -> None:
        if str(old).endswith(".partial"):
            raise OSError(5, "no")
        rename(old, new)

    with build(target, overwrite=True) as output:
        monkeypatch.setattr(os, "rename", second_fails)
        with pytest.raises(DestinationError, match="cannot be renamed"):
            finished(output, "new")
        assert sorted(path.name for path in target.iterdir()) == sorted(["config.json", RECEIPT])
        assert (target / "config.json").read_text() == "old"
        monkeypatch.undo()
        finished(output, "new")
    assert (target / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_shards_count_as_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = left_behind(tmp_path / "out", lines(MINE, {**ONE, "bytes": 8192}), files={"one.safetensors": "x" * 8192})
    usage, blocks = shutil.disk_usage(tmp_path), (partial / "one.safetensors").stat().st_blocks
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with build(tmp_path / "out", nbytes=1000 + 512 * blocks) as output:
        assert output.finished == {"one.safetensors"}
    with pytest.raises(DestinationError, match="not enough space"), build(tmp_path / "out", nbytes=1001 + 512 * blocks):
        pass
    assert journal_of(partial)[1:] == [{**ONE, "bytes": 8192}]  # kept for when there is space


def test_a_lock_ends_with_its_run_and_a_journal_that_was_removed_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock
    partial, _ = beside(tmp_path / "out")

    def ended_meanwhile(stream: Any, operation: int) -> None:
        flock(stream, operation)
        (partial / "journal.jsonl").unlink()  # as the run does that has just ended

    with build(tmp_path / "out"):
        pass
    monkeypatch.setattr(fcntl, "flock", ended_meanwhile)
    with pytest.raises(DestinationError, match="another run is writing"), build(tmp_path / "out"):
        pass
    monkeypatch.undo()
    shutil.rmtree(partial, ignore_errors=True)
    with build(tmp_path / "out") as output:
        assert output.finished == frozenset()


def test_what_is_left_of_an_old_output_that_was_being_removed_makes_place_for_the_next(tmp_path: Path) -> None:
    target, (_, replaced) = tmp_path / "out", beside(tmp_path / "out")
    with build(target) as output:
        finished(output, "old")
    (replaced / "deeper").mkdir(parents=True)
    (replaced / "deeper/file").touch()
    (replaced / ".hyperclone-replaced").touch()  # it may be removed
    with build(target, overwrite=True) as output:
        finished(output, "new")
    assert (target / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_somebody_has_removed_can_be_closed(tmp_path: Path) -> None:
    with build(tmp_path / "out") as output:
        shutil.rmtree(output.partial)
    assert list(tmp_path.iterdir()) == []


def test_directories_above_a_target_are_made_with_it_and_removed_with_nothing_kept(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    target, new = tmp_path / "a/b/grown", (tmp_path / "a", tmp_path / "a/b")
    assert missing_parents(target) == new
    with pytest.raises(DestinationError, match="not enough space"), build(target, nbytes=2**60):
        pass
    assert not new[0].exists()
    with build(target) as destination, destination.shard("one.safetensors", nbytes=3) as descriptor:
        os.write(descriptor, b"abc")
    assert missing_parents(target) == ()  # the shard stays for a rerun
    with pytest.raises(DestinationError, match="not enough space"), build(tmp_path / "a/c/d", nbytes=2**60):
        pass
    assert (tmp_path / "a/b").exists()
    assert not (tmp_path / "a/c").exists()
