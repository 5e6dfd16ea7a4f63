"""Text as tokens on disk: tokenized once, then memory-mapped by every run that reads the same text in the same way.

A cache entry is a directory named by the hash of what determines its bytes: the files (path, size, time), the
tokenizer, and how documents are read. It holds two streams, `train` and `held_out`: tokens as uint16 or uint32 in one
flat file, and the start of every document as int64 in another. It is built under another name and renamed, so it is
complete or absent; a lock lets one process build it while others (ranks, arms of a study) wait for it.

A document is what the tokenizer makes of it (with its own beginning-of-text token, where it has one) and an
end-of-text token. Of every 1/held_out documents the first is held out. No seed is involved, so all arms and seeds are
measured on the same text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperclone.errors import DestinationError, TrainingError
from hyperclone.hf.tokenizing import Encode, encoder
from hyperclone.io.files import user_path
from hyperclone.training.data_sources import TextSource, texts

TokenizingProgress = Callable[[int, int | None], None]  # bytes of text that are done, and of all (None: not known)
_FORMAT = 2
_BATCH = 1 << 20  # characters that are tokenized together


@dataclass(frozen=True)
class Corpus:
    """A stream of documents.

    Attributes:
        file: holds the tokens; the file with the documents' starts lies beside it.
        dtype: of a token.
        tokens, documents: how many.
        nbytes: of the documents as UTF-8.
        largest: the largest token id.
        digest: SHA-256 of its documents' tokens. The same text has the same digest, wherever its files lie.
    """

    file: str
    dtype: str
    tokens: int
    documents: int
    nbytes: int
    largest: int
    digest: str

    def ids(self) -> npt.NDArray[Any]:
        """(tokens,) token ids, memory-mapped."""
        return np.memmap(self.file, dtype=self.dtype, mode="r", shape=(self.tokens,))

    def starts(self) -> npt.NDArray[np.int64]:
        """(documents,) the index of each document's first token."""
        return np.memmap(_starts(Path(self.file)), dtype=np.int64, mode="r", shape=(self.documents,))


@dataclass(frozen=True)
class TextSize:
    """How much text there is, in one corpus or in several.

    Attributes:
        tokens, documents: how many.
        nbytes: of the documents as UTF-8.
    """

    tokens: int
    documents: int
    nbytes: int

    @classmethod
    def of(cls, corpora: Iterable[Corpus]) -> TextSize:
        """All of them together."""
        several = list(corpora)
        return cls(
            sum(corpus.tokens for corpus in several),
            sum(corpus.documents for corpus in several),
            sum(corpus.nbytes for corpus in several),
        )


@dataclass(frozen=True)
class ReadingOptions:
    """How text is read.

    Attributes:
        field, sample_by: as in Training.
        held_out: share of the documents for the held-out stream.
        limit: stop after this many tokens to train on; None for all of the text.
    """

    field: str
    sample_by: str
    held_out: float
    limit: int | None = None


def prepare(
    sources: list[TextSource],
    reading: ReadingOptions,
    tokenizer: Any,
    *,
    end: int,
    cache: Path,
    progress: TokenizingProgress | None = None,
) -> tuple[Corpus, Corpus]:
    """The train and held-out streams of a cache entry, which is built if it does not exist.

    Args:
        sources: where the text comes from.
        reading: how it is read.
        tokenizer: of transformers.
        end: id of the end-of-text token.
        cache: directory of cache entries.
        progress: called with the bytes done, while the entry is built.

    Raises:
        TrainingError: the sources hold no text, or it cannot be read.
        DestinationError: the cache cannot be written.
    """
    from filelock import FileLock

    entry = cache / _key(sources, reading, tokenizer, end)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{entry.name}.lock"):
            if not entry.is_dir():
                _build(entry, sources, reading, tokenizer, end, progress)
    except OSError as error:
        raise _unusable(cache, error) from None
    return _corpora(entry)


def cached(
    sources: list[TextSource], reading: ReadingOptions, tokenizer: Any, *, end: int, cache: Path
) -> tuple[Corpus, Corpus] | None:
    """The streams that `prepare` would return; None if it would have to build them. Nothing is written.

    Raises:
        DestinationError: the cache cannot be read.
    """
    entry = cache / _key(sources, reading, tokenizer, end)
    return _corpora(entry) if entry.is_dir() else None


def _key(sources: list[TextSource], reading: ReadingOptions, tokenizer: Any, end: int) -> str:
    """The name of a cache entry."""
    identity = [_FORMAT, [s.identity for s in sources], asdict(reading), fingerprint(tokenizer), end]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]


def _corpora(entry: Path) -> tuple[Corpus, Corpus]:
    try:
        content = json.loads((entry / "index.json").read_text())
        train, held_out = (Corpus(str(entry / name), **content[name]) for name in ("train", "held_out"))
    except OSError as error:
        raise _unusable(entry.parent, error) from None
    except (ValueError, KeyError, TypeError):
        raise DestinationError("this cache entry is damaged", file=entry, cure="remove it") from None
    return train, held_out


def _unusable(cache: Path, error: OSError) -> DestinationError:
    return DestinationError(
        "the token cache cannot be used", file=cache, found=error.strerror or error, cure="--cache DIR"
    )


def _build(
    entry: Path,
    sources: list[TextSource],
    reading: ReadingOptions,
    tokenizer: Any,
    end: int,
    progress: TokenizingProgress | None,
) -> None:
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    every = round(1 / reading.held_out) if reading.held_out else 0
    sizes = [source.nbytes for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    dtype = "uint16" if max(len(tokenizer), end + 1) <= 1 << 16 else "uint32"
    try:
        with _Stream(partial / "train", dtype) as train, _Stream(partial / "held_out", dtype) as held_out:
            number = 0
            documents = (text for s in sources for text in texts(s, field=reading.field, sample_by=reading.sample_by))
            for batch, encoded in _encoded(batches(documents), encoder(tokenizer)):
                for text, ids in zip(batch, encoded, strict=True):
                    document = ended(ids, end)
                    (held_out if every and number % every == 0 else train).add(document, len(text.encode()))
                    number += 1
                if progress:
                    progress(train.nbytes + held_out.nbytes, total)
                if reading.limit is not None and train.tokens >= reading.limit:
                    break
        if not number:
            raise TrainingError("the data holds no text", file=", ".join(dict.fromkeys(s.spelled for s in sources)))
        content = {"train": train.index(), "held_out": held_out.index()}
        (partial / "index.json").write_text(json.dumps(content, indent=2) + "\n")
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Stream:
    """A stream that is being written."""

    def __init__(self, file: Path, dtype: str) -> None:
        self._ids, self._starts = file.open("wb"), _starts(file).open("wb")
        self._dtype = dtype
        self.tokens = self.documents = self.nbytes = self.largest = 0
        self._sum = hashlib.sha256()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._starts.close()

    def add(self, document: list[int], nbytes: int) -> None:
        start, ids = np.int64(self.tokens).tobytes(), np.asarray(document, dtype=self._dtype)
        self._starts.write(start)
        self._ids.write(ids.data)
        self._sum.update(start)
        self._sum.update(ids.data)
        self.tokens += len(document)
        self.documents += 1
        self.nbytes += nbytes
        self.largest = max(self.largest, int(ids.max()))

    def index(self) -> dict[str, Any]:
        """The fields of its `Corpus`, but for the file."""
        counts = {name: getattr(self, name) for name in ("tokens", "documents", "nbytes", "largest")}
        return {"dtype": self._dtype, **counts, "digest": self._sum.hexdigest()}


def _encoded(batches: Iterable[list[str]], encode: Encode) -> Iterator[tuple[list[str], list[list[int]]]]:
    """Each batch with its ids: the next one is read and encoded while whoever iterates uses this one."""
    with ThreadPoolExecutor(1) as pool:
        ahead: tuple[list[str], Future[list[list[int]]]] | None = None
        for batch in batches:
            encoding = pool.submit(encode, batch)
            if ahead:
                yield ahead[0], ahead[1].result()
            ahead = batch, encoding
        if ahead:
            yield ahead[0], ahead[1].result()


def ended(ids: list[int], end: int) -> list[int]:
    """A document's ids with an end-of-text token, which the tokenizer may have put there already."""
    return ids if ids and ids[-1] == end else [*ids, end]


def check_vocabulary(largest: int, vocabulary: int) -> None:
    """Check that a model has the tokens of a text.

    Args:
        largest: token id of the text.
        vocabulary: tokens that the model has.

    Raises:
        TrainingError: it does not.
    """
    if largest >= vocabulary:
        raise TrainingError(
            "the tokenizer has more tokens than the model",
            field="vocab_size",
            found=f"token {largest} in the text",
            expected=f"below {vocabulary}",
        )


def batches(documents: Iterable[str]) -> Generator[list[str]]:
    """Documents in lists of about _BATCH characters."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _starts(file: Path) -> Path:
    return file.with_name(f"{file.name}.starts")


def fingerprint(tokenizer: Any) -> str:
    """Changes when the tokenizer would produce other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = (
        backend.to_str()
        if backend is not None
        else json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    )
    return hashlib.sha256(described.encode()).hexdigest()


def default_cache() -> Path:
    """Where tokens are cached unless a directory is given."""
    root = os.environ.get("HYPERCLONE_CACHE")
    return (user_path(root) if root else Path.home() / ".cache/hyperclone") / "tokens"
