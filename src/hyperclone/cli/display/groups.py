"""The table of `hyperclone groups`: a row for each kind of tensor that is trained alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperclone.cli.display.plan_and_proof import plain_table, shown_shape, tensor_kind

if TYPE_CHECKING:
    from hyperclone.conversion.tensor_groups import TensorGroups

_LEGEND = (
    "tensor: without .weight, all layers and experts of a kind in a row; copies: of each of the source's weights; "
    "lr, decay, eps: multiples of the settings with which you would continue the source"
)


def groups_table(groups: TensorGroups) -> RenderableType:
    """Multiples by kind of tensor, and where a learning rate is given absolute values by group."""
    every = groups.tensors.values()
    several = len({group.optimizer for group in every}) > 1
    has_eps = any(group.eps_scale is not None for group in every)
    of = f"grown from {groups.source}, " if groups.source else ""
    parts: list[RenderableType] = [_by_tensor(groups, several=several, has_eps=has_eps)]
    parts += [Text(f"{of}copies {groups.order}\n{_LEGEND}", style="dim")]
    if any(group.lr is not None for group in every):
        parts += [Text(), _by_group(groups, several=several, has_eps=has_eps)]
    return Group(*parts)


def _by_tensor(groups: TensorGroups, *, several: bool, has_eps: bool) -> Table:
    """Tensors of one kind with the same settings in one row."""
    by, eps = ["by"] if several else [], ["eps"] if has_eps else []
    table = plain_table("tensor", "shape", "copies", *by, "lr", "decay", *eps)
    table.padding = (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True
    for (name, group), count in Counter((tensor_kind(name), one) for name, one in groups.tensors.items()).items():
        decay = f"x {group.weight_decay_scale:.4g}" if group.weight_decay_scale else "none"
        scales = [f"x {group.lr_scale:.4g}", decay]
        scales += [] if group.eps_scale is None else [f"x {group.eps_scale:.4g}"]
        table.add_row(
            Text(name + (f" x{count}" if count > 1 else "")), shown_shape(group.shape), f"{group.copies:.4g}",
            *([group.optimizer] if by else []), *scales,
        )  # fmt: skip
    return table


def _by_group(groups: TensorGroups, *, several: bool, has_eps: bool) -> Table:
    by, eps = ["by"] if several else [], ["eps"] if has_eps else []
    table = plain_table("group", "tensors", *by, "lr", "decay", *eps)
    every = (replace(group, shape=(), copies=1.0, hidden=False) for group in groups.tensors.values())
    for group, count in Counter(every).items():
        values = [group.lr, group.weight_decay, *([group.eps] if has_eps else [])]
        table.add_row(
            Text(group.group), f"{count:,}", *([group.optimizer] if by else []),
            *("" if value is None else f"{value:.3g}" for value in values),
        )  # fmt: skip
    return table
