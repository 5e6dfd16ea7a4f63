"""A model that is larger than memory: each part is read when it runs, and dropped when the next one does.

A part is a decoder layer, or a module outside of them that has weights and no modules in it: the embeddings, the last
norm, the head. Modules, their order and their operations are those of unmodified transformers, so the results are the
same to the bit. What is read is converted by the code that `from_pretrained` uses: to another type, and where one
parameter is several tensors on disk, as in mixtures of experts.

What is not in memory is NaN: a weight that was used without having been read would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hyperclone.errors import CheckpointError
from hyperclone.hf import memory, unread_model
from hyperclone.hf.lockstep import Lockstep
from hyperclone.hf.models import StoredModel, model_errors, quiet
from hyperclone.hf.parameter_names import to_disk

T = TypeVar("T")


@dataclass(frozen=True)
class _Weight:
    """A parameter or persistent buffer; tied ones are one weight.

    Attributes:
        name: in the module.
        tensor: one and the same object, whether its values are in memory or not.
        stored: the names of the tensors on disk that it is made of.
        dtype: in which it is loaded.
    """

    name: str
    tensor: Tensor
    stored: tuple[str, ...]
    dtype: torch.dtype

    def drop(self, dtype: torch.dtype | None = None) -> None:
        """Take its values out of memory; its shape remains."""
        nothing = float("nan") if self.dtype.is_floating_point else 0
        self.tensor.data = torch.full((), nothing, dtype=dtype or self.dtype).expand(self.tensor.shape)


class StreamedModel:
    """A causal language model whose parts are in memory only while they run; used like a `LoadedModel`.

    Attributes:
        module: the model, unmodified but for a hook on each part.
        problems: what is wrong with its weights, as `load_model` returns it.
    """

    def __init__(self, stored: StoredModel, dtype: torch.dtype) -> None:
        """Build the model; none of its weights is read.

        Args:
            stored: the model on disk.
            dtype: of weights and computation.

        Raises:
            CheckpointError: transformers cannot build it or names its tensors otherwise, or a weight is in no part.
        """
        self._stored = stored
        self._rounding: torch.dtype | None = None
        self._wider: torch.dtype | None = None
        with model_errors(stored.path):
            self.module, self._load_config, self.problems = unread_model.build(stored, dtype)
            weights = _weights(self.module, stored)
        self._parts: list[list[_Weight]] = []
        self._in_memory: int | None = None  # the number of a part
        self._lockstep = Lockstep(self._enter)
        for module in _part_modules(self.module):
            ids = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
            if part := [weights[i] for i in ids & weights.keys()]:
                number = len(self._parts)
                module.register_forward_pre_hook(lambda *_, number=number: self._lockstep.gate(number))
                self._parts.append(part)
        in_parts = {weight.name for part in self._parts for weight in part}
        if others := [weight.name for weight in weights.values() if weight.name not in in_parts]:
            raise CheckpointError(
                "a weight belongs to no layer and no simple module", file=stored.path, tensor=others[0]
            )

    @property
    def at_once(self) -> int:
        """How many numbers are in memory at once: the largest part.

        A weight that is several tensors on disk counts twice, since it is there twice while it is put together.
        """
        return max(sum(weight.tensor.numel() * min(len(weight.stored), 2) for weight in part) for part in self._parts)

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """What calls of the module return. A part is read once for all, and again for each token that one generates."""
        try:
            return self._lockstep.run(calls)
        finally:
            self._enter(None)

    def round_to(self, dtype: torch.dtype) -> None:
        """Let parameters have values of another type, in the type that they have."""
        self._rounding = dtype

    def to(self, dtype: torch.dtype) -> None:
        """Convert the module to a wider type."""
        self._wider = dtype
        for buffer in self.module.buffers():
            buffer.data = buffer.data.to(dtype) if buffer.is_floating_point() else buffer.data
        for part in self._parts:
            self._drop(part)

    def tensors_to_save(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that `save_pretrained` would write, by its name on disk, one part in memory at a time."""
        for number, part in enumerate(self._parts):
            self._enter(number)
            for weight in part:
                yield from to_disk(self.module, weight.name, weight.tensor.data).items()
        self._enter(None)

    def _enter(self, number: int | None) -> None:
        """Bring a part into memory in place of the one that is there."""
        if self._in_memory is not None:
            self._drop(self._parts[self._in_memory])
            memory.give_back()
        self._in_memory = number
        if number is not None:
            self._load(self._parts[number])

    def _drop(self, weights: Iterable[_Weight]) -> None:
        for weight in weights:
            weight.drop(self._wider)

    def _load(self, weights: Sequence[_Weight]) -> None:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            for weight in weights:
                weight.drop()  # transformers loads into the type that it finds
            names = [name for weight in weights for name in weight.stored]
            unread_model.convert(self.module, self._load_config, self._stored, names)
            for weight in weights:
                owner, field = unread_model.owner(self.module, weight.name)
                values = getattr(owner, field).data
                setattr(owner, field, weight.tensor)  # transformers has put a new object there
                if self._rounding is not None and isinstance(weight.tensor, nn.Parameter):
                    values = values.to(self._rounding).to(values.dtype)
                weight.tensor.data = values if self._wider is None else values.to(self._wider)


def _weights(model: nn.Module, stored: StoredModel) -> dict[int, _Weight]:
    """Every parameter and persistent buffer by its id, out of memory instead of on device meta.

    Raises:
        CheckpointError: the disk has no tensor of the name that transformers would save one by.
    """
    weights = {}
    for unread in unread_model.unread_tensors(model, stored):
        meta = unread.tensor
        empty = torch.zeros((), dtype=meta.dtype).expand(meta.shape)
        tensor = nn.Parameter(empty, requires_grad=False) if isinstance(meta, nn.Parameter) else empty
        unread.put(model, tensor)
        weights[id(tensor)] = _Weight(unread.name, tensor, unread.stored, meta.dtype)
        weights[id(tensor)].drop()
    return weights


def _part_modules(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(True for _ in child.children()):
            yield from _part_modules(child)
        else:
            yield child
