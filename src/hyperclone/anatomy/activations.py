"""Whether the added width is in use: copies of the hidden state, of feed-forward units and of heads on a real text.

Copies can compute the same although their weights differ: the noise of a freshly grown model cancels, so that every
layer still outputs copies, and the added width holds nothing new. So run the model and compare the copies in the input
(tokens, D) of every matrix, as in weights (weights.py): the squares that are not in the mean over copies, relative to
those of unrelated copies. That is the share of the added width in use: 0 at the start, 1 when the copies are as
different as unrelated units.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperclone.anatomy.weights import CopyComparison, compare_copies
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.expansion.grown_tensors import map_of
from hyperclone.hf import logits, parameter_names
from hyperclone.hf.memory import available_memory
from hyperclone.hf.models import load_model, load_tokenizer, max_positions, model_errors
from hyperclone.planning.plan import Plan

TOKENS = 256


def measure_activations(path: Path, plan: Plan) -> tuple[dict[str, CopyComparison], str]:
    """Compare the copies in the inputs of every matrix of a directory, run by unmodified transformers in fp32.

    Returns:
        The comparisons by the matrix's name on disk, and the name of the text; or none, and the reason, if the model
        does not fit into memory.

    Raises:
        CheckpointError: transformers cannot load or run it.
    """
    needed, available = 4.5 * plan.parameters + 2e9, available_memory()
    if needed > available:
        return {}, f"not measured: that takes {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
    model, _ = load_model(path, torch.float32)
    if plan.family.head and model.config.pad_token_id is None:
        model.config.pad_token_id = 0  # a classifier takes several rows only if it knows padding; nothing else uses it
    probes, _ = logits.make_probes(
        load_tokenizer(path),
        vocab=plan.sizes["vocab"][0],
        context=min(TOKENS, max_positions(model.config) or TOKENS),
        sizes=logits.FULL,
    )
    with model_errors(path):
        return compare_activations(model, plan, probes[0].ids[: max(1, TOKENS // probes[0].ids.shape[1])]), probes[
            0
        ].name


@torch.inference_mode()
def compare_activations(model: Any, plan: Plan, ids: Tensor) -> dict[str, CopyComparison]:
    """Compare the copies in the inputs of every matrix, by its name on disk; experts fused in memory are left out.

    Args:
        model: the grown model, wrapped or not.
        plan: how it was grown.
        ids: (B, S) tokens.
    """
    comparisons: dict[str, CopyComparison] = {}
    readers = {
        tensor.name: columns
        for tensor in plan.tensors
        if tensor.layout.reads is not None
        and (columns := map_of(tensor, plan).columns).grown
        and len(tensor.shape) <= 2
    }
    inner = parameter_names.unwrap(model)
    handles = []
    for name, parameter in parameter_names.named_parameters(inner):
        names = [key for key in parameter_names.disk_shapes(inner, name, parameter.shape) if key in readers]
        if names and parameter.dim() <= 2:
            owner = inner.get_submodule(name.rpartition(".")[0])
            handles.append(
                owner.register_forward_pre_hook(_compare_input(comparisons, names, readers[names[0]]), with_kwargs=True)
            )
    try:
        inner(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return comparisons


def _compare_input(
    comparisons: dict[str, CopyComparison], names: list[str], columns: CopyMap
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A hook that compares the copies in a module's input and adds the result under all these names."""

    def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        for value in (*positional, *named.values()):
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1] == columns.new:
                comparison = compare_copies(value.reshape(-1, columns.new).cpu(), columns)
                if comparison is not None:
                    comparisons.update(dict.fromkeys(names, comparison))
                return

    return hook
