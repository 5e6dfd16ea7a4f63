"""Grow one tensor, and undo it: pure functions on tensors.

A tensor is seen as a matrix of output rows and input columns. Output units repeat. Input units repeat and are
weighted so that the weights of the copies of one unit sum to 1: for output copy a and input copy b, the block is
C[a, b] W with sum_b C[a, b] = 1 (arXiv 2409.12903, section 2). So y = W x becomes [y; y; ...] when x becomes
[x; x; ...], which is the input that the next layer expects.

    symmetric   C[a, b] = 1/c            diagonal   C[a, b] = 1 if b = a mod c else 0

Noise e[a, b] with sum_b e[a, b] = 0 keeps the function and makes the copies different; without it they would receive
the same gradient forever. `snr_db` is the power of the noise-free weights of a row over the power of its noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from hyperclone.architectures.layout import Layout
from hyperclone.expansion import compiled, copy_map, exact_split, noise
from hyperclone.expansion.copy_map import CopyMap, as_slice
from hyperclone.expansion.padding import Padding, pad_rows, padding_columns, random_columns
from hyperclone.expansion.shares import Shares
from hyperclone.planning.recipe import Expansion, Noise, OrderName, Recipe

_TILE = 1 << 19  # weights worked on at once: small enough to stay in cache between operations
_RUN = 4096  # weights summed at once


@dataclass(frozen=True)
class TensorMap:
    """A stored tensor as a matrix: which old row and column each new one copies.

    Attributes:
        dims: the map of every stored dimension.
        column: the stored dimension that is the columns; the others together are the rows. None: all are the columns of
            one row (vectors, kernels of convolutions, single numbers).
        rows: outputs.
        columns: inputs if `splits`, else outputs.
        splits: the copies of a column share its weight (rather than repeat it).
        row_padding, column_padding: what padding channels hold.
    """

    dims: tuple[CopyMap, ...]
    column: int | None
    rows: CopyMap
    columns: CopyMap
    splits: bool
    row_padding: Padding = Padding.ZERO
    column_padding: Padding = Padding.ZERO

    @property
    def exact_repeat(self) -> bool:
        """Nothing is split: the grown tensor only repeats source values."""
        return not (self.splits and self.columns.grown)

    @property
    def needs_power(self) -> bool:
        """Some weights are randomly initialized, with the mean square of the source."""
        return self.column_padding is Padding.RANDOM and len(self.columns.padding) > 0

    @property
    def needs_mean(self) -> bool:
        """Padding channels hold the mean of all source rows."""
        return self.row_padding is Padding.MEAN and len(self.rows.padding) > 0

    @property
    def one_row(self) -> bool:
        """The matrix has one row, whatever the stored dimensions."""
        return self.column is None

    @property
    def whole(self) -> bool:
        """Its stored rows are no rows of the matrix, so it is read and written in one piece."""
        return self.column is None or self.column == 0

    @property
    def rows_per_stored(self) -> tuple[int, int]:
        """(old, new) rows of the matrix in each stored row (an expert has many), if it is not `whole`."""
        return self.rows.old // self.dims[0].old, self.rows.new // self.dims[0].new

    def as_matrix(self, stored: Tensor) -> Tensor:
        """A stored tensor (or some of its rows) as output rows and input columns; a view, but for experts' Conv1D."""
        if self.column is None:
            return stored.reshape(1, -1)
        return stored.movedim(self.column, -1).reshape(-1, stored.shape[self.column])

    def as_stored(self, matrix: Tensor) -> Tensor:
        """The inverse: a grown matrix (or the rows of some stored rows) as the tensor that is stored."""
        return self._stored(matrix, [copies.new for copies in self.dims])

    def as_source(self, matrix: Tensor) -> Tensor:
        """The same for a matrix of the source's sizes."""
        return self._stored(matrix, [copies.old for copies in self.dims])

    def _stored(self, matrix: Tensor, sizes: list[int]) -> Tensor:
        if self.column is None:
            return matrix.reshape(sizes)
        rows = [size for dim, size in enumerate(sizes) if dim != self.column]
        return matrix.reshape(-1, *rows[1:], sizes[self.column]).movedim(-1, self.column).contiguous()


def tensor_map(
    layout: Layout,
    sizes: Mapping[str, tuple[int, int]],
    padding: Mapping[str, Padding] = {},
    *,
    shift: bool = False,
    order: OrderName = "tiled",
) -> TensorMap:
    """The map of a tensor when axes grow from sizes[axis][0] to sizes[axis][1].

    Args:
        layout: what its dimensions mean.
        sizes: (old, new) of every axis.
        padding: axes with padding channels, and what these hold.
        shift: a norm's tensor is its bias, not its gain.
        order: of the copies of a unit.
    """
    maps = tuple(copy_map.of_dim(dim, sizes, padding, order=order) for dim in layout.dims)

    def padding_of(dim: int) -> Padding:
        if layout.reads == dim:
            return Padding.RANDOM if len(layout.dims) > 1 else Padding.ZERO if shift else Padding.REPEAT
        if layout.norm:
            return Padding.ZERO if shift else Padding.REPEAT
        return next((padding[axis] for axis in layout.axes_of(dim) if axis in padding), Padding.ZERO)

    splits = layout.reads is not None
    if len(maps) < 2 or (len(maps) > 2 and not splits):
        one = copy_map.axis(1, 1)
        return TensorMap(
            maps, None, one, copy_map.product(maps or (one,)), splits=splits,
            column_padding=padding_of(0) if len(maps) == 1 else Padding.ZERO,
        )  # fmt: skip
    column = 1 if layout.reads is None else layout.reads
    rows = [dim for dim in range(len(maps)) if dim != column]
    return TensorMap(
        maps, column, copy_map.product([maps[dim] for dim in rows]), maps[column], splits=splits,
        row_padding=padding_of(rows[-1]), column_padding=padding_of(column),
    )  # fmt: skip


def expand(
    weight: Tensor,
    tensor: TensorMap,
    recipe: Recipe,
    *,
    name: str,
    power: float | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    """The grown tensor, whole.

    Args:
        weight: (d_out, d_in) as stored ((d_in, d_out) when transposed; (d,) for a vector), finite.
        tensor: its map.
        recipe: expansion and noise.
        name: the tensor's name on disk; the noise depends on it.
        power: mean square of the weight, for Gaussian noise and random weights; computed here when not given.
        mean: mean of the rows, where padding channels hold it; computed here when not given.

    Returns:
        (D_out, D_in) as stored, in the weight's type.
    """
    matrix = tensor.as_matrix(weight)
    if power is None and (recipe.noise is Noise.GAUSSIAN or tensor.needs_power):
        power = mean_square(weight)
    if mean is None and tensor.needs_mean:
        mean = matrix.double().mean(0)
    rows = range(tensor.rows.new)
    grown = expand_rows(matrix[tensor.rows.source], tensor, recipe, name=name, rows=rows, power=power, mean=mean)
    return tensor.as_stored(grown)


def expand_rows(
    weight: Tensor,
    tensor: TensorMap,
    recipe: Recipe,
    *,
    name: str,
    rows: range,
    index: Tensor | None = None,
    power: float | None = None,
    mean: Tensor | None = None,
    out: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """Some rows of the grown matrix, the same however the rows are cut into ranges.

    Args:
        weight: (S, d_in) source rows.
        rows: the new rows' indices.
        index: (len(rows),) which row of `weight` each new row copies; by default one after the other.
        power, mean: of the whole tensor, as in `expand`.
        out: (len(rows), D_in) where to put them.
        fast: use the compiled kernels where they apply; the bytes are the same.

    Returns:
        (len(rows), D_in).
    """
    columns, padding = tensor.columns, as_slice(tensor.columns.padding)
    if index is not None and isinstance(span := as_slice(index), slice):
        weight, index = weight[span], None
    if tensor.row_padding is not Padding.REPEAT and len(tensor.rows.padding):
        weight = weight if index is None else weight[index]
        weight, index = pad_rows(weight, tensor.rows, rows, tensor.row_padding, mean), None
    grown = torch.empty(len(rows), columns.new, dtype=weight.dtype) if out is None else out
    numbers = tensor.rows.number[rows.start : rows.stop]
    split = (
        fast
        and not tensor.exact_repeat
        and compiled.split_columns(
            weight, grown, columns, numbers, recipe, name=name, first_row=rows.start, index=index, power=power
        )
    )
    step = max(1, _TILE // columns.new)
    for start in range(0, len(rows), step):
        tile = slice(start, min(start + step, len(rows)))
        if tensor.needs_power:
            assert power is not None
            random = random_columns(columns, seed=recipe.seed, name=name, rows=rows[tile], power=power)
            grown[tile, padding] = random.to(grown.dtype)
            if split:
                continue
        elif split and not len(columns.padding):
            break
        block = weight[tile] if index is None else weight[index[tile]]
        if len(columns.padding) and not tensor.needs_power:
            grown[tile, padding] = padding_columns(block, columns, tensor.column_padding, name=name)
        if tensor.exact_repeat:
            for _, units, positions in columns.spans:
                for position in positions:
                    grown[tile, position] = block[:, units]
        elif not split:
            _split_columns(block, grown[tile], columns, numbers[tile], recipe, name, rows[tile], power)
    return grown


def _split_columns(
    weight: Tensor,
    grown: Tensor,
    columns: CopyMap,
    numbers: Tensor,
    recipe: Recipe,
    name: str,
    rows: range,
    power: float | None,
) -> None:
    """Fill `grown` (R, D) with the shares of `weight` (R, d); `numbers` (R,) is which output copy each row is."""
    raw = None if recipe.noise is Noise.NONE else noise.draws(recipe.seed, name, rows=rows, columns=columns.new)
    for c, units, positions in columns.spans:
        for chosen, first in _rows_by_own_copy(numbers, c, recipe.expansion):
            block = weight[chosen][:, units]
            order = [(first + k) % c for k in range(c)]  # own copy first, so that the remainder is a small part
            where = [positions[b] for b in order]
            draws = None if raw is None else [raw[chosen][:, w] for w in where]
            for position, part in zip(where, _shares(block, c, recipe, draws, power), strict=True):
                if isinstance(chosen, Tensor) and isinstance(position, Tensor):
                    grown[chosen[:, None], position] = part  # two index tensors side by side would be paired
                else:
                    grown[chosen, position] = part


def _rows_by_own_copy(numbers: Tensor, c: int, expansion: Expansion) -> Iterator[tuple[slice | Tensor, int]]:
    """Rows grouped by the input copy that holds their weight in the diagonal expansion."""
    copies = [0] if expansion is Expansion.SYMMETRIC else sorted(set((numbers % c).tolist()))
    if copies == [0]:
        yield slice(None), 0
    elif len(copies) == 1:
        yield slice(None), copies[0]
    else:
        for first in copies:
            yield (numbers % c == first).nonzero().flatten(), first


def _zero_sum(raw: list[Tensor], recipe: Recipe, scale: float) -> Iterator[Tensor]:
    """Noise for each copy, summing to zero over the copies; `scale` is Shares.scale.

    Uniform noise for the exact split: it is bounded, so at the usual levels no share has to be clipped. Normal for the
    paper's noise, in fp64 so that c times a value minus the sum is exact: whatever is lost there would be missing from
    the sum to zero.
    """
    if recipe.noise is Noise.GAUSSIAN:
        values = [noise.normal(r).double() for r in raw]
    else:
        values = [r.to(torch.float32) for r in raw]
    total = sum(values[1:], start=values[0])
    return (value.mul_(len(raw)).sub_(total).mul_(scale) for value in values)


def _shares(block: Tensor, c: int, recipe: Recipe, raw: list[Tensor] | None, power: float | None) -> list[Tensor]:
    """The c shares of a block, the row's own copy first; they sum to the block. `raw`: draws for each copy."""
    if c == 1:
        return [block]
    shares = Shares.of(c, recipe)
    base = shares.without_noise
    if raw is None:
        symmetric = recipe.expansion is Expansion.SYMMETRIC
        return exact_split.split_evenly(block, c) if symmetric else [block] + [block * 0] * (c - 1)
    work = exact_split.arithmetic_type(block.dtype)
    noises = _zero_sum(raw, recipe, shares.scale(recipe.noise, power))
    if recipe.noise is Noise.SPLIT:
        # The last share is what the others leave, so its noise is not needed.
        noisy = [z.to(work).add_(b) for z, b in zip(islice(noises, c - 1), base, strict=False)]
        return exact_split.split_by_shares(block, noisy, within=shares.within)
    whole = block.to(work)
    return [(whole * b + z.to(work)).to(block.dtype) for z, b in zip(noises, base, strict=True)]


def collapse_rows(grown: Tensor, columns: CopyMap) -> Tensor:
    """(R, D_in) -> (R, d_in): join the shares of every input unit.

    Returned one type wider than stored (fp32, or fp64 for fp32 and fp64): exact there for an exact split.
    """
    collapsed: Tensor | None = None
    step = max(1, _TILE // columns.new)
    for start in range(0, grown.shape[0], step):
        tile = slice(start, start + step)
        for _, units, positions in columns.spans:
            total = exact_split.join_wide([grown[tile, position] for position in positions])
            if collapsed is None:
                collapsed = torch.empty(grown.shape[0], columns.old, dtype=total.dtype)
            collapsed[tile, units] = total
    assert collapsed is not None
    return collapsed


def rounding_bound(grown: Tensor, columns: CopyMap) -> Tensor:
    """(R, d_in) the largest difference from the source that rounding may leave in shares with Gaussian noise.

    Let G_b = C_b W + e_b be the c shares as stored, S the sum of |G_b|, and let them be computed in a type of
    precision 2^-q and stored in one of 2^-p. Storing moves each by at most 2^-p |G_b| (or half the smallest
    subnormal). Computing rounds C_b, e_b, their products and the sum: 2^-q (2 |e_b| + 2 C_b |W| + |G_b|), which over
    the copies is at most 2^-q 7 S, because |e_b| <= |G_b| + C_b |W| and |W| <= S. Adding c shares up again rounds by
    at most 2^-q c S. Hence S (2^-p + (7 + c) 2^-q), with a margin of a half.
    """
    dtype = grown.dtype
    work = exact_split.arithmetic_type(dtype)
    stored, computed = 2.0 ** -exact_split.precision(dtype), 2.0 ** -exact_split.precision(work)
    bound = torch.empty(grown.shape[0], columns.old, dtype=work)
    for c, units, positions in columns.spans:
        total = torch.stack([grown[:, position].to(work).abs() for position in positions]).sum(0)  # (R, J)
        smallest = torch.finfo(dtype).smallest_normal * 2 * stored
        bound[:, units] = 1.5 * (total * (stored + (7 + c) * computed) + c * smallest)
    return bound


def mean_square(weight: Tensor) -> float:
    """Mean of the squared weights, in fp64, the same for any number of threads."""
    squares = weight.double().square().flatten()
    whole = squares.numel() // _RUN * _RUN
    # Torch cuts one long sum among its threads but never a row of many, and fsum rounds only once.
    return math.fsum([*squares[:whole].view(-1, _RUN).sum(1).tolist(), *squares[whole:].tolist()]) / squares.numel()
