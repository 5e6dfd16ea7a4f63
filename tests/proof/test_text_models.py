"""Models that also see images: --text-model grows the language model in them, proved against the whole, on text."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.anatomy.examine import examine
from hyperclone.architectures import text_models
from hyperclone.errors import CheckpointError, FamilyError, OptionError
from hyperclone.hf import logits
from hyperclone.hf.models import load_model, quiet
from hyperclone.hf.tiny_models import randomize_parameters
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.behavioral import prove_behavior
from tests.helpers.edits import edit_json
from tests.helpers.models import save_tokenizer
from tests.helpers.unmodified import SAME

TWICE = Growth(width=2, allow_rounding=True)
_TEXT: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 64, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SEES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
         "patch_size": 14}  # fmt: skip
_QWEN_SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 14}  # fmt: skip
_QWEN_TEXT = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
_QWEN_IDS = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
_CLIP = {**_SEES, "model_type": "clip_vision_model", "projection_dim": 16}
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {
        "text_config": {**_TEXT, "model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 8},
        "vision_config": {**_SEES, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
        "image_token_index": 290, "boi_token_index": 291, "eoi_token_index": 292,
    }),
    "qwen2_5_vl": ("qwen2_5_vl", {
        "text_config": _QWEN_TEXT, "vision_config": {**_QWEN_SEES, "fullatt_block_indexes": [0]}, **_QWEN_IDS,
    }),
    "qwen3_vl": ("qwen3_vl", {
        "text_config": _QWEN_TEXT, "vision_config": {**_QWEN_SEES, "deepstack_visual_indexes": [0]}, **_QWEN_IDS,
        "tie_word_embeddings": True,
    }),
    "mistral3": ("mistral3", {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_SEES, "model_type": "pixtral", "head_dim": 8}, "image_token_index": 290,
    }),
    "llava": ("llava", {
        "text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _CLIP, "image_token_index": 290,
    }),
    "llama4": ("llama4", {
        "text_config": {**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 1, "attention_chunk_size": 8,
                        "intermediate_size_mlp": 40, "moe_layers": [1], "no_rope_layers": [1, 0]},
        "vision_config": {**_SEES, "intermediate_size": 64, "vision_output_dim": 32, "projector_input_dim": 32,
                          "projector_output_dim": 32}, "image_token_index": 290,
    }),
    "qwen3_vl_moe": ("qwen3_vl_moe", {
        "text_config": {**_QWEN_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "vision_config": {**_QWEN_SEES, "deepstack_visual_indexes": [0]}, **_QWEN_IDS,
    }),
    "aya_vision": ("aya_vision", {
        "text_config": {**_TEXT, "model_type": "cohere2"}, "image_token_index": 290,
        "vision_config": {**_SEES, "model_type": "siglip_vision_model"},
    }),
    "granite-vision": ("llava_next", {
        "text_config": {**_TEXT, "model_type": "granite", "logits_scaling": 4.0}, "vision_config": _CLIP,
        "image_token_index": 290,
    }),
    "paligemma": ("paligemma", {
        "text_config": {**_TEXT, "model_type": "gemma"}, "projection_dim": 32, "image_token_index": 290,
        "vision_config": {**_SEES, "model_type": "siglip_vision_model", "projection_dim": 32},
    }),
}  # fmt: skip
OTHERS = ("qwen3_vl", "mistral3", "llava", "qwen3_vl_moe")
# What transformers multiplies the logits of the text model by, and not those of the whole; None: the whole fails.
ALONE = {"llama4": None, "aya_vision": 0.0625, "granite-vision": 0.25}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """whole(name) -> a saved model of WHOLES with every parameter random, and a tokenizer. Do not write into it."""

    @cache
    def get(name: str) -> Path:
        from transformers import AutoConfig, AutoModelForImageTextToText

        model_type, fields = WHOLES[name]
        path = tmp_path_factory.mktemp(name)
        with quiet():
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **fields))
            randomize_parameters(model, seed=0).save_pretrained(path)
        save_tokenizer(path)
        return path

    return get


def distance(grown: Path, source: Path, factor: float = 1.0) -> float:
    """Of the grown text model's logits from those of the whole (times a factor), as transformers loads both."""
    from transformers import AutoModelForImageTextToText

    with quiet():
        model, info = AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.randint(3, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    text, problems = load_model(grown, torch.float32)
    assert not problems
    with torch.inference_mode():
        expected = factor * model.eval()(ids, use_cache=False).logits
        return float((text(ids, use_cache=False).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_the_text_model_is_grown_on_its_own_and_proved_against_the_whole(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    source = whole(name)
    done = hyperclone.grow(source, tmp_path / "grown", TWICE, text_model=True)
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert {m.what for m in done.proof.behavior.measured} >= {"real text", "random tokens", "KV cache"}
    assert distance(done.path, source) < SAME
    assert hyperclone.verify(source, done.path).passed
    [note] = [note for note in done.plan.notes if "on its own" in note]
    assert "visual (" in note or "vision_tower (" in note
    card = (done.path / "README.md").read_text()
    assert f"A wider copy of the text model of `{source.name}` that computes the same function" in card
    assert "is grown on its own, as a" in card
    assert "Left out: " in card
    config = json.loads((done.path / "config.json").read_text())
    assert "vision_config" not in config
    assert config["architectures"] == [type(load_model(done.path, torch.float32)[0]).__name__]
    assert hyperclone.plan(source, TWICE, text_model=True).tensors == done.plan.tensors


def test_the_rest_of_the_whole_need_not_be_stored(whole: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(whole("qwen2_5_vl"), tmp_path / "source")
    text = {name: t for name, t in load_file(source / "model.safetensors").items() if "visual." not in name}
    save_file(text, source / "model.safetensors", {"format": "pt"})
    done = hyperclone.grow(source, tmp_path / "grown", TWICE, text_model=True)
    assert done.proof is not None
    assert done.proof.passed, done.proof.failures
    checkpoint = Checkpoint.open(source, text_model=True)
    streamed = prove_behavior(checkpoint, done.path, done.plan, layer_by_layer=True)
    assert not streamed.failures


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n != "llama4" else n for n in ALONE])
def test_a_whole_that_transformers_runs_otherwise_is_proved_against_its_text_model_alone(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    done = hyperclone.grow(whole(name), tmp_path / "grown", TWICE, text_model=True)
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert len(done.proof.behavior.measured) == 5
    [note] = [note for note in done.plan.notes if "on its own" in note]
    assert "proved against that text model alone" in note
    assert hyperclone.verify(whole(name), done.path).passed
    if (factor := ALONE[name]) is not None:
        assert distance(done.path, whole(name), factor) < SAME


@pytest.mark.slow
def test_a_text_model_that_attends_in_both_directions_is_compared_without_a_cache(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    done = hyperclone.grow(whole("paligemma"), tmp_path / "grown", TWICE, text_model=True)
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert {m.what for m in done.proof.behavior.measured} == {
        "real text", "random tokens", "left padding", "right padding",
    }  # fmt: skip
    assert any("both directions" in reason for reason in done.proof.behavior.skipped)
    assert distance(done.path, whole("paligemma")) < SAME


def test_the_classes_are_those_of_transformers() -> None:
    """Of every family that may stand in a whole."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = text_models._table()["classes"]
    assert classes == {kind: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind in classes}


def test_verify_and_anatomy_know_a_text_model_without_a_receipt_as_well(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    source = whole("qwen2_5_vl")
    done = hyperclone.grow(source, tmp_path / "grown", TWICE, text_model=True, proof="none")
    assert json.loads((done.path / "hyperclone.json").read_text())["text_model"] is True
    with_receipt = examine(done.path, against=source, activations=False)
    (done.path / "hyperclone.json").unlink()
    assert hyperclone.verify(source, done.path, proof="structural").passed  # the config says the same
    edit_json(done.path / "config.json", hyperclone=None)
    proof = hyperclone.verify(source, done.path, proof="structural")
    assert proof.passed
    assert any("text model alone" in note for note in proof.notes)
    found = examine(done.path, against=source, activations=False)
    assert found.tensors == with_receipt.tensors
    assert any(tensor.source_spectrum for tensor in found.tensors)
    tensors = load_file(done.path / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, done.path / "model.safetensors", metadata={"format": "pt"})
    assert not hyperclone.verify(source, done.path, proof="structural").passed


@pytest.mark.parametrize("prefixes", ["language_model.model.", "model.language_model.", "module.model."])
def test_names_of_older_and_newer_checkpoints_are_known(
    prefixes: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """As checkpoints of several versions of transformers have them."""
    source = shutil.copytree(whole("qwen2_5_vl"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    head = {"language_model.model.": "language_model.lm_head.", "module.model.": "module.lm_head."}.get(prefixes)
    renamed = {
        (
            name
            if name.startswith("visual")
            else name.replace("model.", prefixes, 1).replace("lm_head.", head or "lm_head.")
        ): t
        for name, t in tensors.items()
    }
    save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})
    done = hyperclone.grow(source, tmp_path / "grown", TWICE, text_model=True, proof="structural")
    assert distance(done.path, whole("qwen2_5_vl")) < SAME


def test_an_older_config_has_the_fields_of_both_in_one(whole: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(whole("qwen2_5_vl"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    text = config.pop("text_config")
    text.pop("rope_parameters")
    text |= {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "torch_dtype": "float32",
    }
    (source / "config.json").write_text(json.dumps({**text, **config}))
    done = hyperclone.grow(source, tmp_path / "grown", TWICE, text_model=True)
    assert distance(done.path, whole("qwen2_5_vl")) < SAME


def test_a_whole_is_proved_layer_by_layer_by_its_text_model(whole: Callable[[str], Path], tmp_path: Path) -> None:
    done = hyperclone.grow(whole("gemma3"), tmp_path / "grown", TWICE, text_model=True, proof="none")
    source = Checkpoint.open(whole("gemma3"), text_model=True)
    behavior = prove_behavior(source, done.path, done.plan, layer_by_layer=True)
    assert behavior.measured
    assert not behavior.failures


def test_without_the_option_it_is_named_and_with_it_a_text_model_must_be_there(
    whole: Callable[[str], Path], model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(FamilyError, match=r"gemma3(.|\n)*--text-model"):
        hyperclone.plan(whole("gemma3"), TWICE)
    with pytest.raises(CheckpointError, match=r"no text model(.|\n)*omit --text-model"):
        hyperclone.plan(model_dir("llama-grouped-tied"), TWICE, text_model=True)
    for model_type, encoder, words in [("t5", True, "has an encoder"), ("mamba", False, "layers are recurrent"),
                                       ("no-such-type", False, "`hyperclone plan` says")]:  # fmt: skip
        strange = shutil.copytree(model_dir("llama-grouped-tied"), tmp_path / model_type)
        edit_json(strange / "config.json", model_type=model_type, is_encoder_decoder=encoder)
        with pytest.raises(CheckpointError, match=words) as caught:
            hyperclone.plan(strange, TWICE, text_model=True)
        assert "omit" not in str(caught.value)
    with pytest.raises(OptionError, match="optimizer state"):
        hyperclone.grow(whole("gemma3"), tmp_path / "grown", TWICE, text_model=True, moments="reset")
    other = shutil.copytree(whole("llava"), tmp_path / "other")
    edit_json(other / "config.json", text_config={"model_type": "rwkv"})
    with pytest.raises(FamilyError, match="llava") as unknown:
        hyperclone.plan(other, TWICE)
    assert "--text-model" not in str(unknown.value)  # it would not help


def test_the_command_line_knows_the_option(whole: Callable[[str], Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hyperclone.cli.main import app

    source = str(whole("llava"))
    assert CliRunner().invoke(app, ["plan", source, "--width", "2", "--text-model"]).exit_code == 0
    proposed = hyperclone.propose(source, "100k", multiple_of=8, text_model=True)
    assert all("--text-model" in proposed.command(p) for p in proposed.proposals)
    grow = ["grow", source, str(tmp_path / "grown"), "--width", "2", "--text-model", "--proof", "structural"]
    assert CliRunner().invoke(app, grow).exit_code == 0
    assert CliRunner().invoke(app, ["verify", source, str(tmp_path / "grown"), "--proof", "structural"]).exit_code == 0


def test_a_stored_head_is_tied_only_where_a_config_says_so_and_none_that_it_is_not() -> None:
    text = {"model_type": "llama"}
    for outer, own, stored, tied in [
        (None, None, False, True), (None, None, True, False), (True, None, True, True), (True, False, True, False),
        (True, False, False, True), (False, True, True, False), (None, True, True, True),
    ]:  # fmt: skip
        config: dict[str, Any] = {
            "model_type": "llava",
            "text_config": text | ({} if own is None else {"tie_word_embeddings": own}),
        }
        config |= {} if outer is None else {"tie_word_embeddings": outer}
        assert text_models.text_config(config, head_stored=stored)["tie_word_embeddings"] is tied


def test_the_text_model_inherits_type_and_token_ids_that_it_lacks() -> None:
    config: dict[str, Any] = {
        "model_type": "llava", "text_config": {"eos_token_id": 5}, "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": 2, "image_token_index": 7,
    }  # fmt: skip
    text = text_models.text_config(config, head_stored=False)
    assert (text["model_type"], text["torch_dtype"], text["bos_token_id"], text["eos_token_id"]) == (
        "llama",
        "bfloat16",
        1,
        5,
    )
    assert "image_token_index" not in text


def test_what_the_table_says_is_what_transformers_has() -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    table = text_models._table()
    for whole_type, text_type in table["types"].items():
        with quiet():
            assert CONFIG_MAPPING[whole_type]().text_config.model_type == text_type, whole_type
    for model_type, name in table["classes"].items():
        assert MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]].__name__ == name
    for text_type, becomes in table["becomes"].items():
        own, causal = CONFIG_MAPPING[text_type](), CONFIG_MAPPING[becomes["type"]](**becomes)
        for field in ("rms_norm_eps", "hidden_act", "attention_dropout", "use_sliding_window", "num_key_value_heads"):
            if hasattr(own, field) and field != "num_key_value_heads":
                assert getattr(own, field) == getattr(causal, field), (text_type, field)
        assert own.rope_parameters["rope_theta"] == causal.rope_parameters["rope_theta"], text_type


def test_wholes_that_scale_or_cap_logits_are_those_in_the_table() -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    def source_of(whole_type: str) -> str:
        config = CONFIG_MAPPING[whole_type]
        sees = config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if sees else MODEL_FOR_MULTIMODAL_LM_MAPPING
        return inspect.getsource(mapping[config])

    sources = {whole_type: source_of(whole_type) for whole_type in text_models.wholes()}
    for field, rule in text_models._table()["logits"].items():
        for model_type in rule["types"]:
            default = rule["defaults"].get(model_type, rule.get("neutral"))
            assert getattr(CONFIG_MAPPING[model_type](), field) == default, (model_type, field)
        assert {whole_type for whole_type, source in sources.items() if field in source} == set(rule["read_by"]), field


@pytest.mark.parametrize(
    ("whole_type", "text"),
    [
        ("aya_vision", {"model_type": "cohere2", "sliding_window": 8, "logit_scale": 0.5}),
        ("llava_next", {"model_type": "granite", "logits_scaling": 4.0}),
        ("llava", {"model_type": "gemma2", "final_logit_softcapping": 0.5}),
        ("paligemma", {"model_type": "gemma2", "final_logit_softcapping": 0.5}),
    ],
)
def test_what_a_whole_does_not_apply_to_the_logits_of_its_text_model_is_kept_and_said(
    whole_type: str, text: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = {**_CLIP}
    if whole_type in ("paligemma", "aya_vision"):
        sees = {**_SEES, "model_type": "siglip_vision_model", "projection_dim": 32}
    with quiet():
        config = AutoConfig.for_model(
            whole_type, text_config={**_TEXT, **text}, vision_config=sees, projection_dim=32, hidden_size=32,
            image_token_index=290,
        )  # fmt: skip
        model = AutoModelForImageTextToText.from_config(config).eval()
        randomize_parameters(model, seed=0)
        model.save_pretrained(tmp_path / "src")
        hyperclone.grow(tmp_path / "src", tmp_path / "dst", TWICE, text_model=True, proof="structural")
        grown = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32).eval()
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        expected, found = (m(input_ids=tokens, attention_mask=tokens > 0).logits for m in (model, grown))
    applied = {
        "aya_vision": lambda x: x * 0.5, "llava_next": lambda x: x / 4, "llava": lambda x: (x / 0.5).tanh() * 0.5,
        "paligemma": lambda x: x,
    }[whole_type](expected)  # fmt: skip
    assert float((found - applied).norm() / applied.norm()) < SAME
    notes = json.dumps(Checkpoint.open(tmp_path / "src", text_model=True).notes)
    assert ("to the logits in the whole" in notes) == (whole_type != "paligemma")


def test_tokens_that_stand_for_images_are_not_among_the_probes(whole: Callable[[str], Path]) -> None:
    avoid = Checkpoint.open(whole("qwen2_5_vl"), text_model=True).placeholders
    assert avoid == {290, 291, 292, 293}
    choices: list[frozenset[int]] = [frozenset(), frozenset(range(100))]
    plain, avoiding = (
        logits.make_probes(None, vocab=300, context=64, sizes=logits.FULL, avoid=ids)[0] for ids in choices
    )
    assert any(bool((probe.ids < 100).any()) for probe in plain)
    assert not any(bool((probe.ids < 100).any()) for probe in avoiding)
