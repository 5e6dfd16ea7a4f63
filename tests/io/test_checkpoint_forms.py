"""Checkpoints as people have them: every form is grown, and the output is one that unmodified transformers loads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.conversion.grow import Grown
from hyperclone.errors import CheckpointError
from hyperclone.hf.models import load_model
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.behavioral import prove_behavior
from tests.helpers import unmodified
from tests.helpers.edits import edit_json

ModelDir = Callable[..., Path]
NAME, MIXTURE = "llama-grouped-tied", "mixtral"
TWICE = Growth(width=2)


def stored(path: Path) -> dict[str, Tensor]:
    """Every tensor by its name in the files."""
    return {name: t for file in sorted(path.glob("model*.safetensors")) for name, t in load_file(file).items()}


def change(path: Path, how: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(how(stored(path)), path / "model.safetensors", metadata={"format": "pt"})


def grown_like(form: Path, plain: Path, tmp_path: Path, *, proof: str = "full") -> Grown:
    """Grow both; the outputs' weights must be the same, and the proof must run and hold, now and later."""
    done = hyperclone.grow(form, tmp_path / "grown", TWICE, proof=proof)  # type: ignore[arg-type]
    assert done.proof is not None
    assert done.proof.passed
    assert proof != "full" or (done.proof.behavior is not None and done.proof.behavior.measured)
    assert hyperclone.verify(form, done.path, proof="structural").passed
    expected = hyperclone.grow(plain, tmp_path / "expected", TWICE, proof="none")
    ours, theirs = (Checkpoint.open(path) for path in (done.path, expected.path))
    assert ours.entries.keys() == theirs.entries.keys()
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.entries)
    assert unmodified.distance(done.path, plain) < unmodified.SAME
    return done


# --- Names with the prefix of a wrapper


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_dropped_because_transformers_would_not_load_it(
    prefix: str, victim: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    change(victim, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    _, problems = load_model(victim, torch.float32)
    assert problems  # else the names could stay
    done = grown_like(victim, model_dir(NAME), tmp_path, proof="full" if prefix == "module." else "structural")
    assert any("prefix of a wrapper" in note and prefix in note for note in done.plan.notes)
    assert not any(name.startswith(prefix) for name in stored(done.path))


@pytest.mark.parametrize("prefix", ["net.", "base_model.model.", "base_model.", "model.model.", "policy._orig_mod."])
@pytest.mark.parametrize("name", [NAME, "llama-grouped-untied", "gpt2-tied", "opt"])
def test_a_prefix_that_all_names_share_is_a_wrappers_whatever_it_is(
    name: str, prefix: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = shutil.copytree(model_dir(name), tmp_path / "source")
    plain = Checkpoint.open(source).entries
    change(source, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    wrapped = Checkpoint.open(source)
    assert wrapped.entries.keys() == plain.keys()
    assert any("prefix of a wrapper" in note for note in wrapped.notes)


def test_a_model_under_any_prefix_is_proved(victim: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    change(victim, lambda tensors: {"base_model.model." + name: tensor for name, tensor in tensors.items()})
    grown_like(victim, model_dir(NAME), tmp_path)


def test_compiled_layers_have_the_prefix_inside_their_names(victim: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    inside = "layers.0._orig_mod._checkpoint_wrapped_module."
    change(victim, lambda tensors: {name.replace("layers.0.", inside): tensor for name, tensor in tensors.items()})
    grown_like(victim, model_dir(NAME), tmp_path, proof="structural")


def test_names_that_would_become_one_without_a_prefix_are_refused(victim: Path) -> None:
    change(victim, lambda tensors: {**tensors, "module.model.norm.weight": tensors["model.norm.weight"].clone()})
    with pytest.raises(hyperclone.HypercloneError, match=r"not part of this architecture(.|\n)*module\.model\.norm"):
        hyperclone.plan(victim, TWICE)


def test_a_source_that_transformers_does_not_load_is_proved_layer_by_layer_as_well(
    victim: Path, tmp_path: Path
) -> None:
    change(victim, lambda tensors: {"module." + name: tensor for name, tensor in tensors.items()})
    done = hyperclone.grow(victim, tmp_path / "grown", TWICE, proof="none")
    behavior = prove_behavior(Checkpoint.open(victim), done.path, done.plan, layer_by_layer=True)
    assert behavior.measured
    assert not behavior.failures


# --- Sets of files


def shards(path: Path, *, stem: str = "model") -> None:
    """Store the tensors of a model in two shards, without an index."""
    tensors = list(stored(path).items())
    (path / "model.safetensors").unlink()
    for number, part in enumerate((tensors[:5], tensors[5:]), 1):
        save_file(dict(part), path / f"{stem}-{number:05}-of-00002.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_complete_shards_without_an_index_are_all_read(
    stem: str, victim: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    shards(victim, stem=stem)
    (victim / "training_args.bin").write_bytes(b"pickled, and no weights")
    done = grown_like(victim, model_dir(NAME), tmp_path)
    assert any("no index: all 2" in note for note in done.plan.notes)


def test_shards_without_an_index_must_not_share_a_name(victim: Path) -> None:
    shards(victim)
    first = load_file(victim / "model-00001-of-00002.safetensors")
    save_file(first, victim / "model-00002-of-00002.safetensors")
    with pytest.raises(hyperclone.HypercloneError, match="stored twice"):
        hyperclone.plan(victim, TWICE)


def test_of_several_sets_of_weights_the_one_that_transformers_loads_is_taken(
    victim: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    other = model_dir(NAME, seed=1, shard="40KB")  # other weights, which must not be taken
    for file in other.glob("model*"):
        shutil.copy(file, victim)
    (victim / "original").mkdir()
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "original/consolidated.00.pth", "old.gguf"):
        (victim / name).write_bytes(b"not read")
    done = grown_like(victim, model_dir(NAME), tmp_path, proof="structural")
    [note] = [note for note in done.plan.notes if "Left alone" in note]
    assert "consolidated.safetensors (8 B)" in note
    assert {path.suffix for path in done.path.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}
    hyperclone.grow(victim, tmp_path / "again", TWICE)  # the behavioral proof takes the same set


def test_an_index_is_taken_where_there_is_no_single_file(model_dir: ModelDir, tmp_path: Path) -> None:
    source = shutil.copytree(model_dir(NAME, shard="40KB"), tmp_path / "source")
    (source / "consolidated.safetensors").write_bytes(b"not read")
    plan = hyperclone.plan(source, TWICE)
    assert any("consolidated.safetensors" in note and "index" not in note for note in plan.notes)


def test_the_file_that_the_config_names_is_taken(victim: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    shutil.copy(model_dir(NAME, seed=1) / "model.safetensors", tmp_path / "other")
    (victim / "model.safetensors").rename(victim / "best.safetensors")
    (tmp_path / "other").rename(victim / "model.safetensors")
    edit_json(victim / "config.json", transformers_weights="best.safetensors")
    done = grown_like(victim, model_dir(NAME), tmp_path)
    assert "transformers_weights" not in json.loads((done.path / "config.json").read_text())
    edit_json(victim / "config.json", transformers_weights="../best.safetensors")
    with pytest.raises(hyperclone.HypercloneError, match="transformers_weights"):
        hyperclone.plan(victim, TWICE)


def test_an_adapter_beside_a_model_is_left_out(victim: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, victim / "adapter_model.safetensors")
    (victim / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/else"}')
    done = grown_like(victim, model_dir(NAME), tmp_path)
    assert any("adapter" in note and "left out" in note for note in done.plan.notes)
    assert not list(done.path.glob("adapter*"))
    assert not Checkpoint.open(victim).as_found  # with peft, transformers would load the adapter too


# --- Attention kernels that are not here


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("kernels", ["flash_attention_2", "flex_attention", "eager"])
def test_the_proof_chooses_attention_that_is_here_and_the_field_stays(
    kernels: str, field: str, victim: Path, tmp_path: Path
) -> None:
    edit_json(victim / "config.json", **{field: kernels})
    done = hyperclone.grow(victim, tmp_path / "grown", TWICE)
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert done.proof.behavior.measured
    assert json.loads((done.path / "config.json").read_text())[field] == kernels
    assert hyperclone.verify(victim, done.path).passed
    if kernels == "eager":
        assert load_model(victim, torch.float32)[0].config._attn_implementation == "eager"


# --- Experts that are stored fused


def fused(source: Path, target: Path, *, shard: str = "5GB") -> Path:
    """A copy of a mixture of experts as transformers saves it in its own layout."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(
        target, save_original_format=False, max_shard_size=shard
    )
    return target


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe"])
def test_fused_experts_are_grown_as_those_that_are_stored_one_by_one(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    plain = model_dir(name)
    source = fused(plain, tmp_path / "source")
    assert any(key.endswith("mlp.experts.gate_up_proj") for key in stored(source))
    done = grown_like(source, plain, tmp_path, proof="full" if name == MIXTURE else "structural")
    assert stored(done.path).keys() == stored(source).keys()  # fused as in the source
    assert stored(tmp_path / "expected").keys() == stored(plain).keys()
    collapsed = hyperclone.collapse(done.path, tmp_path / "collapsed")
    again = stored(collapsed.path)
    assert collapsed.exact
    assert again.keys() == stored(source).keys()
    assert all(torch.equal(again[key], value) for key, value in stored(source).items())


def test_fused_experts_may_lie_in_several_files_and_new_layers_have_them_too(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = fused(model_dir(MIXTURE), tmp_path / "source", shard="40KB")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, layers="1.5x"), shard_size="60KB")
    assert sum(key.endswith("experts.down_proj") for key in stored(done.path)) == 3
    index = json.loads((done.path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == stored(done.path).keys()
    assert unmodified.distance(done.path, source) < unmodified.SAME
    assert hyperclone.verify(source, done.path, proof="structural").passed


def test_an_expert_must_not_be_stored_in_both_ways(model_dir: ModelDir, tmp_path: Path) -> None:
    source = fused(model_dir("qwen3-moe"), tmp_path / "source")
    name = "model.layers.0.mlp.experts.1.down_proj.weight"
    alone = stored(model_dir("qwen3-moe"))[name]
    change(source, lambda tensors: {**tensors, name: alone})
    with pytest.raises(hyperclone.HypercloneError, match=rf"stored twice(.|\n)*{name}(.|\n)*down_proj(.|\n)*cure"):
        hyperclone.plan(source, TWICE)


# --- Directories without a model that can be read


@pytest.mark.parametrize(
    ("made", "gone", "words"),
    [
        ({"checkpoint-10/config.json": "{}"}, ["config.json"], "name the model's directory: .*checkpoint-10"),
        ({"params.json": "{}"}, ["config.json"], "download the model in the format of transformers"),
        ({}, ["config.json"], "copy config.json"),
        ({}, ["config.json", "model.safetensors"], "check the path"),
        ({"global_step5/x": "", "latest": ""}, ["model.safetensors"], r"zero_to_fp32.py \. OUT"),
        ({"pytorch_model_fsdp_0/x": ""}, ["model.safetensors"], "merge-weights SRC/pytorch_model_fsdp_0 OUT"),
        ({"__0_0.distcp": ""}, ["model.safetensors"], "merge-weights SRC OUT"),
        ({"a.safetensors": "", "b.safetensors": ""}, ["model.safetensors"], "model-00001-of-00002.safetensors and so"),
        ({"a.safetensors": ""}, ["model.safetensors"], "rename it to model.safetensors"),
        ({}, ["model.safetensors"], "download the model again"),
    ],
)
def test_a_directory_without_a_model_is_refused_with_what_lies_there(
    made: dict[str, str], gone: list[str], words: str, victim: Path
) -> None:
    for name, text in made.items():
        (victim / name).parent.mkdir(exist_ok=True)
        (victim / name).write_text(text)
    for name in gone:
        (victim / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        hyperclone.plan(victim, TWICE)
    assert re.search(words, caught.value.details["cure"])


# --- Code in the directory


def test_a_tokenizer_that_needs_code_of_its_own_is_named(victim: Path, tmp_path: Path) -> None:
    (victim / "tokenization_own.py").write_text("raise SystemExit('it ran')\n")
    text = json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}})
    (victim / "tokenizer_config.json").write_text(text)
    plan = hyperclone.grow(victim, tmp_path / "grown", TWICE, proof="structural").plan
    assert any("tokenization_own.py" in note for note in plan.notes)
    assert not list((tmp_path / "grown").glob("*.py"))
    (victim / "tokenizer_config.json").write_text("{")
    assert not any("code of its own" in note for note in hyperclone.plan(victim, TWICE).notes)
