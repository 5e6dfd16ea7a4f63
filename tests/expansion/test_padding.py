"""What padding channels hold in every kind of tensor, and that tiles, powers and means change nothing else."""

from __future__ import annotations

import pytest
import torch

from hyperclone.architectures.layout import parse
from hyperclone.expansion import expand as module
from hyperclone.expansion.copy_map import axis
from hyperclone.expansion.expand import TensorMap, expand, tensor_map
from hyperclone.expansion.padding import Padding, pad_rows, padding_columns, random_columns
from hyperclone.planning.recipe import Expansion, Noise, Recipe

SIZES = {"h": (4, 7), "f": (3, 6), "v": (5, 5)}
PLAIN = Recipe(noise=Noise.NONE)
ZERO, MEAN, REPEAT, RANDOM = Padding.ZERO, Padding.MEAN, Padding.REPEAT, Padding.RANDOM

# line, padding of the axis h, whether it is a norm's bias -> what padding rows and columns hold
HELD: list[tuple[str, Padding, bool, Padding, Padding]] = [
    ("f <- h", MEAN, False, ZERO, RANDOM),
    ("h <- f", MEAN, False, MEAN, RANDOM),
    ("h <- f", ZERO, False, ZERO, RANDOM),
    ("h <- f", MEAN, True, MEAN, RANDOM),
    ("h -> f", ZERO, False, ZERO, RANDOM),
    ("f -> h", MEAN, False, MEAN, RANDOM),
    ("v h", MEAN, False, ZERO, MEAN),
    ("v h", ZERO, False, ZERO, ZERO),
    ("h", MEAN, False, ZERO, MEAN),
    ("h", MEAN, True, ZERO, MEAN),
    ("f", MEAN, False, ZERO, ZERO),
    ("norm(h)", MEAN, False, ZERO, REPEAT),
    ("norm(h)", MEAN, True, ZERO, ZERO),
    ("<- h", MEAN, False, ZERO, REPEAT),
    ("<- h", MEAN, True, ZERO, ZERO),
]


@pytest.mark.parametrize(("line", "padding", "shift", "rows", "columns"), HELD, ids=str)
def test_each_dimension_has_the_padding_that_its_place_asks_for(
    line: str, padding: Padding, shift: bool, rows: Padding, columns: Padding
) -> None:
    found = tensor_map(parse(line), SIZES, {"h": padding}, shift=shift)
    assert (found.row_padding, found.column_padding) == (rows, columns)
    assert found.whole is ("->" in line or len(parse(line).dims) == 1)
    assert found.splits is ("<-" in line or "->" in line)
    if not shift:
        plain = tensor_map(parse(line), SIZES, {"h": padding})  # a gain, or no norm at all
        assert (plain.row_padding, plain.column_padding) == (rows, columns)
    assert found.needs_mean is (rows is MEAN)
    assert found.needs_power is (line in ("f <- h", "h -> f"))  # a matrix that reads the axis with padding


def test_without_padding_channels_neither_mean_nor_power_is_needed() -> None:
    whole = tensor_map(parse("h <- f"), {"h": (4, 8), "f": (3, 6)}, {"h": MEAN})
    assert not whole.needs_mean
    assert not whole.needs_power


def numbers(*shape: int) -> torch.Tensor:
    """Random weights in fp64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_padding_rows_and_columns_hold_zero_mean_or_what_a_gain_has() -> None:
    h, block = axis(4, 7, padded=True), numbers(7, 3)
    mean = torch.tensor([1.0, 2.0, 3.0])
    for padding, expected in ((ZERO, [[0.0] * 3] * 3), (MEAN, [[1.0, 2.0, 3.0]] * 3), (REPEAT, block[4:].tolist())):
        found = pad_rows(block, h, range(7), padding, mean)
        assert found.dtype == torch.float64
        assert found[:4].equal(block[:4])
        assert found[4:].tolist() == expected
        assert pad_rows(block[3:6], h, range(3, 6), padding, mean).equal(found[3:6])
        assert pad_rows(block[:4], h, range(4), padding, None).equal(block[:4])
        assert pad_rows(block.float(), h, range(7), padding, mean.double()).dtype == torch.float32
    with pytest.raises(AssertionError):
        pad_rows(block, h, range(7), RANDOM, mean)
    rows = numbers(2, 4)
    for padding, held in ((ZERO, [[0.0] * 3] * 2), (MEAN, [[float(row.mean())] * 3 for row in rows]),
                          (REPEAT, rows[:, :3].tolist())):  # fmt: skip
        columns = padding_columns(rows, h, padding, name="w")
        assert columns.dtype == torch.float64
        torch.testing.assert_close(columns, torch.tensor(held, dtype=torch.float64), rtol=1e-15, atol=0)
    assert padding_columns(rows.bfloat16(), h, MEAN, name="w").dtype == torch.bfloat16
    assert padding_columns(rows.bfloat16(), h, ZERO, name="w").dtype == torch.bfloat16
    with pytest.raises(AssertionError):
        padding_columns(rows, h, RANDOM, name="w")


def test_random_columns_depend_on_seed_name_and_row_and_have_the_power_asked_for() -> None:
    h = axis(40, 70, padded=True)
    found = random_columns(h, seed=1, name="w", rows=range(100), power=9.0)
    assert found.shape == (100, 30)
    assert float(found.square().mean()) == pytest.approx(9, rel=0.1)
    assert float(found.mean()) == pytest.approx(0, abs=0.2)
    assert random_columns(h, seed=1, name="w", rows=range(40, 60), power=9.0).equal(found[40:60])
    for seed, name in ((2, "w"), (1, "v")):
        assert not random_columns(h, seed=seed, name=name, rows=range(100), power=9.0).equal(found)
    assert len(set(found.flatten().tolist())) > 2900  # every weight has a draw of its own


READS = tensor_map(parse("f <- h"), SIZES, {"h": ZERO})
WRITES = tensor_map(parse("h <- f"), SIZES, {"h": MEAN})


def test_random_weights_and_means_are_those_of_the_whole_tensor_or_those_that_are_given() -> None:
    reader, writer = numbers(3, 4), numbers(4, 3)
    columns = READS.columns.padding
    once = expand(reader, READS, PLAIN, name="w")[:, columns]
    power = float(reader.square().mean())
    torch.testing.assert_close(expand(reader, READS, PLAIN, name="w", power=4 * power)[:, columns], 2 * once)
    for recipe, name in ((Recipe(noise=Noise.NONE, seed=1), "w"), (PLAIN, "v")):
        assert not expand(reader, READS, recipe, name=name)[:, columns].equal(once)
    own = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for mean, expected in ((None, writer.mean(0)), (own, own)):
        grown = expand(writer, WRITES, PLAIN, name="w", mean=mean)
        torch.testing.assert_close((grown[:, :3] + grown[:, 3:])[4:], expected.expand(3, 3), rtol=1e-15, atol=0)
    gaussian = Recipe(noise=Noise.GAUSSIAN, snr_db=20)
    wider = tensor_map(parse("f <- v"), {"f": (3, 3), "v": (5, 10)})
    weight = numbers(3, 5)
    power = float(weight.square().mean())
    one, two = (
        expand(weight, wider, gaussian, name="w", power=p) - weight.repeat(1, 2) / 2 for p in (power, 4 * power)
    )
    torch.testing.assert_close(two, 2 * one, rtol=1e-12, atol=1e-15)
    assert expand(weight, wider, gaussian, name="w").equal(expand(weight, wider, gaussian, name="w", power=power))


@pytest.mark.parametrize("tile", [1, 8, 20])
@pytest.mark.parametrize("recipe", [PLAIN, Recipe(), Recipe(expansion=Expansion.DIAGONAL),
                                    Recipe(noise=Noise.GAUSSIAN)], ids=str)  # fmt: skip
@pytest.mark.parametrize("grown", [READS, WRITES, tensor_map(parse("v h"), SIZES, {"h": MEAN})],
                         ids=["reads", "writes", "repeats"])  # fmt: skip
def test_tiles_change_nothing(grown: TensorMap, recipe: Recipe, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numbers(grown.rows.old, grown.columns.old).float()
    whole = expand(weight, grown, recipe, name="w")
    collapsed = module.collapse_rows(whole, grown.columns) if grown.splits else None
    monkeypatch.setattr(module, "_TILE", tile)
    assert expand(weight, grown, recipe, name="w").equal(whole)
    if collapsed is not None:
        assert module.collapse_rows(whole, grown.columns).equal(collapsed)
