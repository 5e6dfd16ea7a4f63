"""Growing a tensor against the block formulas, against loops over units, and against real arithmetic."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperclone.architectures.layout import parse
from hyperclone.expansion import expand as module
from hyperclone.expansion.copy_map import as_slice
from hyperclone.expansion.expand import (
    TensorMap,
    collapse_rows,
    expand,
    expand_rows,
    mean_square,
    rounding_bound,
    tensor_map,
)
from hyperclone.expansion.padding import Padding
from hyperclone.planning.recipe import Expansion, Noise, Recipe
from tests.helpers.examples import examples

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
EXPANSIONS = tuple(Expansion)
EXACT = (Noise.SPLIT, Noise.NONE)
Sizes = dict[str, tuple[int, int]]
Dim = tuple[tuple[str | int, ...], ...]

# A layout line with its output and input dimensions spelled out, so that the references need no parser.
HIDDEN: Dim = (("hidden",),)
LAYERS: list[tuple[str, Dim | None, Dim]] = [
    ("ffn <- hidden", (("ffn",),), HIDDEN),
    ("hidden <- ffn", HIDDEN, (("ffn",),)),
    ("vocab <- hidden", (("vocab",),), HIDDEN),
    ("(heads 3 head_dim) <- hidden", (("heads", 3, "head_dim"),), HIDDEN),
    ("(kv_heads group head_dim) <- hidden", (("kv_heads", "group", "head_dim"),), HIDDEN),
    ("hidden <- (kv_heads group head_dim)", HIDDEN, (("kv_heads", "group", "head_dim"),)),
    ("(heads head_dim + 2 ffn) <- hidden", (("heads", "head_dim"), (2, "ffn")), HIDDEN),
    ("hidden <- (ffn + heads head_dim)", HIDDEN, (("ffn",), ("heads", "head_dim"))),
    ("hidden -> (3 heads head_dim)", ((3, "heads", "head_dim"),), HIDDEN),
    ("(heads head_dim) -> hidden", HIDDEN, (("heads", "head_dim"),)),
    ("<- hidden", None, HIDDEN),
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.dtype])


def sources(dim: Dim | None, sizes: Sizes) -> list[int]:
    """The old unit of every new unit, one unit at a time; no dimension is a single unit."""
    found, offset = [], 0
    for block in dim or ((1,),):
        pairs = [(atom, atom) if isinstance(atom, int) else sizes[atom] for atom in block]
        for index in itertools.product(*(range(new) for _, new in pairs)):
            flat = 0
            for i, (old, _) in zip(index, pairs, strict=True):
                flat = flat * old + i % old
            found.append(offset + flat)
        offset += math.prod(old for old, _ in pairs)
    return found


def integers(*shape: int, dtype: torch.dtype, seed: int = 0, below: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-below, below + 1, shape, generator=generator).to(dtype)


def gaussian_weights(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.02).to(dtype)


def linear(d_out: int, d_in: int, grow_out: int, grow_in: int, line: str = "o <- i") -> TensorMap:
    return tensor_map(parse(line), {"o": (d_out, d_out * grow_out), "i": (d_in, d_in * grow_in)})


def blocks(grown: Tensor, d_out: int, d_in: int) -> Tensor:
    """(D_out, D_in) -> (a, b, d_out, d_in): block of output copy a and input copy b, in fp64."""
    return grown.double().view(grown.shape[0] // d_out, d_out, grown.shape[1] // d_in, d_in).transpose(1, 2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Dim | None, Dim, Sizes]:
    line, out, into = draw(st.sampled_from(LAYERS))
    sizes = {}
    for name in ("hidden", "ffn", "heads", "head_dim", "kv_heads", "group", "vocab"):
        old = draw(st.integers(1, 4))
        new = old * draw(st.integers(1, 5)) if draw(st.booleans()) else old + draw(st.integers(0, 2 * old))
        sizes[name] = (old, new if name != "head_dim" else old)
    return line, out, into, sizes


@examples(400)
@given(
    cases(),
    st.sampled_from(EXPANSIONS),
    st.sampled_from(EXACT),
    st.sampled_from(TYPES[:3]),
    st.floats(-10, 40),
    st.data(),
)
def test_a_grown_layer_maps_stacked_inputs_to_stacked_outputs(
    case: tuple[str, Dim | None, Dim, Sizes],
    expansion: Expansion,
    noise: Noise,
    dtype: torch.dtype,
    snr_db: float,
    data: st.DataObject,
) -> None:
    line, out, into, sizes = case
    rows, columns = sources(out, sizes), sources(into, sizes)
    seed = data.draw(st.integers(0, 1000))
    weight = integers(max(rows) + 1, max(columns) + 1, dtype=dtype, seed=seed)
    stored = weight[0] if out is None else weight.T.contiguous() if "->" in line else weight
    recipe = Recipe(expansion=expansion, noise=noise, snr_db=snr_db, seed=seed)
    grown = expand(stored, tensor_map(parse(line), sizes), recipe, name=line)
    assert grown.dtype == dtype
    assert grown.is_contiguous()
    grown = grown[None] if out is None else grown.T if "->" in line else grown
    assert grown.shape == (len(rows), len(columns))
    # Shares are short integers times one unit and inputs are small: fp64 sums them without rounding.
    x = integers(weight.shape[1], 3, dtype=torch.float64, seed=seed + 1)
    y = weight.double() @ x
    assert torch.equal(grown.double() @ x[columns], y[rows])


@examples(60)
@given(cases(), st.sampled_from(EXPANSIONS), st.sampled_from(tuple(Noise)), st.integers(0, 1000))
def test_a_grown_fp64_layer_keeps_the_function_to_rounding(
    case: tuple[str, Dim | None, Dim, Sizes], expansion: Expansion, noise: Noise, seed: int
) -> None:
    line, out, into, sizes = case
    rows, columns = sources(out, sizes), sources(into, sizes)
    weight = gaussian_weights(max(rows) + 1, max(columns) + 1, dtype=torch.float64, seed=seed)
    stored = weight[0] if out is None else weight.T.contiguous() if "->" in line else weight
    grown = expand(
        stored, tensor_map(parse(line), sizes), Recipe(expansion=expansion, noise=noise, seed=seed), name="w"
    )
    grown = grown[None] if out is None else grown.T if "->" in line else grown
    x = torch.randn(weight.shape[1], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(grown @ x[columns], (weight @ x)[rows], rtol=0, atol=1e-13)


@examples(60)
@given(cases(), st.sampled_from(tuple(Noise)), st.sampled_from(TYPES))
def test_outputs_only_repeat(case: tuple[str, Dim | None, Dim, Sizes], noise: Noise, dtype: torch.dtype) -> None:
    """Embeddings, biases and norms; and any layer whose inputs do not grow."""
    line, out, into, sizes = case
    recipe = Recipe(noise=noise)
    rows, columns = sources(out, sizes), sources(into, sizes)
    bias = gaussian_weights(max(columns) + 1, dtype=dtype)
    words = line.replace("<-", "").replace("->", "").split("  ")
    reads = line.split("<-")[1].strip() if "<-" in line else line.split("->")[0].strip()
    vector = tensor_map(parse(reads), sizes)
    assert vector.exact_repeat
    assert torch.equal(bits(expand(bias, vector, recipe, name="bias")), bits(bias[columns]))
    if out is not None and "<-" in line:
        weight = gaussian_weights(max(rows) + 1, max(columns) + 1, dtype=dtype)
        embedding = tensor_map(parse(" ".join(words)), sizes)
        grown = expand(weight, embedding, recipe, name="embedding")
        assert torch.equal(bits(grown), bits(weight[rows][:, columns]))
        same = {name: (old, old if name in reads else new) for name, (old, new) in sizes.items()}
        grown = expand(weight, tensor_map(parse(line), same), recipe, name="w")
        assert torch.equal(bits(grown), bits(weight[sources(out, same)]))


@pytest.mark.parametrize("line", ["o <- i", "i -> o"])
@pytest.mark.parametrize("grow_out", [1, 2, 3])
@pytest.mark.parametrize("grow_in", [2, 3, 5])
def test_a_noise_free_block_is_its_coefficient_times_the_source(line: str, grow_out: int, grow_in: int) -> None:
    weight = integers(4, 6, dtype=torch.float64) * grow_in  # so that thirds and fifths are whole
    stored = weight.T.contiguous() if "->" in line else weight
    for expansion in EXPANSIONS:
        grown = expand(
            stored,
            linear(4, 6, grow_out, grow_in, line),
            Recipe(expansion=expansion, noise=Noise.NONE),
            name="w",
        )
        found = blocks(grown.T if "->" in line else grown, 4, 6)
        for a in range(grow_out):
            for b in range(grow_in):
                c = 1 / grow_in if expansion is Expansion.SYMMETRIC else float(b == a % grow_in)
                assert torch.equal(found[a, b], weight * c)


@pytest.mark.parametrize("old", [2, 3])
@pytest.mark.parametrize("noise", list(Noise))
def test_rows_and_columns_may_both_be_scattered(old: int, noise: Noise) -> None:
    """Copies inside each outer unit (one KV head, more query heads) and rows of several output copies at once."""
    line, sizes = "hidden <- (heads group)", {"hidden": (old, 3 * old), "heads": (old, old), "group": (1, 2)}
    weight = gaussian_weights(old, old, dtype=torch.float64)
    recipe = Recipe(expansion=Expansion.DIAGONAL, noise=noise)
    grown = expand(weight, tensor_map(parse(line), sizes), recipe, name="w").view(3, old, old, 2)
    assert torch.allclose(grown.sum(-1), weight.expand(3, old, old), rtol=0, atol=1e-16)
    if noise is Noise.NONE:
        for a in range(3):
            assert torch.equal(grown[a, :, :, a % 2], weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("noise", [Noise.SPLIT, Noise.GAUSSIAN])
def test_the_four_two_fold_layers_are_those_of_the_paper(dtype: torch.dtype, noise: Noise) -> None:
    d_out, d_in = 24, 40
    weight = gaussian_weights(d_out, d_in, dtype=dtype) * 64
    weight = torch.where(weight.abs() < 2**-10, weight.sign() * 2**-10, weight)  # halves of subnormals are no numbers
    two, wide = linear(d_out, d_in, 2, 2), weight.double()
    close = 0.0 if noise is Noise.SPLIT else float(torch.finfo(dtype).eps) * wide.abs().max().item()

    symmetric = blocks(expand(weight, two, Recipe(noise=Noise.NONE), name="w"), d_out, d_in)
    for block in symmetric.flatten(0, 1):
        assert torch.equal(block, wide / 2)  # [[W/2, W/2], [W/2, W/2]]

    recipe = Recipe(expansion=Expansion.DIAGONAL, noise=Noise.NONE)
    diagonal = blocks(expand(weight, two, recipe, name="w"), d_out, d_in)
    assert torch.equal(diagonal[0, 0], wide)  # [[W, 0], [0, W]]
    assert torch.equal(diagonal[1, 1], wide)
    assert not diagonal[0, 1].any()
    assert not diagonal[1, 0].any()

    noisy = blocks(expand(weight, two, Recipe(noise=noise), name="w"), d_out, d_in)
    e1, e2 = noisy[0, 0] - wide / 2, noisy[1, 0] - wide / 2
    assert torch.allclose(noisy[0, 1], wide / 2 - e1, rtol=0, atol=close)  # [[W/2 + e1, W/2 - e1],
    assert torch.allclose(noisy[1, 1], wide / 2 - e2, rtol=0, atol=close)  #  [W/2 + e2, W/2 - e2]]
    check_different(e1, e2)

    noisy = blocks(expand(weight, two, Recipe(expansion=Expansion.DIAGONAL, noise=noise), name="w"), d_out, d_in)
    e1, e2 = noisy[0, 0] - wide, noisy[1, 0]
    assert torch.allclose(noisy[0, 1], -e1, rtol=0, atol=close)  # [[W + e1, -e1],
    assert torch.allclose(noisy[1, 1], wide - e2, rtol=0, atol=close)  #  [e2, W - e2]]
    check_different(e1, e2)


def check_different(e1: Tensor, e2: Tensor) -> None:
    """Noise of two output copies is independent."""
    assert (e1 == e2).double().mean() < 0.05
    correlation = (e1 * e2).mean() / (e1.square().mean() * e2.square().mean()).sqrt()
    assert correlation.abs() < 5 / math.sqrt(e1.numel())


@pytest.mark.parametrize("dtype", TYPES)
@examples(40)
@given(
    st.sampled_from(EXPANSIONS),
    st.sampled_from(EXACT),
    st.integers(1, 6),
    st.integers(0, 20),
    st.floats(-40, 80),
    st.integers(0, 2**32 - 1),
)
def test_collapse_undoes_expand_bit_for_bit(
    dtype: torch.dtype, expansion: Expansion, noise: Noise, old: int, more: int, snr_db: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.finfo(dtype).bits
    patterns = torch.randint(-(2 ** (size - 1)), 2 ** (size - 1) - 1, (10, old), generator=generator)
    weight = patterns.to(INTEGERS[dtype]).view(dtype)  # every exponent occurs, also the largest and the subnormals
    weight = torch.where(weight.isfinite(), weight, torch.tensor(-0.0, dtype=dtype))
    tensor = tensor_map(parse("o <- i"), {"o": (10, 23), "i": (old, old + more)})
    recipe = Recipe(expansion=expansion, noise=noise, snr_db=snr_db, seed=seed)
    grown = expand(weight, tensor, recipe, name="w")
    assert bool(grown.isfinite().all())
    collapsed = collapse_rows(grown, tensor.columns)
    assert collapsed.dtype == (torch.float32 if size == 16 else torch.float64)
    repeated = weight[[i % 10 for i in range(23)]]
    assert torch.equal(collapsed.double(), repeated.double())
    assert torch.equal(bits(collapsed.to(dtype)), bits(repeated))


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("grow", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_ordinary_weights_are_split_exactly_at_every_level(
    dtype: torch.dtype, grow: int, expansion: Expansion
) -> None:
    """Enough of them that the loudest draws of the noise occur together."""
    weight = gaussian_weights(300, 300, dtype=dtype, seed=1)
    tensor = linear(300, 300, 1, grow)
    for snr_db in (0.0, 3.0, 5.0, 7.0, 10.0, 20.0):
        grown = expand(weight, tensor, Recipe(expansion=expansion, snr_db=snr_db), name="w")
        assert torch.equal(collapse_rows(grown, tensor.columns).double(), weight.double()), snr_db


WIDTHS = st.sampled_from([1, 2, 3, 7, 50])


@pytest.mark.parametrize("dtype", TYPES)
@examples(40)
@given(WIDTHS, st.integers(2, 7), st.sampled_from(EXPANSIONS), st.floats(-40, 80), st.integers(0, 10**6))
def test_gaussian_shares_sum_to_the_source_within_the_rounding_bound(
    dtype: torch.dtype, d_in: int, grow: int, expansion: Expansion, snr_db: float, seed: int
) -> None:
    weight = gaussian_weights(300, d_in, dtype=dtype, seed=seed)
    weight[::3] *= 0.01  # rows far smaller than the noise
    weight[1::7] = 0
    tensor = linear(300, d_in, 2, grow)
    grown = expand(
        weight, tensor, Recipe(expansion=expansion, noise=Noise.GAUSSIAN, snr_db=snr_db, seed=seed), name="w"
    )
    gap = (collapse_rows(grown, tensor.columns).double() - weight.double().repeat(2, 1)).abs()
    assert bool((gap <= rounding_bound(grown, tensor.columns).double()).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_a_share_moved_by_a_few_units_is_beyond_the_rounding_bound(dtype: torch.dtype, expansion: Expansion) -> None:
    weight = gaussian_weights(200, 64, dtype=dtype)
    weight[:, 0] *= 100  # one large weight in a row must not hide errors of the others
    tensor = linear(200, 64, 1, 2)
    grown = expand(weight, tensor, Recipe(expansion=expansion, noise=Noise.GAUSSIAN), name="w")
    # Units of the larger share: a few where storing rules, a few more where computing rounds as much as storing.
    units = 24 if dtype in (torch.float32, torch.float64) else 4
    larger = torch.maximum(grown[:, :64].abs(), grown[:, 64:].abs())
    grown[:, 64:] += units * larger * torch.finfo(dtype).eps
    gap = (collapse_rows(grown, tensor.columns).double() - weight.double()).abs()
    seen = gap > rounding_bound(grown, tensor.columns).double()
    normal = larger > 8 * torch.finfo(dtype).smallest_normal  # some fp16 weights are subnormal, their units larger
    assert normal.double().mean() > 0.9
    assert bool(seen[normal].all())


@pytest.mark.parametrize(("dtype", "shares"), [(torch.bfloat16, 2), (torch.float32, 2), (torch.float64, 5)], ids=str)
def test_the_rounding_bound_holds_what_rounding_can_leave_and_little_more(dtype: torch.dtype, shares: int) -> None:
    """Of equal shares of 1, and of shares of 0, which leave half of the smallest number that the type can hold each."""
    columns = tensor_map(parse("o <- i"), {"o": (1, 1), "i": (1, shares)}).columns
    info, computed = torch.finfo(dtype), torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    largest = shares * (info.eps / 2 + (7 + shares) * computed)
    for value, least, most in (
        (1.0, largest, 1.6 * largest),
        (0.0, shares * info.smallest_normal * info.eps / 2, shares * info.smallest_normal * info.eps * 2),
    ):
        bound = rounding_bound(torch.full((1, shares), value, dtype=dtype), columns)
        assert bound.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert least <= bound.item() <= most


@pytest.mark.parametrize("db", [5, 10, 20])
@pytest.mark.parametrize("grow", [2, 3, 4])
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("noise", [Noise.SPLIT, Noise.GAUSSIAN])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_noise_has_the_level_asked_for(
    dtype: torch.dtype, noise: Noise, expansion: Expansion, grow: int, db: int
) -> None:
    d = 192
    weight = gaussian_weights(d, d, dtype=dtype)
    recipe = Recipe(expansion=expansion, noise=noise, snr_db=db)
    found = blocks(expand(weight, linear(d, d, grow, grow), recipe, name="w"), d, d)
    symmetric = expansion is Expansion.SYMMETRIC
    c = torch.full((grow, grow), 1 / grow) if symmetric else torch.eye(grow)
    clean = c[:, :, None, None].double() * weight.double()
    noise_in = (found - clean).square().sum((1, 2, 3))
    for a in range(grow):  # every output copy
        assert abs(10 * math.log10(clean[a].square().sum() / noise_in[a]) - db) < 0.5
    for b in range(grow):  # and every input copy has its share of it
        assert (found - clean)[:, b].square().sum() / noise_in.sum() == pytest.approx(1 / grow, rel=0.1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("noise", [Noise.SPLIT, Noise.GAUSSIAN])
@pytest.mark.parametrize("grow", [2, 3])
def test_no_two_copies_are_equal_under_noise(dtype: torch.dtype, expansion: Expansion, noise: Noise, grow: int) -> None:
    d = 64
    weight = gaussian_weights(d, d, dtype=dtype)
    found = blocks(expand(weight, linear(d, d, grow, grow), Recipe(expansion=expansion, noise=noise), name="w"), d, d)
    for a, b in itertools.combinations(range(grow), 2):
        for k in range(grow):
            assert (found[k, a] == found[k, b]).double().mean() < 0.03  # two input copies
            assert (found[a, k] == found[b, k]).double().mean() < 0.03  # two output copies
            turned = found[a, k] == found[b, (k + b - a) % grow]  # the equality that the diagonal expansion could keep
            assert turned.double().mean() < 0.03


def test_noise_depends_on_name_seed_and_level_and_nothing_else() -> None:
    weight, tensor = gaussian_weights(8, 8, dtype=torch.float32), linear(8, 8, 2, 2)
    for noise in (Noise.SPLIT, Noise.GAUSSIAN):
        recipe = Recipe(noise=noise)
        first = expand(weight, tensor, recipe, name="a")
        assert torch.equal(expand(weight.clone(), linear(8, 8, 2, 2), replace(recipe), name="a"), first)
        for other in (
            expand(weight, tensor, recipe, name="b"),
            expand(weight, tensor, replace(recipe, seed=1), name="a"),
            expand(weight, tensor, replace(recipe, snr_db=11), name="a"),
            expand(weight, tensor, replace(recipe, expansion=Expansion.DIAGONAL), name="a"),
        ):
            assert (other == first).double().mean() < 0.02


PINNED = {
    ("symmetric", "split"): "f7d7cb70fafa776f",
    ("symmetric", "gaussian"): "bd69ccea6d6ddcfb",
    ("symmetric", "none"): "65e0c56ddf1cedc3",
    ("diagonal", "split"): "f8a7f5cb84c66369",
    ("diagonal", "gaussian"): "ae08ebf6853a83b3",
    ("diagonal", "none"): "1a8894a4952e5899",
}


@pytest.mark.parametrize("way", PINNED)
def test_the_bytes_never_change(way: tuple[str, str]) -> None:
    # A change here changes every grown checkpoint: it must be a decision, not an accident.
    weight = ((torch.arange(24 * 20) * 37 % 101 - 50) / 64).view(24, 20).to(torch.bfloat16)
    tensor = tensor_map(parse("o <- i"), {"o": (24, 60), "i": (20, 50)})
    recipe = Recipe(expansion=Expansion(way[0]), noise=Noise(way[1]), seed=7)
    grown = expand(weight, tensor, recipe, name="model.layers.0.mlp.up_proj.weight")
    assert hashlib.sha256(bits(grown).numpy().astype("<i2").tobytes()).hexdigest()[:16] == PINNED[way]


PINNED_TYPES = {
    ("split", torch.float16): "5b352f6827d6ff33",
    ("split", torch.float32): "ac4bc4067ad5d025",
    ("split", torch.float64): "78817d4a729ec4b6",
    ("gaussian", torch.float16): "42585c59b610c8a2",
    ("gaussian", torch.float32): "77fb4d3b51eb0a73",
    ("gaussian", torch.float64): "a52ee4cd922fafa8",
}


@pytest.mark.parametrize(("noise", "dtype"), PINNED_TYPES, ids=str)
def test_the_bytes_never_change_in_any_type(noise: str, dtype: torch.dtype) -> None:
    weight = ((torch.arange(24 * 20, dtype=torch.float64) * 37 % 101 - 50) / 67).view(24, 20).to(dtype)
    tensor = tensor_map(parse("o <- i"), {"o": (24, 60), "i": (20, 50)})
    grown = expand(weight, tensor, Recipe(noise=Noise(noise), seed=7), name="model.layers.0.mlp.up_proj.weight")
    stored = bits(grown).numpy().astype(f"<i{dtype.itemsize}").tobytes()
    assert hashlib.sha256(stored).hexdigest()[:16] == PINNED_TYPES[noise, dtype]


def cuts_of(total: int, cuts: list[int]) -> Iterator[range]:
    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    for start, stop in itertools.pairwise(edges):
        yield range(start, stop)


@examples(60)
@given(
    st.sampled_from(EXPANSIONS),
    st.sampled_from(tuple(Noise)),
    st.sampled_from(TYPES),
    st.integers(0, 9),
    st.lists(st.integers(1, 30), max_size=4),
    st.sampled_from([1, 20, 64, 1 << 18]),
)
def test_the_bytes_do_not_depend_on_how_rows_are_cut(
    expansion: Expansion, noise: Noise, dtype: torch.dtype, more: int, cuts: list[int], tile: int
) -> None:
    weight = gaussian_weights(9, 5, dtype=dtype)
    tensor = tensor_map(parse("o <- i"), {"o": (9, 31), "i": (5, 5 + more)})
    recipe = Recipe(expansion=expansion, noise=noise)
    whole = expand(weight, tensor, recipe, name="w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)
        pieces = [
            expand_rows(weight[[i % 9 for i in rows]], tensor, recipe, name="w", rows=rows, power=mean_square(weight))
            for rows in cuts_of(31, cuts)
        ]
        assert torch.equal(bits(torch.cat(pieces)), bits(whole))
        small = collapse_rows(whole, tensor.columns)
    assert torch.equal(small, collapse_rows(whole, tensor.columns))


def test_a_matrix_larger_than_a_tile_is_grown_and_collapsed_whole() -> None:
    weight = gaussian_weights(600, 512, dtype=torch.bfloat16)
    tensor = linear(600, 512, 2, 2)
    grown = expand(weight, tensor, Recipe(), name="w")
    assert grown.numel() > 2 * module._TILE
    assert torch.equal(collapse_rows(grown, tensor.columns), weight.float().repeat(2, 1))
    alone = expand_rows(weight[:1], tensor, Recipe(), name="w", rows=range(600, 601))
    assert torch.equal(grown[600:601], alone)
    assert not torch.equal(grown[:1], alone)


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("noise", list(Noise))
@pytest.mark.parametrize("dtype", TYPES)
def test_a_matrix_stored_inputs_first_grows_like_its_transpose(
    expansion: Expansion, noise: Noise, dtype: torch.dtype
) -> None:
    sizes = {"hidden": (6, 18), "heads": (2, 5), "head_dim": (3, 3)}
    weight = gaussian_weights(18, 6, dtype=dtype)
    recipe = Recipe(expansion=expansion, noise=noise)
    rows_first = expand(weight, tensor_map(parse("(3 heads head_dim) <- hidden"), sizes), recipe, name="w")
    columns_first = tensor_map(parse("hidden -> (3 heads head_dim)"), sizes)
    assert torch.equal(bits(expand(weight.T.contiguous(), columns_first, recipe, name="w")), bits(rows_first.T))


def test_a_vector_that_reads_is_split_and_one_that_does_not_repeats() -> None:
    gain = gaussian_weights(16, dtype=torch.bfloat16) + 1
    sizes = {"hidden": (16, 48)}
    repeated = expand(gain, tensor_map(parse("norm(hidden)"), sizes), Recipe(), name="norm")
    assert torch.equal(repeated, gain.repeat(3))
    reader = tensor_map(parse("norm(hidden)").as_reader(), sizes)
    shares = expand(gain, reader, Recipe(), name="norm")
    assert shares.shape == (48,)
    assert torch.equal(shares.double().view(3, 16).sum(0), gain.double())
    assert not torch.equal(shares[:16], shares[16:32])


@pytest.mark.parametrize("noise", list(Noise))
def test_the_source_is_not_written_to(noise: Noise) -> None:
    for dtype in TYPES:
        weight = gaussian_weights(6, 6, dtype=dtype)
        before = weight.clone()
        for line in ("o <- i", "i -> o", "o i"):
            grown = expand(weight, linear(6, 6, 2, 2, line), Recipe(noise=noise), name="w")
            grown.zero_()
            assert torch.equal(weight, before)
        expand(weight, linear(6, 6, 1, 1), Recipe(noise=noise), name="w").zero_()
        assert torch.equal(weight, before)


def test_the_mean_square_does_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((300, 1537), (70000,), (3,), (2, 4096)):
            weight = gaussian_weights(*shape, dtype=torch.float32)
            found = set()
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                found.add(mean_square(weight))
            assert len(found) == 1
            reference = math.fsum(x * x for x in weight.flatten().tolist()) / weight.numel()
            assert found.pop() == pytest.approx(reference, rel=1e-14)
    finally:
        torch.set_num_threads(before)


def test_indices_at_equal_distances_are_a_slice_and_anything_else_is_not() -> None:
    assert as_slice(torch.tensor([3, 4, 5])) == slice(3, 6)
    assert as_slice(torch.tensor([7])) == slice(7, 8)
    assert as_slice(torch.tensor([3, 5, 7])) == slice(3, 8, 2)
    for index in ([3, 5, 6], [5, 4, 3], [0, 0], []):
        assert isinstance(as_slice(torch.tensor(index)), Tensor)


@pytest.mark.parametrize(("padding", "written"), [(Padding.ZERO, "zero"), (Padding.MEAN, "mean")])
def test_padding_channels_are_written_as_their_axis_asks_and_read_with_random_weights(
    padding: Padding, written: str
) -> None:
    sizes: Sizes = {"hidden": (4, 6), "ffn": (3, 6)}
    recipe = Recipe(noise=Noise.NONE)
    writer, reader = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    writes = tensor_map(parse("hidden <- ffn"), sizes, {"hidden": padding})
    grown = expand(writer, writes, recipe, name="w")
    assert writes.rows.padding.tolist() == [4, 5]
    expected = writer.mean(0) if written == "mean" else torch.zeros(3, dtype=torch.float64)
    summed = grown[:, :3] + grown[:, 3:]
    assert torch.allclose(summed[4:], expected.expand(2, 3), rtol=0, atol=1e-15)
    assert torch.equal(summed[:4], writer)
    reads = tensor_map(parse("ffn <- hidden"), sizes, {"hidden": padding})
    drawn = expand(reader, reads, recipe, name="r")[:, reads.columns.padding]
    assert drawn.isfinite().all()
    assert len(set(drawn.flatten().tolist())) == drawn.numel()
    assert 0.3 < float(drawn.square().mean() / reader.square().mean()) < 3
    for gain, shift in ((reader[0], False), (reader[1], True)):
        normed = tensor_map(parse("norm(hidden)"), sizes, {"hidden": padding}, shift=shift)
        norm = expand(gain, normed, recipe, name="n")
        assert torch.equal(norm[:4], gain)
        assert bool((norm[4:] == 0).all()) is shift
