"""More layers: which layer of the source each new layer copies, and what that does to the function.

*identity* (LLaMA Pro, arXiv 2401.02415): each copy follows its original, with every output projection zero. A copied
block adds nothing to the residual stream, so the growth is exact. It learns, since the projections receive gradients.
*stack* (G_stack, arXiv 2405.15319): the whole model is repeated. The function changes; the proof measures and records
by how much.

What a config says about single layers is adapted. A list with one entry for each layer (`per_layer` in a family file:
sliding windows, layers without rotary positions) takes the entries of the originals. Where the config leaves the list
out, transformers derives it from layer numbers, which differ for copies; so the source's list is read from transformers
and the grown list is written. Lists of layer numbers and numbers of layers (`[deeper]`: layers without experts) are
rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperclone.architectures.expression import names
from hyperclone.errors import CheckpointError, GrowthError, reason_with_class

if TYPE_CHECKING:
    from hyperclone.architectures.family import Family


def layer_map(old: int, new: int, *, stack: bool) -> tuple[int, ...]:
    """The old layer that each of `new` layers copies.

    Spread evenly, each copy after its original: `[0, 0, 1, 1, ...]` for 2x; with `stack`, `[0, 1, ..., 0, 1, ...]`.
    """
    assert new >= old > 0
    if stack:
        return tuple(i % old for i in range(new))
    return tuple(i * old // new for i in range(new))


def originals(layers: Sequence[int]) -> tuple[bool, ...]:
    """For each new layer, whether it is the first that copies its old one."""
    return tuple(layer not in layers[:i] for i, layer in enumerate(layers))


def deepen(
    family: Family, source: Mapping[str, Any], grown: Mapping[str, Any], layers: Sequence[int]
) -> dict[str, Any]:
    """The grown config with its new layers.

    Args:
        family: of the model.
        source: the source's config.
        grown: the config with its new widths.
        layers: the source's layer that each new one copies.

    Raises:
        CheckpointError: transformers cannot derive a list that the config leaves out.
        GrowthError: a list is shorter than the layers, or the config cannot express the new layers.
    """
    lists = {field: grown[field] for field in family.per_layer if grown.get(field) is not None}
    if left_out := [field for field in family.per_layer if field not in lists]:
        lists |= _derived(source, left_out)
    config = {**family.canonical(grown), **({} if family.layers in lists else {family.layers: len(layers)})}
    for field, values in lists.items():
        if not isinstance(values, list) or len(values) <= max(layers):
            raise GrowthError(
                "a list of the config has fewer entries than layers",
                field=field,
                found=len(values) if isinstance(values, list) else repr(values),
                expected=f"{family.depth(source)} entries",
            )
        config[field] = [values[layer] for layer in layers]
    for field, text in family.deeper.items():
        if "i" in names(text):
            holds = [new for new, old in enumerate(layers) if family.value(text, source, layer=old)]
            config[field] = len(holds) if field in family.counted else holds
        else:
            config[field] = family.value(text, source)
    before, after = family.conditions(source), family.conditions(config)
    for text in before:
        if "i" in names(text) and after[text] != tuple(before[text][layer] for layer in layers):
            raise GrowthError(
                "the config of this architecture cannot express which of the new layers have which tensors",
                field=text,
                cure="grow its widths only",
            )
    return family.spelled_as(config, source)


def _derived(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Lists that a config leaves out, as transformers' config class derives them; fields unknown to it are omitted."""
    from hyperclone.hf.models import parse_config, quiet

    try:
        with quiet():
            read = parse_config(config)
    except Exception as error:  # a malformed config can raise anything in there
        raise CheckpointError(
            "transformers cannot read this config, and the config leaves out a list with one entry for each layer",
            file="config.json",
            field=", ".join(fields),
            found=reason_with_class(error),
            expected="a list with an entry for each layer",
        ) from error
    return {field: values for field in fields if (values := getattr(read, field, None)) is not None}
