"""The plan of a model that is not grown: what is known of its tensors, in the form that optimizers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperclone.architectures import registry
from hyperclone.architectures.family import Family
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import Plan, TensorPlan


def unchanged_plan(config: Mapping[str, Any], *, family: Family | None = None) -> Plan:
    """A plan in which every size stays, so that every tensor is its own only copy. Nothing can be written from it.

    Args:
        config: the content of config.json.
        family: the user's own.

    Raises:
        FamilyError: the architecture is not known.
        CheckpointError: the config gives no usable sizes.
    """
    family = registry.of_config(config, user_family=family)
    sizes = family.sizes(config)
    shapes = {name: (layout, layout.shape(sizes)) for name, layout in family.tensors(config).items()}
    return Plan(
        family=family,
        growth=Growth(),
        sizes={axis: (size, size) for axis, size in sizes.items()},
        padding={},
        layers=tuple(range(family.depth(config))),
        source_config=dict(config),
        config=dict(config),
        tensors=tuple(
            TensorPlan(name=name, source=name, layout=layout, source_shape=shape, shape=shape, dtype="F32", nbytes=0)
            for name, (layout, shape) in shapes.items()
        ),
        shards=(),
        omitted_prefix="",
        fused_in="",
        untied=False,
        ties_to_check=(),
        dropped=(),
        notes=(),
        warnings=(),
    )
