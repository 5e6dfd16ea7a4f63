"""Windows of fixed length cut from a stream of documents, in an order that depends on the seed alone.

(Of text that is not tokenized beforehand, streaming.py cuts the same windows, and orders them otherwise.)

Documents are concatenated, with an end-of-text token after each, and cut every `seq_len` tokens; a remainder that
does not fill a window is left out. There are two ways to treat the documents that share a window:

* **packed** (default): the window is one context, as in GPT-3, Pythia and OLMo. Every architecture and the fastest
  attention kernels support it, every position is trained, and most sources were trained so.
* **isolated**: positions restart with each document, attention stays inside it (transformers builds the
  block-diagonal mask from the positions), and its first token is not predicted from the document before.

The order: epoch e is a random permutation of the windows that depends on (seed, e), and batch k is the windows
k B ... (k+1) B - 1 of the concatenated epochs, after those that are skipped because another run has read them. Arms,
processes and interruptions do not change it. Of a mixture, each source has epochs of its own, whose orders depend on
its place in the mixture as well, and mixture.py says which source has the next window.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyperclone.errors import TrainingError
from hyperclone.hf.models import attention_implementation
from hyperclone.training.mixture import Interleaving
from hyperclone.training.token_cache import Corpus

IGNORED = -100  # a label that is not predicted


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The windows of a corpus in the order of the text."""

    def __init__(self, corpus: Corpus, seq_len: int, *, isolated: bool = False) -> None:
        self._ids, self._seq_len = corpus.ids(), seq_len
        self._starts = corpus.starts() if isolated else None

    def __len__(self) -> int:
        return len(self._ids) // self._seq_len

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index`: input_ids, labels and, for isolated documents, position_ids; (seq_len,) int64 each."""
        begin = index * self._seq_len
        ids = self._ids[begin : begin + self._seq_len]
        if self._starts is None:
            return tensors(ids)
        first, last = np.searchsorted(self._starts, (begin, begin + self._seq_len))
        return tensors(ids, self._starts[first:last] - begin)


def tensors(ids: npt.NDArray[Any], starts: npt.NDArray[np.int64] | None = None) -> dict[str, Tensor]:
    """A window as a model takes it: input_ids, labels and, for isolated documents, position_ids; (seq_len,) int64 each.

    Args:
        ids: (seq_len,) its tokens.
        starts: where documents begin in it, for isolated documents; None for packed ones.
    """
    window = {"input_ids": torch.from_numpy(ids.astype(np.int64)), "labels": torch.from_numpy(ids.astype(np.int64))}
    if starts is not None:
        at = torch.from_numpy(starts)
        window["labels"][at] = IGNORED
        began = torch.zeros(len(ids), dtype=torch.long)
        began[at] = at
        window["position_ids"] = torch.arange(len(ids)) - began.cummax(0).values
    return window


class Shuffled(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The windows of a whole training: epoch after epoch, each in its own order.

    Args:
        windows: of the text.
        count: of the training.
        seed: of the order.
        source: place of the text in a mixture.
    """

    def __init__(self, windows: Windows, *, count: int, seed: int, source: int = 0) -> None:
        self._windows, self._count, self._seed, self._source = windows, count, seed, source
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._windows[self.window(index)]

    def window(self, index: int) -> int:
        """The number of the window that is the `index`-th of the training."""
        epoch, within = divmod(index, len(self._windows))
        if epoch != self._epoch:
            numbers = np.random.Philox(key=[self._seed, epoch], counter=[0, 0, 0, self._source])
            self._order = np.random.Generator(numbers).permutation(len(self._windows))
            self._epoch = epoch
        return int(self._order[within])


class Mixed(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The windows of a whole training on a mixture.

    Args:
        windows: of each source.
        shares: of each source in the training.
        count: windows of the training.
        seed: of the orders.
        skip: windows of the order that another training has read, before the first of this one.
    """

    def __init__(
        self, windows: Sequence[Windows], shares: Sequence[Fraction], *, count: int, seed: int, skip: int = 0
    ) -> None:
        self._sources = [Shuffled(one, count=skip + count, seed=seed, source=i) for i, one in enumerate(windows)]
        self._interleaving, self._count, self._skip = Interleaving(shares), count, skip

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        source, number = self._interleaving.at(self._skip + index)
        return self._sources[source][number]


def collate(windows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: tensors of shape (windows, seq_len)."""
    return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}


def check_isolated(model: Any, *, precision: str) -> None:
    """Check that two documents in one window have the logits that each has alone, by running the model.

    Args:
        model: a transformers causal language model, not wrapped.
        precision: "bf16" (autocast) or "fp32".

    Raises:
        TrainingError: its attention does not stay inside documents.
    """
    device, training = next(model.parameters()).device, model.training
    ids = (torch.arange(1, 13, device=device) * 7 % model.get_input_embeddings().weight.shape[0])[None]
    split = 5
    positions = torch.cat([torch.arange(split), torch.arange(ids.shape[1] - split)])[None].to(device)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            model.eval()
            packed = model(input_ids=ids, position_ids=positions).logits
            alone = torch.cat([model(input_ids=part).logits for part in (ids[:, :split], ids[:, split:])], 1)
    except TypeError:
        packed = alone = None
    finally:
        model.train(training)
    rounding = 0.05 if precision == "bf16" else 1e-3
    if (
        packed is None
        or alone is None
        or not torch.allclose(packed, alone, atol=rounding * float(alone.abs().max()), rtol=0)
    ):
        raise TrainingError(
            "this model's attention does not stay inside the documents of a window",
            field="documents",
            found=f"isolated, {model.config.model_type} with {attention_implementation(model)} attention",
            cure="--documents packed, or another --attention",
        )
