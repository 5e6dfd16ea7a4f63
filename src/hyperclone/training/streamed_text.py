"""A text that is read, tokenized and cut into windows as they are asked for, and can go on from any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hyperclone.errors import TrainingError
from hyperclone.hf.tokenizing import encoder
from hyperclone.training import token_cache
from hyperclone.training.data_sources import Documents, TextSource

Ended = Callable[[str, int], None]  # a text's name, and how many times it has been read


@dataclass(frozen=True)
class StreamedText:
    """A text that is read while training goes on.

    Attributes:
        name: as the user spelled it.
        sources: where it comes from.
        field, sample_by: as in Training.
        tokenizer: of transformers.
        end: id of the end-of-text token.
        vocabulary: of the model.
    """

    name: str
    sources: tuple[TextSource, ...]
    field: str
    sample_by: str
    tokenizer: Any
    end: int
    vocabulary: int

    @property
    def digest(self) -> str:
        """Changes when files have other names or sizes, or would be tokenized otherwise; wherever they lie."""
        reading = [self.field, self.sample_by, token_cache.fingerprint(self.tokenizer), self.end]
        identity = json.dumps([[source.content for source in self.sources], *reading])
        return hashlib.sha256(identity.encode()).hexdigest()


class Window(NamedTuple):
    """(seq_len,) token ids, and where documents begin among them."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a batch of documents begins.

    Attributes:
        passes: how many times the text has been read before.
        source: of the text's.
        rows: in that source, as `Documents.place` says it.
    """

    passes: int = 0
    source: int = 0
    rows: dict[str, Any] | None = None


@dataclass(frozen=True)
class Cutting:
    """Where cutting a text into windows has come to.

    Attributes:
        place: where the batch of documents begins that is being cut.
        rest: tokens from before it that fill no window.
        taken: windows of the batch that were taken.
    """

    place: Place = field(default_factory=Place)
    rest: Window = field(default_factory=lambda: Window(np.empty(0, np.int32), np.empty(0, np.int64)))
    taken: int = 0


class Windows:
    """A text's windows in its own order. The next batch of documents is read while this one is used."""

    def __init__(self, text: StreamedText, seq_len: int, begun: Cutting, ended: Ended | None) -> None:
        self._name, self._seq_len, self._ended, self._begun = text.name, seq_len, ended, begun
        self._reader, self._pool = _Reader(text, begun.place), ThreadPoolExecutor(1)
        self._ahead: Future[_Batch] | None = None
        self._rest, self._windows, self._taken = begun.rest, list[Window](), 0
        while self._taken < begun.taken:
            self.take()

    @property
    def state(self) -> Cutting:
        """Where it has come to."""
        return replace(self._begun, taken=self._taken)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def take(self) -> Window:
        """The next window."""
        while self._taken == len(self._windows):
            self._cut_next()
        self._taken += 1
        return self._windows[self._taken - 1]

    def _cut_next(self) -> None:
        batch = (self._ahead or self._pool.submit(self._reader.read)).result()
        self._ahead = self._pool.submit(self._reader.read)
        if self._ended is not None and batch.place.passes > self._begun.place.passes:
            self._ended(self._name, batch.place.passes)
        self._begun, self._taken = Cutting(batch.place, self._rest), 0
        ids = np.concatenate([self._rest.ids, batch.tokens.ids])
        starts = np.concatenate([self._rest.starts, batch.tokens.starts + len(self._rest.ids)])
        cuts = np.arange(0, len(ids) + 1, self._seq_len)
        bounds = np.searchsorted(starts, cuts)
        self._windows = [
            Window(ids[begin : begin + self._seq_len], starts[first:last] - begin)
            for begin, first, last in zip(cuts[:-1], bounds[:-1], bounds[1:], strict=True)
        ]
        self._rest = Window(ids[cuts[-1] :].copy(), starts[bounds[-1] :] - cuts[-1])


class _Batch(NamedTuple):
    """Documents one after another, and where the first of them is."""

    place: Place
    tokens: Window


class _Reader:
    """Reads and tokenizes a text, pass after pass."""

    def __init__(self, text: StreamedText, place: Place) -> None:
        self._text, self._encode = text, encoder(text.tokenizer)
        self._begun = place  # where the source was entered
        self._documents, self._batches = self._enter(place)
        self._found = place != Place()  # text in this pass

    def read(self) -> _Batch:
        """The next batch of documents.

        Raises:
            TrainingError: the text is empty or cannot be read, or has a token that the model does not have.
        """
        while True:
            place = replace(self._begun, rows=self._documents.place())
            if (texts := next(self._batches, None)) is not None:
                self._found = True
                return _Batch(place, self._tokens(texts))
            passes, source = place.passes, place.source + 1
            if source == len(self._text.sources):
                if not self._found:
                    raise TrainingError("the data holds no text", file=self._text.name)
                passes, source, self._found = passes + 1, 0, False
            self._begun = Place(passes, source)
            self._documents, self._batches = self._enter(self._begun)

    def close(self) -> None:
        """Stop reading."""
        self._batches.close()

    def _enter(self, place: Place) -> tuple[Documents, Generator[list[str]]]:
        text = self._text
        documents = Documents(text.sources[place.source], field=text.field, sample_by=text.sample_by, place=place.rows)
        return documents, token_cache.batches(documents)

    def _tokens(self, texts: list[str]) -> Window:
        text = self._text
        documents = [token_cache.ended(ids, text.end) for ids in self._encode(texts)]
        ids = np.fromiter((one for document in documents for one in document), np.int32)
        token_cache.check_vocabulary(int(ids.max()), text.vocabulary)
        lengths = np.array([len(document) for document in documents], np.int64)
        return Window(ids, np.cumsum(lengths) - lengths)
