"""Plans: pure data that says everything about an output before anything is written, and what planning needs to know.

A plan holds every output tensor with its source, shapes, layout, bytes and place on disk, the grown config, and what
the user should know beforehand. planning.py makes it.
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
        return (self.factor, *(head_scaling.query_factors(*self.queries[head_scaling.AXIS]) if self.queries else ()))

    @property
    def rounds(self) -> bool:
        """Its values cannot be had exactly: powers of two keep all bits, save those of small weights in fp16."""
        least = 1.0 if self.dtype == "F16" else 0.0
        return self.offset != 0 or any(math.frexp(factor)[0] != 0.5 or factor < least for factor in self.factors)

    @property
    def multipliers(self) -> dict[str, float]:
        """AdamW settings relative to the source's that keep its training dynamics (training/law.py)."""
        return {"s": self.scale, "r": self.gradient, **scaling_rule.adamw(self.scale, self.gradient)}


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
