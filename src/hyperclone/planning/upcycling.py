"""Sparse upcycling: a dense model seen as the mixture of experts that computes the same function (arXiv 2212.05055).

Every expert is the dense feed-forward block f. A router gives each token k experts and weights p that sum to 1, so

    sum over its k experts of p_e f(x) = f(x),      whatever the router says: exact.

Nothing else changes. So this is no arithmetic of its own but another view of the source: `upcycle` shows the headers of
the dense model under the names and the config of the other family, and sizes, noise, depth, files and proofs follow as
for any source. That many experts grow from one stored tensor is no news either: copied layers do the same. Only the
router has no source. It is drawn in the source's size (normal, of the deviation with which transformers would start
it), as a pure function of seed and name like all noise, and then grown as if it had been read.

Which dense models a family takes, and the names, is data: [upcycled] in its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hyperclone.architectures import family, registry
from hyperclone.architectures.expression import evaluate, lead_field
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning.growth import Growth

if TYPE_CHECKING:  # `plan` starts without torch, and planning uses this module
    from hyperclone.io.source import Source
    from hyperclone.planning.plan import TensorPlan

_INITIALIZER_RANGE = 0.02  # of every config class whose config.json leaves it out


@dataclass(frozen=True)
class Upcycled:
    """A dense source under the names and the config of a mixture of experts: a `Source` for planning.

    Attributes:
        family, config: of the mixture.
        entries: its tensors in the sizes of the source; a router has the type and the place of an expert's tensor.
        origins: the stored tensor that each of them is. Routers are not in it.
        deviation: of the routers' random weights.
    """

    family: Family
    config: dict[str, Any]
    entries: Mapping[str, Entry]
    origins: Mapping[str, str]
    deviation: float

    def from_dense(self, tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
        """The same plans with the stored tensors as sources; a layer's first expert is the original of the others."""
        seen: set[str] = set()
        found = []
        for tensor in tensors:
            if tensor.source not in self.origins:
                found.append(replace(tensor, drawn=self.deviation))
                continue
            source = self.origins[tensor.source]
            found.append(replace(tensor, source=source, original=tensor.original and source not in seen))
            seen |= {source} if tensor.original else set()
        return found


def family_for(model_type: object) -> Family | None:
    """The family of mixtures that a dense model of this type can become; None if there is none."""
    for fam in registry.families().values():
        if fam.upcycled and model_type in fam.upcycled.dense:
            return fam
    return None


def upcycle(source: Source, request: Growth) -> Upcycled:
    """Show a dense source, whose tensors have been checked, as a mixture of `request.experts` experts.

    Raises:
        GrowthError: this model is not dense, or no known mixture of experts has a place for all that it has.
        CheckpointError: its config gives no usable deviation for the router.
    """
    assert request.experts is not None
    model_type = source.config.get("model_type")
    fam, dense = family_for(model_type), source.family
    if fam is None or fam.upcycled is None or dense.text:  # a family file of the user's own says nothing about mixtures
        types = {t for fam in registry.families().values() if fam.upcycled for t in fam.upcycled.dense}
        raise GrowthError(
            "no mixture of experts is known that this model could become",
            field="experts",
            found=model_type,
            expected="a dense model of type " + ", ".join(sorted(types)),
        )
    how = fam.upcycled
    taken = how.dense[str(model_type)]
    fields = dense.fields(source.config)
    for condition, reason in taken.refuse.items():
        if evaluate(condition, fields):
            raise GrowthError(f"this model cannot become a {fam.name}: {reason}", field=condition)
    sizes = {**dense.sizes(source.config), "experts": request.experts}
    sizes |= {axis: sizes[spec.grows_with] for axis, spec in fam.axes.items() if axis not in sizes and spec.grows_with}
    # Everything is said explicitly, since what this config leaves out means something else in the other class.
    config = {field: value for field, value in fields.items() if field not in taken.leave}
    config |= {lead: sizes[axis] for axis, spec in fam.axes.items() if (lead := lead_field(spec.size))}
    config |= {field: evaluate(text, sizes) for field, text in fam.write.items()}
    config |= {field: evaluate(text, {**fields, "top_k": request.top_k}) for field, text in how.write.items()}
    config |= {"model_type": fam.model_types[0], "architectures": [how.architecture]}

    origins, entries = {}, {}
    beside = next(iter(how.tensors.values()))
    for name, layout in fam.tensors(config).items():
        if (index := family.indices(how.router, name)) is not None:
            near, shape = source.entries[beside.format(**index)], layout.shape(sizes)
            nbytes = math.prod(shape) * DTYPES[near.dtype][1]
            entries[name] = replace(near, shape=shape, nbytes=nbytes)
            continue
        matches = ((p, family.indices(p, name)) for p in how.tensors)
        origins[name] = next((how.tensors[p].format(**index) for p, index in matches if index is not None), name)
        if origins[name] in source.entries:
            entries[name] = source.entries[origins[name]]
    if left := sorted(dense.tensors(source.config).keys() - set(origins.values())):
        raise GrowthError(
            f"this model cannot become a {fam.name}, which has no place for {len(left)} of its tensors",
            field="experts",
            tensor=left[0],
        )
    return Upcycled(fam, config, entries, origins, _deviation(fields))


def _deviation(fields: Mapping[str, Any]) -> float:
    value = fields.get("initializer_range", _INITIALIZER_RANGE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            "the config gives no usable deviation for the router's first weights",
            file="config.json",
            field="initializer_range",
            found=value,
            expected=f"a number between 0 and 1, such as {_INITIALIZER_RANGE}",
        )
    return float(value)
