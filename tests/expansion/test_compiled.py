"""The compiled kernels give the bytes of the reference, whatever is split, and the reference runs where they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.expansion import compiled
from hyperclone.expansion.copy_map import CopyMap, axis, concatenate, product
from hyperclone.expansion.expand import TensorMap, expand_rows
from hyperclone.planning.recipe import Expansion, Noise, Recipe

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
MAPS = {
    "2x": axis(96, 192),
    "3x": axis(50, 150),
    "5x": axis(20, 100),
    "uneven": axis(96, 200),
    "padded": axis(96, 220, padded=True),
    "heads": product([axis(3, 6), axis(32, 32)]),  # whole heads
    "head dim": product([axis(3, 3), axis(32, 64)]),  # copies inside heads
    "fused": concatenate([axis(64, 128), axis(32, 32)]),
    "long": axis(1300, 2600),
    "2x, side by side": axis(1300, 2600, order="interleaved"),
    "3x, side by side": axis(50, 150, order="interleaved"),
    "uneven, side by side": axis(96, 200, order="interleaved"),
    "padded, side by side": axis(96, 220, padded=True, order="interleaved"),
    "heads, side by side": product([axis(3, 6, order="interleaved"), axis(32, 32)]),
}


@contextmanager
def reference() -> Iterator[None]:
    """Without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "kernels", lambda: None)
        yield


def both_ways(weight: Tensor, rows: CopyMap, columns: CopyMap, recipe: Recipe, chosen: range) -> tuple[Tensor, Tensor]:
    tensor = TensorMap((rows, columns), 1, rows, columns, splits=True)
    block = weight[rows.source[chosen.start : chosen.stop]]

    def grown() -> Tensor:
        made = expand_rows(block, tensor, recipe, name="w", rows=chosen, power=0.5, fast=True)
        return made.view(BITS[weight.dtype])

    assert compiled.kernels() is not None
    fast = grown()
    with reference():
        return fast, grown()


def numbers(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Random numbers of many sizes, with zeros of both signs, subnormals and the largest ones among them."""
    generator, info = torch.Generator().manual_seed(0), torch.finfo(dtype)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight *= torch.randn(shape[0], 1, generator=generator, dtype=torch.float64).mul(3).exp()
    weight = weight.clamp(-info.max, info.max).to(dtype)
    weight[0, :8], weight[1, :8] = 0.0, -0.0
    weight[2, :8] = info.smallest_normal * torch.arange(8) / 8
    weight[3, :4] = info.smallest_normal * info.eps
    largest = 2.0**99 if dtype == torch.bfloat16 else info.max
    weight[4, :6] = torch.tensor(
        [largest, -largest, largest / 2, largest / 3, -largest / 5, info.smallest_normal], dtype=dtype
    )
    return weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", MAPS.values(), ids=MAPS)
def test_every_kind_of_split_has_the_bytes_of_the_reference(columns: CopyMap, dtype: torch.dtype) -> None:
    rows = axis(40, 80)
    weight = numbers((40, columns.old), dtype)
    for expansion in Expansion:
        for noise, levels in ((Noise.SPLIT, (0, 10, 30)), (Noise.GAUSSIAN, (5, 20)), (Noise.NONE, (10,))):
            for snr_db in levels:
                recipe = Recipe(expansion=expansion, noise=noise, snr_db=snr_db, seed=7)
                one, two = both_ways(weight, rows, columns, recipe, range(3, 77))
                assert one.equal(two), (expansion, noise, snr_db, (one != two).nonzero()[0].tolist())


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("noise", Noise)
def test_every_finite_bf16_number_is_split_alike(noise: Noise, copies: int) -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()]
    for weight in (every[every.abs() < 2.0**100], every):
        square = weight[: weight.numel() // 256 * 256].view(256, -1)
        for expansion in Expansion:
            recipe = Recipe(expansion=expansion, noise=noise, snr_db=10, seed=1)
            columns = axis(square.shape[1], copies * square.shape[1])
            one, two = both_ways(square, axis(256, 256), columns, recipe, range(256))
            assert one.equal(two)


def test_without_numba_the_reference_is_used() -> None:
    code = (
        "import sys; sys.modules['numba'] = None; from hyperclone.expansion import compiled;"
        "assert compiled.kernels() is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_they_cannot_be_kept_the_reference_is_used() -> None:
    """As in a container with a read-only installation and without a home."""
    code = """
import numba.core.caching as caching
def refused(self): raise OSError("read-only")
for place in caching.CacheImpl._locator_classes: place.ensure_cache_path = refused
from hyperclone.expansion import compiled
assert compiled.kernels() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_they_can_be_turned_off() -> None:
    code = "from hyperclone.expansion import compiled; assert compiled.kernels() is None"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HYPERCLONE_KERNELS": "off"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", MAPS.values(), ids=MAPS)
def test_a_growth_agrees_with_its_source_until_one_bit_is_changed(columns: CopyMap, dtype: torch.dtype) -> None:
    rows = axis(40, 80)
    weight = numbers((40, columns.old), dtype)
    for splits in (True, False):
        tensor = TensorMap((rows, columns), 1, rows, columns, splits=splits)
        grown = expand_rows(weight[rows.source], tensor, Recipe(snr_db=10, seed=7), name="w", rows=range(80))

        def agree(changed: Tensor, index: Tensor = rows.source, splits: bool = splits) -> bool:
            return compiled.agree(weight, changed, columns, index, splits=splits)

        known = not len(columns.padding) and not (splits and dtype == torch.float64)
        assert agree(grown) == known
        assert not agree(grown, rows.source.roll(1))
        generator = torch.Generator().manual_seed(0)
        for place in torch.randint(grown.numel(), (200,), generator=generator).tolist():
            bits = grown.clone().view(BITS[dtype])
            bits.view(-1)[place] ^= 1
            assert not agree(bits.view(dtype))
        zero = (weight == 0).nonzero()[0]
        bits = grown.clone().view(BITS[dtype])
        bits[:, columns.source == zero[1]] ^= torch.iinfo(BITS[dtype]).min  # -0.0 for 0.0, in every copy
        assert not agree(bits.view(dtype))
        assert not agree(grown.clone().fill_(torch.nan))
        infinite = weight.clone().fill_(torch.inf)
        assert not compiled.agree(infinite, grown.clone().fill_(torch.nan), columns, rows.source, splits=splits)


@pytest.mark.parametrize("model", ["llama-grouped-untied", "gpt2-tied", "mixtral", "opt"])
def test_a_model_grows_and_is_proved_alike_with_and_without_them(
    model: str, model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, found = model_dir(model), {}
    for kind, threshold in (("kernels", 0), ("reference", compiled.WORTHWHILE)):
        monkeypatch.setattr(compiled, "WORTHWHILE", threshold)
        grown = tmp_path / kind
        hyperclone.grow(source, grown, Growth(width=2), proof="structural")
        written = (grown / "model.safetensors").read_bytes()
        tensors = load_file(grown / "model.safetensors")
        name = max(tensors, key=lambda name: tensors[name].numel())
        tensors[name].view(torch.int32)[-1, -1] ^= 1
        save_file(tensors, grown / "model.safetensors", {"format": "pt"})
        found[kind] = written, hyperclone.verify(source, grown, proof="structural").failures
    assert found["kernels"] == found["reference"]
    assert found["kernels"][1]
