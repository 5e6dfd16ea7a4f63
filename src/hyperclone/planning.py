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

from hyperclone import __version__, family, growth, shards
from hyperclone.checkpoint import DTYPES, Entry
from hyperclone.depth import originals, per_layer
from hyperclone.errors import GrowthError
from hyperclone.family import Family, fill_scale
from hyperclone.fitting import check_level, check_rounding, check_tensors, check_uneven
from hyperclone.growth import OUTPUT_DTYPES, Growth
from hyperclone.layout import Layout
from hyperclone.remarks import remarks
from hyperclone.shards import Shard, Stored

DEFAULT_SHARD_SIZE = 5_000_000_000


class Source(Protocol):
    """What a plan needs of a model: its config and the headers of its tensors."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def entries(self) -> Mapping[str, Entry]: ...


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        name: on disk.
        source: the stored tensor it grows from (the embedding, for a head that is untied).
        layout: what its dimensions mean; a folded norm is a reader here.
        source_shape, shape: before and after.
        dtype, nbytes: as stored.
        scale: s, the weight of one copy relative to the source: 1/n for what reads a grown axis, else 1.
        gradient: r, a copy's gradient relative to the source's: 1 / (k s) with k copies of each source scalar.
        factor: the source's values (plus `offset`) are multiplied by this before anything else.
        offset: what the model adds to the stored values (Gemma's norms store gain - 1).
        original: it is the first that grows from its source, not a copy in another layer or an untied head.
        zero: an output projection of a copied block that must add nothing.
    """

    name: str
    source: str
    layout: Layout
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    scale: float
    gradient: float
    factor: float = 1.0
    offset: float = 0.0
    original: bool = True
    zero: bool = False

    @property
    def bias(self) -> bool:
        """It is a bias: of a layer, or of a norm."""
        return self.name.endswith(".bias")

    @property
    def rounds(self) -> bool:
        """Its values cannot be had exactly in every stored type."""
        return self.offset != 0 or math.frexp(self.factor)[0] != 0.5

    @property
    def multipliers(self) -> dict[str, float]:
        """AdamW settings relative to the source's that keep its training dynamics (docs/architecture.md, the law)."""
        s, r = self.scale, self.gradient
        return {"s": s, "r": r, "lr": s, "weight_decay": 1 / s, "eps": r}


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
        return sum(math.prod(shape) for shape in {t.source: t.source_shape for t in self.tensors}.values())

    @property
    def parameters(self) -> int:
        """Scalars in the output."""
        return sum(math.prod(t.shape) for t in self.tensors)

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
        return {**named, "head dimension": a["head_dim"], "layers": (len(set(self.layers)), len(self.layers))}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the output's bytes, the source's content aside."""
        content = {
            "version": __version__,
            "growth": asdict(self.growth),
            "config": self.config,
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
    fam = family.of_config(source.config)
    depth = fam.depth(source.config)
    layers = growth.resolve_layers(request, depth)
    deeper, identity = len(layers) > depth, request.depth_mode == "identity"
    asked = growth.resolve(request, fam.sizes(source.config), deeper=deeper)
    sizes = fam.grown_sizes(source.config, asked, identity=deeper and identity)
    tied = fam.tied(source.config)
    expected = fam.tensors(source.config)
    dropped, ties_to_check = check_tensors(source, fam, expected, tied=tied)
    config = fam.grown_config(source.config, sizes)
    config.pop("auto_map", None)  # points at code that is neither run nor copied
    if deeper:
        config[fam.layers] = len(layers)
        config |= per_layer(source.config, fam.per_layer, layers)

    folded, untied = _fold(fam, sizes, expected, request, tied=tied)
    if untied:
        config["tie_word_embeddings"] = False
    if request.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = DTYPES[OUTPUT_DTYPES[request.dtype]][0]

    fills = fam.fills(source.config, sizes)
    check_uneven(fam, source.config, expected, sizes, fills)
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
    check_rounding(request, tensors)
    check_level(request, tensors)
    files = shards.lay_out(stored(tensors), shard_size=shard_size)
    place = {name: (i, offset) for i, shard in enumerate(files) for name, offset in shard.offsets.items()}
    tensors.sort(key=lambda t: place[t.name])
    notes, warnings = remarks(
        source, fam, request, sizes, folded=folded, tied=tied, untied=untied, dropped=dropped, deeper=deeper
    )
    return Plan(
        fam, request, sizes, fills, layers, dict(source.config), config, tuple(tensors), tuple(files), untied,
        ties_to_check, dropped, notes, warnings,
    )  # fmt: skip


def _place(entry: Entry) -> tuple[str, int]:
    return entry.file, entry.offset


def _fold(
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
            scale=1 / inputs,
            gradient=inputs * math.prod(entry.shape) / math.prod(shape),
            factor=factor,
            offset=offset,
        )


def from_sizes(source: Source, grown: Mapping[str, Any], *, shard_size: str | int = DEFAULT_SHARD_SIZE) -> Plan:
    """The plan that leads from a source to a grown config, for a directory without a receipt.

    Raises:
        GrowthError: no growth of the source has this config.
    """
    fam = family.of_config(source.config)
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
    # A whole factor is written as one, since a small size could be read as either.
    options: dict[str, Any] = {
        axis: f"{new[axis] // old[axis]}x" if new[axis] % old[axis] == 0 else new[axis]
        for axis in ("hidden", "ffn", "heads", "kv_heads", "layers")
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
