"""Steps of rotated AdamW on a processor in one pass over memory (adam_kernel.py), shared out among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperclone.expansion import compiled
from hyperclone.optim.rotated_step import Scalars, Update
from hyperclone.optim.rotation import Rotation

_BLOCK = 1 << 18  # weights of one call: enough to hide what a call costs, few enough to share out evenly
_TYPES = (torch.float32, torch.float64)
Numbers = np.ndarray[Any, Any]


def applies(update: Update) -> bool:
    """Whether the kernel can take a step."""
    tensors = update.parameter, update.gradient, update.first, update.second
    return (
        update.parameter.device.type == "cpu"
        and update.coordinates is not None
        and isinstance(update.coordinates.rotation, Rotation)
        and update.coordinates.rotation.positions is not None
        and all(one.is_contiguous() and one.dtype == tensors[0].dtype in _TYPES for one in tensors)
        and compiled.kernels() is not None
    )


def advance(updates: Sequence[Update]) -> None:
    """Take the steps."""
    calls = [call for update in updates for call in _calls(update)]
    if (threads := min(torch.get_num_threads(), len(calls))) < 2:
        for call in calls:
            call()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def _calls(update: Update) -> Iterator[Callable[[], None]]:
    """Calls of the kernel for some rows each, which do not depend on each other."""
    assert update.coordinates is not None
    assert isinstance(update.coordinates.rotation, Rotation)
    assert update.coordinates.rotation.positions is not None
    rows, columns = update.coordinates.rotation.positions
    tensors, width = (update.parameter, update.gradient, update.first, update.second), update.parameter.shape[-1]
    arrays = [tensor.detach().view(-1, width).numpy() for tensor in tensors]
    (beta1, beta2), scalars = update.group["betas"], Scalars.of(update)
    numbers = np.array(
        [1 - beta1, 1 - beta2, beta2, scalars.eps, scalars.kept,
         scalars.step_size, scalars.step_size * scalars.difference_ratio],
        arrays[0].dtype,
    )  # fmt: skip
    for some_rows in rows:
        copies, units = some_rows.shape
        at_once = max(1, _BLOCK // (copies * width))
        for start in range(0, units, at_once):
            span = start, min(start + at_once, units)
            yield partial(_all_columns, arrays, some_rows, columns, span, numbers)


def _all_columns(
    arrays: list[Numbers],
    rows: Tensor,
    columns: tuple[tuple[Tensor, Tensor], ...],
    span: tuple[int, int],
    numbers: Numbers,
) -> None:
    """One step of some rows, with all their columns while they are in a cache."""
    from hyperclone.optim.adam_kernel import adam_rows

    for positions, distances in columns:
        adam_rows(*arrays, rows.numpy(), positions.numpy(), distances.numpy(), span, numbers)
