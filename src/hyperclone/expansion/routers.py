"""Routers of a model that gets experts: randomly initialized, so they have no source to be read from."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from hyperclone.expansion import noise
from hyperclone.expansion.grown_tensors import stored_type
from hyperclone.io.source import Weights
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning.plan import Plan


class _WithDrawn:
    """A source together with the tensors that are drawn because it has none."""

    def __init__(self, origin: Weights, made: Plan) -> None:
        self.config, self.family = origin.config, origin.family
        self._origin, self._seed = origin, made.growth.seed
        self._drawn = {tensor.source: tensor for tensor in made.tensors if tensor.init_std}
        fresh = {
            name: Entry("(drawn)", t.dtype, t.source_shape, 0, math.prod(t.source_shape) * DTYPES[t.dtype][1])
            for name, t in self._drawn.items()
        }
        self.entries: Mapping[str, Entry] = {**origin.entries, **fresh}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop of a stored or drawn tensor."""
        if (tensor := self._drawn.get(name)) is None:
            return self._origin.read(name, start, stop)
        rows, columns = tensor.source_shape
        # A key of its own: the noise of the router's split must not follow the router's weights.
        raw = noise.draws(
            self._seed, f"{name} drawn", rows=range(start, rows if stop is None else stop), columns=columns
        )
        return (noise.normal(raw).double() * tensor.init_std).to(stored_type(tensor))


def with_drawn(origin: Weights, made: Plan) -> Weights:
    """The source with everything in it that a plan grows from."""
    return _WithDrawn(origin, made) if any(tensor.init_std for tensor in made.tensors) else origin
