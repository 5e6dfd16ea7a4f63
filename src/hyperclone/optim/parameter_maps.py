"""Which units of a parameter are copies of which, also where it holds several stored tensors: experts, fused in memory.

transformers has the experts of a layer as (E, rows, columns), whatever the files have. In memory the rows of one expert
are those of its stored matrices, one after the other (gate and up).
"""

from __future__ import annotations

from typing import Any

import torch

from hyperclone.expansion import copy_map, grown_tensors
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.hf import parameter_names
from hyperclone.planning.plan import Plan, TensorPlan


def parameter_maps(
    model: Any, name: str, shape: torch.Size, planned: dict[str, TensorPlan], plan: Plan
) -> tuple[CopyMap, ...] | None:
    """The map of every dimension of a parameter; None if it is put together in another way.

    Args:
        model: unwrapped.
        name, shape: the parameter's.
        planned: the plan's tensors by name.
        plan: how the model was grown.
    """
    stored = parameter_names.disk_shapes(model, name, shape)
    if list(stored.values()) == [shape]:
        tensor = planned.get(next(iter(stored)))
        return None if tensor is None else grown_tensors.map_of(tensor, plan).dims
    return _of_experts(model, name, shape, planned, plan) if len(shape) == 3 else None


def _of_experts(
    model: Any, name: str, shape: torch.Size, planned: dict[str, TensorPlan], plan: Plan
) -> tuple[CopyMap, ...] | None:
    experts, rows, columns = shape
    numbers = torch.arange(experts * rows).view(experts, rows, 1)  # of the rows; what becomes of them on disk
    found: dict[int, TensorPlan] = {}
    for stored, part in parameter_names.to_disk(model, name, numbers).items():
        first, tensor = int(part.flatten()[0]), planned.get(stored)
        consecutive = part.shape == (len(part), 1) and bool((part[:, 0] == first + torch.arange(len(part))).all())
        if tensor is None or not consecutive or tensor.shape != (len(part), columns):
            return None
        found[first] = tensor
    layouts = [[found[first].layout for first in sorted(found) if first // rows == expert] for expert in range(experts)]
    if any(other != layouts[0] for other in layouts):
        return None
    maps = [grown_tensors.map_of(found[first], plan).dims for first in sorted(found) if first < rows]
    if len({layout.dims[1] for layout in layouts[0]}) != 1 or sum(one[0].new for one in maps) != rows:
        return None
    return copy_map.axis(experts, experts), copy_map.concatenate([one[0] for one in maps]), maps[0][1]


def read_dimension(model: Any, name: str, shape: torch.Size, planned: dict[str, TensorPlan]) -> int:
    """The dimension of a hidden matrix that is read, counted from the end: -1, or -2 as in a Conv1D."""
    tensor = planned[next(iter(parameter_names.disk_shapes(model, name, shape)))]
    reads = tensor.layout.reads
    assert reads is not None, name
    return reads - len(tensor.shape)
