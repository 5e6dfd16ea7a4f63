"""Locked models: axes along which the copies cannot diverge.

If the copies along an axis (hidden, ffn, heads) are equal to the last bit in every tensor that reads or writes it,
exchanging two of them is a symmetry of the network. They compute the same, receive equal gradients, and stay equal
under any training (docs/mathematics.md, section 3). Only dropout, or new noise, can make them diverge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperclone.anatomy.weights import equal_copies
from hyperclone.expansion import grown_tensors
from hyperclone.planning.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from hyperclone.io.source import Weights


def locked_axes(plan: Plan, output: Weights) -> tuple[str, ...]:
    """Axes whose copies are equal to the last bit in every tensor; stops reading when none is left."""
    equal, copied = set(grown_axes(plan)), set[str]()
    for tensor in plan.tensors:
        of_sides = _axes_of_sides(tensor, plan)
        if not any(equal & axes for axes in of_sides.values()):
            continue
        mapped = grown_tensors.map_of(tensor, plan)
        matrix = mapped.as_matrix(output.read(tensor.name))
        for side, (view, copies) in {"columns": (matrix, mapped.columns), "rows": (matrix.T, mapped.rows)}.items():
            axes = of_sides.get(side, frozenset()) & equal
            if not axes:
                continue
            if not equal_copies(view, copies):
                equal -= axes
            elif int(copies.count.max()) > 1:
                copied |= axes  # new channels may all be padding
        if not equal:
            break
    return tuple(sorted(equal & copied))


def _axes_of_sides(tensor: TensorPlan, plan: Plan) -> Mapping[str, frozenset[str]]:
    """The axes that grew, of the rows and of the columns of a tensor's matrix."""
    layout = tensor.layout
    column = layout.reads if layout.reads is not None else len(layout.dims) - 1
    return {
        "columns" if dim == column else "rows": frozenset(
            _canonical(axis, plan) for axis in layout.axes_of(dim) if plan.sizes[axis][0] != plan.sizes[axis][1]
        )
        for dim in range(len(layout.dims))
    }


def grown_axes(plan: Plan) -> dict[str, tuple[int, int]]:
    """(old, new) sizes of the axes that grew; of axes with the same units, one."""
    return {axis: pair for axis, pair in plan.sizes.items() if pair[0] != pair[1] and _canonical(axis, plan) == axis}


def _canonical(axis: str, plan: Plan) -> str:
    """The axis with the same units (OPT's embed is its hidden)."""
    return plan.family.stream(axis, plan.source_config)
