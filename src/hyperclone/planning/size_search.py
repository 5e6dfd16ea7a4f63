"""Sizes of a model near a number of parameters, counted from the layouts of its family, without a plan.

Every size that grows becomes a multiple of `multiple_of`; a size that does not grow stays. Attention grows in
proportion to the hidden size: whole groups of heads are copied and head_dim stays (where positions tie the number of
heads, as ALiBi does, each head grows instead). For each hidden size there are three feed-forward sizes: by the same
factor, unchanged (as the paper grows OLMo), and the one that meets the target. The two factors differ at most by
two, as in the paper. Where whole-number widths leave a gap, more layers can close it; they at most double.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hyperclone.architectures.layout import Layout
from hyperclone.errors import GrowthError
from hyperclone.io.source import Source
from hyperclone.planning import checks, growth, tied_head
from hyperclone.planning.depth import layer_map
from hyperclone.planning.growth import Growth, spelled

MAX_FACTOR = 2.0  # between the factors of hidden and feed-forward size, and for layers


@dataclass(frozen=True)
class SizeCandidate:
    """Sizes that have been counted but not planned.

    Attributes:
        request: the growth.
        parameters: all of them, as counted.
        hidden, ffn, layers: new size over old one.
    """

    request: Growth
    parameters: int
    hidden: float
    ffn: float
    layers: float = 1.0


class Search:
    """The sizes that a model can grow to.

    Raises:
        FamilyError, CheckpointError: the architecture is not known, or the config does not fit it.
    """

    def __init__(self, source: Source, request: Growth, multiple_of: int) -> None:
        self.request, self.unit, self.config, self.family = request, multiple_of, source.config, source.family
        self.old = self.family.sizes(self.config)
        self.depth = self.family.depth(self.config)
        self._expected = self.family.tensors(self.config)
        self._layouts: dict[int, Counter[Layout]] = {}  # by number of layers: how often each layout occurs
        self.parameters = self._scalars(self.old, self.depth)
        # Copies are of whole groups of query heads, each with its KV head; of a single group, of its query heads.
        self._group = self.old["group"] if self.old.get("kv_heads", 1) > 1 else 1
        self._follows = self.family.grows_with("ffn", self.config) != "ffn"  # its size is a multiple of hidden's
        self._grows_heads = self._fits(self._request(2 * self.old["hidden"], "heads", 2 * self._present("heads")))

    def near(self, target: int, *, within: float) -> Iterator[SizeCandidate]:
        """All candidates, up to the first hidden size with which the model is too large by more than `within`."""
        hidden, ffn, unit = self.old["hidden"], self.old["ffn"], self.unit
        for multiple in range(hidden // unit * unit, 2 * hidden * target // self.parameters, unit):
            size = max(multiple, hidden)
            request = self._attention(size)
            if request is None or not self._fits(request):
                continue
            smallest = self._candidate(request)
            widths = {ffn * size // hidden}
            if not self._follows:
                each = (self._candidate(request, ffn + unit).parameters - smallest.parameters) / unit
                fitting_ffn = ffn + (target - smallest.parameters) / each
                widths = {ffn, _nearest(ffn * size / hidden, unit), _nearest(fitting_ffn, unit)}
            for width in sorted(width for width in widths if width >= ffn):
                candidate = self._candidate(request, width)
                uneven = max(candidate.hidden, candidate.ffn) / min(candidate.hidden, candidate.ffn)
                if uneven <= MAX_FACTOR and candidate.parameters != self.parameters:
                    yield candidate
            if size % hidden == 0:
                even = ffn * size // hidden
                for width in (even,) if self._follows else (even, 2 * even):
                    if width == ffn or width % unit == 0:
                        yield from self._deeper(request, width, target)
            if smallest.parameters > (1 + within) * target:
                return

    def _deeper(self, request: Growth, ffn: int, target: int) -> Iterator[SizeCandidate]:
        """With as many layers as meet the target."""
        if not self._fits(self._with(request, ffn, 2 * self.depth)):
            return
        even, double = (self._candidate(request, ffn, layers).parameters for layers in (None, 2 * self.depth))
        layers = self.depth + round((target - even) / (double - even) * self.depth)
        if self.depth < layers <= MAX_FACTOR * self.depth:
            yield self._candidate(request, ffn, layers)

    def _attention(self, hidden: int) -> Growth | None:
        """The request for a hidden size and the attention in proportion to it."""
        axis, unit = ("heads", self._group) if self._grows_heads else ("head_dim", 1)
        grown, rest = divmod(self._present(axis) * hidden, self.old["hidden"])
        return self._request(hidden, axis, grown) if rest == grown % unit == 0 else None

    def _present(self, axis: str) -> int:
        """The present size of what a user grows."""
        if axis == "heads" and "heads" not in self.old:
            return self.old["kv_heads"] * self.old["group"]
        return self.old[axis]

    def _request(self, hidden: int, axis: str, size: int) -> Growth:
        if hidden == self.old["hidden"]:
            return self.request
        grown = {"hidden": spelled(self.old["hidden"], hidden), axis: spelled(self._present(axis), size)}
        return replace(self.request, **grown)  # type: ignore[arg-type]  # fields of sizes only

    def _with(self, request: Growth, ffn: int, layers: int | None = None) -> Growth:
        """The request with a feed-forward size and a number of layers too, as short as it can be typed."""
        if ffn != self.old["ffn"] and not self._follows:
            request = replace(request, ffn=spelled(self.old["ffn"], ffn))
        if layers is not None:
            request = replace(request, layers=spelled(self.depth, layers))
        factor, attention = request.hidden, request.heads or request.head_dim
        if factor == attention == (factor if self._follows else request.ffn) and str(factor).endswith("x"):
            return replace(request, width=str(factor)[:-1], hidden=None, ffn=None, heads=None)
        return request

    def _candidate(self, request: Growth, ffn: int | None = None, layers: int | None = None) -> SizeCandidate:
        request = self._with(request, ffn or self.old["ffn"], layers)
        sizes = self._sizes(request)
        new = {axis: size for axis, (_, size) in sizes.items()}
        parameters = self._scalars(new, layers or self.depth)
        if tied_head.decide(self.family, sizes, self._expected, request, tied=self.family.tied(self.config)).untied:
            parameters += math.prod(self.family.head_layout.shape(new))  # a head that is untied
        hidden, width = (new[axis] / self.old[axis] for axis in ("hidden", "ffn"))
        return SizeCandidate(request, parameters, hidden, width, (layers or self.depth) / self.depth)

    def _scalars(self, sizes: Mapping[str, int], layers: int) -> int:
        if layers not in self._layouts:
            copied = layer_map(self.depth, layers, stack=self.request.stacks)
            names = self.family.grown_names(self.config, copied).values()
            self._layouts[layers] = Counter(self._expected[source] for source, _ in names)
        return sum(count * math.prod(layout.shape(sizes)) for layout, count in self._layouts[layers].items())

    def _sizes(self, request: Growth) -> dict[str, tuple[int, int]]:
        """(old, new) of every axis. Raises GrowthError where the family refuses."""
        new = growth.resolve(request, self.old, deeper=True)
        deeper = request.layers is not None
        identity = deeper and request.depth_mode == "identity"
        return self.family.grown_sizes(self.config, new, deeper=deeper, identity=identity)

    def _fits(self, request: Growth) -> bool:
        """Whether the family has these sizes."""
        try:
            sizes = self._sizes(request)
            self.family.grown_config(self.config, sizes)
            distinct = {layout.text: layout for layout in self._expected.values()}
            padding = self.family.padding(self.config, sizes)
            checks.check_uneven(self.family, self.config, distinct, sizes, padding)
        except GrowthError:
            return False
        return True


def _nearest(size: float, unit: int) -> int:
    return round(size / unit) * unit
