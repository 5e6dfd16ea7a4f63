"""The matrices of a tensor: itself, or the matrix of each expert where one tensor holds all of a layer's."""

from __future__ import annotations

import re
from dataclasses import replace

from hyperclone.architectures.layout import Layout
from hyperclone.planning.plan import TensorPlan

_EXPERT = re.compile(r"\[(\d+)\]$")


def matrices(tensor: TensorPlan) -> list[TensorPlan]:
    """The plan of each matrix in a tensor; none if it has no matrices (vectors, kernels of convolutions).

    An expert's is named after the tensor, with its number in brackets: model.layers.0.mlp.experts.down_proj[3].
    """
    if len(tensor.shape) == 2:
        return [tensor]
    layout = tensor.layout
    if len(tensor.shape) != 3 or layout.reads is None or layout.reads == 0:
        return []
    return [
        replace(
            tensor,
            name=f"{tensor.name}[{expert}]",
            layout=Layout(layout.text, layout.dims[1:], layout.reads - 1),
            source_shape=tensor.source_shape[1:],
            shape=tensor.shape[1:],
            copied=tensor.copied[1:],
            nbytes=tensor.nbytes // tensor.shape[0],
        )
        for expert in range(tensor.shape[0])
    ]


def place(matrix: str) -> tuple[str, int | None]:
    """(the stored tensor that a matrix is in, which expert's it is; None if it is the whole tensor)."""
    found = _EXPERT.search(matrix)
    return (matrix, None) if found is None else (matrix[: found.start()], int(found[1]))
