"""`train --streaming`: text is read, tokenized and cut into windows while training goes on, and nothing of it is kept.

The windows are those of packing.py, and where the text ends it is read again. A run of N windows takes the first N of
its text; of a mixture, as many of each source as its share gives.

**The order.** A buffer holds the next windows of the text, some eight million tokens of them. Each time one is drawn
at random from it, and the next window of the text takes its place; after the last of the run, the buffer is emptied.
Draw n depends on (seed, n) and the source's place in the mixture alone. One process reads and sends the others their
windows (trainer.py), so neither processes nor forward passes change the order.

**Resuming.** A checkpoint holds the buffer, and where its text goes on: the place in the files, as `datasets` tells it
at the start of a batch of documents, the tokens left over from before, and how many windows of the batch were taken.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperclone.errors import TrainingError
from hyperclone.training import budget, packing
from hyperclone.training.mixture import Interleaving
from hyperclone.training.streamed_text import Cutting, Ended, Place, StreamedText, Window, Windows

FILE = "streamed_text.pt"  # in a checkpoint
_STARTS = 3  # newest steps whose start is known; a batch is fetched before the one ahead of it is trained on


@dataclass(frozen=True)
class _Shuffling:
    """The buffer of a source, how many windows were read into it and drawn from it, and where its text goes on."""

    cutting: Cutting = field(default_factory=Cutting)
    buffer: tuple[Window, ...] = ()
    read: int = 0
    drawn: int = 0


class Streamed(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The windows of a whole training, which are to be asked for in their order.

    Args:
        texts: of each source of the mixture; one where there are no weights.
        shares: of each in the training.
        seq_len: tokens of a window.
        isolated: documents are isolated (packing.py).
        count: windows of the training.
        batch: windows of a step.
        seed: of the order.
        start: file that `save` has written, to go on from; None for the first window.
        ended: called when a text is read again.
    """

    def __init__(
        self,
        texts: Sequence[StreamedText],
        shares: Sequence[Fraction],
        *,
        seq_len: int,
        isolated: bool,
        count: int,
        batch: int,
        seed: int,
        start: Path | None = None,
        ended: Ended | None = None,
    ) -> None:
        self._texts, self._shares, self._seq_len, self._isolated = texts, shares, seq_len, isolated
        self._count, self._batch, self._seed, self._start, self._ended = count, batch, seed, start, ended
        self._interleaving = Interleaving(shares)
        self._sources: list[_ShuffledText] = []
        self._next = 0
        self._starts: dict[int, list[_Shuffling]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index`, as `packing.tensors` has it. Reading starts with the first that is asked for."""
        if not self._sources:
            self._open()
        assert index >= self._next, "windows of a stream are asked for in their order"
        while self._next < index:
            self._draw()
        window = self._draw()
        return packing.tensors(window.ids, window.starts if self._isolated else None)

    def save(self, file: Path, *, window: int) -> None:
        """Write what it takes to go on from a window with which a step begins.

        Args:
            file: to write.
            window: of the newest steps.
        """
        if window == self._next:
            self._note_start()
        torch.save({"window": window, "sources": [_packed(one) for one in self._starts[window]]}, file)

    def close(self) -> None:
        """Stop reading. What is being read is read to the end of its batch of documents."""
        for source in self._sources:
            source.close()

    def _open(self) -> None:
        sources = [_Shuffling() for _ in self._texts]
        if self._start is not None:
            self._next, sources = _load(self._start)
        buffer = max(1, budget.BUFFER // self._seq_len)
        self._sources = [
            _ShuffledText(
                Windows(text, self._seq_len, begun.cutting, self._ended),
                begun,
                size=max(1, int(buffer * share)),
                limit=math.ceil(self._count * share),  # of a source no mixture takes more (mixture.py)
                key=(self._seed, number),
            )
            for number, (text, share, begun) in enumerate(zip(self._texts, self._shares, sources, strict=True))
        ]

    def _draw(self) -> Window:
        if self._next % self._batch == 0:
            self._note_start()
        source, _ = self._interleaving.at(self._next)
        window = self._sources[source].draw()
        self._next += 1
        return window

    def _note_start(self) -> None:
        self._starts[self._next] = [source.state for source in self._sources]
        for old in sorted(self._starts)[:-_STARTS]:
            del self._starts[old]


class _ShuffledText:
    """A text's windows in the order of the training.

    Args:
        windows: in the order of the text.
        begun: where to go on; `windows` goes on from there as well.
        size: of the buffer, in windows.
        limit: windows that are read.
        key: seed, and the text's place in the mixture.
    """

    def __init__(self, windows: Windows, begun: _Shuffling, *, size: int, limit: int, key: tuple[int, int]) -> None:
        self._windows, self._size, self._limit, self._key = windows, size, limit, key
        self._buffer, self._read, self._drawn = list(begun.buffer), begun.read, begun.drawn

    @property
    def state(self) -> _Shuffling:
        """Where it has come to."""
        return _Shuffling(self._windows.state, tuple(self._buffer), self._read, self._drawn)

    def close(self) -> None:
        """Stop reading."""
        self._windows.close()

    def draw(self) -> Window:
        """The next window."""
        while self._read < self._limit and len(self._buffer) < self._size:
            ids, starts = self._windows.take()
            self._buffer.append(Window(ids.copy(), starts.copy()))  # a part would keep all of its batch in memory
            self._read += 1
        seed, source = self._key
        numbers = np.random.Philox(key=[seed, self._drawn], counter=[0, 0, 0, source])
        slot = int(np.random.Generator(numbers).integers(len(self._buffer)))
        self._drawn += 1
        window, last = self._buffer[slot], self._buffer.pop()
        if slot < len(self._buffer):
            self._buffer[slot] = last
        return window


def _packed(state: _Shuffling) -> dict[str, Any]:
    """A state as plain data and tensors, which `torch.load` reads without running code."""
    place, rest = state.cutting.place, state.cutting.rest
    return {
        "passes": place.passes,
        "source": place.source,
        "rows": place.rows,
        "rest": [torch.from_numpy(part) for part in rest],
        "taken": state.cutting.taken,
        "buffer": [
            torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))
            for parts in ([w.ids for w in state.buffer], [w.starts for w in state.buffer])
        ],
        "starts": [len(window.starts) for window in state.buffer],
        "read": state.read,
        "drawn": state.drawn,
    }


def _unpacked(packed: dict[str, Any]) -> _Shuffling:
    ids, starts = (part.numpy() for part in packed["buffer"])
    counts = packed["starts"]
    buffer = zip(np.split(ids, len(counts)), np.split(starts, np.cumsum(counts)[:-1]), strict=True) if counts else ()
    place = Place(packed["passes"], packed["source"], packed["rows"])
    rest = Window(*(part.numpy() for part in packed["rest"]))
    return _Shuffling(
        Cutting(place, rest, packed["taken"]), tuple(Window(*one) for one in buffer), packed["read"], packed["drawn"]
    )


def _load(file: Path) -> tuple[int, list[_Shuffling]]:
    """The window and the states of all sources that `save` has written.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    try:
        content = torch.load(file, weights_only=True)
        return content["window"], [_unpacked(packed) for packed in content["sources"]]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            "where this checkpoint stopped in the text cannot be read", file=file, found=type(error).__name__,
            cure="remove this checkpoint: --resume then takes the one before it",
        ) from None  # fmt: skip
