"""FP8 and MXFP4 weights, which are stored as small numbers and scales: what they stand for, in fp32, a slice at a time.

Three formats are read, those of transformers' `quant_method` "fp8", "mxfp4" and "compressed-tensors":

* *FP8*: `X.weight` in FP8 and `X.weight_scale_inv`, one scale for each block of `weight_block_size` rows and columns,
  or one for the whole tensor. A weight is the product of the two. (`activation_scale` is for computing in FP8.)
* *MXFP4*: `X_blocks` (E, R, G, 16), bytes of two E2M1 numbers each, the low half first, and `X_scales` (E, R, G), a
  power of two for every 32 numbers, stored as exponent + 127 (OCP Microscaling Formats 1.0). The model's tensor is
  (E, 32 G, R).
* *compressed-tensors*, where all its groups are floats of 8 bits (format "float-quantized"): `X.weight` in FP8 and
  `X.weight_scale`, for the whole tensor, one for each row (strategy "channel"), for each block of rows and columns
  ("block", `block_structure`), or for each group of columns ("group", `group_size`). A weight is the product.

Products of are exact in fp32 or rounded once, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.errors import CheckpointError
from hyperclone.io.tensor_files import Entry

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("fp8", "mxfp4", "compressed-tensors")
_FP8 = ("F8_E4M3", "F8_E5M2")
_FP8_SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the negative ones follow
_PER_SCALE = 32  # MXFP4 numbers
_EXPONENT_BIAS = 127

# Of a module: scales of what it computes, which are for computing in FP8.
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale")

# Of each method: how the names of scales end, and how those of numbers end where scales add to the name of a whole.
_ENDINGS = {"fp8": ("_scale_inv", ""), "mxfp4": ("_scales", "_blocks"), "compressed-tensors": ("_scale", "")}

Read = Callable[[Entry, int, int], "Tensor"]  # rows start..stop of a stored tensor, in its stored type


@dataclass(frozen=True)
class ScaledWeight:
    """Two stored tensors that stand for one (`Entry.parts`).

    Attributes:
        numbers, scales: the stored tensors.
        block: rows and columns of FP8 numbers that share a scale; None for MXFP4.
    """

    numbers: Entry
    scales: Entry
    block: tuple[int, int] | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The stored tensors."""
        return self.numbers, self.scales

    def rows(self, start: int, stop: int, read: Read) -> Tensor:
        """Rows start..stop (experts, for MXFP4) in fp32; `read` reads stored tensors."""
        return self._mxfp4(start, stop, read) if self.block is None else self._fp8(start, stop, read)

    def _fp8(self, start: int, stop: int, read: Read) -> Tensor:
        assert self.block is not None
        height, width = self.block
        first, last = start // height, -(-stop // height)
        scales = read(self.scales, first, last)
        scales = _powers_of_two(scales) if self.scales.dtype == "U8" else scales.float()
        scales = scales.view(last - first, -1).repeat_interleave(height, 0)[start - first * height :][: stop - start]
        columns = self.numbers.shape[1]
        return read(self.numbers, start, stop).float() * scales.repeat_interleave(width, 1)[:, :columns]

    def _mxfp4(self, start: int, stop: int, read: Read) -> Tensor:
        import torch

        table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
        blocks = read(self.numbers, start, stop)
        numbers = torch.stack([table[(blocks & 15).int()], table[(blocks >> 4).int()]], -1).flatten(-2)  # (E, R, G, 32)
        values = numbers * _powers_of_two(read(self.scales, start, stop))[..., None]
        return values.flatten(-2).transpose(1, 2).contiguous()


def _powers_of_two(exponents: Tensor) -> Tensor:
    return (exponents.float() - _EXPONENT_BIAS).exp2()


def known(method: Any) -> bool:
    """Whether a config's quantization_config describes one of these formats."""
    if not isinstance(method, Mapping) or method.get("quant_method") not in METHODS:
        return False
    if method["quant_method"] != "compressed-tensors":
        return True
    sparse = method.get("sparsity_config") or {}
    if method.get("transform_config") or not isinstance(sparse, Mapping) or sparse.get("format", "dense") != "dense":
        return False
    groups = _weights_of_groups(method)
    return bool(groups) and all(group.get("type") == "float" and group.get("num_bits") == 8 for group in groups)


def _weights_of_groups(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How the weights of each group of compressed-tensors are quantized; {} for a group that is not understood."""
    groups = method.get("config_groups")
    weights = [group.get("weights") if isinstance(group, Mapping) else None
               for group in (groups.values() if isinstance(groups, Mapping) else ())]  # fmt: skip
    return [one if isinstance(one, Mapping) else {} for one in weights]


def scaled_entries(method: Mapping[str, Any], entries: Mapping[str, Entry], file: Path) -> dict[str, Entry]:
    """Stored tensors as the model has them: numbers with their scales are one tensor, in fp32.

    Args:
        method: the config's quantization_config, which is `known`.
        entries: the stored tensors.
        file: config.json.

    Raises:
        CheckpointError: numbers without scales, scales without numbers, or of types and shapes that do not fit.
    """
    kind = method["quant_method"]
    mxfp4 = kind == "mxfp4"
    ending, number_ending = _ENDINGS[kind]
    joined = {}
    paired: set[str] = set()
    for name, scales in entries.items():
        if not name.endswith(ending) or name.endswith(_OF_ACTIVATIONS):
            continue
        whole = name.removesuffix(ending)
        if (numbers := entries.get(whole + number_ending)) is None:
            raise CheckpointError("scales of a tensor that is not there", file=scales.file, tensor=name,
                                  expected=whole + number_ending)  # fmt: skip
        if kind == "compressed-tensors":
            scales, block = _by_shapes(method, numbers, scales)
        else:
            block = None if mxfp4 else _block_size(method, file)
        joined[whole + number_ending] = (whole, _mxfp4(name, numbers, scales) if mxfp4
                                         else _fp8(name, numbers, scales, block))  # fmt: skip
        paired |= {name, whole + number_ending}
    loose = [name for name, entry in entries.items() if name not in paired and entry.dtype in (*_FP8, "U8")]
    if loose:
        raise CheckpointError("quantized numbers without scales", file=entries[loose[0]].file, tensor=loose[0],
                              expected=loose[0].removesuffix(number_ending) + ending)  # fmt: skip
    whole_model: dict[str, Entry] = {}
    for name, entry in entries.items():
        if name in joined:
            whole_model[joined[name][0]] = joined[name][1]
        elif name not in paired and not name.endswith(_OF_ACTIVATIONS):
            whole_model[name] = entry
    return whole_model


def _block_size(method: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None if each tensor has one scale."""
    size = method.get("weight_block_size", [128, 128])
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(number) is int and number > 0 for number in size)):
        raise CheckpointError("not a size of blocks", file=file, field="quantization_config.weight_block_size",
                              found=size, expected="two positive whole numbers, or null")  # fmt: skip
    return size[0], size[1]


def _by_shapes(
    method: Mapping[str, Any], numbers: Entry, scales: Entry
) -> tuple[Entry, tuple[int, int] | None]:  # fmt: skip
    """(scales in two dimensions, rows and columns that share one): of the groups' sizes, those that fit the shapes."""
    if len(numbers.shape) != 2:
        return scales, None
    rows, columns = numbers.shape
    if scales.shape in ((rows,), (rows, 1)):
        return replace(scales, shape=(rows, 1)), (1, columns)
    for group in _weights_of_groups(method):
        size = group.get("block_structure")
        if isinstance(size, str):  # as older versions wrote it: 128x128
            size = [int(number) if number.isdecimal() else 0 for number in size.split("x")]
        for block in (size, [1, group.get("group_size")]):
            if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
                continue
            if scales.shape == (-(-rows // block[0]), -(-columns // block[1])):
                return scales, (block[0], block[1])
    return scales, None


def _fp8(name: str, numbers: Entry, scales: Entry, block: tuple[int, int] | None) -> Entry:
    _check_type(name, scales, _FP8_SCALES)
    _check_type(name, numbers, _FP8)
    rows, columns = numbers.shape if len(numbers.shape) == 2 else (0, 0)
    if scales.shape in ((), (1,)):  # of the whole tensor, whatever the others have
        scales, block = replace(scales, shape=(1, 1)), (max(rows, 1), max(columns, 1))
    grid = (0, 0) if block is None else (-(-rows // block[0]), -(-columns // block[1]))
    if not all(grid) or scales.shape != grid:
        raise CheckpointError("scales do not fit the weights that they belong to", file=scales.file, tensor=name,
                              found=f"{list(scales.shape)} for {list(numbers.shape)}",
                              expected=list(grid) if all(grid) else "one scale",
                              cure="grow the original bf16 checkpoint")  # fmt: skip
    return _entry((rows, columns), ScaledWeight(numbers, scales, block))


def _mxfp4(name: str, numbers: Entry, scales: Entry) -> Entry:
    _check_type(name, scales, ("U8",))
    _check_type(name, numbers, ("U8",))
    if len(numbers.shape) != 4 or numbers.shape != (*scales.shape, _PER_SCALE // 2):
        raise CheckpointError("scales do not fit the weights that they belong to", file=scales.file, tensor=name,
                              found=f"{list(scales.shape)} for {list(numbers.shape)}",
                              expected=f"(E, R, G) for (E, R, G, {_PER_SCALE // 2})")  # fmt: skip
    experts, rows, groups = scales.shape
    return _entry((experts, groups * _PER_SCALE, rows), ScaledWeight(numbers, scales, None))


def _check_type(name: str, entry: Entry, types: Collection[str]) -> None:
    if entry.dtype not in types:
        raise CheckpointError("quantized weights of a type that is not known", file=entry.file, tensor=name,
                              found=entry.dtype, expected=" or ".join(types),
                              cure="grow the original bf16 checkpoint")  # fmt: skip


def _entry(shape: tuple[int, ...], weight: ScaledWeight) -> Entry:
    return replace(weight.numbers, dtype="F32", shape=shape, nbytes=4 * math.prod(shape), parts=weight)
