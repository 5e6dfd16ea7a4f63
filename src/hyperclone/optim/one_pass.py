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
from hyperclone.optim.rotation import Rotation, Runs

_BLOCK = 1 << 18  # weights of one call: enough to hide what a call costs, few enough to share out evenly
_MOST = 16  # copies of a weight: of more the kernel would have too many instructions
_TYPES = (torch.float32, torch.float64)


def applies(update: Update) -> bool:
    """Whether the kernel can take a step."""
    tensors = update.parameter, update.gradient, update.first, update.second
    return (
        update.parameter.device.type == "cpu"
        and update.coordinates is not None
        and isinstance(update.coordinates.rotation, Rotation)
        and (found := update.coordinates.rotation.runs) is not None
        and max(map(len, found[0])) * max(len(runs.starts) for runs in found[1]) <= _MOST
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
    assert update.coordinates.rotation.runs is not None
    rows, columns = update.coordinates.rotation.runs
    tensors, width = (update.parameter, update.gradient, update.first, update.second), update.parameter.shape[-1]
    arrays = [tensor.detach().view(-1, width).numpy() for tensor in tensors]
    (beta1, beta2), scalars = update.group["betas"], Scalars.of(update)
    number = arrays[0].dtype.type
    numbers = tuple(map(number, (
        1 - beta1, 1 - beta2, beta2, scalars.eps, scalars.kept,
        scalars.step_size, scalars.step_size * scalars.difference_ratio,
    )))  # fmt: skip
    for some_rows in rows:
        copies, units = some_rows.shape
        at_once = max(1, _BLOCK // (copies * width))
        for start in range(0, units, at_once):
            yield partial(_all_columns, arrays, some_rows, columns, (start, min(start + at_once, units)), numbers)


def _all_columns(
    arrays: list[np.ndarray[Any, Any]],
    rows: Tensor,
    columns: tuple[Runs, ...],
    span: tuple[int, int],
    numbers: tuple[Any, ...],
) -> None:
    """One step of some rows, with all their columns while they are in a cache."""
    from hyperclone.optim.adam_kernel import adam_rows

    for runs in columns:
        where, copies = (runs.starts.numpy(), runs.sizes.numpy()), ((0,) * len(rows), (0,) * len(runs.starts))
        adam_rows(*arrays, rows.numpy(), where, runs.side_by_side or None, copies, span, numbers)
