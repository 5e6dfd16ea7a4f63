"""Locked clones: axes along which the copies cannot separate.

Where the copies along an axis (hidden, ffn, heads) are equal to the last bit in every tensor that reads or writes it,
exchanging two of them is a symmetry of the network. So they compute the same and receive equal gradients, and stay
equal whatever the training (docs/mathematics.md, section 3). Only dropout, or new noise, can end that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperclone.anatomy.weights import equal_copies
from hyperclone.expansion import grown_tensors
from hyperclone.planning.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from hyperclone.io.source import Weights


def locked_axes(made: Plan, output: Weights) -> tuple[str, ...]:
    """Axes whose copies are equal to the last bit in every tensor; stops reading when there is none left."""
    open_axes, copied = set(grown(made)), set[str]()
    for tensor in made.tensors:
        of_dims = _grown_axes(tensor, made)
        if not any(open_axes & axes for axes in of_dims.values()):
            continue
        mapped = grown_tensors.map_of(tensor, made)
        matrix = mapped.as_matrix(output.read(tensor.name))
        for side, (view, copies) in {"columns": (matrix, mapped.columns), "rows": (matrix.T, mapped.rows)}.items():
            axes = of_dims.get(side, frozenset()) & open_axes
            if not axes:
                continue
            if not equal_copies(view, copies):
                open_axes -= axes
            elif int(copies.count.max()) > 1:
                copied |= axes  # new channels may also copy nothing (fill.py)
        if not open_axes:
            break
    return tuple(sorted(open_axes & copied))


def _grown_axes(tensor: TensorPlan, made: Plan) -> Mapping[str, frozenset[str]]:
    """The axes that grew, in the rows and in the columns of a tensor's matrix."""
    layout = tensor.layout
    column = layout.reads if layout.reads is not None else len(layout.dims) - 1
    return {
        "columns" if dim == column else "rows": frozenset(
            _canonical(axis, made) for axis in layout.axes_of(dim) if made.sizes[axis][0] != made.sizes[axis][1]
        )
        for dim in range(len(layout.dims))
    }


def grown(made: Plan) -> dict[str, tuple[int, int]]:
    """The axes that grew, each once."""
    return {axis: pair for axis, pair in made.sizes.items() if pair[0] != pair[1] and _canonical(axis, made) == axis}


def _canonical(axis: str, made: Plan) -> str:
    """The axis whose units these are (OPT's embed is its hidden)."""
    return made.family.stream(axis, made.source_config)
