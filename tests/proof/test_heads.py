"""Classifiers and reward models: the head is grown with the model, and proved with its own class of transformers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.anatomy import activations
from hyperclone.architectures import heads
from hyperclone.architectures.registry import families, of_config
from hyperclone.cli.display import plan_and_proof
from hyperclone.errors import CheckpointError, HypercloneError, TrainingError
from hyperclone.hf import models
from hyperclone.hf.tiny_models import randomize_parameters
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.behavioral import prove_behavior
from hyperclone.training.inputs import load_model as load_for_training
from tests.helpers.edits import edit_json
from tests.helpers.models import MODELS, save_tokenizer
from tests.helpers.unmodified import SAME

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"


def save(directory: Path, name: str, head: str, *, labels: int = 3, **fields: Any) -> Path:
    """A classifier of a row of MODELS, with every parameter random."""
    import transformers

    model_type, config = MODELS[name]
    parsed = transformers.AutoConfig.for_model(model_type, **{**config, "num_labels": labels, **fields})
    model = getattr(transformers, models.HEADS[head]).from_config(parsed)
    randomize_parameters(model, seed=0).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def logits(directory: Path) -> torch.Tensor:
    """Of fixed tokens, one sequence at a time, by the class that the config names."""
    import transformers

    cls = getattr(transformers, json.loads((directory / "config.json").read_text())["architectures"][0])
    model, info = cls.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.stack([model.eval()(row[None]).logits for row in ids])


def test_every_head_has_its_class_of_transformers() -> None:
    assert heads.names() == tuple(models.HEADS)


@pytest.mark.parametrize("model_type", sorted(families()))
@pytest.mark.parametrize("head", [SEQUENCE, TOKEN])
def test_the_tensors_of_a_head_are_those_of_transformers(model_type: str, head: str) -> None:
    import transformers

    try:
        cls = getattr(transformers, models.HEADS[head])._model_mapping[transformers.CONFIG_MAPPING[model_type]]
    except KeyError:
        return  # transformers has no such class
    row = next((config for kind, config in MODELS.values() if kind == model_type), {"num_hidden_layers": 1})
    config = transformers.CONFIG_MAPPING[model_type](**{**row, "num_labels": 5})
    with torch.device("meta"):
        model = cls(config)
    fields = {**config.to_dict(), "architectures": [cls.__name__]}
    if model_type == "modernbert-decoder":  # its classifier has layers of its own
        with pytest.raises(CheckpointError, match="what a classifier of this architecture reads is not known"):
            of_config(fields)
        return
    family = of_config(fields)
    expected = {name: layout.shape(family.sizes(fields)) for name, layout in family.tensors(fields).items()}
    for name, parameter in model.named_parameters():
        if not name.startswith(model.base_model_prefix + "."):
            assert expected[name] == tuple(parameter.shape)


@pytest.mark.parametrize(
    ("name", "head", "labels"),
    [
        ("llama-grouped-tied", SEQUENCE, 1),
        ("llama-grouped-untied", SEQUENCE, 3),
        ("llama-biases", TOKEN, 3),
        pytest.param("gpt2-tied", TOKEN, 2, marks=pytest.mark.slow),
        pytest.param("neox-parallel", SEQUENCE, 2, marks=pytest.mark.slow),
        pytest.param("opt-projected-post-norm", SEQUENCE, 3, marks=pytest.mark.slow),
        pytest.param("mixtral", TOKEN, 3, marks=pytest.mark.slow),
    ],
)
def test_a_head_is_grown_and_proved_with_its_own_class(name: str, head: str, labels: int, tmp_path: Path) -> None:
    source = save(tmp_path / "source", name, head, labels=labels)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, allow_rounding=True))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert done.proof.behavior.measured
    expected = logits(source)
    assert float((logits(done.path) - expected).norm() / expected.norm()) < SAME
    assert hyperclone.verify(source, done.path, proof="structural").passed
    kind = {SEQUENCE: "sequences", TOKEN: "tokens"}[head]
    assert any(note.startswith(f"A classifier of {kind} with {labels} label") for note in done.plan.notes)
    shown = Console(record=True, width=300, file=io.StringIO())
    shown.print(plan_and_proof.proof_table(done.proof))
    text = shown.export_text()
    assert f"{kind} compared: " in text
    assert f"same top: {kind} with the same likeliest label\n" in text.replace(" \n", "\n")
    assert "next token" not in text
    assert " same top label |" in (done.path / "README.md").read_text()
    task = {SEQUENCE: "text-classification", TOKEN: "token-classification"}[head]
    assert f"pipeline_tag: {task}" in (done.path / "README.md").read_text()
    collapsed = hyperclone.collapse(done.path, tmp_path / "collapsed")
    assert collapsed.exact or done.plan.rounds
    assert Checkpoint.open(collapsed.path).config == Checkpoint.open(source).config


@pytest.mark.parametrize("head", [SEQUENCE, TOKEN])
@pytest.mark.parametrize("padding", [None, 0])
def test_the_proof_of_a_head_notices_a_wrong_one_also_layer_by_layer(
    head: str, padding: int | None, tmp_path: Path
) -> None:
    source = save(tmp_path / "source", "llama-grouped-tied", head, pad_token_id=padding)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none")
    for layer_by_layer in (False, True):
        behavior = prove_behavior(Checkpoint.open(source), done.path, done.plan, layer_by_layer=layer_by_layer)
        assert behavior.measured
        assert not behavior.failures
    tensors = load_file(done.path / "model.safetensors")
    tensors["score.weight"][0, 0] += 0.1
    save_file(tensors, done.path / "model.safetensors", metadata={"format": "pt"})
    behavior = prove_behavior(Checkpoint.open(source), done.path, done.plan)
    assert any("logits differ" in failure for failure in behavior.failures)


def test_a_head_in_half_precision_with_any_width_and_more_layers(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama-grouped-untied", SEQUENCE, dtype="bfloat16")
    done = hyperclone.grow(
        source, tmp_path / "grown", Growth(hidden="1.5x", ffn="2x", layers="2x", allow_rounding=True)
    )
    assert done.proof is not None
    assert done.proof.passed


def test_the_anatomy_of_a_classifier_is_measured_without_a_padding_token(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama-grouped-tied", SEQUENCE)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none")
    measured = activations.measure_activations(done.path, done.plan)
    assert measured[0]


def test_a_classifier_in_memory_is_grown_as_one(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama-grouped-tied", SEQUENCE)
    model, problems = models.load_model(source, torch.float32)
    assert not problems
    wide = hyperclone.grow_model(model, Growth(width=2))
    assert type(wide) is type(model)
    ids = torch.arange(3, 15)[None]
    assert torch.allclose(wide(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_done_with_a_head_is_refused(model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama-grouped-untied", SEQUENCE)
    with pytest.raises(HypercloneError, match="only a causal language model can become a mixture"):
        hyperclone.plan(source, Growth(experts=2))
    with pytest.raises(TrainingError, match="causal language models only"):
        load_for_training(source, hyperclone.Training(model=str(source), data=["text"], output="run", tokens=1000))
    edit_json(source / "config.json", architectures=["LlamaForQuestionAnswering"])
    with pytest.raises(CheckpointError, match=r"a head that cannot be grown(.|\n)*LlamaForQuestionAnswering"):
        hyperclone.plan(source, Growth(width=2))


def test_a_value_head_of_trl_is_refused_and_the_cure_works(model_dir: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir("llama-grouped-untied"))
    model.save_pretrained(tmp_path / "source")
    tensors = load_file(tmp_path / "source/model.safetensors")
    tensors |= {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file(tensors, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"value head(.|\n)*save_pretrained\(OUT\)"):
        hyperclone.plan(tmp_path / "source", Growth(width=2))
    AutoModelForCausalLM.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "out")
    hyperclone.plan(tmp_path / "out", Growth(width=2))
