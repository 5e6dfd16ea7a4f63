"""How a model was grown: its plan again, from its receipt, or from the sizes of source and output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hyperclone.architectures import text_models
from hyperclone.architectures.family import Family
from hyperclone.conversion import receipt as receipts
from hyperclone.conversion.receipt import Receipt
from hyperclone.errors import GrowthError
from hyperclone.expansion import grown_tensors
from hyperclone.expansion.expand import TensorMap
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.files import user_path
from hyperclone.io.tensor_files import row_count
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from hyperclone.planning.recipe import OrderName

_ROWS = 16  # of each tensor that are compared


def open_source(
    directory: Path, receipt: Receipt | None, grown_config: Mapping[str, Any], *, family: Family | None = None
) -> Checkpoint:
    """A source as it was read when it was grown: the text model alone, and what quantized weights stand for.

    Args:
        directory: the source.
        receipt: the output's; without one, a text model is told by the type of the output.
        grown_config: the output's config, needed without a receipt.
        family: the user's own.

    Raises:
        HypercloneError: it cannot be read.
    """
    whole = hub.config(directory) if receipt is None else {}
    text_model = receipt.text_model if receipt is not None else (
        text_models.has_text_model(whole) and grown_config.get("model_type") != whole.get("model_type")
    )  # fmt: skip
    return Checkpoint.open(directory, family=family, text_model=text_model, dequantize=True)


def plan_of_directory(
    directory: str | os.PathLike[str],
    receipt: Receipt | None,
    *,
    output: Checkpoint | None = None,
    source: Checkpoint | None = None,
    family: Family | None = None,
) -> Plan:
    """How a directory was grown: its tensors with their maps.

    Args:
        directory: for the error message.
        receipt: its receipt.
        output, source: opened, both needed without a receipt.
        family: the user's own; by default the receipt's.

    Raises:
        GrowthError: neither a receipt nor source and output.
    """
    if receipt is not None:
        return (receipt if family is None else replace(receipt, family=family)).plan
    if source is None or output is None:
        raise GrowthError(
            "no receipt says how this model was grown", file=Path(directory) / receipts.FILE,
            cure="name the source with --against, or put the hyperclone.json of the grown directory here",
        )  # fmt: skip
    return plan_without_receipt(source, output)


def plan_without_receipt(source: Checkpoint, output: Checkpoint) -> Plan:
    """How a directory was grown, from the sizes in both configs and the order of the copies in its weights.

    Raises:
        GrowthError: no growth of the source has this config.
    """
    plan = planner.plan_from_sizes(source, output.config)
    if _stands(output, plan, "tiled") or not _stands(output, plan, "interleaved"):
        return plan
    return planner.plan_from_sizes(source, output.config, order="interleaved")


def _stands(output: Checkpoint, plan: Plan, order: OrderName) -> bool:
    """Whether copies that are only repeated are equal in this order: of columns that are written, and of rows.

    A few rows of each tensor are read.
    """
    plan = replace(plan, growth=replace(plan.growth, order=order))
    return all(
        _columns_stand(output, tensor.name, grown) and _rows_stand(output, tensor.name, grown)
        for tensor in plan.tensors
        if tensor.name in output.entries and not tensor.zero
        for grown in [grown_tensors.map_of(tensor, plan)]
    )


def _columns_stand(output: Checkpoint, name: str, grown: TensorMap) -> bool:
    """Of an embedding, a norm or a bias."""
    if grown.splits or not grown.columns.grown:
        return True
    rows = output.read(name, 0, None if grown.whole else min(_ROWS, row_count(output.entries[name].shape)))
    matrix = grown.as_matrix(rows)
    return all(
        matrix[:, first].equal(matrix[:, position])
        for _, _, (first, *others) in grown.columns.spans
        for position in others
    )


def _rows_stand(output: Checkpoint, name: str, grown: TensorMap) -> bool:
    """Of a matrix that reads what did not grow: its rows are repeated as they are. Of experts, the first is read."""
    if not grown.exact_repeat or not grown.rows.grown:
        return True
    each = 1 if grown.whole else grown.rows_per_stored[1]
    block = grown.as_matrix(output.read(name, 0, None if grown.whole else 1)) if grown.whole or each > 1 else None

    def row(position: int) -> Tensor:
        return output.read(name, position, position + 1) if block is None else block[position]

    return all(
        row(first).equal(row(position))
        for count, _, positions in grown.rows.groups
        if count > 1
        for first, *others in positions[:, :_ROWS].T.tolist()
        for position in others
        if block is None or max(first, position) < len(block)
    )


def plan_of_model(model: Any, grown: str | os.PathLike[str] | Plan | None) -> Plan:
    """How a transformers model in memory was grown.

    Args:
        model: the bare model.
        grown: the grown directory, or a plan; by default the directory that the model was loaded from.

    Raises:
        GrowthError: no receipt.
    """
    if isinstance(grown, Plan):
        return grown
    directory, receipt = receipt_of_model(model, grown)
    return plan_of_directory(directory, receipt)


def receipt_of_model(model: Any, grown: str | os.PathLike[str] | None) -> tuple[Path, Receipt | None]:
    """(directory, receipt) of a transformers model in memory.

    Args:
        model: the bare model.
        grown: the grown directory; by default the model's own config says how it was grown in memory, else the
            directory that it was loaded from.
    """
    directory = user_path(model.name_or_path if grown is None else grown)
    if grown is None and (receipt := receipts.from_config(model.config.to_dict())) is not None:
        return directory, receipt
    return directory, receipts.read(directory)
