"""Names of parameters in memory and of tensors on disk, through wrappers and transformers' weight conversion.

When transformers 5 loads a model it renames some tensors (GPT-NeoX's head) and fuses others (experts become one
three-dimensional parameter). When it saves one, `revert_weight_conversion` undoes that. Applied to one parameter at a
time it returns the tensors on disk that the parameter consists of; applied to indices, where each entry goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hyperclone.architectures.stored_names import unwrapped_name as unwrapped_name
from hyperclone.errors import HypercloneError

# Where PEFT has the weights that it adapts, those that it trains in their place, and those that it keeps.
_IN_ADAPTER = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+|original_module)\.")


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DistributedDataParallel, FSDP, torch.compile and PEFT."""
    while True:
        base: Any = getattr(model, "get_base_model", None)
        if _is_of_peft(model) and base is not None:
            model = base()
        wrapped = next((model._modules[n] for n in ("_orig_mod", "_fsdp_wrapped_module", "module")
                        if model._modules.get(n) is not None), None)  # fmt: skip
        if wrapped is None or hasattr(type(model), "config_class"):
            break
        model = wrapped
    if not hasattr(model, "config") or not hasattr(model, "name_or_path"):
        raise HypercloneError("not a transformers model", found=type(model).__name__, expected="a PreTrainedModel")
    return model


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter once (a tied one under its first name), with its name in the unwrapped model.

    What an adapter of PEFT adds has a name of its own; a copy of a module that it trains has the module's.
    """
    adapted = has_adapters(model)
    for name, parameter in model.named_parameters():
        own = unwrapped_name(name)
        yield _IN_ADAPTER.sub(".", own.removeprefix("base_model.model.")) if adapted else own, parameter


def has_adapters(model: nn.Module) -> bool:
    """Whether some modules are PEFT's."""
    return any(map(_is_of_peft, model.modules()))


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def to_disk(model: Any, name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors on disk that a parameter's value is saved as, by name.

    Args:
        model: unwrapped.
        name: the parameter's, in memory.
        value: a tensor of the parameter's shape: its weights, a moment, indices, or on device meta.
    """
    return _revert(model, {name: value})


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """Every tensor that saving an unwrapped model writes, by name on disk; tied tensors once."""
    tied = set(model.all_tied_weights_keys)
    return _revert(model, {name: tensor for name, tensor in model.state_dict().items() if name not in tied})


def tied_names(model: Any) -> dict[str, str]:
    """Tied tensors by name on disk: the one that is not saved -> the one that holds its values."""
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def disk_name(name: str) -> str:
        return next(iter(to_disk(model, name, parameters[name])))

    return {disk_name(name): disk_name(holder) for name, holder in dict(model.all_tied_weights_keys).items()}


def _revert(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    tensors: dict[str, Tensor] = revert_weight_conversion(model, state)
    return tensors


def disk_shapes(model: Any, name: str, shape: torch.Size) -> dict[str, torch.Size]:
    """Shapes of the tensors on disk that a parameter is saved as, by name."""
    return {key: part.shape for key, part in to_disk(model, name, torch.empty(shape, device="meta")).items()}


def from_disk(model: Any, name: str, shape: torch.Size, stored: dict[str, Tensor]) -> Tensor:
    """The inverse of `to_disk`: a parameter's value, in the type of its tensors on disk.

    Args:
        model: unwrapped.
        name, shape: the parameter's, in memory.
        stored: the tensors on disk that the parameter is saved as, by name.
    """
    if len(stored) == 1 and (only := next(iter(stored.values()))).shape == shape:
        return only  # at most renamed: no conversion transposes a tensor without fusing it
    indices = to_disk(model, name, torch.arange(shape.numel(), dtype=torch.float64).view(shape))  # exact below 2^53
    assert indices.keys() == stored.keys(), (name, sorted(indices), sorted(stored))
    value = torch.empty(shape.numel(), dtype=next(iter(stored.values())).dtype)
    for key, index in indices.items():
        value[index.flatten().long()] = stored[key].flatten()
    return value.view(shape)
