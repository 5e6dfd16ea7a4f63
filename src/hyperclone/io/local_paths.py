"""Which sources are directories, folders of the Hub's cache among them, and what a mistyped path may have meant."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from hyperclone.errors import CheckpointError
from hyperclone.io.files import exists, user_path

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ADDRESS = re.compile(r"(?:https?://|hf://)(?:huggingface\.co/|hf\.co/)?(?:models/)?([\w.-]+/[\w.-]+)")
_MOST = 3  # names that a message suggests
_CACHED = re.compile(r"models--(.+)")


def local_path(source: str | os.PathLike[str], *, revision: str | None = None) -> Path | None:
    """The directory that a source names; None if it is a Hub id.

    A path that does not exist is still one if it looks like it: it begins with `.`, `/` or `~`, has a backslash or
    more than one slash, or lies in a directory that exists. Then the Hub is not asked.

    Args:
        source: a path, or a Hub id. A folder of the Hub's cache stands for its snapshot.
        revision: of a Hub id, or of such a folder.

    Raises:
        CheckpointError: it is an address; another directory has no revisions, or the folder has no such snapshot.
    """
    if (address := _ADDRESS.match(os.fsdecode(source))) is not None:
        raise CheckpointError("this is an address, not a directory or a Hub id", found=os.fsdecode(source),
                              expected=f"a Hub id: {address[1]}", cure=f"give {address[1]}")  # fmt: skip
    path = user_path(source)
    if not exists(path) and not _looks_local(source, path):
        return None
    if (folder := _cache_folder(path)) is not None:
        return _snapshot(folder, revision)
    if revision is not None:
        raise CheckpointError("a local directory has no revisions", field="revision", found=revision, cure="omit it")
    return path


def hub_id_of(path: Path) -> str | None:
    """The Hub id of a folder of the Hub's cache, or of a snapshot in it; None for other paths."""
    path = path.absolute()
    for folder, below in ((path, path / "snapshots"), (path.parent, path), (path.parent.parent, path.parent)):
        match = _CACHED.fullmatch(folder.name)
        if match and below.name == "snapshots" and below.is_dir():
            return match[1].replace("--", "/", 1)
    return None


def nearest(path: Path) -> str | None:
    """A cure for a path that does not exist: directories with names like it, also like those of its parents."""
    parts: list[str] = []
    while not exists(path) and path.name:
        parts.append(path.name)
        path = path.parent
    if not parts or path.name == "..":
        return None
    near = [path]
    for part in reversed(parts):
        near = [directory / name for directory in near for name in _alike(directory, part)][:_MOST]
    return "did you mean " + " or ".join(map(str, near)) + "?" if near else None


def _alike(directory: Path, name: str) -> list[str]:
    """Names of the directories in one that are like a name, the nearest first; capitals do not matter."""
    try:
        beside = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    except OSError:
        return []
    if name in beside:
        return [name]
    by_small: dict[str, list[str]] = {}
    for entry in sorted(beside):
        by_small.setdefault(entry.casefold(), []).append(entry)
    alike = difflib.get_close_matches(name.casefold(), by_small, n=_MOST, cutoff=0.7)
    return [entry for small in alike for entry in by_small[small]]


def _looks_local(source: str | os.PathLike[str], path: Path) -> bool:
    text = os.fsdecode(source)
    if not isinstance(source, str) or text.startswith((".", "/", "~")) or _HUB_ID.fullmatch(text) is None:
        return True
    return "/" in text and exists(path.parent)


def _cache_folder(path: Path) -> Path | None:
    """The folder of a model in the Hub's cache, if the path is one."""
    folder = path.absolute()
    folder = folder.parent if folder.name == "snapshots" else folder
    return folder if _CACHED.fullmatch(folder.name) and (folder / "snapshots").is_dir() else None


def _snapshot(folder: Path, revision: str | None) -> Path:
    """A snapshot in a folder of the Hub's cache: of a revision, else of the main branch, else the only one."""
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text("utf-8").strip() if exists(reference) and reference.is_file() else revision
    if commit is not None and Path(commit).name == commit and (folder / "snapshots" / commit).is_dir():
        return folder / "snapshots" / commit
    snapshots = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
    if revision is None and len(snapshots) == 1:
        return snapshots[0]
    raise CheckpointError(
        "this folder of the Hub's cache has no such snapshot"
        if revision
        else "this folder of the Hub's cache has no main snapshot",
        file=folder,
        field="revision" if revision else None,
        found=", ".join(snapshot.name for snapshot in snapshots) or "no snapshot",
        expected=revision or "refs/main, or one snapshot",
        cure=f"name one of them: {snapshots[0]}"
        if snapshots
        else "download the model again: hf download " + (hub_id_of(folder) or ""),
    )
