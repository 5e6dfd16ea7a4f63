"""Fused, nested and per-expert tensors: what grows with what, what never grows, and what is refused with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CheckpointError, FamilyError, GrowthError
from hyperclone.planning.depth import deepen
from hyperclone.planning.recipe import DepthMode
from tests.architectures.test_family import FILE, load
from tests.helpers.models import build
from tests.proof.test_proof import logits_of

pytestmark = pytest.mark.matrix

ModelDir = Callable[..., Path]


def saved(path: Path, name: str, **overrides: Any) -> Path:
    build(name, **overrides).save_pretrained(path)
    return path


def config_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("olmo2", {"heads": "2x", "kv_heads": "1x"}),  # one norm over all queries: each copied alike
        ("olmo2-multiquery", {"heads": "3x"}),
        ("olmo", {"heads": "2x"}),
        ("cohere-head-norms", {"heads": 6}),  # norms over head_dim do not mind uneven heads
        ("cohere2", {"hidden": "2x"}),
        ("cohere", {"hidden": 48, "heads": 6}),
        ("falcon-40b", {"hidden": "2x", "heads": "2x", "kv_heads": "1x"}),
        ("falcon-40b", {"hidden": 48, "heads": 6, "ffn": 50}),
        ("falcon-7b", {"hidden": "2x", "heads": "2x", "kv_heads": "1x"}),
        ("falcon-refined-web", {"hidden": 48, "heads": 6}),
    ],
    ids=str,
)
def test_widths_grow_apart(name: str, sizes: dict[str, Any], model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(**sizes), proof="none")
    ids = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(1))
    before, after = logits_of(model_dir(name), ids), logits_of(tmp_path / "grown", ids)
    assert (after - before).norm() / before.norm() < 2e-6


@pytest.mark.parametrize("name", ["olmo2", "olmo3-tied-multihead", "olmoe"])
def test_one_norm_over_all_heads_needs_even_copies(name: str, model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="equally many copies"):
        hyperclone.plan(model_dir(name), Growth(heads=6, hidden="1x" if name != "olmoe" else 48))


def test_alibi_lets_the_feed_forward_grow_and_refuses_heads_with_the_reason(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "falcon-refined-web", alibi=True)
    for growth in (Growth(width=2), Growth(heads=8, hidden=64)):
        with pytest.raises(GrowthError, match="ALiBi"):
            hyperclone.plan(source, growth)
    with pytest.raises(GrowthError, match="head_dim"):
        hyperclone.plan(source, Growth(hidden=64))
    assert hyperclone.grow(source, tmp_path / "grown", Growth(ffn="2x")).proof
    assert config_of(tmp_path / "grown")["ffn_hidden_size"] == 96


def test_query_heads_with_keys_of_their_own_stay_so(model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="every query head has a key and value of its own"):
        hyperclone.plan(model_dir("falcon-refined-web"), Growth(heads="2x", kv_heads="1x", hidden="2x"))


def layers_with_experts(path: Path) -> list[bool]:
    """Of the model that unmodified transformers builds from a directory's config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    return [hasattr(layer.mlp, "experts") for layer in model.model.layers]


@pytest.mark.parametrize("mode", ["identity", "stack"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [("qwen3-moe-first-dense", 5), ("qwen3-moe-every-second-tied", "2x"), ("qwen2-moe-every-second-tied", 6)],
)
def test_new_layers_have_experts_where_their_originals_have(
    name: str, layers: int | str, mode: DepthMode, model_dir: ModelDir, tmp_path: Path
) -> None:
    done = hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(width=2, layers=layers, depth_mode=mode))
    assert done.proof is not None
    assert done.proof.verdict == ("proved" if mode == "identity" else "changed")
    before, after = layers_with_experts(model_dir(name)), layers_with_experts(tmp_path / "grown")
    assert after == [before[layer] for layer in done.plan.layers]
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    assert layers_with_experts(tmp_path / "again") == before


def test_numbers_of_layers_that_stay_are_left_as_they_are(model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir("qwen3-moe-every-second-tied"), Growth(width=2))
    assert (plan.config["decoder_sparse_step"], plan.config["mlp_only_layers"]) == (2, [1])


def test_a_shared_expert_and_dense_layers_grow_with_the_experts(model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir("qwen2-moe-every-second-tied"), Growth(width=2, ffn="3x"))
    fields = ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size")
    assert [plan.config[field] for field in fields] == [3 * 24, 3 * 40, 3 * 48]
    gate = next(t for t in plan.tensors if t.name.endswith("shared_expert_gate.weight"))
    assert (gate.shape, gate.scale) == ((1, 64), 0.5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "olmoe"])
def test_experts_grow_and_stay_as_many(name: str, model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir(name), Growth(width=2))
    assert plan.sizes["experts"] == (4, 4)
    router, *_ = [t for t in plan.tensors if t.name.endswith(".gate.weight")]
    assert (router.source_shape, router.shape, router.scale) == ((4, 32), (4, 64), 0.5)
    experts = [t for t in plan.tensors if ".experts." in t.name]
    assert len(experts) == 2 * 4 * 3
    assert all(sorted(t.shape) == [2 * n for n in sorted(t.source_shape)] for t in experts)
    source = {key: value for key, value in plan.source_config.items() if "expert" in key}
    assert {key: value for key, value in plan.config.items() if "expert" in key} == source


def test_both_feed_forward_sizes_grow_by_one_factor(model_dir: ModelDir) -> None:
    config = hyperclone.plan(model_dir("qwen3-moe"), Growth(ffn=72)).config
    assert (config["moe_intermediate_size"], config["intermediate_size"]) == (72, 144)


# --- The file format

EXPERTS = FILE.replace('"head" = "vocab <- hidden"', '"head" = "vocab <- hidden"\n"h.{i}.{e}.up" = "ffn <- hidden"')
CONFIG = {"width": 8, "heads": 2, "vocab": 10, "depth": 2, "experts": 2}


def test_a_pattern_runs_over_layers_and_experts() -> None:
    family = load(EXPERTS.replace("[axes]", '[axes]\nexperts = "experts"'))
    numbered = [name for name in family.tensors(CONFIG) if name.count(".") == 3]
    assert numbered == ["h.0.0.up", "h.0.1.up", "h.1.0.up", "h.1.1.up"]
    with pytest.raises(CheckpointError, match="number of experts"):
        family.tensors({**CONFIG, "experts": 10**9})
    with pytest.raises(FamilyError, match="counts them"):
        load(EXPERTS)


NUMBERED = FILE.replace(
    '"norm" =', '"h.{i}.gate" = { line = "hidden", when = "i % 2 == 1 and i not in plain" }\n"norm" ='
)
DEEPER = NUMBERED.replace("[tensors]", '[deeper]\nplain = "i % 2 == 0 or i in plain"\n\n[tensors]', 1)


def gates(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith("gate")]


def test_a_condition_sees_the_number_of_its_layer() -> None:
    family = load(NUMBERED)
    assert gates(family.tensors({**CONFIG, "depth": 6})) == ["h.1.gate", "h.3.gate", "h.5.gate"]
    config = {**CONFIG, "depth": 6, "plain": [3, 4]}
    assert gates(family.tensors(config)) == ["h.1.gate", "h.5.gate"]
    assert family.conditions(config)["i % 2 == 1 and i not in plain"] == (False, True, False, False, False, True)
    names = family.grown_names(config, [0, 0, 1, 1, 5])
    assert {name: names[name] for name in gates(names)} == {
        "h.2.gate": ("h.1.gate", 2), "h.3.gate": ("h.1.gate", 3), "h.4.gate": ("h.5.gate", 4)
    }  # fmt: skip


def test_only_what_has_a_layer_sees_its_number() -> None:
    for old, new in (
        ('"norm" = "norm(hidden)"', '"norm" = { line = "norm(hidden)", when = "i" }'),
        ('hidden = "width"', 'hidden = "width / i"'),
        ('when = "tied"', 'when = "tied and i == 0"'),
    ):
        assert FILE.count(old) == 1
        with pytest.raises(FamilyError, match="a layer's number where there is no layer"):
            load(FILE.replace(old, new))


def test_what_a_config_says_of_new_layers_by_number_must_be_what_their_originals_are() -> None:
    config = {**CONFIG, "depth": 4, "plain": [3]}
    with pytest.raises(GrowthError, match="which of the new layers"):
        deepen(load(NUMBERED), config, config, [0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(
        GrowthError, match="which of the new layers"
    ):  # [deeper] names the layers, the pattern still acts
        deepen(load(DEEPER), config, config, [0, 0, 1, 1, 2, 2, 3, 3])
    assert deepen(load(DEEPER), config, config, [0, 1, 2, 2])["plain"] == [0, 2, 3]


def test_a_default_of_one_model_type_is_its_own() -> None:
    two = FILE.replace('["toy"]', '["toy", "other"]').replace("[axes]", "[defaults.other]\nwidth = 16\n\n[axes]", 1)
    family = load(two.replace("tied = true", "tied = true\nwidth = 8"))
    config = {"heads": 2, "vocab": 10, "depth": 2}
    for model_type, size in (("toy", 8), ("other", 16), ("unheard of", 8), (None, 8)):
        assert family.sizes({**config, "model_type": model_type})["hidden"] == size
    assert family.sizes({**config, "model_type": "other", "width": 4})["hidden"] == 4
    with pytest.raises(FamilyError, match="unknown keys"):
        load(two.replace("defaults.other", "defaults.strange"))


def test_of_several_lines_for_a_tensor_the_first_that_holds_is_meant() -> None:
    cases = '[{ line = "(2 hidden)", when = "wide" }, "norm(hidden)"]'
    family = load(FILE.replace('"norm" = "norm(hidden)"', f'"norm" = {cases}'))
    assert family.tensors(CONFIG)["norm"].text == "norm(hidden)"
    assert family.tensors({**CONFIG, "wide": True})["norm"].text == "(2 hidden)"


def test_a_refusal_sees_the_config_and_the_grown_sizes() -> None:
    family = load(FILE.replace("[tensors]", '[refuse]\n"odd and hidden != width" = "because"\n\n[tensors]', 1))
    new = {**family.sizes(CONFIG), "hidden": 16}
    assert family.grown_sizes(CONFIG, new)["hidden"] == (8, 16)
    with pytest.raises(GrowthError, match="because"):
        family.grown_sizes({**CONFIG, "odd": True}, new)
    assert family.grown_sizes({**CONFIG, "odd": True}, family.sizes(CONFIG))["hidden"] == (8, 8)
    with pytest.raises(FamilyError, match="refuse"):
        load(FILE.replace("[tensors]", '[refuse]\n"odd and" = "because"\n\n[tensors]', 1))


COUNTED = NUMBERED.replace("i % 2 == 1 and i not in plain", "not i < first").replace(
    "[tensors]", '[deeper]\nfirst = { count = "i < first" }\n\n[tensors]', 1
)


def test_a_number_of_first_layers_is_counted_anew_where_layers_are_added() -> None:
    config = {**CONFIG, "depth": 4, "first": 1}
    family = load(COUNTED)
    assert gates(family.tensors(config)) == ["h.1.gate", "h.2.gate", "h.3.gate"]
    grown = deepen(family, config, config, [0, 0, 1, 1, 2, 2, 3, 3])
    assert grown["first"] == 2
    assert len(gates(family.tensors(grown))) == 6
    with pytest.raises(GrowthError, match="which of the new layers"):
        deepen(family, config, config, [0, 1, 2, 3, 0, 1, 2, 3])
    with pytest.raises(FamilyError, match="unknown keys"):
        load(COUNTED.replace("count =", "number ="))


def test_a_list_with_an_entry_for_each_layer_may_count_the_layers_and_say_what_they_are() -> None:
    listed = NUMBERED.replace("i % 2 == 1 and i not in plain", "kinds[i] == 'gated'")
    listed = listed.replace('layers = "depth"', 'layers = "kinds"\nper_layer = ["kinds"]')
    family, config = load(listed), {**CONFIG, "kinds": ["plain", "gated", "gated"]}
    assert family.depth(config) == 3
    assert gates(family.tensors(config)) == ["h.1.gate", "h.2.gate"]
    grown = deepen(family, config, config, [0, 0, 1, 1, 2, 2])
    assert grown["kinds"] == ["plain", "plain", "gated", "gated", "gated", "gated"]


def test_a_list_of_numbers_of_heads_is_written_for_every_layer(model_dir: ModelDir) -> None:
    config = hyperclone.plan(model_dir("laguna"), Growth(width=2)).config
    assert config["num_attention_heads_per_layer"] == [8, 8, 8]


@pytest.mark.parametrize("mode", ["identity", "stack"])
def test_a_family_may_refuse_more_layers_of_any_kind(mode: DepthMode, model_dir: ModelDir) -> None:
    with pytest.raises(GrowthError, match="only its last layer has a bias"):
        hyperclone.plan(model_dir("gpt_neox_japanese"), Growth(width=2, layers="2x", depth_mode=mode))


def test_an_embedding_that_only_some_configs_multiply_is_divided_only_there(model_dir: ModelDir) -> None:
    assert {t.factor for t in hyperclone.plan(model_dir("afmoe"), Growth(width=2)).tensors} == {1.0}
    family = hyperclone.plan(model_dir("afmoe"), Growth(width=2)).family
    sizes = {"hidden": (32, 64)}
    squares = [family.squared_factor("model.embed_tokens.weight", {"mup_enabled": on}, sizes) for on in (False, True)]
    assert squares == [1, Fraction(1, 2)]


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next", "bamba", "apertus"])
def test_numbers_and_kernels_and_latent_vectors_grow_or_stay_as_the_file_says(name: str, model_dir: ModelDir) -> None:
    shapes = {t.name.split(".", 3)[-1]: (t.source_shape, t.shape) for t in hyperclone.plan(
        model_dir(name), Growth(width=2)).tensors}  # fmt: skip
    match name:
        case "deepseek_v3":
            assert shapes["self_attn.kv_a_proj_with_mqa.weight"] == ((16, 32), (16, 64))  # latent and shared key stay
            assert shapes["self_attn.kv_b_proj.weight"] == ((4 * 14, 12), (8 * 14, 12))
        case "qwen3_next":  # queries and keys of two heads, values of four
            assert shapes["linear_attn.conv1d.weight"] == ((2 * 2 * 6 + 4 * 8, 1, 4), (2 * 4 * 6 + 8 * 8, 1, 4))
        case "bamba":  # 64 channels of heads; B and C of two groups with 6 states each
            assert shapes["mamba.conv1d.weight"] == ((64 + 24, 1, 4), (128 + 24, 1, 4))
        case "apertus":
            assert shapes["mlp.act_fn.beta"] == ((), ())


@pytest.mark.parametrize("layer", [3, 4])
def test_layers_behind_the_last_are_left_out_where_the_config_counts_them(
    layer: int, model_dir: ModelDir, tmp_path: Path
) -> None:
    """GLM-4.5 and DeepSeek V3 store layers that predict further tokens, which transformers leaves alone."""
    source = shutil.copytree(model_dir("glm4_moe"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    extra = {f"model.layers.{layer}.{name}.weight": torch.ones(4, 4) for name in ("eh_proj", "self_attn.q_proj")}
    save_file(tensors | extra, source / "model.safetensors", {"format": "pt"})
    assert config_of(source)["num_hidden_layers"] == 3
    if layer == 4:  # the config counts one
        with pytest.raises(CheckpointError, match="not part of this architecture"):
            hyperclone.plan(source, Growth(width=2))
        return
    plan = hyperclone.plan(source, Growth(width=2))
    assert set(plan.dropped) == set(extra)
    assert any("2 stored tensors that the model does not load" in note for note in plan.notes)


def test_kinds_of_layers_that_are_spelled_by_letters_are_read_and_written_as_a_list(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("nemotron_h"), source)
    config = config_of(source)
    letters = {"linear_attention": "M", "mamba": "M", "moe": "E", "full_attention": "*", "attention": "*", "mlp": "-"}
    kinds = config.pop("layers_block_type", None) or config.pop("layer_types")
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in kinds)
    (source / "config.json").write_text(json.dumps(config))
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    grown = config_of(tmp_path / "grown")
    assert "hybrid_override_pattern" not in grown
    assert [letters[kind] for kind in grown["layers_block_type"]] == list(config["hybrid_override_pattern"])
