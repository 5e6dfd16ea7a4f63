"""Only hyperclone/hf knows what transformers keeps to itself: its submodules and its private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import hyperclone
from hyperclone.hf import parameter_names
from hyperclone.hf.models import attention_implementation, build_like, load_without_weights, quiet
from hyperclone.hf.trainer import decayed_names, use_one_device
from tests.helpers.models import build

SOURCE = Path(hyperclone.__file__).parent
# What transformers' own classes hold and do not document.
PRIVATE = {
    "_attn_implementation", "_name_or_path", "_n_gpu", "_tied_weights_keys", "all_tied_weights_keys",
    "get_decay_parameter_names", "revert_weight_conversion",
}  # fmt: skip
OUTSIDE = sorted(file for file in SOURCE.rglob("*.py") if SOURCE / "hf" not in file.parents)


def uses_of_internals(tree: ast.AST) -> Iterator[str]:
    """What a module takes from transformers besides its public top level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.startswith("transformers."):
                yield f"line {node.lineno}: from {node.module} import ..."
            if node.module == "transformers":
                yield from (f"line {node.lineno}: {name.name}" for name in node.names if name.name.startswith("_"))
        if isinstance(node, ast.Import):
            yield from (
                f"line {node.lineno}: import {name.name}"
                for name in node.names
                if name.name.startswith("transformers.")
            )
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE:
            yield f"line {node.lineno}: .{node.attr}"


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(SOURCE)))
def test_only_hf_uses_what_transformers_keeps_to_itself(file: Path) -> None:
    assert list(uses_of_internals(ast.parse(file.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from transformers.core_model_loading import revert_weight_conversion",
        "import transformers.utils.logging",
        "from transformers import _LazyModule",
        "model.config._attn_implementation",
    ],
)
def test_the_check_sees_uses_of_internals(code: str) -> None:
    assert list(uses_of_internals(ast.parse(code)))


def test_the_methods_of_trainer_that_are_overridden_are_still_trainers() -> None:
    """A method that transformers renames would silently not be called any more."""
    tree = ast.parse((SOURCE / "training" / "trainer.py").read_text("utf-8"))
    (own,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GrownTrainer")
    private = {node.name for node in own.body if isinstance(node, ast.FunctionDef) and node.name.startswith("_")}
    assert {"_get_train_sampler", "_save_checkpoint", "_get_output_dir"} <= private
    for name in ("_get_train_sampler", "_save_checkpoint", "_get_output_dir", "_prepare_inputs"):
        assert callable(getattr(Trainer, name))


@pytest.mark.parametrize("name", ["llama-grouped-tied", "neox-parallel", "neox-tied", "mixtral"])
def test_saved_tensors_are_those_that_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    """Tied, renamed in memory (GPT-NeoX's head), and fused in memory (Mixtral's experts)."""
    model = build(name)
    model.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    saved = parameter_names.saved_tensors(model)
    assert saved.keys() == on_disk.keys()
    assert all(tensor.equal(on_disk[key]) for key, tensor in saved.items())


def test_tied_names_lead_from_what_is_not_saved_to_what_is() -> None:
    model = build("llama-grouped-tied")
    assert parameter_names.tied_names(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert parameter_names.saved_tensors(model).keys().isdisjoint(parameter_names.tied_names(model))


def test_a_model_like_another_has_its_class_its_attention_and_its_name(tmp_path: Path) -> None:
    build("llama-grouped-tied").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    model.generation_config.max_length = 17
    tensors = {name: tensor + 1 for name, tensor in parameter_names.saved_tensors(model).items()}
    new = build_like(model, config=model.config.to_dict(), tensors=tensors, dtype=torch.float32)
    assert type(new) is type(model)
    assert attention_implementation(new) == attention_implementation(model) == "eager"
    assert new.name_or_path == model.name_or_path == str(tmp_path)
    assert new.generation_config.max_length == 17
    assert all(tensor.equal(tensors[name]) for name, tensor in parameter_names.saved_tensors(new).items())


def test_a_model_without_weights_has_the_parameters_of_the_loaded_one_in_the_same_order(tmp_path: Path) -> None:
    model = build("llama-grouped-tied")
    model.save_pretrained(tmp_path)
    empty = load_without_weights(tmp_path)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert [(name, p.shape) for name, p in empty.named_parameters()] == [
        (name, p.shape) for name, p in model.named_parameters()
    ]


def test_quiet_puts_the_settings_of_transformers_back() -> None:
    logging = transformers.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    for errors, level in ((False, logging.ERROR), (True, logging.CRITICAL)):
        with quiet(errors=errors):
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, False)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_neither_norms_nor_biases_decay() -> None:
    names = decayed_names(build("opt"))
    assert names
    assert not [name for name in names if "norm" in name or name.endswith("bias")]


@pytest.mark.parametrize(("seen", "used"), [(0, 0), (1, 1), (8, 1)])
def test_a_process_trains_on_one_gpu_at_most(tmp_path: Path, seen: int, used: int) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert arguments.n_gpu == 0
    arguments._n_gpu = seen
    use_one_device(arguments)
    assert arguments.n_gpu == used
