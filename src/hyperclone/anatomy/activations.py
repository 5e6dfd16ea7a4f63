"""Whether the added width is in use: copies of the hidden state, of feed-forward units and of heads on a real text.

Weights that differ do not mean that the copies do: the noise of a fresh clone cancels, so that every layer still hands
on copies, and the added width holds nothing new. So run the model and look at what every matrix reads. Of its input
(tokens, D) the same number is taken as of weights (anatomy_weights.py): the squares that are not the mean over copies,
relative to what unrelated copies would have. That is the share of the added width in use: 0 at the start, 1 when the
copies are as different as unrelated units.
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


def of_directory(path: Path, made: Plan) -> tuple[dict[str, CopyComparison], str]:
    """(copies in what each matrix reads, by its name on disk; on which text), by unmodified transformers in fp32.

    Nothing, and the reason, where the model does not fit into memory.

    Raises:
        CheckpointError: transformers cannot load or run it.
    """
    needed, there = 4.5 * made.parameters + 2e9, available_memory()
    if needed > there:
        return {}, f"not measured: running it takes {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are free"
    model, _ = load_model(path, torch.float32)
    probes, _ = logits.make_probes(
        load_tokenizer(path),
        vocab=made.sizes["vocab"][0],
        context=min(TOKENS, max_positions(model.config) or TOKENS),
        small=False,
    )
    with model_errors(path):
        return of_model(model, made, probes[0].ids[: max(1, TOKENS // probes[0].ids.shape[1])]), probes[0].name


@torch.inference_mode()
def of_model(model: Any, made: Plan, ids: Tensor) -> dict[str, CopyComparison]:
    """Copies in what each matrix reads when the model reads `ids` (B, S); by the matrix's name on disk.

    Experts that transformers keeps in one parameter are left out.
    """
    found: dict[str, CopyComparison] = {}
    readers = {
        t.name: columns
        for t in made.tensors
        if t.layout.reads is not None and (columns := map_of(t, made).columns).grown and len(t.shape) <= 2
    }
    inner = parameter_names.unwrap(model)
    handles = []
    for name, parameter in parameter_names.named_parameters(inner):
        stored = [key for key in parameter_names.disk_shapes(inner, name, parameter.shape) if key in readers]
        if stored and parameter.dim() <= 2:
            owner = inner.get_submodule(name.rpartition(".")[0])
            handles.append(owner.register_forward_pre_hook(_watch(found, stored, readers[stored[0]]), with_kwargs=True))
    try:
        inner(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(
    found: dict[str, CopyComparison], stored: list[str], columns: CopyMap
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def look(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        for value in (*positional, *named.values()):
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1] == columns.new:
                sides = compare_copies(value.reshape(-1, columns.new).cpu(), columns)
                if sides is not None:
                    found.update(dict.fromkeys(stored, sides))
                return

    return look
