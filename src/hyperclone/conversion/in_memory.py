"""Grow a model that is already in memory."""

from __future__ import annotations

import os
from typing import Any, Unpack

import torch
from torch import Tensor

from hyperclone.architectures import family_file
from hyperclone.architectures.family import Family
from hyperclone.architectures.registry import of_config
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.expansion import compiled, grown_tensors
from hyperclone.hf.models import build_like
from hyperclone.hf.parameter_names import saved_tensors
from hyperclone.io.buffers import Buffers
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.growth_options import GrowthOptions, requested
from hyperclone.planning.plan import Plan
from hyperclone.proof import family_validation


class InMemory:
    """A transformers model seen as a checkpoint: config, entries and rows under the names they have on disk."""

    notes: tuple[str, ...] = ()

    def __init__(self, model: Any, *, family: Family | None = None) -> None:
        self.config: dict[str, Any] = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        self.tensors = saved_tensors(model)
        names = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
        self.entries: dict[str, Entry] = {}
        for name, tensor in self.tensors.items():
            if tensor.is_meta:
                raise CheckpointError("this model holds no weights", tensor=name, found="device meta",
                                      cure="load it with weights, or grow its directory")  # fmt: skip
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.entries[name] = Entry(
                "(memory)", names.get(dtype, dtype), tuple(tensor.shape), 0, tensor.numel() * tensor.element_size()
            )

        self._own_family = family

    @property
    def family(self) -> Family:
        """What is known about the architecture."""
        return of_config(self.config, user_family=self._own_family)

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """Rows start..stop of a tensor, on the processor; `buffers` are not needed."""
        tensor = self.tensors[name].detach().cpu()
        return tensor[start:stop] if tensor.dim() else tensor


def grow_model(
    model: Any,
    growth: Growth | None = None,
    *,
    family: str | os.PathLike[str] | None = None,
    **options: Unpack[GrowthOptions],
) -> Any:
    """A wider model that computes the same function; the given one is left as it is.

    Both models are in memory at once and nothing is proved: `grow` works on directories of any size, with proof.

    Args:
        model: a transformers causal language model of a known family.
        growth: the request; or give its fields as keywords: width=2.
        family: a family file of your own; it is proved on a tiny random instance first.
        options: the fields of `Growth`, where no `growth` is given.

    Returns:
        A model of the same class, on the same device, in the same mode (training or evaluation). Its config says how it
        was grown, so optimizers, `verify` and `collapse` know it wherever it is saved.

    Raises:
        HypercloneError: the model cannot be grown like this.
    """
    growth = requested(growth, options)
    if growth.experts is not None:
        raise GrowthError(
            "a model in memory keeps its class, so it cannot become a mixture of experts", field="experts",
            found=growth.experts, cure="save it, and grow the directory",
        )  # fmt: skip
    user_family = None if family is None else family_file.read(family)
    source = InMemory(model, family=user_family)
    plan = planner.make_plan(source, growth)
    if user_family is not None:
        family_validation.validate(plan)
    for head, embedding in plan.ties_to_check:
        grown_tensors.check_tie(source, head, embedding)
    return build_grown(model, source, plan)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # a single number cannot be concatenated


def build_grown(model: Any, source: InMemory, plan: Plan) -> Any:
    """The model that a plan describes, grown from one in memory."""
    types = {tensor.dtype for tensor in plan.tensors}
    if len(types) > 1:
        raise CheckpointError("this model mixes types", found=", ".join(sorted(types)), expected="one type",
                              cure="save it and grow the directory, or convert it with model.to(dtype)")  # fmt: skip
    fast = compiled.worthwhile(plan)
    tensors = {t.name: _joined(list(grown_tensors.grown_slices(t, plan, source, fast=fast))) for t in plan.tensors}
    dtype = grown_tensors.stored_type(plan.tensors[0])
    config = {**plan.config, receipt.CONFIG_FIELD: receipt.config_field(plan)}
    result = build_like(model, config=config, tensors=tensors, dtype=dtype)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    return result.to(model.device).train(model.training)
