"""Parameters in memory under the names they have on disk, through wrappers and transformers' own conversion.

transformers 5 renames some tensors when it loads a model (GPT-NeoX's head) and fuses others (experts become one
three-dimensional parameter). Its `revert_weight_conversion` undoes that when it saves; asked about one parameter at a
time it tells which tensors on disk that parameter holds, and, given indices for values, where each entry goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hyperclone.errors import HypercloneError

_INNER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def bare(model: nn.Module) -> Any:
    """The transformers model inside DistributedDataParallel, FSDP and torch.compile."""
    while True:
        wrapped = next((model._modules[n] for n in ("_orig_mod", "_fsdp_wrapped_module", "module")
                        if model._modules.get(n) is not None), None)  # fmt: skip
        if wrapped is None or hasattr(type(model), "config_class"):
            break
        model = wrapped
    if not hasattr(model, "config") or not hasattr(model, "name_or_path"):
        raise HypercloneError("not a transformers model", found=type(model).__name__, expected="a PreTrainedModel")
    return model


def clean(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    name = _INNER.sub("", name)
    while name.startswith("module."):
        name = _INNER.sub("", name.removeprefix("module."))
    return name


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter once (a tied one under its first name), with the name that it has in the bare model."""
    for name, parameter in model.named_parameters():
        yield clean(name), parameter


def on_disk(model: Any, name: str, value: Tensor) -> dict[str, Tensor]:
    """What a value of a parameter becomes when the model is saved, by names on disk.

    Args:
        model: the bare model.
        name: of the parameter, in memory.
        value: a tensor of the parameter's shape: its content, a moment, indices, or on device meta.
    """
    return _revert(model, {name: value})


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """Every tensor that saving a bare model writes, by its name on disk; of tied ones the first only."""
    tied = set(model.all_tied_weights_keys)
    return _revert(model, {name: tensor for name, tensor in model.state_dict().items() if name not in tied})


def tied_names(model: Any) -> dict[str, str]:
    """Tied tensors by their names on disk: the one that is not saved -> the one that it shares its values with."""
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def on_disk_name(name: str) -> str:
        return next(iter(on_disk(model, name, parameters[name])))

    return {on_disk_name(name): on_disk_name(other) for name, other in dict(model.all_tied_weights_keys).items()}


def _revert(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    tensors: dict[str, Tensor] = revert_weight_conversion(model, state)
    return tensors


def disk_names(model: Any, name: str, shape: torch.Size) -> dict[str, torch.Size]:
    """The tensors on disk that a parameter holds, and their shapes."""
    return {key: part.shape for key, part in on_disk(model, name, torch.empty(shape, device="meta")).items()}


def in_memory(model: Any, name: str, shape: torch.Size, stored: dict[str, Tensor]) -> Tensor:
    """The inverse of `on_disk`: a parameter's value from those of its tensors on disk, in their type."""
    if len(stored) == 1 and (only := next(iter(stored.values()))).shape == shape:
        return only  # renamed at most: no conversion transposes what it does not fuse
    places = on_disk(model, name, torch.arange(shape.numel(), dtype=torch.float64).view(shape))  # exact below 2^53
    assert places.keys() == stored.keys(), (name, sorted(places), sorted(stored))
    value = torch.empty(shape.numel(), dtype=next(iter(stored.values())).dtype)
    for key, place in places.items():
        value[place.flatten().long()] = stored[key].flatten()
    return value.view(shape)
