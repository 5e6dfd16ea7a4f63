"""Sparse upcycling: a dense model seen as the mixture of experts that computes the same function (arXiv 2212.05055).

Every expert is the dense feed-forward block f. A router gives each token k experts and weights p that sum to 1, so

    sum over its k experts of p_e f(x) = f(x),      whatever the router computes: exact.

Nothing else changes, so this needs no arithmetic of its own. `upcycle` presents the headers of the dense model under
the names and the config of the other family; sizes, noise, depth, files and proofs then follow as for any source. Many
experts grow from one stored tensor, as copied layers do. Only the router has no source. It is randomly initialized in
the source's size (normal, with the standard deviation that transformers would use) as a pure function of seed and name,
like all noise, and then grown as if it had been read.

Which dense models a family accepts, and the names of their tensors, is data: [upcycled] in its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hyperclone.architectures import registry
from hyperclone.architectures.entries import Dense, Upcycling
from hyperclone.architectures.expression import evaluate, lead_field
from hyperclone.architectures.family import Family, indices
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning.growth import Growth
from hyperclone.units import is_finite

if TYPE_CHECKING:  # the planner uses this module, and starts without torch
    from hyperclone.io.source import Source
    from hyperclone.planning.plan import TensorPlan

_INITIALIZER_RANGE = 0.02  # the default of every config class whose config.json leaves it out


@dataclass(frozen=True)
class Upcycled:
    """A dense source under the names and the config of a mixture of experts: a `Source` for planning.

    Attributes:
        family, config: of the mixture.
        entries: its tensors in the sizes of the source; a router has the type and position of an expert's tensor.
        stored_names: of every tensor but routers, the stored tensor that it is.
        init_std: standard deviation of the routers' random weights.
    """

    family: Family
    config: dict[str, Any]
    entries: Mapping[str, Entry]
    stored_names: Mapping[str, str]
    init_std: float
    notes: tuple[str, ...] = ()  # those of the dense source are the plan's

    def from_dense(self, tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
        """The same plans with the stored tensors as sources; a layer's first expert is the original of the others."""
        seen: set[str] = set()
        plans = []
        for tensor in tensors:
            if tensor.source not in self.stored_names:
                plans.append(replace(tensor, init_std=self.init_std))
                continue
            source = self.stored_names[tensor.source]
            plans.append(replace(tensor, source=source, original=tensor.original and source not in seen))
            seen |= {source} if tensor.original else set()
        return plans


def family_for(model_type: object) -> Family | None:
    """The family of mixtures that a dense model of this type can become; None if there is none."""
    return next((f for f in registry.upcycled() if f.upcycled and model_type in f.upcycled.dense), None)


def upcycle(source: Source, growth: Growth) -> Upcycled:
    """Present a dense source, whose tensors have been checked, as a mixture of `growth.experts` experts.

    Raises:
        GrowthError: this model is not dense, or no known mixture of experts has all of its tensors.
        CheckpointError: its config gives no usable standard deviation for the router.
    """
    assert growth.experts is not None
    model_type = str(source.config.get("model_type"))
    family, dense_family = family_for(model_type), source.family
    if family is None or family.upcycled is None or dense_family.text:  # a user's family file knows no mixtures
        raise _no_mixture(source.config.get("model_type"))
    fields = dense_family.fields(source.config)
    if dense_family.head:
        raise GrowthError(
            "only a causal language model can become a mixture of experts", field="experts",
            found=source.config.get("architectures"), cure="grow it without --experts",
        )  # fmt: skip
    for condition, reason in family.upcycled.dense[model_type].refuse.items():
        if evaluate(condition, fields):
            raise GrowthError(f"this model cannot become a {family.name}: {reason}", field=condition)
    sizes = {**dense_family.sizes(source.config), "experts": growth.experts}
    for axis, spec in family.axes.items():
        if axis not in sizes and spec.grows_with:
            sizes[axis] = sizes[spec.grows_with]
    config = _mixture_config(family, family.upcycled, family.upcycled.dense[model_type], fields, sizes, growth.top_k)
    stored_names, entries = _view(source, family, family.upcycled, config, sizes)
    if left := sorted(dense_family.tensors(source.config).keys() - set(stored_names.values())):
        raise GrowthError(
            f"this model cannot become a {family.name}, which has no counterpart for {len(left)} of its tensors",
            field="experts",
            tensor=left[0],
        )
    return Upcycled(family, config, entries, stored_names, _init_std(fields))


def _no_mixture(model_type: object) -> GrowthError:
    types = {dense_type for family in registry.upcycled() if family.upcycled for dense_type in family.upcycled.dense}
    return GrowthError(
        "no mixture of experts is known that this model could become",
        field="experts",
        found=model_type,
        expected="a dense model of type " + ", ".join(sorted(types)),
    )


def _mixture_config(
    family: Family, how: Upcycling, dense: Dense, fields: Mapping[str, Any], sizes: Mapping[str, int], top_k: int
) -> dict[str, Any]:
    """Every field explicitly, since a field that is left out has another default in the other config class."""
    config = {field: value for field, value in fields.items() if field not in dense.leave}
    config |= {lead: sizes[axis] for axis, spec in family.axes.items() if (lead := lead_field(spec.size))}
    config |= {field: evaluate(text, sizes) for field, text in family.write.items()}
    config |= {field: evaluate(text, {**fields, "top_k": top_k}) for field, text in how.write.items()}
    return {**config, "model_type": family.model_types[0], "architectures": [how.architecture]}


def _view(
    source: Source, family: Family, how: Upcycling, config: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[dict[str, str], dict[str, Entry]]:
    """(stored name of every tensor of the mixture but routers, entry of every tensor)."""
    stored_names, entries = {}, {}
    neighbor = next(iter(how.tensors.values()))
    for name, layout in family.tensors(config).items():
        if (index := indices(how.router, name)) is not None:
            entry, shape = source.entries[neighbor.format(**index)], layout.shape(sizes)
            entries[name] = replace(entry, shape=shape, nbytes=math.prod(shape) * DTYPES[entry.dtype][1])
            continue
        matches = ((pattern, indices(pattern, name)) for pattern in how.tensors)
        stored_names[name] = next((how.tensors[p].format(**index) for p, index in matches if index is not None), name)
        if stored_names[name] in source.entries:
            entries[name] = source.entries[stored_names[name]]
    return stored_names, entries


def _init_std(fields: Mapping[str, Any]) -> float:
    value = fields.get("initializer_range", _INITIALIZER_RANGE)
    if not is_finite(value) or not 0 < value < 1:
        raise CheckpointError(
            "the config gives no usable standard deviation for the router's random weights",
            file="config.json",
            field="initializer_range",
            found=value,
            expected=f"a number between 0 and 1, such as {_INITIALIZER_RANGE}",
        )
    return float(value)
