"""Random numbers of a training are its own: measuring must not consume them.

Else dropout would depend on how often the held-out loss is measured (a DataLoader draws a seed whenever it starts).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved() -> Iterator[None]:
    """Afterwards, the generators of Python, NumPy and torch (on the CPU and every GPU) are as they were before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
