"""More layers: which old one each new layer copies, and what then happens to the function.

*identity* (LLaMA Pro, arXiv 2401.02415): copies stand beside their originals with every output projection zero, so a
copied block adds nothing to the residual stream: exact. They learn, since the projections receive gradients.
*stack* (G_stack, arXiv 2405.15319): the whole model is repeated. Not exact: the function changes, and that is measured
and recorded rather than hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyperclone.errors import GrowthError

MODES = ("identity", "stack")


def layer_map(old: int, new: int, mode: str) -> tuple[int, ...]:
    """The old layer that each of `new` layers copies.

    identity: layers are spread evenly and copies follow their original, `[0, 0, 1, 1, ...]` for 2x.
    stack: `[0, 1, ..., 0, 1, ...]`.
    """
    assert new >= old > 0
    if mode == "stack":
        return tuple(i % old for i in range(new))
    return tuple(i * old // new for i in range(new))


def originals(layers: Sequence[int]) -> tuple[bool, ...]:
    """For each new layer, whether it is the first that copies its old one."""
    return tuple(layer not in layers[:i] for i, layer in enumerate(layers))


def per_layer(config: Mapping[str, Any], fields: Sequence[str], layers: Sequence[int]) -> dict[str, list[Any]]:
    """Config lists with an entry for each layer, for the new layers.

    Raises:
        GrowthError: such a list does not have as many entries as the model has layers.
    """
    found = {}
    for field in fields:
        values = config.get(field)
        if isinstance(values, list):
            if len(values) <= max(layers):
                raise GrowthError(
                    "a list of the config has no entry for each layer",
                    field=field,
                    found=len(values),
                    expected=max(layers) + 1,
                )
            found[field] = [values[layer] for layer in layers]
    return found
