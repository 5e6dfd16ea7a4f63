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

from hyperclone.errors import HypercloneError, UnreadableError
from hyperclone.expansion import compiled, grown_tensors
from hyperclone.expansion.expand import TensorMap, collapse_rows, rounding_bound
from hyperclone.expansion.padding import Padding, pad_rows, padding_columns
from hyperclone.expansion.routers import with_random_routers
from hyperclone.io.buffers import Buffers
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.source import Weights
from hyperclone.io.streaming import Meter, Progress, digest, raw, run_all, slices, worker_pool
from hyperclone.io.tensor_files import TensorFiles, row_count
from hyperclone.planning.checks import rounded
from hyperclone.planning.plan import Plan, TensorPlan
from hyperclone.planning.planner import GROWN_FIELD
from hyperclone.planning.recipe import Noise
from hyperclone.units import decode_floats

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# Config fields without influence on what transformers loads and computes.
_NO_FUNCTION = {"transformers_version", "_name_or_path", "use_cache", GROWN_FIELD}


@dataclass
class Structure:
    """Result of the structural proof.

    Attributes:
        tensors: output tensors compared.
        bit_equal: how many of them collapse to their source bit for bit.
        rounded: how many were multiplied by a factor that their type cannot hold exactly.
        coarse: how many of those are stored in bf16 or fp16, so that the logits show it.
        rounded_names: their names, of all that were rounded.
        new_routers: how many have no source and hold the random values of the seed.
        largest_error: largest |collapsed - source times factor, rounded| anywhere (0.0 when all are as planned).
        largest_rounding: largest |stored - source times factor| of the tensors that were rounded.
        failures: one sentence for each tensor or field that is not as planned, naming it.
        output_sha256, source_sha256: of every tensor's bytes, as read back from disk.
    """

    tensors: int = 0
    bit_equal: int = 0
    rounded: int = 0
    coarse: int = 0
    rounded_names: list[str] = field(default_factory=list)
    new_routers: int = 0
    largest_error: float = 0.0
    largest_rounding: float = 0.0
    failures: list[str] = field(default_factory=list)
    output_sha256: dict[str, str] = field(default_factory=dict)
    source_sha256: dict[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        """Largest difference from what would be exact."""
        return max(self.largest_error, self.largest_rounding)

    @property
    def passed(self) -> bool:
        """Tensors were compared, and nothing failed."""
        return not self.failures and self.tensors > 0


def prove_structure(
    source: Weights, path: Path, plan: Plan, *, threads: int | None = None, progress: Progress | None = None
) -> Structure:
    """Compare the model directory at `path` with the plan.

    Raises:
        CheckpointError: a file was changed while it was being read, or cannot be read.
    """
    structure = Structure()
    files = source
    try:
        output = Checkpoint.open(path, family=plan.family)
    except UnreadableError:
        raise
    except HypercloneError as error:
        structure.failures.append(str(error).replace("\n", ";"))
        return structure
    # transformers names the class that it saves; that of a base model's source does not matter to the whole model's.
    saved_whole = bool(plan.omitted_prefix) and not any(entry.base for entry in output.entries.values())
    structure.failures += _compare_config(
        *(plan.family.canonical(config) for config in (output.config, plan.config)),
        ignored=_NO_FUNCTION | ({"architectures"} if saved_whole else set()),
    )
    expected = {tensor.name for tensor in plan.tensors}
    structure.failures += [f"{name}: missing from the output" for name in sorted(expected - set(output.entries))]
    structure.failures += [f"{name}: not part of the grown model" for name in sorted(set(output.entries) - expected)]
    present = [tensor for tensor in plan.tensors if tensor.name in output.entries]
    meter = Meter("prove", sum(tensor.nbytes for tensor in present), progress)
    results: dict[str, _TensorComparison] = {}
    source, buffers = with_random_routers(source, plan), (Buffers(), Buffers())

    # Of experts and layers that copy the same weights with the same factor one is enough: where there is one, that
    # whose source is read anyway for its hash.
    rounding = sorted((t for t in present if t.rounds and not (t.offset or t.zero)), key=_hashes_source)
    measured = frozenset({(t.source, t.factors, t.dtype): t.name for t in rounding}.values())

    def job(tensor: TensorPlan) -> None:
        result = results[tensor.name] = _compare(tensor, plan, source, output, meter, buffers)
        _read_source(result, tensor, source, buffers[0], measured=tensor.name in measured)

    with worker_pool(threads) as pool:
        run_all(pool, job, sorted(present, key=lambda t: -t.nbytes))
    for model in (files, output):
        if isinstance(model, TensorFiles):
            model.check_unchanged()
    structure.coarse = len(rounded(present))
    for tensor in present:
        result = results[tensor.name]
        structure.tensors += 1
        structure.bit_equal += result.bit_equal and not tensor.rounds and not tensor.init_std
        structure.rounded += tensor.rounds
        structure.rounded_names += [tensor.name] if tensor.rounds else []
        structure.new_routers += bool(tensor.init_std)
        structure.largest_error = max(structure.largest_error, result.error)
        structure.largest_rounding = max(structure.largest_rounding, result.rounding)
        structure.failures += result.failures
        structure.output_sha256[tensor.name] = result.output_sha256
        if _hashes_source(tensor):
            structure.source_sha256[tensor.source] = result.source_sha256
    return structure


def _compare_config(written: dict[str, Any], expected: dict[str, Any], *, ignored: set[str]) -> list[str]:
    written, expected = (decode_floats(_one_spelling(config)) for config in (written, expected))
    fields = sorted((written.keys() | expected.keys()) - ignored)
    return [
        f"config.json, {field}: found {written.get(field)!r}, expected {expected.get(field)!r}"
        for field in fields
        if [written.get(field)] != [expected.get(field)]  # lists compare identities first: the one NaN equals itself
    ]


def _one_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The type under `dtype`, as transformers 5 writes it; `torch_dtype` stays where it contradicts that."""
    older = config.get("torch_dtype")
    rest = {name: value for name, value in config.items() if name != "torch_dtype"}
    if older is None or older == rest.get("dtype", older):
        return rest if older is None else {**rest, "dtype": older}
    return config


@dataclass
class _TensorComparison:
    """The result for one tensor."""

    bit_equal: bool = True
    error: float = 0.0
    rounding: float = 0.0
    failures: list[str] = field(default_factory=list)
    output_sha256: str = ""
    source_sha256: str = ""


def _compare(
    tensor: TensorPlan, plan: Plan, source: Weights, output: Weights, meter: Meter, buffers: tuple[Buffers, Buffers]
) -> _TensorComparison:
    """Compare a tensor of the output with its source; `buffers` are for slices of the source and of the output."""
    entry, result = output.entries[tensor.name], _TensorComparison()
    if (entry.shape, entry.dtype) != (tensor.shape, tensor.dtype):
        result.bit_equal = False
        result.failures.append(
            f"{tensor.name}: found {entry.dtype} {list(entry.shape)}, expected {tensor.dtype} {list(tensor.shape)}"
        )
        return result
    if tensor.zero:
        return _compare_zero(tensor, source, output, meter)
    grown = grown_tensors.map_of(tensor, plan)
    exact = grown.exact_repeat or not (tensor.offset or plan.growth.recipe.noise is Noise.GAUSSIAN)
    mean = grown_tensors.mean_row(tensor, source, grown) if grown.needs_mean else None
    loudest = math.inf if exact or tensor.offset else grown_tensors.loudest_noise(tensor, plan, source)
    # The kernels only say that all is well; of anything else the reference says what is wrong.
    quick = compiled.worthwhile(plan) and exact and not len(grown.rows.padding)
    hash_of_output = hashlib.sha256()
    wrong: list[str] = []
    count = 0
    for stored_rows, rows in grown_tensors.pieces(grown, tensor.shape, tensor.nbytes):
        stored = output.read(tensor.name, stored_rows.start, stored_rows.stop, buffers=buffers[1])
        hash_of_output.update(raw(stored))
        meter.add(entry.nbytes * len(stored_rows) // row_count(tensor.shape))
        block, index = grown_tensors.rows_and_index(tensor, source, grown, rows, buffers=buffers[0])
        if quick and compiled.agree(
            block, grown.as_matrix(stored), grown.columns, index, splits=not grown.exact_repeat
        ):
            continue
        source_block = pad_rows(block[index], grown.rows, rows, grown.row_padding, mean)
        bad, error = _differences(grown.as_matrix(stored), source_block, grown, tensor, exact=exact, loudest=loudest)
        result.bit_equal &= error == 0 and not bool(bad.any())
        result.error = max(result.error, error)
        count += int(bad.sum())
        if bool(bad.any()) and not wrong:
            row, column = (int(i) for i in bad.nonzero()[0])
            wrong.append(f"row {rows.start + row}, column {column}")
    if count:
        problem = "does not collapse to the source" if exact else "is further from the source than rounding allows"
        result.failures.append(f"{tensor.name}: {problem} at {wrong[0]} ({count:,} weights in all)")
    result.output_sha256 = hash_of_output.hexdigest()
    return result


def _hashes_source(tensor: TensorPlan) -> bool:
    """Whether the hash of a tensor's source is recorded with it: once for each source, and not for new routers."""
    return tensor.original and not tensor.init_std


def _read_source(
    result: _TensorComparison, tensor: TensorPlan, source: Weights, buffers: Buffers, *, measured: bool
) -> None:
    """Put the hash of a tensor's source into its result, and what rounding lost where that is measured, in one pass."""
    if not (_hashes_source(tensor) or measured):
        return
    entry, hashed = source.entries[tensor.source], hashlib.sha256()
    for rows in slices(entry.shape, entry.nbytes):
        block = source.read(tensor.source, rows.start, rows.stop, buffers=buffers)
        if _hashes_source(tensor):
            hashed.update(raw(block))
        if measured:
            lost = grown_tensors.rounding_error(tensor, block, rows.start, rows.stop)
            result.rounding = max(result.rounding, lost)
    if _hashes_source(tensor):
        result.source_sha256 = hashed.hexdigest()


def _compare_zero(tensor: TensorPlan, source: Weights, output: Weights, meter: Meter) -> _TensorComparison:
    """The output projection of a copied block."""
    result = _TensorComparison(output_sha256=digest(output, tensor.name))
    for rows in slices(tensor.shape, tensor.nbytes):
        block = output.read(tensor.name, rows.start, rows.stop)
        if bool((block != 0).any()) and result.bit_equal:
            result.bit_equal, result.error = False, float(block.double().abs().max())
            result.failures.append(f"{tensor.name}: a copied block must add nothing, but this is not zero")
        meter.add(tensor.nbytes * len(rows) // row_count(tensor.shape))
    return result


def _differences(
    block: Tensor, source: Tensor, grown: TensorMap, tensor: TensorPlan, *, exact: bool, loudest: float
) -> tuple[Tensor, float]:
    """Which weights of grown rows (R, D) do not follow from their source rows (R, d), and the largest error.

    Repeated weights are compared with the grown columns, shared ones with the source's columns after summing; padding
    channels come last.
    """
    columns = grown.columns
    padding = block[:, columns.padding]
    if grown.column_padding is Padding.RANDOM:  # a weight that reads zero may be any finite number
        bad_padding = ~padding.isfinite()
    else:
        plain = grown_tensors.without_offset(tensor, source)
        bad_padding = _as_bits(padding) != _as_bits(
            padding_columns(plain, columns, grown.column_padding, name=tensor.name)
        )
    if grown.exact_repeat:
        copied = columns.count > 0
        expected = grown_tensors.without_offset(tensor, source)[:, columns.source[copied]]
        repeated = block[:, copied] if len(columns.padding) else block
        bad, gap = _as_bits(repeated) != _as_bits(expected), (repeated.double() - expected.double()).abs()
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
    return torch.cat([bad, bad_padding], 1) if bad_padding.numel() else bad, error


def _as_bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
