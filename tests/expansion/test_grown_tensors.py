"""One tensor of a plan at a time: its source's rows, their mean and power, and what is refused about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperclone import Growth
from hyperclone.architectures import layout
from hyperclone.errors import CheckpointError
from hyperclone.expansion import grown_tensors, noise, query_rows, routers
from hyperclone.expansion.expand import TensorMap, expand, tensor_map
from hyperclone.expansion.padding import Padding
from hyperclone.io import streaming
from hyperclone.io.buffers import Buffers
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning import planner
from hyperclone.planning.plan import TensorPlan
from tests.helpers.headers import headers
from tests.helpers.messages import Refusal, check_refusal

NAMES = {getattr(torch, name): stored for stored, (name, _) in DTYPES.items()}


@dataclass
class Stored:
    """Tensors by name, as a source of weights."""

    tensors: dict[str, Tensor]
    rows_read: list[int] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    family: Any = None
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> dict[str, Entry]:
        """Their headers."""
        return {
            name: Entry("a.safetensors", NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """Some rows."""
        rows = self.tensors[name][start:stop]
        self.rows_read.append(len(rows))
        return rows


def planned(weight: Tensor, line: str = "o <- i", *, name: str = "w", **fields: Any) -> TensorPlan:
    """The plan of a tensor that grows from `w`; it does not grow, unless the fields say otherwise."""
    shape = tuple(weight.shape)
    known = {"shape": shape, "dtype": NAMES[weight.dtype], "nbytes": weight.nbytes, **fields}
    return TensorPlan(name=name, source="w", layout=layout.parse(line), source_shape=shape, **known)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Different whole numbers, so that sums of them are exact."""
    return torch.arange(1.0, math.prod(shape) + 1).reshape(shape).to(dtype)


def with_value(value: float, *position: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A (5, 3) matrix, or a vector of 5, with one value at this position."""
    weight = numbers(*(5, 3)[: len(position)], dtype=dtype)
    weight[position] = value
    return weight


def grow(weight: Tensor, line: str = "o <- i", **fields: Any) -> list[Tensor]:
    """The slices of a tensor of which nothing grows but its number of slices: one for each row."""
    plan = planner.make_plan(headers("llama-multihead"), Growth(width=2, noise="none"))
    tensor = planned(weight, line.replace("o", "vocab").replace("i", "head_dim"), **fields)
    plan = replace(plan, sizes={"vocab": (5, 5), "head_dim": (weight.shape[-1],) * 2})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streaming, "SLICE_BYTES", 1)
        return list(grown_tensors.grown_slices(tensor, plan, Stored({"w": weight})))


def check_tie(head: Tensor, embedding: Tensor) -> None:
    """Compare a stored head with the embedding, a row at a time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streaming, "SLICE_BYTES", 1)
        grown_tensors.check_tie(Stored({"head": head, "embedding": embedding}), "head", "embedding")


REFUSALS: dict[str, Refusal] = {
    "NaN": Refusal(lambda: grow(with_value(math.nan, 3, 1)), CheckpointError, "a weight is not a finite number",
        {"file": "a.safetensors", "tensor": "w[3, 1]", "found": "nan", "expected": "a finite number",
         "cure": "the checkpoint is damaged or training diverged"}),
    "infinity": Refusal(lambda: grow(with_value(-math.inf, 0, 2)), CheckpointError, "a weight is not a finite number",
        {"file": "a.safetensors", "tensor": "w[0, 2]", "found": "-inf", "expected": "a finite number",
         "cure": "the checkpoint is damaged or training diverged"}),
    "NaN in a vector": Refusal(lambda: grow(with_value(math.nan, 4), "o"), CheckpointError,
        "a weight is not a finite number",
        {"file": "a.safetensors", "tensor": "w[4]", "found": "nan", "expected": "a finite number",
         "cure": "the checkpoint is damaged or training diverged"}),
    "NaN in a transposed matrix": Refusal(lambda: grow(with_value(math.nan, 3, 1), "o -> i"), CheckpointError,
        "a weight is not a finite number",
        {"file": "a.safetensors", "tensor": "w[3, 1]", "found": "nan", "expected": "a finite number",
         "cure": "the checkpoint is damaged or training diverged"}),
    "a number that fp16 does not hold": Refusal(lambda: grow(with_value(65520.0, 3, 1), dtype="F16"), CheckpointError,
        "a weight does not fit into F16",
        {"file": "a.safetensors", "tensor": "w[3, 1]", "found": "65520.0", "expected": "a finite number",
         "cure": "choose a --dtype with more range"}),
    "a number that fp16 does not hold after its factor": Refusal(
        lambda: grow(with_value(40000.0, 2, 2), dtype="F16", factor=2.0), CheckpointError,
        "a weight does not fit into F16",
        {"file": "a.safetensors", "tensor": "w[2, 2]", "found": "40000.0", "expected": "a finite number",
         "cure": "choose a --dtype with more range"}),
    "a head of other values": Refusal(lambda: check_tie(with_value(0.0, 4, 2), numbers(5, 3)), CheckpointError,
        "the config ties the head to the embedding, but both are stored and they differ",
        {"file": "config.json", "tensor": "head", "field": "tie_word_embeddings", "found": "true",
         "expected": "head equal to embedding",
         "cure": 'set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the '
         "file if not"}),
    "a head of another shape": Refusal(lambda: check_tie(numbers(3, 5), numbers(5, 3)), CheckpointError,
        "the config ties the head to the embedding, but both are stored and they differ",
        {"file": "config.json", "tensor": "head", "field": "tie_word_embeddings", "found": "true",
         "expected": "head equal to embedding",
         "cure": 'set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the '
         "file if not"}),
    "a head of another type": Refusal(lambda: check_tie(numbers(5, 3, dtype=torch.bfloat16), numbers(5, 3)),
        CheckpointError, "the config ties the head to the embedding, but both are stored and they differ",
        {"file": "config.json", "tensor": "head", "field": "tie_word_embeddings", "found": "true",
         "expected": "head equal to embedding",
         "cure": 'set "tie_word_embeddings": false if the head is a tensor of its own; remove it from the '
         "file if not"}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_with_place_reason_and_cure(refusal: Refusal) -> None:
    check_refusal(refusal)


def test_a_head_that_is_the_embedding_is_not_refused() -> None:
    check_tie(numbers(5, 3), numbers(5, 3))


@pytest.mark.parametrize("line", ["o <- i", "i -> o", "o i"])
@pytest.mark.parametrize("slice_bytes", [1, 40, 1 << 20])
def test_padding_channels_get_the_mean_of_all_rows_however_they_are_read(
    line: str, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
    sizes = {"o": (5, 12), "i": (3, 3)}
    weight = numbers(*(old for old, _ in (sizes[axis] for axis in line.replace("<-", "").replace("->", "").split())))
    tensor = planned(weight, line, factor=2.0)
    grown = tensor_map(tensor.layout, sizes, {"o": Padding.MEAN})
    source = Stored({"w": weight})
    mean = grown_tensors.mean_row(tensor, source, grown)
    assert max(source.rows_read) == (3 if "->" in line else {1: 1, 40: 3, 1 << 20: 5}[slice_bytes])
    rows = weight.T.tolist() if "->" in line else weight.tolist()
    assert mean.dtype == torch.float64
    assert mean.tolist() == [2 * sum(row[i] for row in rows) / 5 for i in range(3)]


@pytest.mark.parametrize("slice_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("shape", [(5, 3), (5,)])
def test_the_bound_of_gaussian_noise_is_six_deviations_whatever_the_slices(
    shape: tuple[int, ...], slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
    plan = planner.make_plan(headers("llama-multihead"), Growth(width=2, noise="gaussian", snr_db=20))
    weight = numbers(*shape)
    squares = [float(value) ** 2 for value in weight.flatten()]
    deviation = (sum(squares) / len(squares) / 100) ** 0.5  # 20 dB: a hundredth of the power
    tensor = planned(weight, "o <- i" if len(shape) == 2 else "o")
    assert grown_tensors.loudest_noise(tensor, plan, Stored({"w": weight})) == pytest.approx(6 * deviation, rel=1e-15)


def test_a_copied_output_projection_is_zeros_of_its_type_in_slices() -> None:
    pieces = grow(numbers(5, 3), zero=True, dtype="BF16", nbytes=30)
    assert [piece.shape for piece in pieces] == [(1, 3)] * 5
    assert torch.cat(pieces).dtype == torch.bfloat16
    assert not torch.cat(pieces).any()


def test_rows_are_multiplied_and_converted_in_fp64_and_gains_keep_what_they_lack() -> None:
    weight = numbers(5, 3)
    source = Stored({"w": weight})
    third = grown_tensors.source_rows(planned(weight, factor=1 / 3), source, 1, 3)
    assert third.dtype == torch.float32
    assert third.tolist() == (weight[1:3].double() / 3).float().tolist()
    assert grown_tensors.source_rows(planned(weight, dtype="BF16"), source).dtype == torch.bfloat16
    gain = planned(numbers(5), "norm(o)", factor=3.0, offset=1.0)
    gains = grown_tensors.source_rows(gain, Stored({"w": numbers(5)}))
    assert gains.dtype == torch.float64
    assert gains.tolist() == [6.0, 9.0, 12.0, 15.0, 18.0]
    assert grown_tensors.without_offset(gain, gains).tolist() == [5.0, 8.0, 11.0, 14.0, 17.0]
    assert grown_tensors.without_offset(gain, gains).dtype == torch.float32


SIZES = {"heads": (2, 4), "head_dim": (3, 5), "h": (4, 7), "f": (3, 6), "v": (5, 5)}
QUERIES = "(query(heads head_dim) + 2 heads head_dim) <- h"
# The line, its name, and whether queries are among its rows; h has padding channels, and uneven head_dim.
GROWN = [
    ("f <- h", "w", False), ("h <- f", "w", False), ("h -> f", "w", False), ("f -> h", "w", False), ("v h", "w", False),
    ("h", "w.bias", False), ("norm(h)", "w", False), ("norm(h)", "w.bias", False), ("<- h", "w", False),
    ("(heads head_dim) <- f", "w", False), (QUERIES, "w", True),
    ("h -> (query(heads head_dim) + 2 heads head_dim)", "w", True),
    ("(query(heads head_dim) + 2 heads head_dim)", "w.bias", True),
]  # fmt: skip


def rescaled(weight: Tensor, line: str) -> Tensor:
    """Queries times sqrt(5 / 3) / c, where unit j of a head has c_j = 2, 2, 1 copies; the other rows as they are."""
    root = (5 / 3) ** 0.5
    factors = torch.tensor([root / 2, root / 2, root] * 2 + [1.0] * 12, dtype=torch.float64)
    scaled = weight.double() * (factors if "->" in line or weight.dim() == 1 else factors[:, None])
    return scaled.to(weight.dtype)


@pytest.mark.parametrize("recipe", [{"noise": "none"}, {}, {"noise": "gaussian", "expansion": "diagonal"}], ids=str)
@pytest.mark.parametrize("padding", ["zero", "mean"])
@pytest.mark.parametrize(("line", "name", "queries"), GROWN, ids=str)
def test_slices_are_the_tensor_that_is_grown_whole(
    line: str,
    name: str,
    queries: bool,
    padding: str,
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(
        planner.make_plan(headers("llama-multihead"), Growth(width=2, **recipe)),
        sizes=SIZES, padding={"h": padding},
    )  # fmt: skip
    parsed = layout.parse(line)
    old, new = ({axis: pair[i] for axis, pair in SIZES.items()} for i in (0, 1))
    weight = torch.randn(parsed.shape(old), generator=torch.Generator().manual_seed(0))
    shape = parsed.shape(new)
    tensor = planned(
        weight, line, name=name, shape=shape, nbytes=4 * math.prod(shape), queries=SIZES if queries else None
    )
    known = tensor_map(parsed, SIZES, {"h": Padding(padding)}, shift=name.endswith("bias"), order=plan.growth.order)
    expected = expand(rescaled(weight, line) if queries else weight, known, plan.growth.recipe, name=name)
    for slice_bytes in (1, 100, 1 << 20):
        monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
        source = Stored({"w": weight})
        pieces = list(grown_tensors.grown_slices(tensor, plan, source))
        torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-9)
        if len(shape) == 2 and "->" not in line and slice_bytes == 1:
            assert len(pieces) == shape[0]
            assert max(source.rows_read) == 1


def rows_map(b: tuple[int, int]) -> TensorMap:
    """The map of a matrix with two outer units, in each of which units grow by themselves."""
    return tensor_map(layout.parse("(a b) <- c"), {"a": (2, 2), "b": b, "c": (3, 3)})


def gathered(tensor: TensorPlan, source: Stored, grown: TensorMap, rows: range) -> Tensor:
    block, index = grown_tensors.rows_and_index(tensor, source, grown, rows)
    return block[index]


def test_rows_are_gathered_for_new_ones_that_lie_anywhere_and_only_those_are_read() -> None:
    interleaved, weight = rows_map((2, 4)), numbers(4, 3)  # 0 1 0 1 2 3 2 3
    for rows in (range(0, 2), range(1, 4), range(3, 6), range(5, 6), range(4, 8)):
        source = Stored({"w": weight})
        found = gathered(planned(weight), source, interleaved, rows)
        needed = interleaved.rows.source[rows.start : rows.stop].tolist()
        assert found.equal(weight[needed])
        assert source.rows_read == [max(needed) - min(needed) + 1]
    for b, rows, expected in (((2, 3), range(2, 4), [0, 2]), ((1, 3), range(1, 3), [0, 0])):  # 0 1 0 2 3 2; 0 0 0 1 1 1
        few = numbers(2 * b[0], 3)
        assert gathered(planned(few), Stored({"w": few}), rows_map(b), rows).equal(few[expected])


def test_a_proof_may_read_what_a_growth_refuses() -> None:
    broken = with_value(math.nan, 3, 1)
    grown = tensor_map(layout.parse("a <- b"), {"a": (5, 5), "b": (3, 3)})
    rows = gathered(planned(broken), Stored({"w": broken}), grown, range(5))
    assert rows.isnan().sum() == 1


def test_routers_are_random_numbers_of_the_seed_their_name_and_their_row_beside_the_sources_tensors() -> None:
    plans = [
        planner.make_plan(headers("llama-multihead"), Growth(experts=4, seed=seed, width=width))
        for seed, width in ((0, None), (0, 2), (1, None))
    ]
    weight = numbers(5, 3)
    first, wider, other = (routers.with_random_routers(Stored({"w": weight}), plan) for plan in plans)
    assert first.read("w", 1, 3).equal(weight[1:3])
    assert first.entries["w"] == Stored({"w": weight}).entries["w"]
    (one, two) = names = sorted(first.entries.keys() - {"w"})
    assert first.entries[one] == Entry("(random)", "F32", (4, 32), 0, 512)
    values = first.read(one)
    assert (values.shape, values.dtype) == ((4, 32), torch.float32)
    assert float(values.std()) == pytest.approx(0.02, rel=0.2)
    assert first.read(one, 1, 3).equal(values[1:3])
    assert first.read(one, 2).equal(values[2:])
    assert wider.read(one).equal(values)
    assert not first.read(two).equal(values)
    assert not other.read(one).equal(values)
    noise_of_its_split = noise.normal(noise.draws(0, one, rows=range(4), columns=32))
    assert abs(float(torch.corrcoef(torch.stack([noise_of_its_split.flatten(), values.flatten()]))[0, 1])) < 0.3
    source = Stored({"w": weight})
    assert routers.with_random_routers(source, planner.make_plan(headers("llama-multihead"), Growth(width=2))) is source
    assert len(names) == 2


def test_factors_of_queries_are_fp64_and_reach_into_parts() -> None:
    dim = layout.parse("(heads (query((head_dim)) + 1) + v)").dims[0]
    root = (5 / 3) ** 0.5
    factors = query_rows.row_factors(dim, SIZES)
    assert factors.dtype == torch.float64
    assert factors.tolist() == pytest.approx([root / 2, root / 2, root, 1] * 2 + [1] * 5, rel=1e-15)
    assert query_rows.row_factors(layout.parse("v").dims[0], SIZES).dtype == torch.float64
    nested = layout.parse("query(heads (head_dim + 1))").dims[0]
    assert query_rows.row_factors(nested, SIZES).tolist() == pytest.approx([root / 2, root / 2, root, 1] * 2, rel=1e-15)
