"""Source config and headers + a request -> a Plan: pure data that says everything about the output.

The plan holds every output tensor with its source, shapes, layout, bytes and place on disk, the grown config, and
what the user should know beforehand. Nothing here reads a weight or imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from hyperclone import __version__, family, growth, shards
from hyperclone.checkpoint import DTYPES, Entry
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.family import Family
from hyperclone.growth import OUTPUT_DTYPES, Growth
from hyperclone.layout import Layout
from hyperclone.shards import Shard, Stored

DEFAULT_SHARD_SIZE = 5_000_000_000
# Noise in dB that an exact split realises within half a dB: louder shares are clipped, fainter ones fall below a unit
# in the last place, until none is left (docs/architecture.md, measured).
_SPLIT_RANGE = {"BF16": (0, 30), "F16": (0, 50), "F32": (0, 80), "F64": (0, 80)}


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
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.nbytes for shard in self.shards)

    def widths(self) -> dict[str, tuple[int, int]]:
        """What people call the sizes: (old, new) of hidden_size, intermediate_size, heads, KV heads, head_dim."""
        a = self.sizes
        named = {"hidden size": a["hidden"], "feed-forward size": a["ffn"]}
        if "kv_heads" in a:
            named["attention heads"] = (a["kv_heads"][0] * a["group"][0], a["kv_heads"][1] * a["group"][1])
            named["key-value heads"] = a["kv_heads"]
        else:
            named["attention heads"] = a["heads"]
        return {**named, "head dimension": a["head_dim"]}

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


def make(source: Source, request: Growth, *, shard_size: int = DEFAULT_SHARD_SIZE) -> Plan:
    """Plan a growth.

    Raises:
        FamilyError: the architecture is not known.
        CheckpointError: tensors are missing, unknown, of the wrong size, or of a type that cannot be grown.
        GrowthError: the sizes cannot be had for this model.
    """
    fam = family.of_config(source.config)
    sizes = fam.grown_sizes(source.config, growth.resolve(request, fam.sizes(source.config)))
    tied = fam.tied(source.config)
    expected = fam.tensors(source.config)
    dropped, ties_to_check = _check_tensors(source, fam, expected, tied=tied)
    config = fam.grown_config(source.config, sizes)
    config.pop("auto_map", None)  # points at code that is neither run nor copied

    folded, untied = _fold(fam, sizes, expected, request, tied=tied)
    if untied:
        config["tie_word_embeddings"] = False
    if request.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = DTYPES[OUTPUT_DTYPES[request.dtype]][0]

    tensors = [
        _tensor(name, name, layout.reading() if name in folded else layout, source.entries[name], sizes, request)
        for name, layout in sorted(expected.items(), key=lambda item: _place(source.entries[item[0]]))
    ]
    if untied:
        assert fam.tie is not None
        head = next(line.layout for line in fam.lines if line.pattern == fam.tie.head)
        entry = source.entries[fam.tie.embedding]
        tensors.append(_tensor(fam.tie.head, fam.tie.embedding, head, entry, sizes, request))
    _check_level(request, tensors)
    files = shards.lay_out(stored(tensors), shard_size=shard_size)
    place = {name: (i, offset) for i, shard in enumerate(files) for name, offset in shard.offsets.items()}
    tensors.sort(key=lambda t: place[t.name])
    notes, warnings = _remarks(source, fam, request, sizes, folded=folded, tied=tied, untied=untied, dropped=dropped)
    return Plan(
        fam, request, sizes, dict(source.config), config, tuple(tensors), tuple(files), untied, ties_to_check,
        dropped, notes, warnings,
    )  # fmt: skip


def _place(entry: Entry) -> tuple[str, int]:
    return entry.file, entry.offset


def _check_tensors(
    source: Source, fam: Family, expected: Mapping[str, Layout], *, tied: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The stored tensors are the expected ones, with the sizes of the config; (dropped buffers, ties to check)."""
    sizes = fam.sizes(source.config)
    dropped, ties = [], []
    for name, entry in source.entries.items():
        if name in expected:
            continue
        if tied and fam.tie and name == fam.tie.head:
            ties.append((name, fam.tie.embedding))
        elif fam.ignored(name):
            dropped.append(name)
        else:
            raise CheckpointError(
                "a stored tensor has no place in this architecture",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"the tensors of {fam.file} for this config",
                cure="if it is a real weight, the family file needs a line for it; if it is a leftover, remove it",
            )
    for name, layout in expected.items():
        if name not in source.entries:
            raise CheckpointError(
                "a tensor of this architecture is missing",
                tensor=name,
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
                cure="the checkpoint may be incomplete, or a bare base model's, or config.json another model's",
            )
        entry = source.entries[name]
        if entry.shape != layout.shape(sizes):
            raise CheckpointError(
                "a tensor's size disagrees with the config",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
            )
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                "a tensor of this type cannot be grown",
                file=entry.file,
                tensor=name,
                found=entry.dtype,
                expected=", ".join(DTYPES),
                cure="grow the original bf16 / fp16 / fp32 checkpoint",
            )
    return tuple(dropped), tuple(ties)


def _fold(
    fam: Family, sizes: Mapping[str, tuple[int, int]], expected: Mapping[str, Layout], request: Growth, *, tied: bool
) -> tuple[frozenset[str], bool]:
    """(norm tensors that carry the head's 1/n, whether the head is untied).

    A tied head cannot be divided by n, since the embedding must not be; the last norm in front of it can.
    """
    if not tied or fam.tie is None:
        return frozenset(), False
    head = next(line.layout for line in fam.lines if line.pattern == fam.tie.head)
    assert head.reads is not None
    head_grows = any(sizes[axis][0] != sizes[axis][1] for axis in head.axes_of(head.reads))
    fold = frozenset(name for name in fam.tie.fold if name in expected)
    untied = request.untie or (head_grows and not fold)
    return (fold if head_grows and not untied else frozenset()), untied


def _tensor(
    name: str, source: str, layout: Layout, entry: Entry, sizes: Mapping[str, tuple[int, int]], request: Growth
) -> TensorPlan:
    shape = layout.shape({axis: new for axis, (_, new) in sizes.items()})
    dtype = OUTPUT_DTYPES[request.dtype] if request.dtype else entry.dtype
    inputs = (
        1
        if layout.reads is None
        else shape[layout.reads] / layout.shape({axis: old for axis, (old, _) in sizes.items()})[layout.reads]
    )
    copies = math.prod(shape) / math.prod(entry.shape)
    nbytes = math.prod(shape) * DTYPES[dtype][1]
    return TensorPlan(
        name, source, layout, entry.shape, shape, dtype, nbytes, scale=1 / inputs, gradient=inputs / copies
    )


def _check_level(request: Growth, tensors: Sequence[TensorPlan]) -> None:
    for dtype in sorted({tensor.dtype for tensor in tensors if tensor.scale != 1}):
        low, high = _SPLIT_RANGE[dtype]
        if request.noise == "split" and not low <= request.snr_db <= high:
            raise GrowthError(
                f"an exact split of {dtype} cannot have noise of this level",
                field="snr_db",
                found=f"{request.snr_db:g} dB",
                expected=f"{low} to {high} dB",
                cure="choose a level in this range, or noise 'gaussian', or a wider dtype",
            )


def _remarks(
    source: Source,
    fam: Family,
    request: Growth,
    sizes: Mapping[str, tuple[int, int]],
    *,
    folded: frozenset[str],
    tied: bool,
    untied: bool,
    dropped: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(notes, warnings)."""
    notes, warnings = [], []
    grown = [axis for axis, (old, new) in sizes.items() if new != old]
    factor = max(sizes[axis][1] / sizes[axis][0] for axis in grown)
    if folded:
        names, n = " and ".join(sorted(folded)), sizes["hidden"][1] / sizes["hidden"][0]
        notes.append(f"The head stays tied to the embedding: its 1/{n:g} goes into {names}.")
    if tied and untied and not request.untie:
        notes.append("The head is untied: this model has no last norm that could carry the head's 1/n.")
    if request.untie and not tied:
        notes.append("The head was not tied to begin with; untie changes nothing.")
    if dropped:
        notes.append(f"{_count(dropped, 'stored buffer')} that no current model loads will be left out ({dropped[0]}).")
    if "auto_map" in source.config:
        notes.append("auto_map is left out of the config: the architecture is built in, and remote code is never run.")
    if request.noise == "gaussian":
        notes.append(
            "Gaussian noise sums to zero only up to rounding in the stored type; the default, split, is exact."
        )
    if request.dtype and any(OUTPUT_DTYPES[request.dtype] != entry.dtype for entry in source.entries.values()):
        notes.append(f"Weights are converted to {request.dtype} first; the proof compares with the converted source.")
    if factor > 2:
        notes.append(
            f"{factor:g}x in one step: 2x is the factor that pays most reliably in training (arXiv 2605.13405)."
        )
    if request.noise == "none":
        fields = {**fam.defaults, **source.config}
        active = [k for k, v in fields.items() if _is_dropout(k) and isinstance(v, int | float) and v > 0]
        if request.expansion == "diagonal":
            notes.append("No noise: the copies start equal; the diagonal expansion gives each its own gradient.")
        elif active:
            notes.append(f"No noise: the copies start equal and only dropout ({', '.join(active)}) will separate them.")
        else:
            warnings.append(
                "The copies will never separate in training. Without noise all copies of a unit compute the same "
                "value and receive the same gradient, and this model trains without dropout, so every update is the "
                "same for all of them (up to rounding): the wider model stays the small one for ever. "
                "Use --noise split (the default), or gaussian."
            )
    return tuple(notes), tuple(warnings)


def _is_dropout(field: str) -> bool:
    """A rate that acts on single units; layer drop and the heads of classifiers do not."""
    return "drop" in field and field != "layerdrop" and not field.startswith("classifier")


def _count(things: object, noun: str) -> str:
    number = len(things)  # type: ignore[arg-type]
    return f"{number} {noun}{'s' if number != 1 else ''}"


def from_sizes(source: Source, grown: Mapping[str, Any], *, shard_size: int = DEFAULT_SHARD_SIZE) -> Plan:
    """The plan that leads from a source to a grown config, for a directory without a receipt.

    Raises:
        GrowthError: no growth of the source has this config.
    """
    fam = family.of_config(source.config)
    new = fam.sizes(grown)
    old = fam.sizes(source.config)
    options: dict[str, Any] = {
        name: f"{new[name] / old[name]:g}x" for name in ("hidden", "ffn", "heads", "kv_heads") if name in old
    }
    if "group" in new:
        options["heads"] = f"{new['kv_heads'] * new['group'] / (old['kv_heads'] * old['group']):g}x"
    untie = fam.tied(source.config) and not fam.tied(grown)
    made = make(source, Growth(**options, untie=untie), shard_size=shard_size)
    if any(made.sizes[axis][1] != new[axis] for axis in made.sizes):
        raise GrowthError(
            "the grown config does not follow from the source's", found=new, expected={a: s for a, (_, s) in
            made.sizes.items()},
        )  # fmt: skip
    return made


def stored(tensors: Sequence[TensorPlan]) -> list[Stored]:
    """The tensors as a safetensors header sees them."""
    return [Stored(t.name, t.dtype, t.shape, t.nbytes) for t in tensors]
