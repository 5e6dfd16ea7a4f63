"""Plans: pure data that describes an output completely before anything is written.

A plan holds every output tensor with its source, shapes, layout, bytes and position on disk, the grown config, and
notes and warnings for the user. planner.py makes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.layout import Layout
from hyperclone.io.shards import Shard
from hyperclone.planning import head_scaling, scaling_rule
from hyperclone.planning.growth import Growth
from hyperclone.version import __version__


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        name: on disk.
        source: the stored tensor that it grows from (the embedding, for a head that is untied).
        layout: what its dimensions mean; a folded norm is a reader here.
        source_shape, shape: before and after.
        dtype, nbytes: as stored.
        inputs: how many times as many inputs it reads.
        copied: its shape without padding channels (expansion/padding.py); `shape` where there are none.
        factor: the source's values (plus `offset`) are multiplied by this before anything else.
        queries: sizes of all axes, where rows of queries are rescaled (head_scaling.py); None where they are not.
        offset: what the model adds to the stored values (Gemma's norms store gain - 1).
        original: the first that grows from its source; not a copy in another layer or expert, nor an untied head.
        zero: an output projection of a copied block that must add nothing.
        init_std: standard deviation of its random values, if it has no source (a new router; upcycling.py); else 0.
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
    init_std: float = 0.0

    @property
    def bias(self) -> bool:
        """A bias, of a layer or of a norm."""
        return self.name.endswith(".bias")

    @property
    def scale(self) -> float:
        """s, the weight of one copy relative to the source's: the factor over the number of copies that share it.

        For queries fused with keys it is the keys'; for uneven numbers of copies, an average (scaling_rule.py).
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
        """Every factor that some value of the source is multiplied by."""
        return (self.factor, *(head_scaling.query_factors(*self.queries[head_scaling.AXIS]) if self.queries else ()))

    @property
    def inexact_factors(self) -> tuple[float, ...]:
        """Of its factors those that round: powers of two keep all bits, except those of small weights in fp16."""
        least = 1.0 if self.dtype == "F16" else 0.0
        return tuple(factor for factor in self.factors if math.frexp(factor)[0] != 0.5 or factor < least)

    @property
    def rounds(self) -> bool:
        """Its values have to be rounded."""
        return self.offset != 0 or bool(self.inexact_factors)

    @property
    def multipliers(self) -> dict[str, float]:
        """AdamW settings relative to the source's that keep its training dynamics (scaling_rule.py)."""
        return {"s": self.scale, "r": self.gradient, **scaling_rule.adamw(self.scale, self.gradient)}


@dataclass(frozen=True)
class Plan:
    """An output, before anything is written.

    Attributes:
        family, growth: what is grown, and how.
        sizes: (old, new) of every axis.
        padding: axes with padding channels, and what these hold: "zero" or "mean" (expansion/padding.py).
        layers: the source's layer that each new one copies.
        source_config, config: before and after.
        tensors: in the order in which they are stored.
        shards: the output files.
        omitted_prefix: which names in the files lack, as in those of a source that was saved from the base model.
        fused_in: the block whose experts are stored fused, as the source's are (io/fused_experts.py); "" if one by one.
        untied: the head becomes a tensor of its own.
        ties_to_check: stored pairs (head, embedding) that the config calls tied and that must be equal.
        dropped: stored tensors that no model loads.
        notes: what the user should know, in sentences.
        warnings: what the user must know.
    """

    family: Family
    growth: Growth
    sizes: dict[str, tuple[int, int]]
    padding: dict[str, str]
    layers: tuple[int, ...]
    source_config: dict[str, Any]
    config: dict[str, Any]
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    omitted_prefix: str
    fused_in: str
    untied: bool
    ties_to_check: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def source_parameters(self) -> int:
        """Scalars in the source's tensors that are grown."""
        shapes = {t.source: t.source_shape for t in self.tensors if not t.init_std}
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
        """The grown model computes the source's function; stacked layers change it."""
        return not (self.deeper and self.growth.stacks)

    @property
    def rounds(self) -> bool:
        """Some weights are rounded to the stored type, so the function is kept up to this rounding."""
        return any(tensor.rounds for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.nbytes for shard in self.shards)

    def widths(self) -> dict[str, tuple[int, int]]:
        """(old, new) of hidden size, feed-forward size, heads, head dimension and layers, by these names."""
        sizes = self.sizes
        named = {"hidden size": sizes["hidden"], "feed-forward size": sizes["ffn"]}
        if "kv_heads" in sizes:
            (old_kv, new_kv), (old_group, new_group) = sizes["kv_heads"], sizes["group"]
            named["attention heads"] = (old_kv * old_group, new_kv * new_group)
            named["key-value heads"] = sizes["kv_heads"]
        else:
            named["attention heads"] = sizes["heads"]
        named |= {"head dimension": sizes["head_dim"], "layers": (len(set(self.layers)), len(self.layers))}
        if self.growth.experts is not None:
            named[f"experts, top {self.growth.top_k}"] = (1, self.growth.experts)
        return named

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the output's bytes, except the source's weights."""
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
