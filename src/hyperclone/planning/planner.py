"""Source config and headers + a request -> a Plan (plans.py). Nothing here reads a weight or imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperclone.architectures.family import Family, fill_scale
from hyperclone.architectures.layout import Layout
from hyperclone.errors import GrowthError
from hyperclone.io import shards
from hyperclone.io.shards import TensorHeader
from hyperclone.io.source import Source
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning import growth, head_scaling, upcycling
from hyperclone.planning.checks import check_head_dim, check_level, check_rounding, check_tensors, check_uneven
from hyperclone.planning.depth import deepen, originals
from hyperclone.planning.growth import OUTPUT_DTYPES, Growth
from hyperclone.planning.notes import remarks
from hyperclone.planning.plan import Plan, TensorPlan

DEFAULT_SHARD_SIZE = 5_000_000_000


def make_plan(source: Source, request: Growth, *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
    """Plan a growth.

    Raises:
        FamilyError: the architecture is not known.
        CheckpointError: tensors are missing, unknown, of the wrong size, or of a type that cannot be grown.
        GrowthError: the sizes cannot be had for this model.
    """
    given, fam = source, source.family
    fam.grown_sizes(source.config, fam.sizes(source.config))  # what no growth can keep is said before anything else
    tied, expected = fam.tied(source.config), fam.tensors(source.config)
    dropped, ties_to_check = check_tensors(source, fam, expected, tied=tied)
    upcycled = None if request.experts is None else upcycling.upcycle(source, request)
    if upcycled is not None:
        source, fam, expected = upcycled, upcycled.family, upcycled.family.tensors(upcycled.config)
    depth = fam.depth(source.config)
    layers = growth.resolve_layers(request, depth)
    deeper, identity = len(layers) > depth, request.depth_mode == "identity"
    asked = growth.resolve(request, fam.sizes(source.config), deeper=deeper or upcycled is not None)
    sizes = fam.grown_sizes(source.config, asked, identity=deeper and identity)
    config = fam.grown_config(source.config, sizes)
    config.pop("auto_map", None)  # points at code that is neither run nor copied
    if deeper:
        config = deepen(fam, source.config, config, layers)

    folded, untied = fold(fam, sizes, expected, request, tied=tied)
    if untied:
        config["tie_word_embeddings"] = False
    if request.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = DTYPES[OUTPUT_DTYPES[request.dtype]][0]

    fills = fam.fills(source.config, sizes)
    check_uneven(fam, source.config, expected, sizes, fills)
    check_head_dim(expected, sizes)
    for field, factor in fam.rescaled(sizes, fills).items():
        config[field] = float(fam.value(field, source.config)) * factor  # type: ignore[arg-type]  # a number, or refused
    build = _Builder(fam, source, sizes, fills, request)
    first = originals(layers)
    tensors = []
    for name, (old, layer) in fam.grown_names(source.config, layers).items():
        tensor = build.tensor(name, expected[old], source=old, folded=old in folded)
        if layer is not None and not first[layer]:
            zero = identity and fam.writes_hidden(expected[old], source.config)
            tensor = replace(tensor, original=False, zero=zero)
        tensors.append(tensor)
    # In the order of the source's files, layer by layer, so that reading is sequential.
    tensors.sort(key=lambda t: (_place(source.entries[t.source]), t.name))
    if untied:
        assert fam.tie is not None
        tensors.append(replace(build.tensor(fam.tie.head, fam.head_layout, source=fam.tie.embedding), original=False))
    if upcycled is not None:
        tensors = upcycled.from_dense(tensors)
    check_rounding(request, tensors)
    check_level(request, tensors)
    files = shards.lay_out(stored(tensors), shard_size=shard_size)
    place = {name: (i, offset) for i, shard in enumerate(files) for name, offset in shard.offsets.items()}
    tensors.sort(key=lambda t: place[t.name])
    notes, warnings = remarks(
        source,
        fam,
        request,
        sizes,
        folded=folded,
        tied=tied,
        untied=untied,
        dropped=dropped,
        deeper=deeper,
        fused_queries=any(t.queries and not t.layout.only_queries for t in tensors),
    )
    return Plan(
        fam, request, sizes, fills, layers, dict(given.config), config, tuple(tensors), tuple(files), untied,
        ties_to_check, dropped, notes, warnings,
    )  # fmt: skip


def _place(entry: Entry) -> tuple[str, int]:
    return entry.file, entry.offset


def fold(
    fam: Family, sizes: Mapping[str, tuple[int, int]], expected: Mapping[str, Layout], request: Growth, *, tied: bool
) -> tuple[frozenset[str], bool]:
    """(norm tensors that carry the head's 1/n, whether the head is untied).

    A tied head cannot be divided by n, since the embedding must not be; the last norm in front of it can.
    """
    if not tied or fam.tie is None:
        return frozenset(), False
    head = fam.head_layout
    assert head.reads is not None
    head_grows = any(sizes[axis][0] != sizes[axis][1] for axis in head.axes_of(head.reads))
    fold = frozenset(name for name in fam.tie.fold if name in expected)
    untied = request.untie or (head_grows and not fold)
    return (fold if head_grows and not untied else frozenset()), untied


@dataclass(frozen=True)
class _Builder:
    """Makes the plan of one tensor."""

    family: Family
    source: Source
    sizes: Mapping[str, tuple[int, int]]
    fills: Mapping[str, str]
    request: Growth

    def tensor(self, name: str, layout: Layout, *, source: str | None = None, folded: bool = False) -> TensorPlan:
        """The plan of the output tensor `name`; a folded norm reads its axis."""
        entry = self.source.entries[source or name]
        old, new = ({axis: pair[i] for axis, pair in self.sizes.items()} for i in (0, 1))
        shape = layout.shape(new)
        dtype = OUTPUT_DTYPES[self.request.dtype] if self.request.dtype else entry.dtype
        gain = layout.norm and not name.endswith(".bias")
        factor = self.family.factor(name, self.sizes)
        if gain:
            factor *= math.prod(fill_scale(*self.sizes[axis]) for axis in layout.axes if axis in self.fills)
        if folded:
            layout = layout.reading()
            assert self.family.tie is not None
            factor /= self.family.factor(self.family.tie.embedding, self.sizes)  # the head is the embedding, scaled
        inputs = 1.0 if layout.reads is None else shape[layout.reads] / layout.shape(old)[layout.reads]
        offset = self.family.gain_offset if gain and (factor != 1 or folded) else 0.0
        return TensorPlan(
            name,
            source or name,
            layout,
            entry.shape,
            shape,
            dtype,
            math.prod(shape) * DTYPES[dtype][1],
            inputs=inputs,
            copied=layout.shape({a: o * (new[a] // o) if a in self.fills else new[a] for a, o in old.items()}),
            factor=factor,
            queries=self.sizes if layout.queries and old[head_scaling.AXIS] != new[head_scaling.AXIS] else None,
            offset=offset,
        )


def plan_from_sizes(source: Source, grown: Mapping[str, Any], *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
    """The plan that leads from a source to a grown config, for a directory without a receipt.

    Raises:
        GrowthError: no growth of the source has this config.
    """
    fam = source.family
    mixtures = upcycling.family_for(source.config.get("model_type"))
    if mixtures is not None and grown.get("model_type") in mixtures.model_types:
        raise GrowthError(
            "this mixture of experts has no receipt, so from which seed its routers were drawn is not known",
            field="model_type",
            found=grown.get("model_type"),
            cure="keep hyperclone.json beside the weights",
        )
    if grown.get("model_type") != source.config.get("model_type"):
        raise _unrelated("model_type", grown.get("model_type"), source.config.get("model_type"))
    old, new = ({**fam.sizes(c), "layers": fam.depth(c)} for c in (source.config, grown))
    if "group" in new:
        for sizes in (old, new):
            sizes["heads"] = sizes["kv_heads"] * sizes["group"]
    for axis in new:
        if new[axis] < old[axis] and axis != "group":
            raise _unrelated(axis, new[axis], f"{old[axis]} or more")
    if new == old:
        raise _unrelated("sizes", "those of the source", "larger ones")
    options: dict[str, Any] = {
        axis: growth.spelled(old[axis], new[axis])
        for axis in ("hidden", "ffn", "heads", "kv_heads", "head_dim", "layers")
        if axis in old
    }
    untie = fam.tied(source.config) and not fam.tied(grown)
    made = make_plan(source, Growth(**options, untie=untie, allow_rounding=True), shard_size=shard_size)
    for axis, (_, size) in made.sizes.items():
        if size != new[axis]:
            raise _unrelated(axis, new[axis], size)
    return made


def _unrelated(field: str, found: object, expected: object) -> GrowthError:
    return GrowthError(
        "the second directory is not a growth of the first",
        field=field,
        found=found,
        expected=expected,
        cure="name the source first, then the grown directory",
    )


def stored(tensors: Sequence[TensorPlan]) -> list[TensorHeader]:
    """The tensors as a safetensors header sees them."""
    return [TensorHeader(t.name, t.dtype, t.shape, t.nbytes) for t in tensors]
