"""The structural proof: the files on disk collapse to the source, weight for weight.

Streams over both checkpoints, so it works at any size, and needs no forward pass: if every output unit repeats and
the shares of every input unit sum to the source's weight, each layer maps copies to copies (docs/mathematics.md).
With the exact split the sums are compared bit for bit; with Gaussian noise against the bound that rounding allows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone.errors import HypercloneError
from hyperclone.expansion import grown_tensors
from hyperclone.expansion.expand import TensorMap, collapse_rows, rounding_bound
from hyperclone.expansion.padding import Fill, fill_columns, fill_rows
from hyperclone.expansion.routers import with_drawn
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.source import Weights
from hyperclone.io.streaming import Meter, Progress, digest, raw, run_all, slices, worker_pool
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.recipe import Noise

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# Config fields that say nothing about the function (the type of every tensor is compared in its own right).
_NO_FUNCTION = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"}


@dataclass
class Structure:
    """What the structural proof found.

    Attributes:
        tensors: output tensors compared.
        bit_equal: how many of them collapse to their source bit for bit.
        rounded: how many were multiplied by a factor that their type cannot hold, and rounded.
        drawn: how many have no source and hold what was drawn for them (routers).
        largest_error: largest |collapsed - source| anywhere (0.0 when all are bit-equal).
        failures: one sentence for each tensor or field that is not what it must be, naming it.
        output_sha256, source_sha256: of every tensor's bytes, as read back from disk.
    """

    tensors: int = 0
    bit_equal: int = 0
    rounded: int = 0
    drawn: int = 0
    largest_error: float = 0.0
    failures: list[str] = field(default_factory=list)
    output_sha256: dict[str, str] = field(default_factory=dict)
    source_sha256: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Nothing was wrong, and something was compared."""
        return not self.failures and self.tensors > 0


def prove_structure(
    origin: Weights, path: Path, made: Plan, *, threads: int | None = None, progress: Progress | None = None
) -> Structure:
    """Compare the model directory at `path` with what the plan says it must be."""
    found = Structure()
    try:
        output = Checkpoint.open(path, family=made.family)
    except HypercloneError as error:
        found.failures.append(str(error).replace("\n", ";"))
        return found
    _compare_config(output.config, made.config, found)
    wanted = {tensor.name for tensor in made.tensors}
    found.failures += [f"{name}: missing from the output" for name in sorted(wanted - set(output.entries))]
    found.failures += [f"{name}: not part of the grown model" for name in sorted(set(output.entries) - wanted)]
    present = [tensor for tensor in made.tensors if tensor.name in output.entries]
    meter = Meter("prove", sum(tensor.nbytes for tensor in present), progress)
    results: dict[str, _Compared] = {}
    origin = with_drawn(origin, made)

    def job(tensor: TensorPlan) -> None:
        results[tensor.name] = _compare(tensor, made, origin, output, meter)

    with worker_pool(threads) as pool:
        run_all(pool, job, sorted(present, key=lambda t: -t.nbytes))
    for tensor in present:
        result = results[tensor.name]
        found.tensors += 1
        found.bit_equal += result.bit_equal and not tensor.rounds and not tensor.init_std
        found.rounded += tensor.rounds
        found.drawn += bool(tensor.init_std)
        found.largest_error = max(found.largest_error, result.error)
        found.failures += result.failures
        found.output_sha256[tensor.name] = result.output_sha256
        if not tensor.init_std:
            found.source_sha256[tensor.source] = result.source_sha256
    return found


def _compare_config(found: dict[str, Any], expected: dict[str, Any], into: Structure) -> None:
    for key in sorted((found.keys() | expected.keys()) - _NO_FUNCTION):
        if found.get(key) != expected.get(key):
            into.failures.append(f"config.json, {key}: found {found.get(key)!r}, expected {expected.get(key)!r}")


@dataclass
class _Compared:
    """One tensor's result."""

    bit_equal: bool = True
    error: float = 0.0
    failures: list[str] = field(default_factory=list)
    output_sha256: str = ""
    source_sha256: str = ""


def _compare(tensor: TensorPlan, made: Plan, origin: Weights, output: Weights, meter: Meter) -> _Compared:
    entry, result = output.entries[tensor.name], _Compared()
    if (entry.shape, entry.dtype) != (tensor.shape, tensor.dtype):
        result.bit_equal = False
        result.failures.append(
            f"{tensor.name}: found {entry.dtype} {list(entry.shape)}, expected {tensor.dtype} {list(tensor.shape)}"
        )
        return result
    if tensor.zero:
        return _compare_zero(tensor, origin, output, meter)
    grown = grown_tensors.map_of(tensor, made)
    exact = grown.exact_repeat or not (tensor.offset or made.growth.recipe.noise is Noise.GAUSSIAN)
    mean = grown_tensors.mean_row(tensor, origin, grown) if grown.needs_mean else None
    loudest = math.inf if exact or tensor.offset else grown_tensors.loudest_noise(tensor, made, origin)
    hash_of_output = hashlib.sha256()
    wrong: list[str] = []
    count = 0
    whole = len(tensor.shape) == 1 or grown.transposed
    for rows in [range(tensor.shape[0])] if whole else slices(tensor.shape, tensor.nbytes):
        stored = output.read(tensor.name, rows.start, rows.stop)
        hash_of_output.update(raw(stored))
        chosen = range(grown.rows.new) if whole else rows
        if whole:
            source = grown.as_matrix(grown_tensors.source_rows(tensor, origin))[grown.rows.source]
        else:
            source = grown_tensors.gather(tensor, origin, grown.rows, rows)
        source = fill_rows(source, grown.rows, chosen, grown.row_fill, mean)
        bad, error = _differences(grown.as_matrix(stored), source, grown, tensor, exact=exact, loudest=loudest)
        result.bit_equal &= error == 0 and not bool(bad.any())
        result.error = max(result.error, error)
        count += int(bad.sum())
        if bool(bad.any()) and not wrong:
            row, column = (int(i) for i in bad.nonzero()[0])
            wrong.append(f"row {chosen.start + row}, column {column}")
        meter.add(entry.nbytes * len(rows) // tensor.shape[0])
    if count:
        what = "does not collapse to the source" if exact else "is further from the source than rounding allows"
        result.failures.append(f"{tensor.name}: {what} at {wrong[0]} ({count:,} weights in all)")
    result.output_sha256 = hash_of_output.hexdigest()
    result.source_sha256 = digest(origin, tensor.source)
    return result


def _compare_zero(tensor: TensorPlan, origin: Weights, output: Weights, meter: Meter) -> _Compared:
    """The output projection of a copied block."""
    result = _Compared(output_sha256=digest(output, tensor.name), source_sha256=digest(origin, tensor.source))
    for rows in slices(tensor.shape, tensor.nbytes):
        block = output.read(tensor.name, rows.start, rows.stop)
        if bool((block != 0).any()) and result.bit_equal:
            result.bit_equal, result.error = False, float(block.double().abs().max())
            result.failures.append(f"{tensor.name}: a copied block must add nothing, but this is not zero")
        meter.add(tensor.nbytes * len(rows) // tensor.shape[0])
    return result


def _differences(
    block: Tensor, source: Tensor, grown: TensorMap, tensor: TensorPlan, *, exact: bool, loudest: float
) -> tuple[Tensor, float]:
    """Where grown rows (R, D) are not what their source rows (R, d) ask for, and the largest error.

    Repeated weights are compared with the grown columns, shared ones with the source's columns after summing; what new
    units hold that copy nothing comes last.
    """
    columns = grown.columns
    fillers = block[:, columns.fillers]
    if grown.column_fill is Fill.FREE:  # what reads zero may be anything that is a number
        bad_fill = ~fillers.isfinite()
    else:
        plain = grown_tensors.without_offset(tensor, source)
        bad_fill = _as_bits(fillers) != _as_bits(fill_columns(plain, columns, grown.column_fill, name=tensor.name))
    if grown.exact_repeat:
        copied = columns.count > 0
        expected = grown_tensors.without_offset(tensor, source)[:, columns.source[copied]]
        found = block[:, copied] if len(columns.fillers) else block
        bad, gap = _as_bits(found) != _as_bits(expected), (found.double() - expected.double()).abs()
    else:
        collapsed = collapse_rows(block.double() + tensor.offset if tensor.offset else block, columns)
        narrow = collapsed.to(source.dtype)
        # A sum that only rounds to the source is not the source: compare before rounding as well.
        bad = (_as_bits(narrow) != _as_bits(source)) | (collapsed != source.to(collapsed.dtype))
        gap = (collapsed.double() - source.double()).abs()
        if not exact:
            bad = ~(gap <= rounding_bound(block, columns).double())
            # The bound grows with the shares, so shares that are louder than the growth's noise prove nothing.
            copied = columns.count > 0
            loud = block.double().abs()[:, copied] > source.double().abs()[:, columns.source[copied]] * 1.01 + loudest
            bad = bad | bool(loud.any())
    error = float(gap.nan_to_num(torch.inf, torch.inf).max()) if bool(bad.any()) or not exact else 0.0
    return torch.cat([bad, bad_fill], 1) if bad_fill.numel() else bad, error


def _as_bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
