"""A model that is larger than memory: each part is read when it runs, and dropped when the next one does.

A part is a decoder layer, or a module outside of them that has weights and no modules in it: the embeddings, the last
norm, the head. Modules, their order and their operations are those of unmodified transformers, so the results are the
same to the bit. What is read is converted by the code that `from_pretrained` uses: to another type, and where one
parameter is several tensors on disk, as in mixtures of experts.

What is not in memory is NaN: a weight that was used without having been read would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hyperclone.errors import CheckpointError
from hyperclone.hf import memory
from hyperclone.hf.lockstep import Lockstep
from hyperclone.hf.models import StoredModel, load_without_weights, model_errors, problems_of, quiet
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
            self.module, self._load_config, self.problems = _without_weights(stored, dtype)
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
        from transformers.core_model_loading import convert_and_load_state_dict_in_model

        with quiet(), torch.inference_mode(False), torch.no_grad():
            for weight in weights:
                weight.drop()  # transformers loads into the type that it finds
            files = {name: _Unread(self._stored, name) for weight in weights for name in weight.stored}
            convert_and_load_state_dict_in_model(self.module, files, self._load_config)
            for weight in weights:
                owner, field = _owner(self.module, weight.name)
                values = getattr(owner, field).data
                setattr(owner, field, weight.tensor)  # transformers has put a new object there
                if self._rounding is not None and isinstance(weight.tensor, nn.Parameter):
                    values = values.to(self._rounding).to(values.dtype)
                weight.tensor.data = values if self._wider is None else values.to(self._wider)


@dataclass(frozen=True)
class _Unread:
    """A tensor on disk that is read where transformers takes all of it: `tensor[...]`."""

    stored: StoredModel
    name: str

    def __getitem__(self, _: object) -> Tensor:
        return self.stored.read(self.name)


def _without_weights(stored: StoredModel, dtype: torch.dtype) -> tuple[nn.Module, Any, list[str]]:
    """What `from_pretrained` makes of a directory before it reads weights; they are on device meta.

    Returns:
        The model, in evaluation mode and with buffers that are computed; how to load it; problems with its weights.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model = load_without_weights(
        stored.path, dtype=dtype, config=None if stored.as_found and stored.left_out is None else stored.config
    )
    load_config = LoadStateDictConfig(
        dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), weight_mapping=get_model_conversion_mapping(model)
    )
    state = {name: torch.empty(entry.shape, dtype=dtype, device="meta") for name, entry in stored.entries.items()}
    nowhere = replace(load_config, device_map={"": "meta"})
    info, _ = convert_and_load_state_dict_in_model(model, state, nowhere)
    info = model._finalize_model_loading(model, load_config, info)
    return model.eval(), load_config, problems_of(info.to_dict())


def _weights(model: nn.Module, stored: StoredModel) -> dict[int, _Weight]:
    """Every parameter and persistent buffer by its id, out of memory instead of on device meta.

    Raises:
        CheckpointError: the disk has no tensor of the name that transformers would save one by.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta:  # else it is not on disk, which is one of the problems
            names.setdefault(id(tensor), []).append(name)
    weights = {}
    for tied in names.values():
        meta = getattr(*_owner(model, tied[0]))
        on_disk = {name: tuple(to_disk(model, name, meta)) for name in tied}
        found = next((name for name in tied if stored.entries.keys() >= set(on_disk[name])), None)
        if found is None:
            raise CheckpointError("no tensor has the name that transformers gives it", file=stored.path,
                                  expected=" or ".join(sum(on_disk.values(), ())))  # fmt: skip
        empty = torch.zeros((), dtype=meta.dtype).expand(meta.shape)
        tensor = nn.Parameter(empty, requires_grad=False) if isinstance(meta, nn.Parameter) else empty
        for alias in tied:
            setattr(*_owner(model, alias), tensor)
        weights[id(tensor)] = _Weight(found, tensor, on_disk[found], meta.dtype)
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


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and its name there."""
    path, _, field = name.rpartition(".")
    return model.get_submodule(path), field
