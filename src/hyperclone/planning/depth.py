"""More layers: which old one each new layer copies, and what then happens to the function.

*identity* (LLaMA Pro, arXiv 2401.02415): copies stand beside their originals with every output projection zero, so a
copied block adds nothing to the residual stream: exact. They learn, since the projections receive gradients.
*stack* (G_stack, arXiv 2405.15319): the whole model is repeated. Not exact: the function changes, and that is measured
and recorded rather than hidden.

What a config says of each layer follows the layers. A list with an entry for each (`per_layer` in a family file:
windows, layers without rotary positions) takes the entries of the originals. Where the config leaves it out,
transformers fills it in by a pattern over the layers' numbers; copies have other numbers, so the source's list is taken
from transformers and the grown one written. Lists of numbers (`[deeper]`: layers without experts) are written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hyperclone.architectures.expression import names
from hyperclone.errors import CheckpointError, GrowthError

if TYPE_CHECKING:
    from hyperclone.architectures.family import Family

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


def deepen(
    family: Family, source: Mapping[str, Any], grown: Mapping[str, Any], layers: Sequence[int]
) -> dict[str, Any]:
    """A grown config with its new layers.

    Args:
        family: of the model.
        source: the config before.
        grown: the config with its new widths.
        layers: the old layer that each new one copies.

    Raises:
        CheckpointError: transformers cannot tell what stands in a list that the config leaves out.
        GrowthError: a list has no entry for each layer, or the config cannot say what the new layers are.
    """
    lists = {field: source[field] for field in family.per_layer if source.get(field) is not None}
    if left_out := [field for field in family.per_layer if field not in lists]:
        lists |= _derived(source, left_out)
    config = {**grown, family.layers: len(layers)}
    for field, values in lists.items():
        if not isinstance(values, list) or len(values) <= max(layers):
            raise GrowthError(
                "a list of the config has no entry for each layer",
                field=field,
                found=len(values) if isinstance(values, list) else repr(values),
                expected=f"{family.depth(source)} entries",
            )
        config[field] = [values[layer] for layer in layers]
    for field, text in family.deeper.items():
        if "i" in names(text):
            config[field] = [new for new, old in enumerate(layers) if family.value(text, source, layer=old)]
        else:
            config[field] = family.value(text, source)
    before, after = family.conditions(source), family.conditions(config)
    for text in before:
        if "i" in names(text) and after[text] != tuple(before[text][layer] for layer in layers):
            raise GrowthError(
                "the config of this architecture cannot say which of the new layers have which tensors",
                field=text,
                cure="grow its widths only",
            )
    return config


def _derived(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Lists that a config leaves out, as transformers' own config class fills them in (those that it knows at all)."""
    from transformers import CONFIG_MAPPING

    from hyperclone.hf.models import quiet

    try:
        with quiet():
            read = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))
    except Exception as error:  # whatever a config can provoke in there, it is the config that cannot be read
        raise CheckpointError(
            "transformers cannot read this config, and the config leaves out what stands in it for each layer",
            file="config.json",
            field=", ".join(fields),
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            expected="a list with an entry for each layer",
        ) from error
    return {field: values for field in fields if (values := getattr(read, field, None)) is not None}
