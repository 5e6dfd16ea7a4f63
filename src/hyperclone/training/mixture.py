"""Mixtures: which share of the training's windows comes from which source, and which source has the next window.

`--data new/*.parquet=0.7 --data old.jsonl.gz=0.3` gives each source a weight; its share is the weight divided by their
sum. Weights are read as decimal fractions and never rounded. Without weights all text is one source.

**The order.** Window j of a source with share w must be among the first ceil((j + 1) / w) windows of the training, and
not among the first floor(j / w). Of the sources that may have the next window, the one whose window must come soonest
has it. So after any t windows there are more than w t - 1 and fewer than w t + 1 of each source.

That this never fails: between the t-th and the u-th window, a source has at most w (u - t) windows that must lie there,
all sources together u - t, and for jobs of one unit the earliest deadline finds a schedule if that holds for all t and
u. Always taking the source that lags most is simpler, and with five sources or more it can be off by over one window.

The order is a function of the shares alone, so seeds, processes and interruptions do not change it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from hyperclone.errors import TrainingError
from hyperclone.io.weighted_paths import split_weight
from hyperclone.training import data_sources
from hyperclone.units import is_finite

_BLOCK = 1 << 14  # windows whose sources are held in memory
_WEIGHT = "a number above 0 after the last =, such as 0.7"


@dataclass(frozen=True)
class DataSource:
    """A source of a mixture, or all text where there are no weights.

    Attributes:
        spelled: files, directories, globs or Hub datasets, as the user spelled them, without their weight.
        share: of the windows of the training.
    """

    spelled: tuple[str, ...]
    share: Fraction = Fraction(1)


@dataclass(frozen=True, kw_only=True)
class SourceUse:
    """What a run takes of a source of a mixture.

    Attributes:
        source: as the user spelled it.
        share: of the windows of the training.
        documents, tokens: that it has to train on; None where it has not been tokenized yet.
        trained_tokens: of the run that come from it; None where the length of the run is not known.
        epochs: how many times it is read; None where one of these is not known.
    """

    source: str
    share: float
    documents: int | None
    tokens: int | None
    trained_tokens: int | None
    epochs: float | None


def sources_of(data: str | Sequence[str | os.PathLike[str]]) -> tuple[DataSource, ...]:
    """The sources that `--data` means: one with all of the text, or one for each weight.

    Raises:
        TrainingError: a weight is not a number above 0, or some sources have one and some have none.
    """
    several = (data,) if isinstance(data, str) else tuple(os.fspath(spelled) for spelled in data)
    weighted = [_weighted(spelled) for spelled in several]
    weights = [weight for _, weight in weighted if weight is not None]
    if not weights:
        return (DataSource(several),)
    if len(weights) < len(weighted):
        bare = next(name for name, weight in weighted if weight is None)
        raise TrainingError(
            "some sources have a weight and some have none", field="data", found=f"{bare} without a weight",
            expected="a weight for every source, or for none", cure=f"{bare}=WEIGHT",
        )  # fmt: skip
    total = sum(weights)
    return tuple(DataSource((name,), weight / total) for name, weight in weighted if weight is not None)


def check(data: Sequence[str | os.PathLike[str]], eval_data: Sequence[str | os.PathLike[str]]) -> None:
    """Check the weights of --data, and that --eval-data has none.

    Raises:
        TrainingError: weights that cannot be, or on held-out text.
    """
    sources_of(data)
    for spelled in eval_data:
        name, weight = _weighted(os.fspath(spelled))
        if weight is not None:
            raise TrainingError(
                "held-out text takes no weights: every window of it counts the same",
                field="eval_data", found=spelled, cure=f"--eval-data {name}",
            )  # fmt: skip


def one_epoch(windows: Sequence[int], shares: Sequence[Fraction]) -> int:
    """Windows of a training that ends where the first source is used up.

    Args:
        windows: of each source.
        shares: of each source.

    Returns:
        As many as no source has to be read twice for.
    """
    return min(math.floor(count / share) for count, share in zip(windows, shares, strict=True))


def uses(
    sources: Sequence[DataSource],
    *,
    seq_len: int,
    trained_windows: int | None,
    sizes: Sequence[tuple[int, int]] | None,
) -> tuple[SourceUse, ...]:
    """What a run takes of each source of a mixture; empty where the text has no weights.

    Args:
        sources: of the run.
        seq_len: tokens of a window.
        trained_windows: of the run; None where its length is not known.
        sizes: documents and tokens of each source; None where they have not been tokenized yet.
    """
    if len(sources) == 1:
        return ()
    result: list[SourceUse] = []
    for number, source in enumerate(sources):
        documents, tokens = (None, None) if sizes is None else sizes[number]
        trained = None if trained_windows is None else source.share * trained_windows
        epochs = None if trained is None or tokens is None else float(trained / (tokens // seq_len))
        result.append(
            SourceUse(
                source=source.spelled[0],
                share=float(source.share),
                documents=documents,
                tokens=tokens,
                trained_tokens=None if trained is None else round(trained * seq_len),
                epochs=epochs,
            )
        )
    return tuple(result)


class Interleaving:
    """The source of every window of a training."""

    def __init__(self, shares: Sequence[Fraction]) -> None:
        """Nothing is computed yet.

        Args:
            shares: of each source; their sum is 1.
        """
        self._period = math.lcm(*(share.denominator for share in shares))  # after which every share is exact
        self._counts = [int(share * self._period) for share in shares]  # windows of each source in a period
        self._starts = [[0] * len(shares)]  # windows of each source before each block of the period
        self._block = -1
        self._windows: list[tuple[int, int]] = []  # of that block

    def at(self, index: int) -> tuple[int, int]:
        """The source of window `index` of the training, and which of the source's windows it is, counted from 0."""
        period, within = divmod(index, self._period)
        block, offset = divmod(within, _BLOCK)
        for known in range(len(self._starts) - 1, block):
            self._enter(known)
        if block != self._block:
            self._enter(block)
        source, number = self._windows[offset]
        return source, period * self._counts[source] + number

    def _enter(self, block: int) -> None:
        """Compute the windows of a block whose start is known, and the start of the next."""
        counts, period, each = list(self._starts[block]), self._period, self._counts
        release = [count * period // share for count, share in zip(counts, each, strict=True)]
        deadline = [-(-(count + 1) * period // share) for count, share in zip(counts, each, strict=True)]
        windows: list[tuple[int, int]] = []
        for time in range(block * _BLOCK, min((block + 1) * _BLOCK, period)):
            _, source = min((due, one) for one, due in enumerate(deadline) if release[one] <= time)
            windows.append((source, counts[source]))
            counts[source] += 1
            release[source] = counts[source] * period // each[source]
            deadline[source] = -(-(counts[source] + 1) * period // each[source])
        self._block, self._windows = block, windows
        if block + 1 == len(self._starts):
            self._starts.append(counts)


def _weighted(spelled: str) -> tuple[str, Fraction | None]:
    """A source without its weight, and the weight.

    Raises:
        TrainingError: what follows the last "=" is neither a weight nor the end of a file's name.
    """
    name, weight = split_weight(spelled)
    if weight is None or data_sources.is_text(weight):
        return spelled, None
    with suppress(ValueError):  # it is no number
        if is_finite(float(weight)) and float(weight) > 0:
            return name, Fraction(weight)
    raise TrainingError(
        "not a weight of a source, and no file has this name", field="data", found=spelled, expected=_WEIGHT
    )
