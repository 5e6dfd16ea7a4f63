"""Source config and headers + a request -> a Plan: pure data that says everything about the output.

The plan holds every output tensor with its source, shapes, layout, bytes and place on disk, the grown config, and
what the user should know beforehand. Nothing here reads a weight or imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from hyperclone import __version__, growth, heads, shards, upcycling
from hyperclone.checkpoint import DTYPES, Entry
from hyperclone.depth import deepen, originals
from hyperclone.errors import GrowthError
from hyperclone.family import Family, fill_scale
from hyperclone.fitting import check_head_dim, check_level, check_rounding, check_tensors, check_uneven
from hyperclone.growth import OUTPUT_DTYPES, Growth
from hyperclone.layout import Layout
from hyperclone.remarks import remarks
from hyperclone.shards import Shard, Stored
from hyperclone.training import law

DEFAULT_SHARD_SIZE = 5_000_000_000


class Source(Protocol):
    """What a plan needs of a model: its config, the headers of its tensors, and what is known of the architecture."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def entries(self) -> Mapping[str, Entry]: ...
    @property
    def family(self) -> Family: ...


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        name: on disk.
        source: the stored tensor it grows from (the embedding, for a head that is untied).
        layout: what its dimensions mean; a folded norm is a reader here.
        source_shape, shape: before and after.
        dtype, nbytes: as stored.
        inputs: how many times as many inputs it reads.
        copied: its shape less the units that copy nothing (fill.py); `shape` where there are none.
        factor: the source's values (plus `offset`) are multiplied by this before anything else.
        queries: sizes of all axes, where rows of queries are multiplied by factors of their own (heads.py).
        offset: what the model adds to the stored values (Gemma's norms store gain - 1).
        original: it is the first that grows from its source, not a copy in another layer or expert, or an untied head.
        zero: an output projection of a copied block that must add nothing.
        drawn: it has no source: deviation of the random weights that stand for one (a new router; upcycling.py).
    """

    name: str
    source: str
    layout: Layout
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    inputs: float = 1.0
    copied: tuple[int, ...] = ()
    factor: float = 1.0
    queries: Mapping[str, tuple[int, int]] | None = None
    offset: float = 0.0
    original: bool = True
    zero: bool = False
    drawn: float = 0.0

    @property
    def bias(self) -> bool:
        """It is a bias: of a layer, or of a norm."""
        return self.name.endswith(".bias")

    @property
    def scale(self) -> float:
        """s, the weight of one copy relative to the source's: the factor over the number of copies that share it.

        For queries fused with keys it is that of the keys; for copies of uneven number, an average (training/law.py).
        """
        queries = self.factors[1] if self.queries and self.layout.only_queries and len(self.factors) == 2 else 1.0
        reads = self.layout.reads
        n = 1.0 if reads is None else (self.copied or self.shape)[reads] / self.source_shape[reads]
        return self.factor * queries / n

    @property
    def gradient(self) -> float:
        """r, a copy's gradient relative to the source's: 1 / (k s) with k copies of each source scalar."""
        return math.prod(self.source_shape) / math.prod(self.copied or self.shape) / self.scale

    @property
    def factors(self) -> tuple[float, ...]:
        """What values of the source are multiplied by, somewhere."""
        return (self.factor, *(heads.query_factors(*self.queries[heads.AXIS]) if self.queries else ()))

    @property
    def rounds(self) -> bool:
        """Its values cannot be had exactly: powers of two keep all bits, save those of small weights in fp16."""
        least = 1.0 if self.dtype == "F16" else 0.0
        return self.offset != 0 or any(math.frexp(factor)[0] != 0.5 or factor < least for factor in self.factors)

    @property
    def multipliers(self) -> dict[str, float]:
        """AdamW settings relative to the source's that keep its training dynamics (training/law.py)."""
        return {"s": self.scale, "r": self.gradient, **law.adamw(self.scale, self.gradient)}


@dataclass(frozen=True)
class Plan:
    """Everything about an output, before anything is written.

    Attributes:
        family, growth: what is grown, and how.
        sizes: (old, new) of every axis.
        fills: axes with new units that copy nothing, and what these write: "zero" or "mean" (fill.py).
        layers: the old layer that each new one copies.
        source_config, config: before and after.
        tensors: in the order in which they are stored.
        shards: the output files.
        untied: the head becomes a tensor of its own.
        ties_to_check: stored pairs (head, embedding) that the config calls tied and that must be equal.
        dropped: stored buffers that no model loads.
        notes: what the user should know, in sentences.
        warnings: what the user must know.
    """

    family: Family
    growth: Growth
    sizes: dict[str, tuple[int, int]]
    fills: dict[str, str]
    layers: tuple[int, ...]
    source_config: dict[str, Any]
    config: dict[str, Any]
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    untied: bool
    ties_to_check: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def source_parameters(self) -> int:
        """Scalars in the source's tensors that are grown."""
        shapes = {t.source: t.source_shape for t in self.tensors if not t.drawn}
        return sum(math.prod(shape) for shape in shapes.values())

    @property
    def parameters(self) -> int:
        """Scalars in the output."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def active_parameters(self) -> int:
        """Scalars in the output that compute with one token: of several new experts, top_k."""
        idle = 0 if self.growth.experts is None else self.growth.experts - self.growth.top_k
        per_expert = sum(math.prod(t.shape) for t in self.tensors if idle and self.family.of_expert(t.name))
        return self.parameters - per_expert // (self.growth.experts or 1) * idle

    @property
    def deeper(self) -> bool:
        """It has more layers than its source."""
        return len(self.layers) > len(set(self.layers))

    @property
    def keeps_function(self) -> bool:
        """The grown model must compute the source's function (stacked layers change it)."""
        return not (self.deeper and self.growth.depth_mode == "stack")

    @property
    def rounds(self) -> bool:
        """Some weights are rounded to the stored type, so the function is kept up to that."""
        return any(tensor.rounds for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.nbytes for shard in self.shards)

    def widths(self) -> dict[str, tuple[int, int]]:
        """What people call the sizes: (old, new) of hidden size, feed-forward size, heads, head dimension, layers."""
        a = self.sizes
        named = {"hidden size": a["hidden"], "feed-forward size": a["ffn"]}
        if "kv_heads" in a:
            named["attention heads"] = (a["kv_heads"][0] * a["group"][0], a["kv_heads"][1] * a["group"][1])
            named["key-value heads"] = a["kv_heads"]
        else:
            named["attention heads"] = a["heads"]
        named |= {"head dimension": a["head_dim"], "layers": (len(set(self.layers)), len(self.layers))}
        if self.growth.experts is not None:
            named[f"experts, top {self.growth.top_k}"] = (1, self.growth.experts)
        return named

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the output's bytes, the source's content aside."""
        content = {
            "version": __version__,
            "growth": asdict(self.growth),
            "config": self.config,
            "family": self.family.text,
            "headers": [hashlib.sha256(shard.header).hexdigest() for shard in self.shards],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return {
            "family": self.family.name,
            "growth": asdict(self.growth),
            "sizes": {axis: list(pair) for axis, pair in self.sizes.items()},
            "parameters": [self.source_parameters, self.parameters],
            "bytes": self.nbytes,
            "files": [{"file": shard.file, "bytes": shard.nbytes} for shard in self.shards],
            "tensors": [
                {"name": t.name, "source": t.source, "layout": t.layout.text, "dtype": t.dtype,
                 "source_shape": list(t.source_shape), "shape": list(t.shape), **t.multipliers}
                for t in self.tensors
            ],
            "config": self.config,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }  # fmt: skip


def make(source: Source, request: Growth, *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
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
            queries=self.sizes if layout.queries and old[heads.AXIS] != new[heads.AXIS] else None,
            offset=offset,
        )


def from_sizes(source: Source, grown: Mapping[str, Any], *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
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
    made = make(source, Growth(**options, untie=untie, allow_rounding=True), shard_size=shard_size)
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


def stored(tensors: Sequence[TensorPlan]) -> list[Stored]:
    """The tensors as a safetensors header sees them."""
    return [Stored(t.name, t.dtype, t.shape, t.nbytes) for t in tensors]
