"""What the structural proof says, counts and hashes: of an intact growth, and of one with a single fault."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.errors import CheckpointError, UnreadableError
from hyperclone.io import streaming
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from hyperclone.proof.structural import Structure, prove_structure
from tests.helpers import models
from tests.helpers.edits import edit_json
from tests.helpers.models import build
from tests.proof.test_rounded_families import ROWS

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
EMBED, LAYER_NORM = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
EXACT = "does not collapse to the source"
Grown = Callable[..., "Copy"]


class Copy(NamedTuple):
    """A growth that a test may damage."""

    source: Path
    path: Path
    plan: Plan

    def change(self, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
        """Change a tensor of the output in place, or replace it."""
        tensors = load_file(self.path / "model.safetensors")
        changed = change(tensors[name])
        tensors[name] = tensors[name] if changed is None else changed
        save_file(tensors, self.path / "model.safetensors", {"format": "pt"})

    def prove(self, **options: Any) -> Structure:
        """Its structural proof."""
        return prove_structure(Checkpoint.open(self.source), self.path, self.plan, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Copy]:
    """made(name, dtype, **growth) -> a growth, made once."""
    known: dict[str, Copy] = {}

    def get(name: str, dtype: torch.dtype, **growth: Any) -> Copy:
        key = f"{name} {dtype} {growth}"
        if key not in known:
            place = tmp_path_factory.mktemp("structure")
            build(name, dtype=dtype).save_pretrained(place / "source")
            plan = hyperclone.grow(
                place / "source", place / "grown", Growth(**{"order": "tiled", **growth}), proof="none"
            ).plan
            known[key] = Copy(place / "source", place / "grown", plan)
        return known[key]

    return get


@pytest.fixture
def grown(made: Callable[..., Copy], tmp_path: Path) -> Grown:
    """grown(name=..., dtype=..., **growth) -> a copy of a growth, twice as wide by default."""

    def get(name: str = "llama-grouped-tied", dtype: torch.dtype = torch.float32, **growth: Any) -> Copy:
        intact = made(name, dtype, **(growth or {"width": 2}))
        shutil.copytree(intact.path, tmp_path / "copy")
        return intact._replace(path=tmp_path / "copy")

    return get


def sha256(path: Path) -> dict[str, str]:
    """Of every tensor's bytes."""
    tensors = load_file(path / "model.safetensors")
    return {name: hashlib.sha256(streaming.raw(tensor)).hexdigest() for name, tensor in tensors.items()}


@pytest.mark.parametrize("slice_bytes", [3000, 1 << 24])
@pytest.mark.parametrize(
    "case",
    [("llama-grouped-tied", {"width": 2}, 20, 0, 0), ("llama-grouped-tied", {"hidden": 40}, 15, 5, 0),
     ("llama-grouped-tied", {"layers": "2x"}, 38, 0, 0), ("llama-grouped-tied", {"experts": 4, "ffn": "2x"}, 38, 0, 2),
     ("gpt2-untied", {"hidden": "1.5x", "heads": "1.5x"}, 24, 5, 0)],  # padding channels with means
    ids=str,
)  # fmt: skip
def test_what_was_compared_is_counted_and_hashed(
    case: tuple[str, dict[str, Any], int, int, int], slice_bytes: int, grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, growth, bit_equal, rounded, routers = case
    copy = grown(name, **growth)
    monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
    calls: list[tuple[str, int, int]] = []
    found = copy.prove(progress=lambda *call: calls.append(call), threads=1)
    assert found.failures == []
    assert found.passed
    assert found.tensors == len(copy.plan.tensors)
    assert (found.bit_equal, found.rounded, found.new_routers) == (bit_equal, rounded, routers)
    assert found.bit_equal + found.rounded + found.new_routers == found.tensors
    assert found.largest_error == 0.0
    assert found.output_sha256 == sha256(copy.path)
    assert found.source_sha256 == sha256(copy.source)
    assert {(stage, total) for stage, _, total in calls} == {("prove", sum(t.nbytes for t in copy.plan.tensors))}
    done = [units for _, units, _ in calls]
    assert done[0] == 0
    assert done == sorted(done)
    assert {type(units) for units in done} == {int}
    assert abs(done[-1] - calls[-1][2]) < 500  # bytes, rounded down in each slice


def put(*position: int, add: float) -> Callable[[Tensor], None]:
    """Change one number."""

    def write(tensor: Tensor) -> None:
        tensor[position] += add

    return write


def negate(tensor: Tensor) -> None:
    """Change the sign of a column, also of zeros."""
    tensor[:, 35] *= -1


def several(tensor: Tensor) -> None:
    """Change three numbers in two slices."""
    tensor[3, 5] += 1
    tensor[90, 5:7] += 2


WRONG: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
    # UP is (96, 64) of (48, 32).
    "a weight": (UP, put(3, 5, add=1.0), f"{UP}: {EXACT} at row 3, column 5 (1 weights in all)"),
    "another copy": (UP, put(95, 63, add=1.0), f"{UP}: {EXACT} at row 95, column 31 (1 weights in all)"),
    "several": (UP, several, f"{UP}: {EXACT} at row 3, column 5 (3 weights in all)"),
    "NaN": (UP, put(70, 0, add=float("nan")), f"{UP}: {EXACT} at row 70, column 0 (1 weights in all)"),
    "infinity": (UP, put(70, 0, add=float("-inf")), f"{UP}: {EXACT} at row 70, column 0 (1 weights in all)"),
    "an embedding": (EMBED, put(299, 40, add=1.0), f"{EMBED}: {EXACT} at row 299, column 40 (1 weights in all)"),
    "a gain": (LAYER_NORM, put(40, add=1.0), f"{LAYER_NORM}: {EXACT} at row 0, column 40 (1 weights in all)"),
    "a shared gain": (NORM, put(40, add=1.0), f"{NORM}: {EXACT} at row 0, column 8 (1 weights in all)"),
    "a shape": (UP, lambda t: t[:5].clone(), f"{UP}: found F32 [5, 64], expected F32 [96, 64]"),
    "a type": (UP, lambda t: t.bfloat16(), f"{UP}: found BF16 [96, 64], expected F32 [96, 64]"),
}


@pytest.mark.parametrize("slice_bytes", [3000, 1 << 24])
@pytest.mark.parametrize(("name", "change", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_tensor_is_told_with_its_place(
    name: str, change: Callable[[Tensor], Any], words: str, slice_bytes: int, grown: Grown,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    copy = grown()
    copy.change(name, change)
    monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
    found = copy.prove()
    assert found.failures == [words]
    assert not found.passed
    assert found.bit_equal == found.tensors - 1
    assert found.largest_error > 0 or "expected" in words
    if name == LAYER_NORM:
        assert found.largest_error == pytest.approx(1, rel=1e-6)
    if name == UP and "row 70" in words:
        assert found.largest_error == math.inf


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (EMBED, put(7, 35, add=1e-9), f"{EMBED}: {EXACT} at row 7, column 35 (1 weights in all)"),
        (EMBED, negate, f"{EMBED}: {EXACT} at row 0, column 35 (300 weights in all)"),
        (LAYER_NORM, put(35, add=1.0), f"{LAYER_NORM}: {EXACT} at row 0, column 35 (1 weights in all)"),
        (UP, put(3, 35, add=math.nan), f"{UP}: {EXACT} at row 3, column 35 (1 weights in all)"),
        ("model.layers.0.mlp.down_proj.weight", put(35, 3, add=1e-9),
         f"model.layers.0.mlp.down_proj.weight: {EXACT} at row 35, column 3 (1 weights in all)"),
    ],
    ids=["written", "negative zeros", "gain", "read", "row"],
)  # fmt: skip
def test_padding_channels_hold_what_they_must(
    name: str, change: Callable[[Tensor], Any], words: str, grown: Grown
) -> None:
    copy = grown(hidden=40)
    intact = copy.prove()
    copy.change(name, change)
    found = copy.prove()
    assert found.failures == [words]
    assert found.bit_equal in (intact.bit_equal, intact.bit_equal - 1)
    copy.change(UP, put(5, 39, add=1.0))  # what reads a padding channel may be any finite number
    assert copy.prove().failures == [words]


def test_a_copy_that_differs_by_its_sign_of_zero_is_not_bit_equal(grown: Grown) -> None:
    copy = grown(hidden=40)
    intact = copy.prove()
    copy.change(EMBED, negate)
    found = copy.prove()
    assert found.bit_equal == intact.bit_equal - 1
    assert found.largest_error == 0.0


@pytest.mark.parametrize(("noise", "snr_db"), [("split", 10.0), ("gaussian", 10.0), ("gaussian", 80.0)])
def test_gains_with_an_offset_are_compared_with_what_the_model_adds(
    noise: str, snr_db: float, grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "nemotron-tied", ROWS["nemotron-tied"])
    copy = grown("nemotron-tied", width=2, noise=noise, snr_db=snr_db)
    intact = copy.prove()
    assert intact.passed
    assert 0 < intact.largest_error < 1e-6
    copy.change(NORM, put(40, add=1e-4))
    assert copy.prove().failures == [
        f"{NORM}: is further from the source than rounding allows at row 0, column 8 (1 weights in all)"
    ]


def test_small_gains_with_an_offset_are_not_taken_for_loud_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shares of a gain of 0.2 are stored as -0.9 each."""
    monkeypatch.setitem(models.MODELS, "nemotron-tied", ROWS["nemotron-tied"])
    model = build("nemotron-tied")
    model.get_parameter(NORM).data.fill_(-0.8)
    model.save_pretrained(tmp_path / "source")
    growth = Growth(width=2, noise="gaussian", snr_db=80.0, order="tiled")
    plan = hyperclone.grow(tmp_path / "source", tmp_path / "grown", growth, proof="none").plan
    assert Copy(tmp_path / "source", tmp_path / "grown", plan).prove().failures == []


def test_negative_zeros_are_themselves_and_a_sum_that_only_rounds_to_the_source_is_not(tmp_path: Path) -> None:
    model = build("llama-grouped-tied", dtype=torch.bfloat16)
    model.get_parameter(UP).data[:8] = -0.0
    model.save_pretrained(tmp_path / "source")
    plan = hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2, order="tiled"), proof="none").plan
    copy = Copy(tmp_path / "source", tmp_path / "grown", plan)
    assert copy.prove().bit_equal == len(plan.tensors)
    source = load_file(tmp_path / "source/model.safetensors")[UP]
    place: list[int] = []

    def next_number(tensor: Tensor) -> None:
        """Of a share that is smaller than half of its weight: a quarter of the weight's unit in the last place."""
        small = (tensor[:48, :32].abs() < source.abs() / 2) & (tensor[:48, :32].abs() > source.abs() / 4)
        place.extend(small.nonzero()[0].tolist())
        tensor.view(torch.int16)[tuple(place)] += 1
        assert (tensor[place[0], place[1]] + tensor[place[0], place[1] + 32]).equal(source[tuple(place)])

    copy.change(UP, next_number)
    assert copy.prove().failures == [f"{UP}: {EXACT} at row {place[0]}, column {place[1]} (1 weights in all)"]


def test_random_weights_that_read_padding_channels_are_no_noise(grown: Grown) -> None:
    assert grown(hidden=40, noise="gaussian", snr_db=80.0).prove().passed


def test_shares_that_are_louder_than_the_noise_prove_nothing(grown: Grown) -> None:
    copy = grown(ffn="1.5x", noise="gaussian", snr_db=80.0)  # some units have one copy, others two
    assert copy.prove().passed
    down = "model.layers.0.mlp.down_proj.weight"
    weight = load_file(copy.source / "model.safetensors")[down]
    row = int(weight[:, 5].abs().argmax())

    def louder(tensor: Tensor) -> None:
        tensor[row, 5] = 1.5 * weight[row, 5]
        tensor[row, 5 + 48] = weight[row, 5] - tensor[row, 5]

    copy.change(down, louder)
    (failure,) = copy.prove().failures
    assert failure.startswith(f"{down}: is further from the source than rounding allows at row 0, column 0")


def test_the_largest_error_is_that_of_the_worst_tensor(grown: Grown) -> None:
    copy = grown()
    copy.change(UP, several)
    copy.change(EMBED, put(7, 7, add=1.0))
    assert copy.prove().largest_error == pytest.approx(2, rel=1e-6)


def test_gaussian_shares_have_a_bound_and_a_copied_block_is_zero(grown: Grown) -> None:
    copy = grown(width=2, noise="gaussian", layers="2x")
    intact = copy.prove()
    assert intact.passed
    assert 0 < intact.largest_error < 1e-6
    copied = "model.layers.1.mlp.down_proj.weight"
    copy.change("model.layers.0.mlp.up_proj.weight", put(3, 5, add=1e-4))
    copy.change(copied, put(63, 5, add=-3.0))
    found = copy.prove()
    assert found.failures == [
        f"{copied}: a copied block must add nothing, but this is not zero",
        "model.layers.0.mlp.up_proj.weight: is further from the source than rounding allows at row 3, column 5 "
        "(1 weights in all)",
    ]
    assert found.largest_error == 3.0
    assert found.bit_equal == intact.bit_equal - 1


def test_tensors_that_are_missing_or_too_many_are_named(grown: Grown) -> None:
    copy = grown()
    tensors = load_file(copy.path / "model.safetensors")
    del tensors[UP]
    save_file({**tensors, "b.weight": torch.ones(1), "a.weight": torch.ones(1)}, copy.path / "model.safetensors")
    found = copy.prove()
    assert found.failures == [
        f"{UP}: missing from the output",
        "a.weight: not part of the grown model",
        "b.weight: not part of the grown model",
    ]
    assert found.tensors == len(copy.plan.tensors) - 1


def test_of_the_config_every_field_counts_that_changes_what_is_computed(grown: Grown) -> None:
    copy = grown()
    config = copy.path / "config.json"
    written = json.loads(config.read_text())
    edit_json(config, use_cache=False, transformers_version="0", _name_or_path="x", hyperclone={"a": 1})
    assert copy.prove().failures == []
    edit_json(config, torch_dtype=written["dtype"], dtype=None)  # the older name of the same
    assert copy.prove().failures == []
    edit_json(config, torch_dtype=written["dtype"], dtype=written["dtype"])
    assert copy.prove().failures == []
    edit_json(config, torch_dtype="bfloat16", dtype=written["dtype"])  # a contradiction
    assert copy.prove().failures == ["config.json, torch_dtype: found 'bfloat16', expected None"]
    edit_json(config, torch_dtype=None, rms_norm_eps=1e-4, rope_parameters=None, extra=[1], architectures=["Other"])
    assert copy.prove().failures == [
        "config.json, architectures: found ['Other'], expected ['LlamaForCausalLM']",
        "config.json, extra: found [1], expected None",
        "config.json, rms_norm_eps: found 0.0001, expected 1e-06",
        f"config.json, rope_parameters: found None, expected {written['rope_parameters']!r}",
    ]


def test_an_output_that_cannot_be_opened_fails_in_one_line_and_one_that_cannot_be_read_is_an_error(
    grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = grown()
    (copy.path / "model.safetensors").write_bytes(b"short")
    (failure,) = copy.prove().failures
    assert "\n" not in failure
    assert ";  file:" in failure
    assert copy.prove().tensors == 0

    def refuse(*_: Any, **__: Any) -> None:
        raise UnreadableError("refused")

    source = Checkpoint.open(copy.source)
    monkeypatch.setattr(Checkpoint, "open", refuse)
    with pytest.raises(UnreadableError, match="refused"):
        prove_structure(source, copy.path, copy.plan)


def saved_from_base(copy: Copy, place: Path) -> Copy:
    """The same growth of a source that was saved from its base model."""
    tensors = load_file(copy.source / "model.safetensors")
    (place / "base").mkdir()
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
        place / "base/model.safetensors", {"format": "pt"},
    )  # fmt: skip
    shutil.copy(copy.source / "config.json", place / "base/config.json")
    edit_json(place / "base/config.json", architectures=["LlamaModel"])
    plan = hyperclone.grow(place / "base", place / "lacking", copy.plan.growth, proof="none").plan
    return Copy(place / "base", place / "lacking", plan)


def test_the_class_that_saved_it_matters_unless_the_whole_model_was_saved_of_a_base_models_growth(
    grown: Grown, tmp_path: Path
) -> None:
    copy = saved_from_base(grown(), tmp_path)
    assert copy.prove().failures == []
    edit_json(copy.path / "config.json", architectures=["LlamaForCausalLM"])
    assert copy.prove().failures == ["config.json, architectures: found ['LlamaForCausalLM'], expected ['LlamaModel']"]
    tensors = load_file(copy.path / "model.safetensors")
    whole = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(whole, copy.path / "model.safetensors", {"format": "pt"})
    assert copy.prove().failures == []
    edit_json(copy.path / "config.json", use_cache=False, rms_norm_eps=1e-4)
    assert [failure.split(":")[0] for failure in copy.prove().failures] == ["config.json, rms_norm_eps"]


def test_an_output_of_a_users_family_is_read_by_that_family(grown: Grown, tmp_path: Path) -> None:
    """Its names lack the prefix that only this family knows."""
    copy = saved_from_base(grown(), tmp_path)
    text = (Path(registry.__file__).parent / copy.plan.family.file).read_text()
    sections = [part for part in text.split("\n\n") if not part.startswith("[defaults.")]
    text = re.sub("model_types = .*", 'model_types = ["mine"]', "\n\n".join(sections))
    mine = family_file.parse(text, name="mine", file="mine.toml")
    for path in (copy.source, copy.path):
        edit_json(path / "config.json", model_type="mine")
    source = Checkpoint.open(copy.source, family=mine)
    plan = planner.make_plan(source, copy.plan.growth)
    assert plan.omitted_prefix == "model."
    assert prove_structure(source, copy.path, plan).failures == []


@pytest.mark.parametrize("which", ["source", "path"])
def test_a_file_that_changes_while_it_is_read_is_an_error(which: str, grown: Grown, tmp_path: Path) -> None:
    copy = grown()
    copy = copy._replace(source=Path(shutil.copytree(copy.source, tmp_path / "own")))
    file = getattr(copy, which) / "model.safetensors"

    def touch(_: str, done: int, __: int) -> None:
        if done:  # it has been opened
            os.utime(file, ns=(0, 0))

    with pytest.raises(CheckpointError, match="changed"):
        copy.prove(progress=touch)
