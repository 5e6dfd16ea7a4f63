"""What no draft can describe is said by `plan` at once; what only looks so is drafted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import not_grown
from hyperclone.drafting import draft as drafting
from hyperclone.errors import FamilyError
from hyperclone.hf.model_types import causal_model_types
from hyperclone.hf.tiny_models import randomize_parameters
from hyperclone.planning import unknown
from tests.helpers import rows_dense, rows_drafted, rows_more, unmodified
from tests.helpers.command import call

ModelDir = Callable[..., Path]
_SMALL = {
    "vocab_size": 120, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 64,
    "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_GRANITE_4 = {
    **_SMALL, "shared_intermediate_size": 96, "num_local_experts": 0, "num_experts_per_tok": 0,
    "layer_types": ["attention", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16,
    "position_embedding_type": "rope",
}  # fmt: skip
_DEEPSEEK_V3 = {
    **_SMALL, "moe_intermediate_size": 32, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def save(path: Path, model_type: str, **fields: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    randomize_parameters(model, seed=0).save_pretrained(path)
    return path


def config_only(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed.weight": torch.zeros(4, 4)}, path / "model.safetensors")
    return path


def refusal(source: Path) -> str:
    with pytest.raises(FamilyError, match="this architecture is not known") as caught:
        hyperclone.plan(source, Growth(width=2))
    return caught.value.details["cure"]


@pytest.mark.slow
def test_a_model_whose_config_class_ties_unused_fields_to_hidden_is_drafted_and_grown(tmp_path: Path) -> None:
    """Granite 4's dense sizes: their config speaks of Mamba heads, and of an infinite limit, but has no such layers."""
    source = save(tmp_path / "source", "granitemoehybrid", **_GRANITE_4)
    assert '{\n      "__float__": "Infinity"\n    }' in (source / "config.json").read_text()
    drafted = call("family", "draft", source, "-o", tmp_path / "my.toml")
    assert drafted.returncode == 0, drafted.stdout + drafted.stderr
    grown = hyperclone.grow(
        source, tmp_path / "grown", Growth(width=2, layers="2x"), family=tmp_path / "my.toml", proof="structural"
    )
    assert unmodified.distance(grown.path, source) < unmodified.SAME
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, grown.path))
    assert after["mamba_n_heads"] == 2 * before["mamba_n_heads"]
    assert after["time_step_limit"] == before["time_step_limit"]


@pytest.mark.slow
def test_latent_attention_is_named_by_draft(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "deepseek_v3", **_DEEPSEEK_V3)
    drafted = call("family", "draft", source)
    assert drafted.returncode == 1
    assert "NOT PROVED: its keys and values pass through a latent space" in drafted.stderr
    assert "more, which the file lists" in drafted.stderr


@pytest.mark.parametrize(
    "model_type",
    ["deepseek_v32", "kimi_linear", "bart", "zamba", "zamba2", "olmo_hybrid", "lara_mini", "mamba", "mamba2",
     "falcon_mamba", "recurrent_gemma", "ctrl", "xglm"],
)  # fmt: skip
def test_plan_sends_nobody_to_a_draft_that_cannot_work(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    cure = refusal(config_only(tmp_path / "source", config))
    assert "no draft can describe it" in cure
    assert unknown.limit(config) is not None
    assert not_grown.reasons()[model_type] in cure


def test_types_that_only_exist_as_remote_code_are_no_case_for_a_draft(tmp_path: Path) -> None:
    source = config_only(tmp_path / "source", {"model_type": "internlm2", "hidden_size": 32, "num_attention_heads": 4})
    assert "remote code is never run" in refusal(source)
    with pytest.raises(FamilyError, match="remote code is never run"):
        drafting.draft(source)


def test_other_types_are_sent_to_a_draft(tmp_path: Path) -> None:
    source = config_only(tmp_path / "source", {"model_type": "roberta", **_SMALL})
    assert "`hyperclone family draft SRC -o my.toml`" in refusal(source)
    for name, (model_type, fields) in (rows_dense.ROWS | rows_drafted.ROWS | rows_more.ROWS).items():
        assert unknown.limit({"model_type": model_type, **fields}) is None, name


def test_the_types_are_those_of_transformers_and_are_read_without_importing_it() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_model_types() == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    code = (
        "import sys; from hyperclone.planning.unknown import without_draft;"
        "print(without_draft({'model_type': 'internlm2'}));"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no causal language model" in shown


@pytest.mark.quick(2)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "tagged"])
def test_numbers_that_are_not_finite_are_read_as_transformers_reads_them(
    number: str, tagged: bool, model_dir: ModelDir, tmp_path: Path
) -> None:
    """Layers are added to a config without its list of layer types, which transformers' class then has to derive."""
    source = shutil.copytree(model_dir("qwen3-grouped-tied"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config.pop("layer_types", None)
    other = json.dumps({"__float__": number}) if tagged else number
    text = json.dumps({**config, "limits": ["LIMIT", {"most": "LIMIT"}], "limit": "LIMIT"}).replace('"LIMIT"', other)
    (source / "config.json").write_text(text)
    grown = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, layers="2x"), proof="structural")
    assert unmodified.distance(grown.path, source) < unmodified.SAME
    assert hyperclone.verify(source, grown.path, proof="structural").passed
    written = (grown.path / "config.json").read_text()
    (grown.path / "config.json").write_text(written.replace(f": {number}", ": 1.0").replace(f'"{number}"', '"?"'))
    failures = hyperclone.verify(source, grown.path, proof="structural").failures
    assert any("config.json, limit" in failure for failure in failures)


def test_a_model_with_an_encoder_is_sent_to_no_other_transformers(tmp_path: Path) -> None:
    cure = refusal(config_only(tmp_path / "source", {"model_type": "t5", "is_encoder_decoder": True}))
    assert "only decoders are grown" in cure
    assert "transformers" not in cure
