"""Routers of a model that gets experts: randomly initialized, so they have no source to be read from."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from hyperclone.expansion import noise
from hyperclone.expansion.grown_tensors import stored_type
from hyperclone.io.buffers import Buffers
from hyperclone.io.source import Weights
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning.plan import Plan


class _WithRandomRouters:
    """A source together with the random routers that it lacks."""

    def __init__(self, source: Weights, plan: Plan) -> None:
        self.config, self.family = source.config, source.family
        self._source, self._seed = source, plan.growth.seed
        self._routers = {tensor.source: tensor for tensor in plan.tensors if tensor.init_std}
        routers = {
            name: Entry("(random)", t.dtype, t.source_shape, 0, math.prod(t.source_shape) * DTYPES[t.dtype][1])
            for name, t in self._routers.items()
        }
        self.entries: Mapping[str, Entry] = {**source.entries, **routers}
        self.notes = source.notes

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """Rows start..stop of a stored tensor or a router."""
        if (tensor := self._routers.get(name)) is None:
            return self._source.read(name, start, stop, buffers=buffers)
        rows, columns = tensor.source_shape
        # Another key than the router's name, so that the noise of its split does not depend on its weights.
        draws = noise.draws(
            self._seed, f"{name} drawn", rows=range(start, rows if stop is None else stop), columns=columns
        )
        return (noise.normal(draws).double() * tensor.init_std).to(stored_type(tensor))


def with_random_routers(source: Weights, plan: Plan) -> Weights:
    """The source with the random routers that a plan adds."""
    return _WithRandomRouters(source, plan) if any(tensor.init_std for tensor in plan.tensors) else source
