"""Experts that a model stores in one tensor: the same as one by one, in slices, and from MXFP4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.architectures.layout import parse
from hyperclone.errors import CheckpointError, CollapseError, FamilyError
from hyperclone.expansion.expand import expand, tensor_map
from hyperclone.hf.models import load_model
from hyperclone.io import streaming
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning.recipe import Noise, Recipe
from hyperclone.proof.behavioral import prove_behavior
from tests.helpers.models import build, save_optimizer_state

ModelDir = Callable[..., Path]
SIZES = {"experts": (3, 3), "hidden": (4, 8), "ffn": (5, 15)}


@pytest.mark.parametrize(
    ("line", "one"),
    [("experts (2 ffn) <- hidden", "(2 ffn) <- hidden"), ("experts hidden -> (ffn 2)", "hidden -> (ffn 2)")],
)
def test_every_expert_grows_as_a_matrix_of_its_own(line: str, one: str) -> None:
    weight = torch.randn(parse(line).shape({axis: old for axis, (old, _) in SIZES.items()}))
    recipe = Recipe(noise=Noise.NONE)
    stacked, alone = tensor_map(parse(line), SIZES), tensor_map(parse(one), SIZES)
    grown = expand(weight, stacked, recipe, name="w")
    assert grown.is_contiguous()
    assert grown.shape == parse(line).shape({axis: new for axis, (_, new) in SIZES.items()})
    assert grown.equal(torch.stack([expand(expert, alone, recipe, name="w") for expert in weight]))
    assert stacked.as_stored(stacked.as_matrix(grown)).equal(grown)
    assert stacked.as_source(stacked.as_matrix(weight)).equal(weight)


def digests(directory: Path) -> dict[str, str]:
    model = Checkpoint.open(directory)
    return {name: streaming.digest(model, name) for name in model.entries}


@pytest.mark.parametrize("noise", ["split", "gaussian"])
@pytest.mark.parametrize("name", ["gpt_oss", "granitemoe"])
def test_bytes_and_proof_do_not_depend_on_slices(
    name: str, noise: str, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, growth = model_dir(name), Growth(width=2, noise=noise)  # type: ignore[arg-type]
    hyperclone.grow(source, tmp_path / "whole", growth, proof="none")
    monkeypatch.setattr(streaming, "SLICE_BYTES", 30_000)  # two of four experts at a time
    sliced = hyperclone.grow(source, tmp_path / "sliced", growth, proof="structural")
    assert sliced.proof is not None
    assert sliced.proof.passed
    assert digests(tmp_path / "sliced") == digests(tmp_path / "whole")
    done = hyperclone.collapse(tmp_path / "sliced", tmp_path / "back")
    assert noise == "gaussian" or done.exact
    assert noise == "gaussian" or digests(tmp_path / "back") == digests(source)


def test_a_tensor_of_experts_is_never_in_memory_as_a_whole(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, read = "model.layers.0.mlp.experts.gate_up_proj", Checkpoint.read
    counts: set[int] = set()

    def counted(model: Checkpoint, tensor: str, *rest: Any, **options: Any) -> Tensor:
        rows = read(model, tensor, *rest, **options)
        counts.update({len(rows)} if tensor == name else set())
        return rows

    monkeypatch.setattr(Checkpoint, "read", counted)
    monkeypatch.setattr(streaming, "SLICE_BYTES", 1)
    hyperclone.grow(model_dir("gpt_oss"), tmp_path / "grown", Growth(width=2), proof="structural")
    assert counts == {1}
    written: list[int] = []
    raw = streaming.raw

    def measured(tensor: Tensor) -> memoryview:
        written.append(tensor.numel())
        return raw(tensor)

    monkeypatch.setattr(streaming, "raw", measured)
    hyperclone.collapse(tmp_path / "grown", tmp_path / "back")
    assert counts == {1}
    assert max(written) == 32 * 300  # the embedding; an expert has 32 x 96, all of them 4 times as many


@pytest.mark.parametrize("tensor", ["gate_up_proj", "down_proj"])
def test_a_changed_expert_fails_the_proof_and_the_collapse(tensor: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source, grown, name = model_dir("gpt_oss"), tmp_path / "grown", f"model.layers.1.mlp.experts.{tensor}"
    hyperclone.grow(source, grown, Growth(width=2), proof="none")
    tensors = load_file(grown / "model.safetensors")
    tensors[name][2, 5, 7] += 1
    save_file(tensors, grown / "model.safetensors", {"format": "pt"})
    proof = hyperclone.verify(source, grown, proof="structural")
    assert any(name in failure for failure in proof.structure.failures)
    with pytest.raises(CollapseError, match="diverged") as error:
        hyperclone.collapse(grown, tmp_path / "back")
    assert error.value.details["tensor"] == name


def test_a_copied_block_adds_nothing_at_first(model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir("gpt_oss"), tmp_path / "grown", Growth(layers="2x"))
    assert done.proof is not None
    assert done.proof.passed
    zero = {tensor.name.rpartition(".")[2] for tensor in done.plan.tensors if tensor.zero}
    assert zero >= {"down_proj", "down_proj_bias"}


def test_a_model_in_memory_grows_into_the_same_bytes(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow_model(build("gpt_oss"), Growth(width=2)).save_pretrained(tmp_path / "memory")
    hyperclone.grow(model_dir("gpt_oss"), tmp_path / "disk", Growth(width=2), proof="none")
    assert digests(tmp_path / "memory") == digests(tmp_path / "disk")


def test_moments_of_experts_grow_some_at_a_time(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_optimizer_state(build("gpt_oss"), tmp_path / "state")
    monkeypatch.setattr(streaming, "SLICE_BYTES", 30_000)
    for moments in ("copy", "first-copy"):
        done = hyperclone.grow(
            model_dir("gpt_oss"), tmp_path / moments, Growth(width=2, order="tiled"), proof="structural",
            optimizer_state=tmp_path / "state", moments=moments,
        )  # fmt: skip
        assert done.proof is not None
        assert done.proof.passed
    grown = load_file(tmp_path / "copy/optimizer_state.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj.exp_avg"
    past = torch.load(tmp_path / "state/optimizer.pt")
    index = [name for name, _ in build("gpt_oss").named_parameters()].index(name.removesuffix(".exp_avg"))
    moment = past["state"][index]["exp_avg"]
    # Gate and up of a unit stand side by side, and a copy's gradient is half its source's (two copies of each output).
    expected = moment.repeat(1, 2, 1).view(4, 64, 48, 2).repeat(1, 1, 2, 1).reshape(4, 64, 192) / 2
    assert grown[name].equal(expected)


def test_an_axis_that_no_tensor_has_may_be_zero(model_dir: ModelDir) -> None:
    config = hyperclone.plan(model_dir("granitemoehybrid"), Growth(width=2)).source_config
    family = registry.of_config(config)
    assert "experts" not in family.sizes(config)
    assert family.sizes({**config, "num_local_experts": 4})["experts"] == 4
    for field in ("hidden_size", "shared_intermediate_size", "mamba_d_conv"):
        with pytest.raises(CheckpointError, match="no usable size"):
            family.sizes({**config, field: 0})
    config = hyperclone.plan(model_dir("jetmoe"), Growth(width=2)).source_config
    with pytest.raises(CheckpointError, match="no usable size"):  # heads of a token: in no tensor, but always there
        registry.of_config(config).sizes({**config, "num_experts_per_tok": 0})


def test_padding_channels_of_several_matrices_cannot_hold_a_mean() -> None:
    text = (Path(family_file.__file__).parent / "families/gpt_oss.toml").read_text()
    with pytest.raises(FamilyError, match="several matrices"):
        family_file.from_text(text.replace('padding = "zero"', 'padding = "mean"'), file="my.toml")


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(E, 32 G, R) -> blocks (E, R, G, 16) and scales (E, R, G), rounded to the nearest numbers."""
    experts, inputs, rows = weight.shape
    values = weight.transpose(1, 2).reshape(experts, rows, inputs // 32, 32)
    exponents = values.abs().amax(-1).clamp_min(1e-9).log2().floor() - 2  # the largest number is 6
    numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scaled = values / exponents.exp2()[..., None]
    nearest = (scaled.abs()[..., None] - numbers).abs().argmin(-1) + 8 * (scaled < 0)
    low, high = nearest[..., 0::2], nearest[..., 1::2]
    return (low + 16 * high).to(torch.uint8).contiguous(), (exponents + 127).to(torch.uint8)


@pytest.fixture
def mxfp4_model(tmp_path: Path) -> Path:
    """gpt-oss as it is released: experts in MXFP4, everything else in bf16."""
    directory = tmp_path / "mxfp4"
    build("gpt_oss", dtype=torch.bfloat16, hidden_size=64, intermediate_size=32).save_pretrained(directory)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        tensors[name] = weight
        if name.endswith(("gate_up_proj", "down_proj")):
            del tensors[name]
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = mxfp4(weight.float())
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    method = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    return directory


def test_an_mxfp4_model_grows_into_one_that_computes_what_transformers_makes_of_it(
    mxfp4_model: Path, tmp_path: Path
) -> None:
    done = hyperclone.grow(mxfp4_model, tmp_path / "grown", Growth(width=2, dtype="bf16"))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert done.proof.behavior.measured
    assert "quantization_config" not in json.loads((tmp_path / "grown/config.json").read_text())
    streamed = prove_behavior(
        Checkpoint.open(mxfp4_model, dequantize=True), tmp_path / "grown", done.plan, layer_by_layer=True
    )
    assert streamed.measured == done.proof.behavior.measured
    assert not streamed.failures
    hyperclone.collapse(tmp_path / "grown", tmp_path / "back")
    collapsed = load_file(tmp_path / "back/model.safetensors")
    model, problems = load_model(mxfp4_model, torch.bfloat16)
    assert not problems
    for name, weight in model.state_dict().items():
        assert collapsed[name].equal(weight), name
