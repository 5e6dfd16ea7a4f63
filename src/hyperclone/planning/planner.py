"""A source's config and headers, and a request, become a Plan (plan.py). No weight is read, torch is not loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.layout import Layout
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io import fused_experts, shards
from hyperclone.io.shards import TensorHeader
from hyperclone.io.source import Source
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.io.weight_files import NAMED_FIELD
from hyperclone.planning import any_width, exact_ways, head_scaling, tied_head, upcycling
from hyperclone.planning.any_width import PaddedAxis
from hyperclone.planning.checks import (
    check_chosen_type,
    check_head_dim,
    check_level,
    check_tensors,
    check_uneven,
    rounded,
    rounding_refused,
    stored_sizes,
)
from hyperclone.planning.depth import deepen, originals
from hyperclone.planning.growth import OUTPUT_DTYPES, Growth, resolve, resolve_layers, spelled
from hyperclone.planning.notes import Facts, notes_on
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import OrderName
from hyperclone.planning.tied_head import TiedHead
from hyperclone.planning.unknown import family_of
from hyperclone.units import is_finite

GROWN_FIELD = "hyperclone"  # of a config: how a model in memory was grown (conversion/receipt.py)
DTYPE_FIELDS = ("dtype", "torch_dtype")  # a config may have both, and transformers reads the first then
DEFAULT_SHARD_SIZE = 5_000_000_000

_Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What grows into what, before tensors are planned.

    Attributes:
        base: the source, or the view of a dense source as a mixture of experts.
        layouts: of every tensor of `base`.
        sizes, layers: as in the plan.
        tied: the source's head shares the embedding.
        head: what becomes of a tied head.
        padding: as in the plan.
        padded: the same axes, and how padding channels are hidden from norms.
    """

    growth: Growth
    base: Source
    layouts: Mapping[str, Layout]
    sizes: dict[str, tuple[int, int]]
    layers: tuple[int, ...]
    tied: bool
    head: TiedHead
    padding: dict[str, str]
    padded: Mapping[str, PaddedAxis]
    _shapes: dict[int, tuple[Layout, _Shapes]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def family(self) -> Family:
        """Of the grown model."""
        return self.base.family

    def shapes(self, layout: Layout) -> _Shapes:
        """(source's shape, grown shape, the part of that without padding channels) of tensors with this layout.

        Computed once for each line of the family file, which may stand for thousands of experts.
        """
        if id(layout) not in self._shapes:
            old, new = ({axis: pair[i] for axis, pair in self.sizes.items()} for i in (0, 1))
            copied = {a: o * (new[a] // o) if a in self.padding else new[a] for a, o in old.items()}
            self._shapes[id(layout)] = layout, tuple(map(layout.shape, (old, new, copied)))  # its id stays its own
        return self._shapes[id(layout)][1]

    @property
    def deeper(self) -> bool:
        """Layers are added."""
        return len(self.layers) > len(set(self.layers))


def make_plan(source: Source, growth: Growth, *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
    """Plan a growth.

    Raises:
        FamilyError: the architecture is not known.
        CheckpointError: tensors are missing, unknown, of the wrong size, or of a type that cannot be grown.
        GrowthError: this model cannot grow to these sizes, or not exactly.
        OptionError: `shard_size` is not a size.
    """
    family, config = family_of(source), source.config
    _check_may_grow(source, family)  # a model that cannot grow at all is refused before anything else
    dropped, ties_to_check = check_tensors(source, family, family.tensors(config), tied=family.tied(config))
    check_chosen_type(growth, source.entries)
    target, tensors, grown_config = _sized(source, family, growth)
    if rounded(tensors) and not growth.allow_rounding:
        why = exact_ways.reasons(target.family, target.base.config, target.sizes, target.padded)
        ways = exact_ways.exact_ways(growth, target.sizes, partial(_is_exact, source, family))
        raise rounding_refused(tensors, why=why, ways=ways)
    check_level(growth, tensors)
    prefix = target.family.prefix if any(entry.base for entry in source.entries.values()) else ""
    fused = next((entry.fused_in for entry in source.entries.values() if entry.fused_in), "")
    files = shards.lay_out(tensor_headers(tensors, prefix, fused), shard_size=shard_size)
    position = {name: (i, offset) for i, shard in enumerate(files) for name, offset in shard.offsets.items()}
    texts = notes_on(_facts(target, tensors, dropped, prefix))
    return Plan(
        family=target.family,
        growth=growth,
        sizes=target.sizes,
        padding=target.padding,
        layers=target.layers,
        source_config=dict(config),
        config=grown_config,
        tensors=tuple(sorted(tensors, key=lambda tensor: position[tensor.name])),
        shards=tuple(files),
        omitted_prefix=prefix,
        fused_in=fused,
        untied=target.head.untied,
        ties_to_check=ties_to_check,
        dropped=dropped,
        notes=source.notes + texts.notes,
        warnings=texts.warnings,
    )


def _check_may_grow(source: Source, family: Family) -> None:
    """Raise where the family file refuses a model whatever grows, with the sizes that its config does not give."""
    try:
        family.grown_sizes(source.config, family.sizes(source.config))
    except GrowthError as error:
        if (stored := stored_sizes(source, family)) is None:
            raise
        raise GrowthError(error.problem, **{**error.details, "found": stored}) from None


def _sized(source: Source, family: Family, growth: Growth) -> tuple[_Target, list[TensorPlan], dict[str, Any]]:
    """What grows into what, its tensors, and the grown config, of a source whose tensors have been checked.

    Raises:
        GrowthError: this model cannot grow to these sizes.
    """
    mixture = None if growth.experts is None else upcycling.upcycle(source, growth)
    target = _target(mixture or source, growth, tied=family.tied(source.config), mixture=mixture is not None)
    check_uneven(target.family, target.base.config, target.layouts, target.sizes, target.padding)
    check_head_dim(target.family, target.base.config, target.layouts, target.sizes)
    target, tensors = _exact_if_untied(target, _tensor_plans(target))
    grown_config = _grown_config(target)
    return target, tensors if mixture is None else mixture.from_dense(tensors), grown_config


def _is_exact(source: Source, family: Family, growth: Growth) -> bool:
    """Whether a source can be grown like this without rounding."""
    try:
        return not rounded(_sized(source, family, growth)[1])
    except GrowthError:
        return False


def _target(base: Source, growth: Growth, *, tied: bool, mixture: bool) -> _Target:
    family, config = base.family, base.config
    layers = resolve_layers(growth, family.depth(config))
    deeper = len(layers) > family.depth(config)
    wanted = resolve(growth, family.sizes(config), deeper=deeper or mixture)
    sizes = family.grown_sizes(config, wanted, deeper=deeper, identity=deeper and not growth.stacks)
    layouts = family.tensors(config)
    head = tied_head.decide(family, sizes, layouts, growth, tied=tied)
    return _Target(
        growth=growth,
        base=base,
        layouts=layouts,
        sizes=sizes,
        layers=layers,
        tied=tied,
        head=head,
        padding=family.padding(config, sizes),
        padded=any_width.padded_axes(family, config, sizes, layouts),
    )


def _grown_config(target: _Target) -> dict[str, Any]:
    family, source_config = target.family, target.base.config
    config = family.grown_config(source_config, target.sizes)
    config.pop(GROWN_FIELD, None)
    config.pop(NAMED_FIELD, None)  # the files have the usual names
    config.pop("auto_map", None)  # points at code that is neither run nor copied
    if target.deeper:
        config = deepen(family, source_config, config, target.layers)
    if target.head.untied:
        config["tie_word_embeddings"] = False
    if target.growth.dtype:
        written = DTYPES[OUTPUT_DTYPES[target.growth.dtype]][0]
        config |= dict.fromkeys([field for field in DTYPE_FIELDS if field in config] or DTYPE_FIELDS[:1], written)
    for name, factor in any_width.scaled_fields(target.padded.values()).items():
        config[name] = _number(family.value(name, source_config), name) * factor
    return config


def _exact_if_untied(target: _Target, tensors: list[TensorPlan]) -> tuple[_Target, list[TensorPlan]]:
    """The same, or with an untied head where that alone spares the rounding: a tied one divides a norm's gains."""
    if target.growth.allow_rounding or not target.head.folded or not rounded(tensors):
        return target, tensors
    untied = replace(target, head=TiedHead(untied=True))
    exact = _tensor_plans(untied)
    return (target, tensors) if rounded(exact) else (untied, exact)


def _tensor_plans(target: _Target) -> list[TensorPlan]:
    """In the order of the source's files, layer by layer, so that reading is sequential; an untied head comes last."""
    family, config, entries = target.family, target.base.config, target.base.entries
    first = originals(target.layers)
    plans = []
    for name, (source_name, layer) in family.grown_names(config, target.layers).items():
        layout = target.layouts[source_name]
        plan = _tensor_plan(target, name, layout, source=source_name, folded=source_name in target.head.folded)
        if layer is not None and not first[layer]:
            zero = not target.growth.stacks and family.writes_hidden(layout, config)
            plan = replace(plan, original=False, zero=zero)
        plans.append(plan)
    plans.sort(key=lambda plan: (_position(entries[plan.source]), plan.name))
    if target.head.untied:
        assert family.tie is not None
        head = _tensor_plan(target, family.tie.head, family.head_layout, source=family.tie.embedding)
        plans.append(replace(head, original=False))
    return plans


def _position(entry: Entry) -> tuple[str, int]:
    return entry.file, entry.offset


def _tensor_plan(target: _Target, name: str, layout: Layout, *, source: str, folded: bool = False) -> TensorPlan:
    """The plan of the output tensor `name`; a folded norm reads its axis."""
    family, sizes = target.family, target.sizes
    entry = target.base.entries[source]
    source_shape, shape, copied = target.shapes(layout)
    dtype = OUTPUT_DTYPES[target.growth.dtype] if target.growth.dtype else entry.dtype
    gain = layout.norm and not name.endswith(".bias")
    factor = math.sqrt(_squared_factor(target, name, layout, source=source, folded=folded))
    if folded:
        layout = layout.as_reader()
    inputs = 1.0 if layout.reads is None else shape[layout.reads] / source_shape[layout.reads]
    return TensorPlan(
        name=name,
        source=source,
        layout=layout,
        source_shape=entry.shape,
        shape=shape,
        dtype=dtype,
        nbytes=math.prod(shape) * DTYPES[dtype][1],
        inputs=inputs,
        copied=copied,
        factor=factor,
        queries=sizes if layout.queries and len(set(sizes[head_scaling.AXIS])) > 1 else None,
        offset=family.gain_offset if gain and (factor != 1 or folded) else 0.0,
    )


def _squared_factor(target: _Target, name: str, layout: Layout, *, source: str, folded: bool) -> Fraction:
    """The square of what a tensor's values are multiplied by: roots of ratios of sizes, multiplied without rounding.

    The last norm in front of a tied head also undoes what the head's weights, the embedding's, are multiplied by.
    """
    family = target.family
    square = family.squared_factor(name, target.base.config, target.sizes)
    if target.padded:
        square *= any_width.squared_factor(target.padded, family, layout, source=source)
    if folded:
        assert family.tie is not None
        embedding = family.tie.embedding
        square /= _squared_factor(target, embedding, target.layouts[embedding], source=embedding, folded=False)
    return square


def _facts(target: _Target, tensors: Sequence[TensorPlan], dropped: tuple[str, ...], omitted_prefix: str) -> Facts:
    return Facts(
        growth=target.growth,
        family=target.family,
        sizes=target.sizes,
        config=target.base.config,
        stored_dtypes=frozenset(entry.dtype for entry in target.base.entries.values()),
        scaled=sum(entry.parts is not None for entry in target.base.entries.values()),
        folded=target.head.folded,
        tied=target.tied,
        untied=target.head.untied,
        padded=target.padded,
        dropped=dropped,
        omitted_prefix=omitted_prefix,
        deeper=target.deeper,
        fused_queries=any(tensor.queries and not tensor.layout.only_queries for tensor in tensors),
        rounded=_rounded_by_type(tensors),
        roots=exact_ways.roots(target.family, target.base.config, target.sizes),
        has_last_norm=target.family.tie is not None and not target.layouts.keys().isdisjoint(target.family.tie.fold),
    )


def _rounded_by_type(tensors: Sequence[TensorPlan]) -> dict[str, tuple[str, ...]]:
    rounding = [tensor for tensor in tensors if tensor.rounds]
    types = dict.fromkeys(tensor.dtype for tensor in rounding)
    return {dtype: tuple(tensor.name for tensor in rounding if tensor.dtype == dtype) for dtype in types}


def plan_from_sizes(
    source: Source,
    grown: Mapping[str, Any],
    *,
    order: OrderName = "tiled",
    shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> Plan:
    """The plan that leads from a source to a grown config, for a directory without a receipt.

    Args:
        source: the source.
        grown: the content of the output's config.json.
        order: of the copies.
        shard_size: largest file.

    Raises:
        GrowthError: no growth of the source has this config.
    """
    _check_related(source.config, grown)
    family = source.family
    old, new = (_all_sizes(family, config) for config in (source.config, grown))
    for axis in new:
        if new[axis] < old[axis] and axis != "group":
            raise _unrelated(axis, new[axis], f"{old[axis]} or more")
    if new == old:
        raise _unrelated("sizes", "those of the source", "larger ones")
    options: dict[str, Any] = {
        axis: spelled(old[axis], new[axis])
        for axis in ("hidden", "ffn", "heads", "kv_heads", "head_dim", "layers")
        if axis in old
    }
    untie = family.tied(source.config) and not family.tied(grown)
    growth = Growth(**options, order=order, untie=untie, allow_rounding=True)
    plan = make_plan(source, growth, shard_size=shard_size)
    for axis, (_, size) in plan.sizes.items():
        if size != new[axis]:
            raise _unrelated(axis, new[axis], size)
    return plan


def _check_related(config: Mapping[str, Any], grown: Mapping[str, Any]) -> None:
    mixtures = upcycling.family_for(config.get("model_type"))
    if mixtures is not None and grown.get("model_type") in mixtures.model_types:
        raise GrowthError(
            "this mixture of experts has no receipt, so the seed of its random routers is not known",
            field="model_type",
            found=grown.get("model_type"),
            cure="keep hyperclone.json beside the weights",
        )
    if grown.get("model_type") != config.get("model_type"):
        raise _unrelated("model_type", grown.get("model_type"), config.get("model_type"))


def _all_sizes(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """Size of every axis, and of what users count besides: layers, and query heads in groups."""
    sizes = {**family.sizes(config), "layers": family.depth(config)}
    if "group" in sizes:
        sizes["heads"] = sizes["kv_heads"] * sizes["group"]
    return sizes


def _unrelated(field: str, found: object, expected: object) -> GrowthError:
    return GrowthError(
        "the second directory is not a growth of the first",
        field=field,
        found=found,
        expected=expected,
        cure="name the source first, then the grown directory",
    )


def tensor_headers(tensors: Sequence[TensorPlan], omitted_prefix: str, fused_in: str) -> list[TensorHeader]:
    """The tensors as a safetensors header lists them: under names without a prefix, with experts fused in a block."""
    headers = [TensorHeader(t.name, t.dtype, t.shape, t.nbytes, t.name.removeprefix(omitted_prefix)) for t in tensors]
    return fused_experts.fuse(headers, fused_in)


def _number(value: object, field: str) -> float:
    """A config's value that is scaled with the widths."""
    if not is_finite(value):
        raise CheckpointError("this field of the config is no number", file="config.json", field=field, found=value,
                              expected="a finite number")  # fmt: skip
    return float(value)
