"""Do the stored tensors fit the architecture? Names, sizes and types are checked before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperclone.checkpoint import DTYPES
from hyperclone.errors import CheckpointError
from hyperclone.family import Family
from hyperclone.layout import Layout

if TYPE_CHECKING:
    from hyperclone.planning import Source


def check_tensors(
    source: Source, fam: Family, expected: Mapping[str, Layout], *, tied: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The stored tensors are the expected ones, with the sizes of the config.

    Returns:
        Stored buffers that no model loads, and pairs (head, embedding) that are stored both but called tied.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another size, or of a type that cannot be grown.
    """
    sizes = fam.sizes(source.config)
    dropped, ties = [], []
    for name, entry in source.entries.items():
        if name in expected:
            continue
        if tied and fam.tie and name == fam.tie.head:
            ties.append((name, fam.tie.embedding))
        elif fam.ignored(name):
            dropped.append(name)
        else:
            raise CheckpointError(
                "a stored tensor has no place in this architecture",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"the tensors of {fam.file} for this config",
                cure="if it is a real weight, the family file needs a line for it; if it is a leftover, remove it",
            )
    for name, layout in expected.items():
        if name not in source.entries:
            raise CheckpointError(
                "a tensor of this architecture is missing",
                tensor=name,
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
                cure="the checkpoint may be incomplete, or a bare base model's, or config.json another model's",
            )
        entry = source.entries[name]
        if entry.shape != layout.shape(sizes):
            raise CheckpointError(
                "a tensor's size disagrees with the config",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
            )
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                "a tensor of this type cannot be grown",
                file=entry.file,
                tensor=name,
                found=entry.dtype,
                expected=", ".join(DTYPES),
                cure="grow the original bf16 / fp16 / fp32 checkpoint",
            )
    return tuple(dropped), tuple(ties)
