"""Memory for slices of weights, used again and again."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Buffers:
    """Memory that each thread takes again for every slice.

    Slices are as large as what an allocator gives back to the system at once. New pages for each of them, which the
    system clears first, would cost more than the arithmetic.
    """

    def __init__(self) -> None:
        """Nothing is allocated."""
        self._local = threading.local()

    def take(self, purpose: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with any content, valid in this thread until it takes another for the same purpose."""
        import torch

        nbytes = math.prod(shape) * dtype.itemsize
        memory: Tensor | None = getattr(self._local, purpose, None)
        if memory is None or memory.numel() < nbytes:
            memory = torch.empty(nbytes, dtype=torch.uint8)
            setattr(self._local, purpose, memory)
        return memory[:nbytes].view(dtype).view(tuple(shape))
