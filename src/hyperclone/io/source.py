"""Protocols of a model that is read, whether it is a directory, on the Hub, or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from hyperclone.architectures.family import Family
from hyperclone.io.tensor_files import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from hyperclone.io.buffers import Buffers


class Source(Protocol):
    """What a plan needs: the config, the headers of the tensors, and the architecture."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as transformers writes it."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor's header, by the name it has on disk."""

    @property
    def family(self) -> Family:
        """How this architecture lays out its tensors."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How it was read, where that is not plain, in sentences for the plan's notes."""


class Weights(Source, Protocol):
    """A source whose rows can be read: a directory, or a model in memory."""

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """Rows start to stop of a tensor, in its stored type.

        With `buffers`, valid until this thread reads with them again.
        """
