"""Drafts: from a config alone, what the shipped files say; guesses are marked, and nothing is claimed unproved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, layout, registry
from hyperclone.drafting import draft as drafting
from hyperclone.drafting import probe, toml_text
from hyperclone.errors import CheckpointError, FamilyError
from hyperclone.hf.models import quiet
from tests.helpers.command import call, run
from tests.helpers.models import MODELS, build

ModelDir = Callable[..., Path]

_SMALL = {
    "vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """hyperclone knows no architecture at all."""
    monkeypatch.setattr(registry, "shipped", lambda model_type: None)


def config_file(path: Path, model_type: str, **fields: Any) -> Path:
    path.write_text(json.dumps({"model_type": model_type, **_SMALL, **fields}))
    return path


def meaning(line: layout.Layout) -> tuple[Any, ...]:
    """What a line says, the marks of queries aside (they allow head_dim to grow, which drafts leave out)."""
    plain = re.sub(r"query(?=\()", "", line.text).replace("((heads head_dim) + 2 heads head_dim)", "(3 heads head_dim)")
    parsed = layout.parse(plain)
    return parsed.dims, parsed.reads, parsed.norm


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        pytest.param("minimax_m2", {"head_dim": 4}, id="as many dimensions as heads"),
        pytest.param(
            "glm4_moe",
            {"n_shared_experts": 1, "head_dim": 8, "n_routed_experts": 4},
            id="as GLM-4.5: one shared expert",
        ),
    ],
)
def test_key_value_heads_are_told_from_sizes_that_change_alike(model_type: str, fields: dict[str, Any]) -> None:
    heads = {"num_key_value_heads": _SMALL["num_key_value_heads"]}
    config = {name: value for name, value in _SMALL.items() if name not in heads}
    for order in ({**config, **fields, **heads}, {**heads, **config, **fields}):
        probed = probe.probe_fields({"model_type": model_type, **order})
        assert (probed.head_dim, probed.kv_heads) == ("head_dim", "num_key_value_heads")


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name",
    [
        "llama-biases",
        "gpt2-implied-ffn",
        "neox-sequential",
        "qwen3-biases-window",
        "olmo2",
        "phi3-grouped-tied",
        "mixtral",
        "granitemoe",
        "gpt_oss",
    ],
)
def test_from_the_config_alone_a_draft_says_what_the_shipped_file_says(
    name: str, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((model_dir(name) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    draft = drafting.draft(tmp_path / "config.json")
    assert draft.proved, draft.failures
    drafted = family_file.from_text(draft.text, file="draft")
    monkeypatch.undo()
    shipped = registry.families()[config["model_type"]]
    mine, theirs = (
        {key: meaning(line) for key, line in family.tensors(config).items()} for family in (drafted, shipped)
    )
    assert mine == theirs
    assert drafted.sizes(config) | {"positions": 0} == shipped.sizes(config) | {"positions": 0}
    assert drafted.tied(config) == shipped.tied(config)
    assert (drafted.prefix, drafted.aliases) == (shipped.prefix, shipped.aliases)
    assert drafted.residual.keys() == shipped.residual.keys()
    assert (drafted.tie and (drafted.tie.head, drafted.tie.embedding, set(drafted.tie.fold))) == (
        shipped.tie and (shipped.tie.head, shipped.tie.embedding, set(shipped.tie.fold))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt2", {"hidden_size": 32, "n_embd": 48, "vocab_size": 300}),
        ("falcon", {"n_embed": 32}),  # and its class's vocabulary
    ],
)
def test_other_names_of_fields_and_fields_left_out_are_drafted_as_transformers_reads_them(
    model_type: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
    config = {"model_type": model_type, **sizes, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    draft = drafting.draft(tmp_path / "config.json")
    assert draft.proved, draft.failures
    drafted = family_file.from_text(draft.text, file="draft")
    assert drafted.sizes(config)["hidden"] == 32
    assert drafted.sizes(config)["vocab"] == fields.get("vocab_size", 65024)
    monkeypatch.undo()
    shipped = registry.families()[model_type]
    assert drafted.aliases == shipped.aliases
    assert drafted.tensors(config).keys() == shipped.tensors({"vocab_size": 65024, **config}).keys()


@pytest.mark.slow
def test_a_drafted_file_grows_real_weights_from_the_command_line(tmp_path: Path) -> None:
    """Arcee: a feed-forward part without gate. The drafted file goes before the one that ships."""
    MODELS["arcee"] = ("arcee", _SMALL)
    try:
        build("arcee").save_pretrained(tmp_path / "source")
    finally:
        del MODELS["arcee"]
    drafted = run("family", "draft", tmp_path / "source", "-o", tmp_path / "my.toml")
    assert drafted.returncode == 0, drafted.stderr
    assert "PROVED" in drafted.stdout
    assert "# Proved on a tiny random instance at 2x widths" in (tmp_path / "my.toml").read_text()
    grown = hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2), family=tmp_path / "my.toml")
    assert grown.proof is not None
    assert grown.proof.passed
    again = call("family", "draft", tmp_path / "source", "-o", tmp_path / "my.toml")
    assert again.returncode == 2  # what stands there may have been edited
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_what_shapes_cannot_tell_is_found_by_the_proof_and_marked(tmp_path: Path) -> None:
    """Falcon 40B: for each key-value head its queries, a key, a value; the likelier order is the wrong one."""
    source = config_file(
        tmp_path / "config.json", "falcon", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=2
    )
    draft = drafting.draft(source)
    assert draft.proved, draft.failures
    (line,) = [line for line in draft.text.splitlines() if "query_key_value.weight" in line]
    assert '"(kv_heads (group + 2) head_dim) <- hidden"    # guess: ' in line
    assert "kv_heads group head_dim + 2 kv_heads head_dim" in line.split("#")[1]


@pytest.mark.slow
def test_gains_stored_minus_one_are_found_by_trying_the_head_tied(tmp_path: Path) -> None:
    """Nemotron: in the untied model itself nothing shows it; folded into a tied head's norm it would be wrong."""
    draft = drafting.draft(config_file(tmp_path / "config.json", "nemotron", tie_word_embeddings=False))
    assert draft.proved, draft.failures
    assert "gain_offset = 1    # guess" in draft.text
    assert draft.results["with the head tied"] == ""


@pytest.mark.slow
def test_an_eps_that_other_norms_share_is_not_drafted_as_free(tmp_path: Path) -> None:
    """Qwen 3's q and k norms have the eps of the others, which padding would change: the stream is scaled instead."""
    draft = drafting.draft(config_file(tmp_path / "config.json", "qwen3", head_dim=8))
    assert draft.proved
    assert 'hidden = { padding = "zero" }' in draft.text


@pytest.mark.slow
def test_norms_behind_blocks_are_found_by_trying(tmp_path: Path) -> None:
    draft = drafting.draft(config_file(tmp_path / "config.json", "olmo2"))
    assert draft.proved
    (line,) = [line for line in draft.text.splitlines() if "padding" in line]
    assert line.count("post_attention_layernorm") == line.count("post_feedforward_layernorm") == 1


@pytest.mark.slow
def test_what_cannot_be_grown_is_drafted_and_not_called_proved(tmp_path: Path) -> None:
    """XGLM computes its positions from the hidden size, so a wider model has others."""
    fields = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "vocab_size": 300,
              "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xglm", **fields}))
    result = call("family", "draft", tmp_path / "config.json", "-o", tmp_path / "my.toml")
    assert result.returncode == 1
    assert "NOT PROVED: 2x widths: the logits change" in result.stdout
    text = (tmp_path / "my.toml").read_text()
    assert "# NOT PROVED" in text
    assert "feed-forward size alone" in text  # what does pass
    assert family_file.from_text(text, file="my.toml").axes["ffn"].size == "ffn_dim"


def test_a_tensor_that_no_line_can_say_is_named(tmp_path: Path) -> None:
    """Apertus stores numbers without any dimension for its activation."""
    draft = drafting.draft(config_file(tmp_path / "config.json", "apertus"))
    assert not draft.proved
    assert any("act_fn" in failure and "not understood" in failure for failure in draft.failures)
    assert "# not understood: model.layers.{i}.mlp.act_fn" in draft.text


def test_tensors_that_only_some_layers_have_are_named(tmp_path: Path) -> None:
    source = config_file(
        tmp_path / "config.json", "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        head_dim=8, mlp_only_layers=[0],
    )  # fmt: skip
    draft = drafting.draft(source)
    assert "model.layers.{i}.mlp.gate_proj.weight: not understood" in draft.failures


@pytest.mark.slow
def test_a_wrong_candidate_layout_is_not_called_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is the logits', not the search's."""
    source = config_file(tmp_path / "config.json", "gpt_neox")
    right = drafting.draft(source)
    assert right.proved
    assert '"(heads 3 head_dim) <- hidden"' in right.text
    monkeypatch.setattr(drafting, "_hypotheses", lambda architecture: iter([toml_text.Hypothesis()]))
    wrong = drafting.draft(source)
    assert '"(3 heads head_dim) <- hidden"' in wrong.text
    assert not wrong.proved
    assert "# NOT PROVED" in wrong.text


@pytest.mark.slow
def test_weights_that_the_draft_does_not_describe_are_named(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-untied")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors") | {"model.mystery.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    draft = drafting.draft(tmp_path)
    assert not draft.proved
    assert "model.mystery.weight" in draft.failures[0]


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"model_type": "nothing-known"}, FamilyError, "no causal language model"),
        ({}, FamilyError, "no causal language model"),
        ({"model_type": "t5"}, FamilyError, "no causal language model"),
        ({"model_type": ["llama"]}, FamilyError, "no causal language model"),
        ({"model_type": "gemma3"}, CheckpointError, "text models"),
        ({"model_type": "llama", **_SMALL, "hidden_size": "wide"}, CheckpointError, "cannot read this config"),
        (
            {"model_type": "llama", **_SMALL, "quantization_config": {"quant_method": "gptq"}},
            CheckpointError,
            "quantized",
        ),
    ],
    ids=lambda value: str(value.get("model_type", "none")) if isinstance(value, dict) else "",
)
def test_a_config_that_gives_no_text_model_is_refused_with_the_reason(
    config: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        drafting.draft(tmp_path / "config.json")


def test_of_a_model_that_also_sees_images_the_text_model_is_drafted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    sees = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    with quiet():
        config = AutoConfig.for_model("llava", text_config={**_SMALL, "model_type": "llama"}, vision_config=sees)
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    inspect, drafted = drafting._inspect, []

    def watched(config: dict[str, Any], path: Path) -> Any:
        drafted.append(config["model_type"])
        return inspect(config, path)

    monkeypatch.setattr(drafting, "_inspect", watched)
    monkeypatch.setattr(drafting, "_full_proof", lambda *_: [])
    result = drafting.draft(tmp_path)
    assert drafted == ["llama"]
    assert result.proved, result.failures  # its tensors are those of the text model in the whole
