"""The anatomy of a clone, against numpy, plain forward passes and real training steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth
from hyperclone.anatomy import examine
from hyperclone.anatomy.weights import compare_copies, spectrum
from hyperclone.conversion.provenance import plan_of_directory
from hyperclone.errors import HypercloneError
from hyperclone.expansion import copy_map
from hyperclone.hf.models import load_model
from hyperclone.training.anatomy_callback import measure_model
from tests.helpers.edits import forget_growth
from tests.helpers.models import build, save_tokenizer

ModelDir = Callable[..., Path]


def grown(model_dir: ModelDir, directory: Path, growth: Growth, name: str = "llama-grouped-tied") -> Path:
    hyperclone.grow(model_dir(name), directory, growth, proof="none")
    return directory


def train(directory: Path, out: Path, *, steps: int = 6) -> Path:
    """AdamW on random tokens; saved with its receipt."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(300, (4, 16), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    shutil.copy(directory / "hyperclone.json", out)
    save_tokenizer(out)
    return out


def by_hand(matrix: np.ndarray, columns: copy_map.CopyMap) -> tuple[float, float]:
    """(mean over rows of the mean cosine over pairs, units with as many copies together; share of the rest)."""
    source, number, count = (x.numpy() for x in (columns.source, columns.number, columns.count))
    cosines, rest, whole = [], 0.0, 0.0
    for row in matrix:
        of_row, units = 0.0, 0
        for c in sorted(set(count) - {0}):
            group = [
                row[(number == b) & (count == c)][np.argsort(source[(number == b) & (count == c)])] for b in range(c)
            ]
            whole += sum(g @ g for g in group)
            if c > 1:
                mean = sum(group) / c
                rest += sum((g - mean) @ (g - mean) for g in group)
                pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(group, 2)]
                of_row += len(mean) * np.mean(pairs)
                units += len(mean)
        cosines.append(of_row / units)
    return float(np.mean(cosines)), rest / whole / (1 - columns.old / int((count > 0).sum()))


@pytest.mark.parametrize(
    "columns",
    [copy_map.axis(8, 16), copy_map.axis(8, 24), copy_map.axis(5, 12), copy_map.axis(8, 20, padded=True),
     copy_map.product([copy_map.axis(2, 4), copy_map.axis(3, 3)])],
    ids=["two", "three", "uneven", "padding", "heads"],
)  # fmt: skip
def test_symmetry_and_apart_are_what_they_are_by_hand(columns: copy_map.CopyMap) -> None:
    matrix = torch.randn(7, columns.new, generator=torch.Generator().manual_seed(0)) + 0.7
    found = compare_copies(matrix, columns)
    assert found is not None
    assert (found.symmetry, found.divergence) == pytest.approx(by_hand(matrix.double().numpy(), columns), rel=1e-5)
    assert not found.equal


def test_equal_copies_are_0_apart_unrelated_ones_1_and_half_empty_ones_have_cosine_0() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(200, 100, generator=generator)
    columns = copy_map.axis(100, 300)
    same = compare_copies(small.repeat(1, 3), columns)
    assert same is not None
    assert same.equal
    assert (same.symmetry, same.divergence) == pytest.approx((1, 0), abs=1e-6)
    unrelated = compare_copies(torch.randn(200, 300, generator=generator), columns)
    assert unrelated is not None
    assert (unrelated.symmetry, unrelated.divergence) == pytest.approx((0, 1), abs=0.02)
    diagonal = compare_copies(torch.cat([small, 0 * small], 1), copy_map.axis(100, 200))
    assert diagonal is not None
    assert (diagonal.symmetry, diagonal.divergence) == pytest.approx((0, 1), abs=1e-6)
    assert compare_copies(small, copy_map.axis(100, 100)) is None
    assert compare_copies(torch.zeros(3, 200), copy_map.axis(100, 200)) is None


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (4, 4)], ids=str)
def test_the_spectrum_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    share = values / values.sum()
    found = spectrum(matrix)
    assert found is not None
    assert found.size == min(shape)
    assert found.values == pytest.approx(values / values[0], rel=1e-6)
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)
    equal = spectrum(torch.eye(8))
    assert equal is not None
    assert (equal.effective_rank, equal.stable_rank) == pytest.approx((8, 8))
    assert spectrum(torch.zeros(3, 3)) is None


def test_a_clone_starts_at_the_symmetry_that_its_noise_gives_and_uses_none_of_its_width(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    found = examine.examine(grown(model_dir, tmp_path / "grown", Growth(width=2)))
    q = 0.1  # 10 dB
    matrices = [t for t in found.tensors if t.layer is not None]
    assert len(matrices) == 14
    assert np.mean([t.input_symmetry for t in matrices]) == pytest.approx((1 - q) / (1 + q), abs=0.02)  # rows are short
    assert np.mean([t.output_symmetry for t in matrices]) == pytest.approx(1 / (1 + q), abs=0.01)
    assert found.locked == ()
    assert found.in_use == pytest.approx(0, abs=1e-9)
    assert "not in use yet" in found.verdict


FAMILIES = [
    "llama-multiquery-tied",
    "opt",
    "opt-projected-post-norm",
    "gpt2-tied",
    "neox-parallel",
    "falcon-40b",
    "mixtral",
    "phi3-grouped-tied",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_without_noise_every_family_is_locked_has_its_sources_rank_and_equal_activations(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    growth = Growth(width=2, noise="none", allow_rounding=True)
    found = examine.examine(grown(model_dir, tmp_path / "grown", growth, name), against=model_dir(name))
    assert set(found.locked) == set(found.sizes)
    assert "LOCKED" in found.verdict
    assert found.in_use == pytest.approx(0, abs=1e-9)
    for tensor in found.tensors:
        for side in (tensor.read, tensor.write):
            assert side is None or side.equal
        assert tensor.rank_gain is None or tensor.rank_gain == pytest.approx(1, rel=1e-4)
        if tensor.read and tensor.write and tensor.spectrum:
            assert max(tensor.spectrum.values[len(tensor.spectrum.values) // 2 + 1 :]) < 1e-6
    read = [t for t in found.tensors if t.read is not None and ".experts." not in t.name]  # fused in memory
    assert all(t.active is not None for t in read)


def test_a_locked_clone_is_still_locked_after_training_and_another_uses_its_width(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    locked = grown(model_dir, tmp_path / "locked", Growth(width=2, noise="none"))
    found = examine.examine(train(locked, tmp_path / "locked-trained"))
    assert set(found.locked) == {"hidden", "ffn", "kv_heads"}
    assert "without dropout" in found.verdict
    noisy = grown(model_dir, tmp_path / "noisy", Growth(width=2))
    after = examine.examine(train(noisy, tmp_path / "noisy-trained"))
    assert after.locked == ()
    assert after.in_use is not None
    assert after.in_use > 0.001
    assert "have diverged" in after.verdict
    diagonal = grown(model_dir, tmp_path / "diagonal", Growth(width=2, noise="none", expansion="diagonal"))
    assert examine.examine(diagonal, activations=False).locked == ()


def test_an_axis_is_locked_by_itself(model_dir: ModelDir, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = grown(model_dir, tmp_path / "grown", Growth(width=2, noise="none"))
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] += (
        0.5  # one ffn unit is no longer its copy; hidden copies still are
    )
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    found = examine.examine(directory, activations=False)
    assert set(found.locked) == {"hidden", "kv_heads"}
    assert "LOCKED along hidden, kv_heads" in found.verdict


def test_padding_channels_are_not_called_locked(model_dir: ModelDir, tmp_path: Path) -> None:
    growth = Growth(hidden=40, noise="none", allow_rounding=True)
    found = examine.examine(grown(model_dir, tmp_path / "grown", growth, "llama-free-head-dim"))
    assert found.locked == ()
    assert "has copies" in found.verdict


def test_activations_are_those_of_a_plain_forward_pass(model_dir: ModelDir, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from hyperclone.anatomy import activations
    from hyperclone.conversion import receipt

    directory = train(grown(model_dir, tmp_path / "grown", Growth(width=2)), tmp_path / "trained")
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    plan = plan_of_directory(directory, receipt.read(directory))
    ids = torch.arange(24).view(2, 12)
    found = activations.compare_activations(model, plan, ids)
    with torch.inference_mode():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        read = model.model.layers[1].input_layernorm(hidden).flatten(0, 1)
    expected = by_hand(read.double().numpy(), copy_map.axis(32, 64, order=Growth().order))
    for name in ("q_proj", "k_proj", "v_proj"):
        sides = found[f"model.layers.1.self_attn.{name}.weight"]
        assert (sides.symmetry, sides.divergence) == pytest.approx(expected, rel=1e-4)
    assert {name.split(".")[-2] for name in found} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"
    }  # fmt: skip


def test_without_a_receipt_the_source_says_what_was_grown(model_dir: ModelDir, tmp_path: Path) -> None:
    directory = grown(model_dir, tmp_path / "grown", Growth(width=2))
    with_receipt = examine.examine(directory)
    forget_growth(directory)
    with pytest.raises(HypercloneError, match="--against"):
        examine.examine(directory)
    assert [t.read for t in examine.examine(directory, against=model_dir("llama-grouped-tied")).tensors] == [
        t.read for t in with_receipt.tensors
    ]
    with pytest.raises(HypercloneError, match="growth"):
        examine.examine(directory, against=model_dir("opt"))


def test_what_is_measured_can_be_chosen(model_dir: ModelDir, tmp_path: Path) -> None:
    directory = grown(model_dir, tmp_path / "grown", Growth(width=2))
    some = examine.examine(directory, layers="-1", tensors="*mlp*", spectra="none", activations=False)
    assert [t.kind for t in some.tensors] == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert {t.layer for t in some.tensors} == {1}
    assert all(t.spectrum is None and t.active is None for t in some.tensors)
    assert some.notes == ["1 of 2 layers; --layers all shows every one."]
    assert examine.choose_layers(30, None) == (0, 4, 8, 12, 17, 21, 25, 29)
    mistakes: list[dict[str, Any]] = [{"layers": "2"}, {"layers": "first"}, {"spectra": "few"}, {"tensors": "nothing"}]
    for wrong in mistakes:
        with pytest.raises(HypercloneError, match=next(iter(wrong))):
            examine.examine(directory, **wrong)


def test_the_callback_logs_what_the_saved_checkpoint_shows(model_dir: ModelDir, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from hyperclone.training.anatomy_callback import AnatomyCallback

    directory = grown(model_dir, tmp_path / "grown", Growth(width=2))
    model = AutoModelForCausalLM.from_pretrained(directory)
    rows = [{"input_ids": (ids := torch.arange(i, i + 16)), "labels": ids} for i in range(16)]
    logged: list[dict[str, float]] = []
    callback = AnatomyCallback(log=logged.append)
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=4, eval_strategy="steps", eval_steps=2, learning_rate=1e-2, report_to=[],
        per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[callback])
    trainer.train()
    assert [entry["step"] for entry in callback.history] == [0, 2, 4]
    assert len(logged) == 3
    assert [e for e in trainer.state.log_history if "anatomy/read" in e] == callback.history
    model.save_pretrained(tmp_path / "saved")
    shutil.copy(directory / "hyperclone.json", tmp_path / "saved")
    measured = {t.name: t for t in examine.examine(tmp_path / "saved", activations=False).tensors}
    layers = [t for t in measured.values() if t.layer is not None]
    last: dict[str, Any] = callback.history[-1]
    assert last["anatomy/read"] == pytest.approx(np.mean([t.input_symmetry for t in layers]), rel=1e-6)
    assert last["anatomy/write"] == pytest.approx(np.mean([t.output_symmetry for t in layers]), rel=1e-6)
    assert last["anatomy/effective_rank"] == pytest.approx(np.mean([t.effective_rank for t in layers]), rel=1e-6)
    name = "model.layers.0.mlp.down_proj.weight"
    assert last[f"anatomy/read/{name}"] == pytest.approx(measured[name].input_symmetry, rel=1e-6)
    assert callback.history[0]["anatomy/read"] == pytest.approx(0.818, abs=0.02)
    assert callback.history[0]["anatomy/read"] != last["anatomy/read"]


def test_during_training_a_small_model_is_measured_in_every_layer_and_a_large_one_in_three(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from hyperclone.training import anatomy_callback

    directory = grown(model_dir, tmp_path / "grown", Growth(width=2, layers=6, depth_mode="stack"))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.num_hidden_layers == 6

    def layers(**asked: Any) -> list[int]:
        return sorted({int(t.name.split(".")[2]) for t in anatomy_callback.measure_model(model, **asked)})

    assert layers(layers=None) == [0, 1, 2, 3, 4, 5]
    assert layers(layers=2) == [0, 5]
    assert layers() == [0, 2, 5]
    assert all(t.effective_rank for t in anatomy_callback.measure_model(model))
    monkeypatch.setattr(anatomy_callback, "_QUICK", 1e4)  # spectra would take longer, also of three layers
    assert layers(layers=None) == [0, 2, 5]
    slow = anatomy_callback.measure_model(model, layers=None)
    assert {t.effective_rank for t in slow} == {None}
    assert all(t.input_symmetry for t in slow)


def test_the_callback_refuses_a_model_that_was_not_grown() -> None:
    from hyperclone.training.anatomy_callback import measure_model

    with pytest.raises(HypercloneError, match="no receipt"):
        measure_model(build("llama-grouped-tied"))


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """The command line, in this process."""
    from hyperclone.cli.main import main

    monkeypatch.setattr("sys.argv", ["hyperclone", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        main()
    shown = capsys.readouterr()
    return int(str(left.value.code)), shown.out, shown.err


@pytest.mark.slow
def test_from_the_command_line(
    model_dir: ModelDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, source = (
        grown(model_dir, tmp_path / "grown", Growth(width=2, noise="none")),
        model_dir("llama-grouped-tied"),
    )
    code, out, _ = command(
        capsys, monkeypatch, "anatomy", directory, "--against", source, "-o", tmp_path / "figure.svg"
    )
    assert code == 0
    for words in ("LOCKED", "cosine between copies", "effective rank over the source's", "mlp.down_proj", "Wrote"):
        assert words in out
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    code, out, _ = command(capsys, monkeypatch, "anatomy", directory, "--json", "--no-activations")
    summary = json.loads(out)
    assert summary["locked"] == ["ffn", "hidden", "kv_heads"]
    assert {t["name"]: t for t in summary["tensors"]}["model.embed_tokens.weight"]["write"][
        "symmetry"
    ] == pytest.approx(1)
    for arguments, words in (
        (["-o", tmp_path / "figure.gif"], ".png, .svg or .pdf"),
        (["-o", tmp_path / "none/figure.png"], "no such directory"),
        (["--layers", "7"], "from 0 to 1"),
    ):
        code, _, err = command(capsys, monkeypatch, "anatomy", directory, *arguments)
        assert code == 2
        assert words in err


@pytest.mark.parametrize("name", ["granitemoe", "gpt_oss"])
def test_experts_in_one_tensor_are_measured_one_by_one(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    directory = grown(model_dir, tmp_path / "grown", Growth(width=2), name)
    anatomy = hyperclone.examine(directory, against=model_dir(name), spectra="all", activations=False)
    weights, source = load_file(directory / "model.safetensors"), load_file(model_dir(name) / "model.safetensors")
    stacked = {key for key, weight in weights.items() if weight.dim() == 3}
    measured = {tensor.name: tensor for tensor in anatomy.tensors if tensor.name.endswith("]")}
    assert measured.keys() == {f"{key}[{expert}]" for key in stacked for expert in range(4)}
    for key in stacked:
        # A Conv1D's columns are outputs (gpt-oss), in which gate and up take turns.
        matrix, small = (w[key][2] if name == "granitemoe" else w[key][2].T for w in (weights, source))
        found = measured[f"{key}[2]"]
        assert found.layer in (0, 1)
        assert "[" not in found.kind
        assert found.shape == tuple(weights[key].shape[1:])
        columns = copy_map.axis(small.shape[1], matrix.shape[1], order=Growth().order)
        assert found.read is not None
        assert found.spectrum is not None
        assert found.source_spectrum is not None
        assert found.input_symmetry == pytest.approx(by_hand(matrix.double().numpy(), columns)[0], rel=1e-5)
        for spectrum_, of in ((found.spectrum, matrix), (found.source_spectrum, small)):
            values = np.linalg.svd(of.double().numpy(), compute_uv=False)
            assert spectrum_.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    model, _ = load_model(directory, torch.float32)
    in_memory = {t.name: t for t in measure_model(model, tensors="*moe*" if name == "granitemoe" else "*experts*")}
    assert {name: in_memory[name].read for name in measured} == {name: t.read for name, t in measured.items()}
