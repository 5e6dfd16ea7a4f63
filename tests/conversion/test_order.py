"""Copies side by side: as exact as tiled ones, and known wherever a growth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import receipt
from hyperclone.errors import HypercloneError
from hyperclone.planning.recipe import OrderName
from hyperclone.study import run_keys
from tests.helpers.edits import forget_growth
from tests.helpers.models import MODELS, REPRESENTATIVE, VOCAB, build, save_tokenizer
from tests.helpers.training_steps import batches, train

SIDE_BY_SIDE = Growth(width=2, order="interleaved")
NAMES = sorted({*{kind: name for name, (kind, _) in MODELS.items()}.values(), *REPRESENTATIVE})  # one of each type


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_computes_the_same_with_copies_side_by_side(name: str) -> None:
    """What one order refuses, the other does, and no result is further off than that of tiled copies."""
    model = build(name).eval()
    ids = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))

    def error(growth: Growth) -> float | None:
        """Largest difference over the largest logit; None where the growth is refused."""
        try:
            grown = hyperclone.grow_model(model, growth).eval()
        except HypercloneError:
            return None
        with torch.no_grad():
            expected, found = (one(input_ids=ids).logits for one in (model, grown))
        return float((found - expected).abs().max() / expected.abs().max())

    for width in (2, 1.5) if name in REPRESENTATIVE else (2,):
        growth = Growth(width=width, order="interleaved", allow_rounding=True)
        found = error(growth)
        if found is None or found > 1e-5:
            usual = error(replace(growth, order="tiled"))
            assert (found is None) == (usual is None), width
            assert found is None or usual is None or found <= 3 * usual, width


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source in bf16 with a tokenizer, and it grown with copies side by side."""
    root = tmp_path_factory.mktemp("order")
    build("llama-grouped-tied").bfloat16().save_pretrained(root / "source")
    save_tokenizer(root / "source")
    hyperclone.grow(root / "source", root / "grown", SIDE_BY_SIDE, proof="full")
    return root


def test_it_is_proved_verified_and_collapsed(directories: Path, tmp_path: Path) -> None:
    recorded = receipt.read(directories / "grown")
    assert recorded is not None
    assert recorded.growth.order == "interleaved"
    assert hyperclone.verify(directories / "source", directories / "grown", proof="structural").verdict == "proved"
    hyperclone.collapse(directories / "grown", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (directories / "source", tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("order", ["tiled", "interleaved"])
def test_without_a_receipt_the_weights_say_their_order(order: OrderName, directories: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    hyperclone.grow(directories / "source", grown, Growth(width=2, order=order), proof="none")
    forget_growth(grown)
    assert hyperclone.verify(directories / "source", grown, proof="structural").verdict == "proved"
    weights = load_file(grown / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] *= 2
    save_file(weights, grown / "model.safetensors", metadata={"format": "pt"})
    broken = hyperclone.verify(directories / "source", grown, proof="structural")
    assert [failure.split(":")[0] for failure in broken.failures] == ["model.layers.1.mlp.up_proj.weight"]


ONLY_ROWS = [
    ("llama-grouped-tied", {"ffn": "2x"}),
    ("llama-grouped-tied", {"heads": "2x"}),
    ("gpt2-tied", {"ffn": "1.5x"}),  # Conv1D
    ("granitemoe", {"ffn": "2x"}),  # the experts of a layer in one tensor
]


@pytest.mark.parametrize(("name", "sizes"), ONLY_ROWS)
def test_rows_say_their_order_where_the_hidden_state_did_not_grow(
    name: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    build(name).save_pretrained(tmp_path / "source")
    grown = tmp_path / "grown"
    hyperclone.grow(tmp_path / "source", grown, Growth(order="interleaved", **sizes), proof="none")
    forget_growth(grown)
    assert hyperclone.verify(tmp_path / "source", grown, proof="structural").verdict == "proved"


def test_keys_of_runs_from_before_there_was_another_order_mean_tiled() -> None:
    assert Growth().order == "interleaved"
    assert run_keys.clone("a", Growth(width=2), None) == run_keys.of(
        "clone", "a", {"order": "interleaved", "width": 2}, None
    )
    tiled, other = (run_keys.clone("a", Growth(width=2, order=order), None) for order in ("tiled", "interleaved"))
    assert tiled == run_keys.of("clone", "a", {"width": 2}, None)
    assert other != tiled


def test_an_older_receipt_without_an_order_is_of_tiled_copies(directories: Path, tmp_path: Path) -> None:
    growth = Growth(width=2, order="tiled")
    hyperclone.grow(directories / "source", tmp_path / "grown", growth, proof="structural")
    file = tmp_path / "grown" / receipt.FILE
    content = json.loads(file.read_text())
    assert content["growth"].pop("order") == "tiled"
    file.write_text(json.dumps(content))
    assert hyperclone.verify(directories / "source", tmp_path / "grown", proof="structural").verdict == "proved"


def test_the_state_of_an_optimizer_grows_in_the_same_order(directories: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directories / "source", dtype=torch.float32)
    names, parameters = zip(*model.named_parameters(), strict=True)
    optimizer = torch.optim.AdamW([{"params": list(parameters), "param_names": list(names)}], lr=1e-3)
    train(model, [optimizer], batches(2))
    model.save_pretrained(tmp_path / "source")
    torch.save(optimizer.state_dict(), tmp_path / "source/optimizer.pt")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", SIDE_BY_SIDE, optimizer_state=tmp_path / "source",
        proof="structural",
    )  # fmt: skip
    moment = load_file(tmp_path / "grown/optimizer_state.safetensors")["model.embed_tokens.weight.exp_avg"]
    assert moment.any()
    assert moment[:, 0::2].equal(moment[:, 1::2])
