"""FP8 and MXFP4 checkpoints: the weights that transformers makes of them are the weights that grow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import hyperclone
from hyperclone import Growth
from hyperclone.anatomy.examine import examine
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.scaled_weights import scaled_entries
from hyperclone.io.tensor_files import TensorFiles, read_header
from hyperclone.proof.behavioral import prove_behavior
from tests.helpers.edits import edit_json

ModelDir = Callable[..., Path]
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def fp8_numbers(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """FP8 numbers and a scale for each block of rows and columns, the last of which may be smaller."""
    (rows, columns), (height, width) = weight.shape, block
    grid = (-(-rows // height), -(-columns // width))
    padded = torch.zeros(grid[0] * height, grid[1] * width)
    padded[:rows, :columns] = weight
    tiles = padded.view(grid[0], height, grid[1], width)
    scales = tiles.abs().amax((1, 3)).clamp_min(1e-9) / 448
    numbers = (tiles / scales[:, None, :, None]).view(padded.shape)[:rows, :columns]
    return numbers.to(torch.float8_e4m3fn).contiguous(), scales


@pytest.fixture
def fp8_model(model_dir: ModelDir, tmp_path: Path) -> Path:
    """A model whose projections are FP8 with a scale for every 16 x 8 weights."""
    source, quantized = model_dir("llama-grouped-tied"), tmp_path / "fp8"
    quantized.mkdir()
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        tensors[name] = weight
        if "proj" in name:
            tensors[name], tensors[f"{name}_scale_inv"] = fp8_numbers(weight, (16, 8))
            tensors[name.replace("weight", "activation_scale")] = torch.ones(())
    save_file(tensors, quantized / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (quantized / "config.json").write_text(
        json.dumps({**config, "quantization_config": {**FP8, "weight_block_size": [16, 8]}})
    )
    return quantized


def stored(tensors: dict[str, Tensor], method: dict[str, Any], directory: Path) -> TensorFiles:
    save_file(tensors, directory / "model.safetensors")
    entries = read_header(directory / "model.safetensors")
    return TensorFiles(directory, scaled_entries(method, entries, directory / "config.json"))


@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu, torch.uint8])
def test_fp8_weights_are_those_that_transformers_makes(scale_type: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers, scales = fp8_numbers(torch.randn(48, 32, generator=generator), (16, 8))
    if scale_type == torch.uint8:
        scales = scales.log2().round().add(127)
    scales = scales.to(scale_type)
    files = stored({"a.weight": numbers, "a.weight_scale_inv": scales}, {**FP8, "weight_block_size": [16, 8]}, tmp_path)
    expected = Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.float32)
    assert list(files.entries) == ["a.weight"]
    assert files.read("a.weight").equal(expected)
    for start, stop in ((0, 1), (5, 17), (15, 16), (16, 48), (47, 48)):
        assert files.read("a.weight", start, stop).equal(expected[start:stop])


def test_a_scale_for_the_whole_tensor_and_blocks_that_do_not_divide_it(tmp_path: Path) -> None:
    weight = torch.randn(40, 20, generator=torch.Generator().manual_seed(1))
    numbers, scales = fp8_numbers(weight, (16, 8))
    files = stored(
        {"a.weight": numbers, "a.weight_scale_inv": scales,
         "b.weight": numbers.clone(), "b.weight_scale_inv": torch.tensor(3.0)},
        {**FP8, "weight_block_size": [16, 8]}, tmp_path,
    )  # fmt: skip
    by_hand = torch.stack([numbers[i].float() * scales[i // 16].repeat_interleave(8)[:20] for i in range(40)])
    assert files.read("a.weight").equal(by_hand)
    assert files.read("a.weight", 33, 40).equal(by_hand[33:])
    assert files.read("b.weight", 7, 9).equal(numbers[7:9].float() * 3)
    # E4M3 has 3 bits below the first, so it rounds by at most 2^-4 (and by what is lost at the bottom of its range).
    assert bool(((files.read("a.weight") - weight).abs() <= weight.abs() / 16 + 1e-4).all())


def test_mxfp4_weights_are_those_that_transformers_makes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(256, (3, 6, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (3, 6, 2), dtype=torch.uint8, generator=generator)
    files = stored({"up_blocks": blocks, "up_scales": scales}, {"quant_method": "mxfp4"}, tmp_path)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert files.entries["up"].shape == tuple(expected.shape) == (3, 64, 6)
    assert files.read("up").equal(expected)
    assert files.read("up", 1, 2).equal(expected[1:2])


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_fp8_model_grows_into_one_that_computes_what_transformers_makes_of_it(
    dtype: Any, fp8_model: Path, tmp_path: Path
) -> None:
    done = hyperclone.grow(fp8_model, tmp_path / "grown", Growth(width=2, dtype=dtype))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert done.proof.behavior.measured
    config = json.loads((tmp_path / "grown/config.json").read_text())
    assert "quantization_config" not in config
    assert hyperclone.verify(fp8_model, tmp_path / "grown", proof="structural").passed
    streamed = prove_behavior(
        Checkpoint.open(fp8_model, dequantize=True), tmp_path / "grown", done.plan, layer_by_layer=True
    )
    assert streamed.measured == done.proof.behavior.measured
    assert not streamed.failures
    hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())


def test_anatomy_compares_with_an_fp8_source(fp8_model: Path, tmp_path: Path) -> None:
    done = hyperclone.grow(fp8_model, tmp_path / "grown", Growth(width=2, dtype="bf16"), proof="none")
    found = examine(done.path, against=fp8_model, activations=False, tensors="*q_proj*")
    assert any(tensor.source_spectrum for tensor in found.tensors)


def test_the_type_of_what_grows_has_to_be_chosen(fp8_model: Path) -> None:
    with pytest.raises(GrowthError, match="--dtype bf16") as error:
        hyperclone.plan(fp8_model, Growth(width=2))
    assert error.value.details["tensor"].startswith("model.layers.0")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t, n: t.pop(f"{n}_scale_inv"), "quantized numbers without scales"),
        (lambda t, n: t.pop(n), "scales of a tensor that is not there"),
        (lambda t, n: t.update({f"{n}_scale_inv": torch.ones(2, 2)}), "scales do not fit"),
        (lambda t, n: t.update({f"{n}_scale_inv": torch.ones(3, dtype=torch.int64)}), "of a type that is not known"),
        (lambda t, n: t.update({n: torch.ones(3, 4, 5).to(torch.float8_e4m3fn)}), "scales do not fit"),
        (lambda t, n: t.update({n: torch.full((48, 32), torch.nan).to(torch.float8_e4m3fn)}), "not a finite number"),
    ],
)
def test_damaged_numbers_and_scales_are_refused(change: Any, problem: str, fp8_model: Path, tmp_path: Path) -> None:
    tensors = load_file(fp8_model / "model.safetensors")
    change(tensors, "model.layers.1.mlp.up_proj.weight")
    save_file(tensors, fp8_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=problem):
        hyperclone.grow(fp8_model, tmp_path / "grown", Growth(width=2, dtype="bf16"), proof="none")


@pytest.mark.parametrize("size", [[16], [16, 0], [True, 8], "16 8", 16])
def test_a_block_size_is_two_positive_numbers(size: object, fp8_model: Path) -> None:
    config = json.loads((fp8_model / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = size
    (fp8_model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a size of blocks"):
        hyperclone.plan(fp8_model, Growth(width=2, dtype="bf16"))


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    """A quantization_config as compressed-tensors writes it (its public documentation; package 0.20)."""
    group = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **weights}
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": group, "input_activations": None}},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "options", "shape"),
    [
        ("tensor", {}, (1,)),
        ("tensor", {}, ()),
        ("channel", {}, (48, 1)),
        ("channel", {}, (48,)),
        ("block", {"block_structure": [16, 8]}, (3, 4)),
        ("block", {"block_structure": "16x8"}, (3, 4)),
        ("group", {"group_size": 8}, (48, 4)),
    ],
)
def test_fp8_of_compressed_tensors_is_each_number_times_its_scale(
    strategy: str, options: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(48, 32, generator=draw).to(torch.float8_e4m3fn)
    scales = (torch.rand(shape, generator=draw) + 0.5).bfloat16()
    tensors = {
        "a.weight": numbers,
        "a.weight_scale": scales,
        "a.input_scale": torch.ones(1),
        "b.k_scale": torch.ones(1),
    }
    files = stored(tensors, compressed(strategy, **options), tmp_path)
    grid = scales.float().reshape(shape if len(shape) == 2 else (-1, 1))
    expected = torch.tensor([
        [float(numbers[i, j]) * float(grid[i * grid.shape[0] // 48, j * grid.shape[1] // 32]) for j in range(32)]
        for i in range(48)
    ])  # fmt: skip
    assert list(files.entries) == ["a.weight"]
    assert files.read("a.weight").equal(expected)
    assert files.read("a.weight", 15, 18).equal(expected[15:18])


@pytest.mark.parametrize("strategy", ["channel", "block"])
def test_an_fp8_model_of_compressed_tensors_grows_and_is_proved_without_that_package(
    strategy: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = shutil.copytree(model_dir("llama-grouped-tied"), tmp_path / "source")
    dense = load_file(source / "model.safetensors")
    tensors = dict(dense)
    for name in [name for name in dense if "proj" in name]:
        block = (1, dense[name].shape[1]) if strategy == "channel" else (16, 8)
        tensors[name], tensors[f"{name}_scale"] = fp8_numbers(dense[name], block)
        rows, columns = torch.arange(dense[name].shape[0]) // block[0], torch.arange(dense[name].shape[1]) // block[1]
        dense[name] = tensors[name].float() * tensors[f"{name}_scale"][rows][:, columns]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    edit_json(source / "config.json", quantization_config=compressed(strategy, block_structure=[16, 8]))
    with pytest.raises(GrowthError, match="--dtype"):
        hyperclone.plan(source, Growth(width=2))
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, dtype="fp32"))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert {m.what for m in done.proof.behavior.measured} >= {"random tokens", "KV cache"}
    assert any("compressed-tensors" in note for note in done.plan.notes)
    assert "quantization_config" not in json.loads((done.path / "config.json").read_text())
    assert hyperclone.verify(source, done.path).passed
    hyperclone.collapse(done.path, tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == dense.keys()
    assert all(back[name].equal(dense[name]) for name in dense)


@pytest.mark.parametrize(
    "method",
    [
        compressed("channel", type="int"),
        compressed("group", num_bits=4, group_size=32),
        {**compressed("channel"), "transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
        {**compressed("channel"), "sparsity_config": {"format": "sparse-24-bitmask"}},
        {**compressed("channel"), "config_groups": None},
    ],
)
def test_other_formats_of_compressed_tensors_are_refused(method: dict[str, Any], fp8_model: Path) -> None:
    edit_json(fp8_model / "config.json", quantization_config=method)
    with pytest.raises(CheckpointError, match="quantized checkpoints cannot be grown") as caught:
        hyperclone.plan(fp8_model, Growth(width=2, dtype="fp32"))
    assert "grow the original bf16" in caught.value.details["cure"]


def test_scales_of_compressed_tensors_that_fit_no_group_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.zeros(48, 32).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(5, 4)}
    with pytest.raises(CheckpointError, match="scales do not fit"):
        stored(tensors, compressed("block", block_structure=[16, 8]), tmp_path)
