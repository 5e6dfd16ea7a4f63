"""A model as `from_pretrained` makes it, before it reads weights; and any rows of these weights, read later.

So a process that trains a shard of a model never holds the whole of it. Modules, buffers that are computed, ties and
what is wrong with the stored weights are those of unmodified transformers, and so is the conversion where one parameter
is several tensors on disk, as in mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hyperclone.errors import CheckpointError
from hyperclone.hf.models import StoredModel, load_without_weights, model_errors, problems_of, quiet
from hyperclone.hf.parameter_names import to_disk


class StoredRows(StoredModel, Protocol):
    """A model directory of which rows can be read."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop of a tensor (its first dimension; all of it by default), as stored."""


@dataclass(frozen=True)
class UnreadTensor:
    """A parameter or persistent buffer; tied ones are one.

    Attributes:
        name: in the module; of tied ones, that under which it is stored.
        aliases: all of its names in the module.
        tensor: on device meta.
        stored: the names of the tensors on disk that it is made of.
    """

    name: str
    aliases: tuple[str, ...]
    tensor: Tensor
    stored: tuple[str, ...]

    def put(self, model: nn.Module, tensor: Tensor) -> None:
        """Let a model have another tensor in its place."""
        for alias in self.aliases:
            setattr(*owner(model, alias), tensor)


class UnreadModel:
    """A causal language model whose parameters have addresses, but no values and no memory.

    The system gives memory to a page when it is first written to. Device meta would do without addresses as well, but
    accelerate tells the parameters of an optimizer apart by theirs when it shards a model.

    Attributes:
        module: the model, in evaluation mode.
        problems: what is wrong with its weights, as `load_model` returns it.
    """

    def __init__(self, stored: StoredRows, dtype: torch.dtype) -> None:
        """Build the model; of its weights, only the buffers among them are read.

        Args:
            stored: the model on disk, which transformers loads by itself.
            dtype: of its parameters.

        Raises:
            CheckpointError: transformers cannot build it, or names its tensors otherwise.
        """
        self._stored, self._dtype = stored, dtype
        self._twin: tuple[nn.Module, Any] | None = None
        with model_errors(stored.path):
            self.module, load_config, self.problems = build(stored, dtype)
            self._unread: dict[str, UnreadTensor] = {}
            buffers: list[str] = []
            for unread in list(unread_tensors(self.module, stored)):
                self._unread |= dict.fromkeys(unread.aliases, unread)
                if isinstance(unread.tensor, nn.Parameter):
                    empty = torch.empty_like(unread.tensor, device="cpu")
                    unread.put(self.module, nn.Parameter(empty, requires_grad=unread.tensor.requires_grad))
                else:
                    buffers += unread.stored
            if buffers:
                convert(self.module, load_config, stored, buffers)
            if (stored.path / "generation_config.json").is_file():
                self.module.generation_config = _generation_config(stored.path)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a parameter, read from the disk, as `from_pretrained` would have them.

        Only these are read where the parameter is stored as it is. Where it is made of several tensors, these are read
        whole, so twice its size is in memory for a moment.

        Args:
            name: in the module; of tied ones, any.
            start, stop: along its first dimension.

        Raises:
            CheckpointError: the file cannot be read, or was changed.
        """
        unread = self._unread[name]
        if len(unread.stored) == 1 and tuple(self._stored.entries[unread.stored[0]].shape) == unread.tensor.shape:
            return self._stored.read(unread.stored[0], start, stop).to(unread.tensor.dtype)
        if self._twin is None:
            self._twin = build(self._stored, self._dtype)[:2]
        model, load_config = self._twin
        with quiet(), torch.no_grad():
            convert(model, load_config, self._stored, unread.stored)
        whole: Tensor = getattr(*owner(model, unread.name)).data
        unread.put(model, unread.tensor)
        return whole[start:stop]


def build(stored: StoredModel, dtype: torch.dtype) -> tuple[Any, Any, list[str]]:
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


def unread_tensors(model: nn.Module, stored: StoredModel) -> Iterator[UnreadTensor]:
    """Every parameter and persistent buffer on device meta.

    Raises:
        CheckpointError: the disk has no tensor of the name that transformers would save one by.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta:  # else it is not on disk, which is one of the problems
            names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        meta = getattr(*owner(model, tied[0]))
        on_disk = {name: tuple(to_disk(model, name, meta)) for name in tied}
        found = next((name for name in tied if stored.entries.keys() >= set(on_disk[name])), None)
        if found is None:
            raise CheckpointError("no tensor has the name that transformers gives it", file=stored.path,
                                  expected=" or ".join(sum(on_disk.values(), ())))  # fmt: skip
        yield UnreadTensor(found, tuple(tied), meta, on_disk[found])


def convert(model: nn.Module, load_config: Any, stored: StoredModel, names: Sequence[str]) -> None:
    """Let transformers read some tensors on disk, and put what they make into a model of `build`."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model

    convert_and_load_state_dict_in_model(model, {name: _Unread(stored, name) for name in names}, load_config)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and its name there."""
    path, _, field = name.rpartition(".")
    return model.get_submodule(path), field


@dataclass(frozen=True)
class _Unread:
    """A tensor on disk that is read where transformers takes all of it: `tensor[...]`."""

    stored: StoredModel
    name: str

    def __getitem__(self, _: object) -> Tensor:
        return self.stored.read(self.name)


def _generation_config(path: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(path, local_files_only=True)
