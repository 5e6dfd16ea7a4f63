"""Random numbers of a training are its own: measuring must not move them, or dropout would depend on how often the
held-out loss is looked at (a DataLoader draws a seed whenever it starts).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched() -> Iterator[None]:
    """Python's, NumPy's and torch's generators (of every GPU as well) are afterwards as they were."""
    drawn, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(drawn)
            np.random.set_state(numbers)
