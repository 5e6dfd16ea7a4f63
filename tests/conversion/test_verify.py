"""What verify compares beside the weights: everything that changes what users of the grown directory get."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import model_card
from hyperclone.errors import CheckpointError, GrowthError
from tests.helpers.command import call
from tests.helpers.edits import edit_json, forget_growth

ModelDir = Callable[..., Path]


@pytest.fixture
def pair(model_dir: ModelDir, tmp_path: Path) -> tuple[Path, Path]:
    """(source, grown) that a test may change."""
    source = shutil.copytree(model_dir("llama-grouped-tied"), tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text('{"temperature": 0.7}')
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="structural")
    return source, tmp_path / "grown"


def failures(pair: tuple[Path, Path]) -> list[str]:
    return hyperclone.verify(*pair, proof="structural").failures


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_a_type_that_transformers_would_convert_to_is_a_difference(pair: tuple[Path, Path], field: str) -> None:
    assert failures(pair) == []
    edit_json(pair[1] / "config.json", **{field: "float16"})
    (failure,) = failures(pair)
    assert "dtype" in failure
    assert "float16" in failure


def test_the_older_spelling_of_the_same_type_is_no_difference(pair: tuple[Path, Path]) -> None:
    edit_json(pair[1] / "config.json", torch_dtype=json.loads((pair[1] / "config.json").read_text())["dtype"])
    assert failures(pair) == []


def test_a_wrong_source_is_named_before_anything_else(
    pair: tuple[Path, Path], model_dir: ModelDir, tmp_path: Path
) -> None:
    with pytest.raises(GrowthError, match=r"this model was grown from source \(llama\), not from .* \(opt\)"):
        hyperclone.verify(model_dir("opt"), pair[1], proof="structural")
    source_config = json.loads((pair[0] / "config.json").read_text())
    receipt = json.loads((pair[1] / "hyperclone.json").read_text())
    for field, axis in (("intermediate_size", "ffn"), ("num_hidden_layers", "layers")):
        changed = {**receipt, "source_config": {**source_config, field: 2 * source_config[field]}}
        (pair[1] / "hyperclone.json").write_text(json.dumps(changed))
        said = rf"grown from source \(llama\), which had other sizes than source\n  field: +{axis}"
        with pytest.raises(GrowthError, match=said):
            hyperclone.verify(*pair, proof="structural")


def test_a_source_of_the_same_sizes_with_other_weights_is_said_to_be_another(pair: tuple[Path, Path]) -> None:
    weights = load_file(pair[0] / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, pair[0] / "model.safetensors", {"format": "pt"})
    first, *rest = failures(pair)
    count = len(weights)
    assert first.startswith("this is not the source that the model was grown from (source): of its tensors, ")
    assert f"{count} of {count} are others" in first
    assert rest


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_an_edited_file_beside_the_weights_is_a_difference_whichever_side_it_is_on(
    pair: tuple[Path, Path], side: int, name: str
) -> None:
    with (pair[side] / name).open("a") as stream:
        stream.write(" ")
    assert failures(pair) == [f"{name}: not the source's"]


def test_files_that_were_added_or_removed_are_differences(pair: tuple[Path, Path]) -> None:
    (pair[1] / "chat_template.jinja").unlink()
    (pair[1] / "special_tokens_map.json").write_text("{}")
    assert failures(pair) == [
        "chat_template.jinja: missing, and the source has it",
        "special_tokens_map.json: the source has no such file",
    ]
    edited = call("verify", *pair, "--proof", "structural")
    assert edited.returncode == 1
    assert "special_tokens_map.json" in edited.stdout


def test_without_a_receipt_files_beside_the_weights_are_said_but_no_failure(pair: tuple[Path, Path]) -> None:
    forget_growth(pair[1])
    (pair[1] / "chat_template.jinja").unlink()
    proof = hyperclone.verify(*pair, proof="structural")
    assert proof.passed
    assert proof.notes == ["chat_template.jinja: missing, and the source has it"]


@pytest.mark.parametrize("name", ["/etc/hostname", "../" * 9 + "etc/hostname", "a" * 5000, "tokenizer.json\x1b[2J"])
def test_a_receipt_cannot_name_files_to_read(pair: tuple[Path, Path], name: str) -> None:
    receipt = json.loads((pair[1] / "hyperclone.json").read_text())
    receipt["sha256"]["files"][name] = "0"
    (pair[1] / "hyperclone.json").write_text(json.dumps(receipt))
    verified = call("verify", *pair, "--proof", "structural")
    assert verified.returncode == 0
    assert "hostname" not in verified.stdout
    assert "\x1b" not in verified.stdout + verified.stderr


def test_control_characters_of_configs_and_paths_do_not_reach_the_terminal(pair: tuple[Path, Path]) -> None:
    clear = "\x1b[2J\x1b[H\nPROVED: everything\r"
    edit_json(pair[1] / "config.json", **{f"field{clear}": clear})
    verified = call("verify", *pair, "--proof", "structural")
    assert verified.returncode == 1
    assert not {"\x1b", "\r", "\x07"} & set(verified.stdout + verified.stderr)
    assert "FAILED" in verified.stdout
    assert not [line for line in verified.stdout.splitlines() if line.startswith("PROVED")]
    moved = pair[1].rename(pair[1].with_name("grown\x1b[2J\nPROVED"))
    shutil.rmtree(moved / "chat_templates", ignore_errors=True)
    (moved / "config.json").write_text("{")
    verified = call("verify", pair[0], moved, "--proof", "structural")
    assert "\x1b" not in verified.stdout + verified.stderr
    assert not [line for line in (verified.stdout + verified.stderr).splitlines() if line.startswith("PROVED")]


def test_a_directory_name_of_any_bytes_and_any_markup_is_grown_and_shown_as_it_is(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    for number, name in enumerate([b"caf\xe9", b"<img src=x>", b"`` ` [a](b) # c", b"a\nb"]):
        source = tmp_path / os.fsdecode(name)
        shutil.copytree(model_dir("llama-grouped-tied"), source)
        grown = hyperclone.grow(source, tmp_path / str(number), Growth(width=2), proof="structural").path
        heading = (grown / "README.md").read_text().partition("\n# ")[2].partition("\n")[0]
        shown = name.decode("utf-8", "replace").replace("\n", "\u240a")
        assert heading.endswith(", grown")
        assert heading.removesuffix(", grown").strip("` ").strip() == shown.strip("` ").strip()
        assert hyperclone.verify(source, grown, proof="structural").passed


def test_the_card_says_that_the_source_was_converted_and_gives_the_plans_notes(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir("llama-grouped-tied")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, dtype="bf16"), proof="none")
    card = (done.path / "README.md").read_text()
    assert f"A wider copy of `{source.name}`, converted to bf16, that computes the same function" in card
    assert "it knows exactly what that model knows" in card
    notes = [line for line in card.splitlines() if line.startswith("* ")]
    assert len(notes) == len(done.plan.notes)
    assert "* Weights are converted to bf16 first; the proof compares with the converted source." in notes
    same = hyperclone.grow(source, tmp_path / "same", Growth(width=2, dtype="fp32"), proof="none")
    assert "it knows exactly what its source knows" in (same.path / "README.md").read_text()


def test_names_in_a_cards_notes_are_no_markup(model_dir: ModelDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("llama-grouped-tied"), source)
    (source / "[a](b)<i>`.bin").write_bytes(b"")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none")
    assert any("[a](b)<i>`.bin" in note for note in done.plan.notes)
    assert r"\[a\](b)\<i\>\`.bin" in (done.path / "README.md").read_text()


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "`", "x```y``"])
def test_a_code_span_ends_where_it_should(text: str) -> None:
    span = model_card.code(text)
    fence = span[: len(span) - len(span.lstrip("`"))] if text == "plain" else span.split(" ")[0]
    assert fence not in span[len(fence) : -len(fence)].replace(" ", "|")
    assert text in span


def test_absurd_numbers_of_layers_are_refused_before_memory_is_asked_for(model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="too many layers"):
        hyperclone.plan(model_dir("llama-grouped-tied"), Growth(layers="999999999999999"))


def test_a_source_that_the_copied_files_cannot_be_read_of_is_refused_by_verify(pair: tuple[Path, Path]) -> None:
    (pair[1] / "tokenizer.json").unlink()
    (pair[1] / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json|no file of its size"):
        hyperclone.verify(*pair, proof="structural")
