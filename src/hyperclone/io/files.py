"""Small files: reading and writing JSON, replacing text in one step, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hyperclone.errors import CheckpointError, UnreadableError
from hyperclone.units import human_bytes

LFS_SIZE = 1024  # bytes, which a pointer never has
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_FILE = 512 << 20  # bytes of a config, an index, a receipt, a tokenizer; weights may have any size


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as its user wrote it, with `~` for a home directory."""
    return Path(os.path.expanduser(path))


def open_regular(path: Path) -> int:
    """A descriptor of a regular file to read from; a link to one is followed.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a directory, a device, a FIFO or a socket, which could block or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def read_bytes(path: Path, *, largest: int = LARGEST_FILE) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than `largest` bytes.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"larger than {largest} bytes")
    return content


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise if a file is what Git leaves in place of one that Git LFS has not fetched.

    Args:
        path: of the file.
        start: its first bytes.

    Raises:
        CheckpointError: it is a pointer.
    """
    if not start.startswith(_LFS_POINTER):
        return
    size = re.search(rb"\nsize (\d{1,18})\n", start)
    raise CheckpointError(
        "this is a pointer of Git LFS in place of the file: the repository was cloned without its large files",
        file=path,
        found=f"a pointer to {human_bytes(int(size[1]))}" if size else "a pointer",
        expected="the file itself",
        cure=f"git -C {shlex.quote(str(path.parent))} lfs pull (after `git lfs install`), or download the model with "
        "`hf download`",
    )


def read_json(path: Path, *, missing: str = "file is missing") -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: absent, not JSON, or not an object.
        UnreadableError: the operating system refuses.
    """
    try:
        content = read_bytes(path)
        refuse_lfs_pointer(path, content[:LFS_SIZE])
        value = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(missing, file=path) from None
    except OSError as error:
        raise UnreadableError("the file cannot be read", file=path, found=error.strerror or error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError("not readable as JSON", file=path, found=error,
                              cure="correct it there, or download it again") from None  # fmt: skip
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", file=path, found=type(value).__name__, expected="{...}",
                              cure="download it again")  # fmt: skip
    return value


def exists(path: Path) -> bool:
    """Whether the path exists and is accessible."""
    try:
        return path.exists()
    except OSError:  # the name is too long, or a directory on the way is not accessible
        return False


def digests(root: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of some small files, by their path below `root`.

    Raises:
        OSError: one cannot be read.
        ValueError: one is no regular file, or too large.
    """
    return {str(file.relative_to(root)): hashlib.sha256(read_bytes(file)).hexdigest() for file in files}


def to_json(content: dict[str, Any]) -> str:
    """JSON as Hugging Face writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_text(file: Path, text: str) -> None:
    """Write or replace a text file in one step; whoever reads it meanwhile sees the old or the new text, never a part.

    The text is synced before it gets its name. After a power failure a file system may have kept a rename and lost
    what was written just before it, which would leave an empty file in place of the old one. The few milliseconds
    do not matter for files that are written once or once a run. The directory is not synced: losing the rename itself
    leaves the old text, which is whole.

    Args:
        file: in a directory that exists. A link there is replaced, not followed.
        text: written as UTF-8, line endings as they are.

    Raises:
        OSError: it cannot be written; an older file is still there.
    """
    write_texts({file: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write or replace text files that belong together, each as `write_text` does, the first one first.

    All of them are on disk before the first gets its name, so a full disk or an interruption leaves every older file,
    and only a power failure or a kill between two renames leaves some new ones beside older ones.

    Raises:
        OSError: one cannot be written.
    """
    partials = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in texts}
    try:
        for file, text in texts.items():
            with partials[file].open("w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        for file, partial in partials.items():
            os.replace(partial, file)
    except BaseException:  # an interruption as well
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def start_writing_out(descriptor: int, start: int, nbytes: int) -> None:
    """Let the system begin to write a part of a file to the disk, instead of gigabytes when the file is synced."""
    if (sync_file_range := _sync_file_range()) is not None:
        sync_file_range(descriptor, start, nbytes, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2  # Linux


@cache
def _sync_file_range() -> Any:
    """Linux's call of that name; None on other systems."""
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
