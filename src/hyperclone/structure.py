"""The structural proof: the files on disk collapse to the source, weight for weight.

Streams over both checkpoints, so it works at any size, and needs no forward pass: if every output unit repeats and
the shares of every input unit sum to the source's weight, each layer maps copies to copies (docs/architecture.md).
With the exact split the sums are compared bit for bit; with Gaussian noise against the bound that rounding allows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone import producing
from hyperclone.checkpoint import Checkpoint
from hyperclone.errors import HypercloneError
from hyperclone.expand import TensorMap, collapse_rows, rounding_bound, tensor_map
from hyperclone.planning import Plan, TensorPlan
from hyperclone.streaming import Meter, Progress, Weights, digest, raw, run_all, slices, worker_pool

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Structure:
    """What the structural proof found.

    Attributes:
        tensors: output tensors compared.
        bit_equal: how many of them collapse to their source bit for bit.
        largest_error: largest |collapsed - source| anywhere (0.0 when all are bit-equal).
        failures: one sentence for each tensor or field that is not what it must be, naming it.
        output_sha256, source_sha256: of every tensor's bytes, as read back from disk.
    """

    tensors: int = 0
    bit_equal: int = 0
    largest_error: float = 0.0
    failures: list[str] = field(default_factory=list)
    output_sha256: dict[str, str] = field(default_factory=dict)
    source_sha256: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Nothing was wrong, and something was compared."""
        return not self.failures and self.tensors > 0


def prove_structure(
    origin: Checkpoint, path: Path, made: Plan, *, threads: int | None = None, progress: Progress | None = None
) -> Structure:
    """Compare the model directory at `path` with what the plan says it must be."""
    found = Structure()
    try:
        output = Checkpoint(path)
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

    def job(tensor: TensorPlan) -> None:
        results[tensor.name] = _compare(tensor, made, origin, output, meter)

    with worker_pool(threads) as pool:
        run_all(pool, job, sorted(present, key=lambda t: -t.nbytes))
    for tensor in present:
        result = results[tensor.name]
        found.tensors += 1
        found.bit_equal += result.bit_equal
        found.largest_error = max(found.largest_error, result.error)
        found.failures += result.failures
        found.output_sha256[tensor.name] = result.output_sha256
        found.source_sha256[tensor.source] = result.source_sha256
    return found


def _compare_config(found: dict[str, Any], expected: dict[str, Any], into: Structure) -> None:
    for key in sorted(found.keys() | expected.keys()):
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
    exact = made.growth.noise != "gaussian"
    grown_map = tensor_map(tensor.layout, made.sizes)
    hash_of_output = hashlib.sha256()
    wrong: list[str] = []
    count = 0
    whole = len(tensor.shape) == 1 or grown_map.transposed
    for rows in [range(tensor.shape[0])] if whole else slices(tensor.shape, tensor.nbytes):
        stored = output.read(tensor.name, rows.start, rows.stop)
        hash_of_output.update(raw(stored))
        if whole:
            block = grown_map.as_matrix(stored)
            source = grown_map.as_matrix(producing.source_rows(tensor, origin))[grown_map.rows.source]
            first_row = 0
        else:
            wanted = grown_map.rows.source[rows.start : rows.stop]
            first, last = int(wanted.min()), int(wanted.max())
            block, first_row = stored, rows.start
            source = producing.source_rows(tensor, origin, first, last + 1)[wanted - first]
        bad, error, equal = _differences(block, source, grown_map, exact=exact)
        result.bit_equal &= equal
        result.error = max(result.error, error)
        count += int(bad.sum())
        if bool(bad.any()) and not wrong:
            row, column = (int(i) for i in bad.nonzero()[0])
            wrong.append(f"row {first_row + row}, source column {column}")
        meter.add(entry.nbytes * len(rows) // tensor.shape[0])
    if count:
        what = "does not collapse to the source" if exact else "is further from the source than rounding allows"
        result.failures.append(f"{tensor.name}: {what} at {wrong[0]} ({count:,} weights in all)")
    result.output_sha256 = hash_of_output.hexdigest()
    result.source_sha256 = digest(origin, tensor.source)
    return result


def _differences(block: Tensor, source: Tensor, grown_map: TensorMap, *, exact: bool) -> tuple[Tensor, float, bool]:
    """((R, d) True where wrong, largest error, whether bit-equal) for grown rows and the source rows they copy."""
    columns = grown_map.columns
    if grown_map.exact_repeat:
        repeated = source[:, columns.source] if columns.grown else source
        bad = _as_bits(block) != _as_bits(repeated)
        equal = not bool(bad.any())
        error = 0.0 if equal else float((block.double() - repeated.double()).abs().nan_to_num(torch.inf).max())
        return bad, error, equal
    collapsed = collapse_rows(block, columns)
    differs = _as_bits(collapsed.to(source.dtype)) != _as_bits(source)
    # A sum that only rounds to the source is not the source: compare before rounding as well.
    differs |= collapsed != source.to(collapsed.dtype)
    if not bool(differs.any()):
        return differs, 0.0, True
    gap = (collapsed.double() - source.double()).abs().nan_to_num(torch.inf, torch.inf)
    bad = differs if exact else gap > rounding_bound(block, columns).double()
    return bad | ~gap.isfinite(), float(gap.max()), False


def _as_bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
