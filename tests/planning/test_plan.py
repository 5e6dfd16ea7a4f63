"""The plan is what then is on disk, what transformers then loads, and says beforehand what must be known."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.errors import HypercloneError, OptionError
from hyperclone.io.hub import Headers
from hyperclone.io.tensor_files import DTYPES, Entry, read_header
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan, TensorPlan
from tests.helpers import unmodified
from tests.helpers.edits import edit_json
from tests.helpers.headers import headers
from tests.helpers.models import FULLY, MODELS

ModelDir = Callable[..., Path]
GROWTHS = {
    "2x": Growth(width=2),
    "3x-bf16": Growth(width=3, dtype="bf16"),
    "untied": Growth(width=2, untie=True),
    "ffn": Growth(ffn="2x"),
    "uneven": Growth(hidden="2x", heads="2x", ffn="3x"),
}


def config_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


@pytest.mark.quick(8)
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "2x") for name in FULLY]
    + [(name, kind) for name in ("llama-grouped-tied", "neox-parallel", "opt") for kind in GROWTHS if kind != "2x"],
)
def test_the_plan_is_what_then_is_on_disk_and_what_transformers_loads(
    name: str, kind: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    source, growth = model_dir(name), GROWTHS[kind]
    plan = hyperclone.plan(source, growth, shard_size="60KB")
    done = hyperclone.grow(source, tmp_path / "grown", growth, shard_size="60KB", proof="none")
    assert done.plan == plan
    files = sorted(p.name for p in (tmp_path / "grown").glob("*.safetensors"))
    assert files == sorted(shard.file for shard in plan.shards)
    planned = {tensor.name: tensor for tensor in plan.tensors}
    assert len(planned) == len(plan.tensors)
    seen: list[str] = []
    for shard in plan.shards:
        file = tmp_path / "grown" / shard.file
        assert file.stat().st_size == shard.nbytes
        entries = read_header(file)
        assert {n: e.offset for n, e in entries.items()} == shard.offsets
        with safe_open(file, framework="pt") as stored:
            assert stored.metadata() == {"format": "pt"}
            for tensor_name in stored.keys():  # noqa: SIM118
                tensor, expected = stored.get_tensor(tensor_name), planned[tensor_name]
                assert tuple(tensor.shape) == expected.shape
                assert tensor.dtype == getattr(torch, DTYPES[expected.dtype][0])
                assert tensor.numel() * tensor.element_size() == expected.nbytes == entries[tensor_name].nbytes
                seen.append(tensor_name)
    assert sorted(seen) == sorted(planned)
    assert plan.nbytes == sum((tmp_path / "grown" / file).stat().st_size for file in files)
    if len(files) > 1:
        index = json.loads((tmp_path / "grown/model.safetensors.index.json").read_text())
        assert index["weight_map"] == {n: shard.file for shard in plan.shards for n in shard.offsets}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in plan.tensors)
    config = config_of(tmp_path / "grown")
    assert config.pop("hyperclone")["source_config"] == config_of(source)
    assert config == plan.config
    before = AutoModelForCausalLM.from_pretrained(source)
    after, info = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not any(info.values()), info
    assert plan.source_parameters == unmodified.stored_values(before)
    assert plan.parameters == unmodified.stored_values(after)
    assert after.dtype == (torch.bfloat16 if growth.dtype else torch.float32)


def test_making_a_plan_reads_no_weight(model_dir: ModelDir, tmp_path: Path) -> None:
    """A file with a sound header and a hole where the data would be gives the same plan."""
    source = model_dir("llama-grouped-tied")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    content = (source / "model.safetensors").read_bytes()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(content[: 8 + int.from_bytes(content[:8], "little")])
        file.truncate(len(content))
    assert hyperclone.plan(tmp_path, Growth(width=2)) == hyperclone.plan(source, Growth(width=2))


def test_planning_imports_neither_torch_nor_transformers(model_dir: ModelDir) -> None:
    for call in (
        "import hyperclone; hyperclone.plan(sys.argv[1], hyperclone.Growth(width=2))",
        "from hyperclone.cli.main import app; app(['plan', sys.argv[1], '--width', '2'], standalone_mode=False)",
    ):
        script = f"import sys\n{call}\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
        arguments = [sys.executable, "-c", script, str(model_dir("llama-grouped-tied"))]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr


def test_the_fingerprint_tells_everything_that_decides_the_bytes(model_dir: ModelDir) -> None:
    one, other = model_dir("llama-grouped-tied"), model_dir("llama-grouped-untied")
    requests: list[tuple[Path, dict[str, Any], Any]] = [
        (one, {"width": 2}, "5GB"),
        (other, {"width": 2}, "5GB"),
        (one, {"width": 3}, "5GB"),
        (one, {"width": 2, "seed": 1}, "5GB"),
        (one, {"width": 2, "snr_db": 11}, "5GB"),
        (one, {"width": 2, "noise": "none"}, "5GB"),
        (one, {"width": 2, "noise": "gaussian"}, "5GB"),
        (one, {"width": 2, "expansion": "diagonal"}, "5GB"),
        (one, {"width": 2, "untie": True}, "5GB"),
        (one, {"width": 2, "dtype": "bf16"}, "5GB"),
        (one, {"width": 2}, "60KB"),
    ]
    prints = [hyperclone.plan(path, Growth(**fields), shard_size=size).fingerprint for path, fields, size in requests]
    assert len(set(prints)) == len(prints)
    assert hyperclone.plan(one, Growth(width=2)).fingerprint == prints[0]


@pytest.mark.parametrize("shard_size", [0, -5, True, 1.5, "0", "huge"])
def test_a_shard_size_that_is_none_is_refused(shard_size: Any, model_dir: ModelDir) -> None:
    with pytest.raises(OptionError, match="shard_size"):
        hyperclone.plan(model_dir("opt"), Growth(width=2), shard_size=shard_size)


# --- What training needs to know


def by_name(plan: Plan) -> dict[str, TensorPlan]:
    return {tensor.name: tensor for tensor in plan.tensors}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_multipliers_follow_the_scaling_rule(name: str, n: int, model_dir: ModelDir) -> None:
    """s = 1 for what writes, 1/n for what reads and for a norm that carries the head's 1/n; r = 1/(k s)."""
    plan = hyperclone.plan(model_dir(name), Growth(width=n))
    family = registry.of_config(plan.source_config)
    folds = family.tie.fold if family.tie and family.tied(plan.source_config) and not plan.untied else ()
    for tensor in plan.tensors:
        growths = [new / old for new, old in zip(tensor.shape, tensor.source_shape, strict=True)]
        copies = math.prod(growths)
        if tensor.name in folds:
            s = 1 / n
        elif "<-" in tensor.layout.text:
            s = 1 / growths[-1]
        elif "->" in tensor.layout.text:
            s = 1 / growths[-2]
        else:
            s = 1.0
        assert tensor.multipliers == pytest.approx(
            {"s": s, "r": 1 / (copies * s), "lr": s, "weight_decay": 1 / s, "eps": 1 / (copies * s)}
        ), tensor.name
        assert s in (1, 1 / n)


def test_multipliers_by_hand(model_dir: ModelDir) -> None:
    """k copies of each scalar at scale s: n for vectors and embeddings, n^2 for matrices, n for the head."""
    tied = by_name(hyperclone.plan(model_dir("llama-grouped-tied"), Growth(width=2)))
    untied = by_name(hyperclone.plan(model_dir("llama-grouped-untied"), Growth(width=2)))
    for name, (s, r) in {
        "model.embed_tokens.weight": (1, 1 / 2),
        "model.layers.0.input_layernorm.weight": (1, 1 / 2),
        "model.layers.1.self_attn.k_proj.weight": (1 / 2, 1 / 2),
        "model.layers.1.mlp.down_proj.weight": (1 / 2, 1 / 2),
    }.items():
        for tensors in (tied, untied):
            assert (tensors[name].multipliers["s"], tensors[name].multipliers["r"]) == (s, r)
    assert (tied["model.norm.weight"].scale, tied["model.norm.weight"].gradient) == (1 / 2, 1)
    assert (untied["model.norm.weight"].scale, untied["model.norm.weight"].gradient) == (1, 1 / 2)
    assert (untied["lm_head.weight"].scale, untied["lm_head.weight"].gradient) == (1 / 2, 1)
    uneven = by_name(hyperclone.plan(model_dir("llama-grouped-tied"), Growth(hidden="2x", heads="2x", ffn="3x")))
    down, up = (uneven[f"model.layers.0.mlp.{kind}_proj.weight"] for kind in ("down", "up"))
    assert (down.scale, down.gradient) == pytest.approx((1 / 3, 3 / 6))
    assert (up.scale, up.gradient) == pytest.approx((1 / 2, 2 / 6))
    only_ffn = by_name(hyperclone.plan(model_dir("llama-grouped-tied"), Growth(ffn="2x")))
    assert (only_ffn["model.norm.weight"].scale, only_ffn["model.norm.weight"].gradient) == (1, 1)
    assert only_ffn["model.layers.0.mlp.up_proj.weight"].scale == 1


def test_the_receipt_holds_the_plans_multipliers(model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2), proof="none")
    receipt = json.loads((tmp_path / "grown/hyperclone.json").read_text())
    settings = receipt["training"]["parameters"]
    assert settings.keys() == {t.name for t in done.plan.tensors}
    assert all(settings[t.name].items() >= t.multipliers.items() for t in done.plan.tensors)


# --- What must be known beforehand

LOCKED = Growth(width=2, noise="none")


@pytest.mark.parametrize("name", ["llama-grouped-tied", "neox-parallel", "mistral-window"])
def test_a_locked_clone_is_announced_with_the_reason_and_the_way_out(name: str, model_dir: ModelDir) -> None:
    (warning,) = hyperclone.plan(model_dir(name), LOCKED).warnings
    for words in ("never diverge", "same gradient", "without dropout", "--noise split"):
        assert words in warning
    for growth in (Growth(width=2), Growth(width=2, noise="gaussian")):
        assert not hyperclone.plan(model_dir(name), growth).warnings


def test_with_dropout_it_is_a_note_that_names_the_dropout(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def plan(name: str, **fields: Any) -> Plan:
        source = model_dir(name)
        directory = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "model.safetensors").symlink_to(source / "model.safetensors")
        config = {k: v for k, v in {**config_of(source), **fields}.items() if v is not None}
        (directory / "config.json").write_text(json.dumps(config))
        return hyperclone.plan(directory, LOCKED)

    for result in (plan("opt"), plan("opt", dropout=None)):  # 0.1 is what OPT's config class takes if it is left out
        assert not result.warnings
        assert any("only dropout (dropout)" in note for note in result.notes)
    assert plan("opt", dropout=0.0).warnings
    assert plan("opt", dropout=0.0, layerdrop=0.5).warnings  # drops whole layers, all copies alike
    assert not plan("opt", dropout=0.0, attention_dropout=0.1).warnings
    assert not plan("llama-grouped-tied", attention_dropout=0.1).warnings
    assert plan("neox-parallel", classifier_dropout=0.5).warnings
    assert not plan("neox-parallel", hidden_dropout=0.5).warnings


def test_notes_say_what_is_done_without_being_asked(model_dir: ModelDir, tmp_path: Path) -> None:
    def notes(name: str, **fields: Any) -> str:
        return " ".join(hyperclone.plan(model_dir(name), Growth(**fields)).notes)

    assert "stays tied" in notes("llama-grouped-tied", width=2)
    assert "model.norm.weight is divided among the copies" in notes("llama-grouped-tied", width=2)
    assert "tied" not in notes("llama-grouped-untied", width=2)
    assert "no last norm" in notes("opt-plain-norms", width=2)
    assert "not tied, so untie changes nothing" in notes("llama-grouped-untied", width=2, untie=True)
    assert "sums to zero only up to rounding" in notes("llama-grouped-tied", width=2, noise="gaussian")
    assert "converted to bf16" in notes("llama-grouped-tied", width=2, dtype="bf16")
    assert "converted" not in notes("llama-grouped-tied", width=2, dtype="fp32")
    assert "3x in one step" in notes("llama-grouped-tied", width=3)
    assert "in one step" not in notes("llama-grouped-tied", width=2)


def test_untying_gives_the_head_a_tensor_of_its_own(model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir("llama-grouped-tied"), Growth(width=2, untie=True))
    head = by_name(plan)["lm_head.weight"]
    assert plan.untied
    assert plan.config["tie_word_embeddings"] is False
    assert (head.source, head.shape, head.scale) == ("model.embed_tokens.weight", (300, 64), 1 / 2)
    assert by_name(plan)["model.norm.weight"].scale == 1
    assert plan.source_parameters == hyperclone.plan(model_dir("llama-grouped-tied"), Growth(width=2)).source_parameters


def test_the_asked_type_is_in_the_config_and_everywhere(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied")
    plan = hyperclone.plan(source, Growth(width=2, dtype="fp16"))
    assert {tensor.dtype for tensor in plan.tensors} == {"F16"}
    assert plan.config["dtype"] == "float16"
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    old = {k: v for k, v in config_of(source).items() if k != "dtype"} | {"torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert hyperclone.plan(tmp_path, Growth(width=2, dtype="bf16")).config["torch_dtype"] == "bfloat16"
    assert hyperclone.plan(tmp_path, Growth(width=2)).config["torch_dtype"] == "float32"
    (tmp_path / "config.json").write_text(json.dumps(old | {"dtype": "float32"}))
    both = hyperclone.plan(tmp_path, Growth(width=2, dtype="bf16")).config
    assert (both["dtype"], both["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_widths_go_by_the_names_that_people_use(model_dir: ModelDir) -> None:
    llama = hyperclone.plan(model_dir("llama-grouped-tied"), Growth(width=2)).widths()
    opt = hyperclone.plan(model_dir("opt"), Growth(hidden="2x", heads="2x")).widths()
    for name, in_llama, in_opt in (
        ("hidden size", (32, 64), (32, 64)),
        ("feed-forward size", (48, 96), (48, 48)),
        ("attention heads", (4, 8), (4, 8)),
        ("key-value heads", (2, 4), None),
        ("head dimension", (8, 8), (8, 8)),
    ):
        assert llama.get(name) == in_llama
        assert opt.get(name) == in_opt


def test_old_buffers_are_left_out_and_remote_code_is_not_pointed_to(model_dir: ModelDir, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = model_dir("llama-grouped-tied")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**load_file(source / "model.safetensors"), buffer: torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config_of(source), "auto_map": {"AutoModel": "x.X"}}))
    plan = hyperclone.plan(tmp_path, Growth(width=2))
    assert plan.dropped == (buffer,)
    assert buffer not in by_name(plan)
    assert "auto_map" not in plan.config
    assert "auto_map" in plan.source_config
    assert any(buffer in note for note in plan.notes)
    assert any("auto_map" in note for note in plan.notes)


def test_the_summary_is_plain_json_and_complete(model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir("neox-tied"), Growth(width=2))
    summary = json.loads(json.dumps(plan.summary()))
    assert summary["parameters"] == [plan.source_parameters, plan.parameters]
    assert summary["bytes"] == plan.nbytes == sum(file["bytes"] for file in summary["files"])
    assert [tensor["name"] for tensor in summary["tensors"]] == [tensor.name for tensor in plan.tensors]
    assert summary["config"] == plan.config
    assert summary["growth"]["width"] == 2


def test_sizes_that_could_be_read_as_factors_are_found_again_from_two_configs() -> None:
    source = headers("llama-grouped-tied")  # 2 layers, 2 KV heads
    planned = planner.make_plan(source, Growth(layers="1.5x", heads="1.5x", kv_heads="1.5x", hidden="1.5x"))
    assert planner.plan_from_sizes(source, planned.config).sizes == planned.sizes


@pytest.mark.parametrize(
    "case",
    [
        ("llama-grouped-tied", Growth(width=2)),
        ("llama-grouped-tied", Growth(hidden="1.5x", dtype="bf16", allow_rounding=True)),
        ("llama-grouped-tied", Growth(width=2, untie=True)),
        ("llama-grouped-untied", Growth(layers="1.5x", ffn="3x")),
        ("llama-grouped-untied", Growth(heads="4x", kv_heads="2x")),
        ("llama-multiquery-tied", Growth(heads="4x", kv_heads=2)),
        ("gpt2-tied", Growth(hidden="2x", head_dim="2x")),
        ("neox-parallel", Growth(width=3)),
    ],
    ids=str,
)
def test_two_configs_give_the_plan_of_the_growth_that_leads_from_one_to_the_other(case: tuple[str, Growth]) -> None:
    name, growth = case
    source = headers(name)
    source = Headers.from_config(source.config, dtype="BF16" if growth.dtype else "F32")
    planned = planner.make_plan(source, growth, shard_size="20KB")
    found = planner.plan_from_sizes(source, planned.config, shard_size="20KB")
    assert (found.sizes, found.layers, found.untied) == (planned.sizes, planned.layers, planned.untied)
    assert (found.tensors, found.shards) == (planned.tensors, planned.shards)
    assert len(found.shards) > 1
    assert found.growth.allow_rounding


def test_stored_buffers_are_left_out_and_ties_are_checked() -> None:
    whole = headers("llama-grouped-tied")
    text = (Path(registry.__file__).parent / whole.family.file).read_text()
    ignores = family_file.parse(
        f'{text}\n[ignore]\ntensors = ["model.extra.{{i}}.table"]\n', name="mine", file="mine.toml"
    )
    extra = {
        name: Entry("a.safetensors", "F32", shape, 0, 4)
        for name, shape in (
            ("model.extra.7.table", (3,)),  # which the family file names
            ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
            ("lm_head.weight", (300, 32)),
        )
    }
    source = Headers(whole.config, {**whole.entries, **extra}, user_family=ignores)
    plan = planner.make_plan(source, Growth(width=2))
    assert plan.dropped == ("model.extra.7.table", "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert plan.ties_to_check == (("lm_head.weight", "model.embed_tokens.weight"),)
    clean = planner.make_plan(whole, Growth(width=2))
    assert (clean.dropped, clean.ties_to_check, clean.omitted_prefix, clean.warnings) == ((), (), "", ())


def test_the_level_of_noise_matters_only_where_something_is_split() -> None:
    source = Headers.from_config(headers("llama-multihead").config, dtype="BF16")
    assert planner.make_plan(source, Growth(layers="2x", snr_db=70)).deeper
    assert planner.make_plan(source, Growth(width=2, snr_db=70, noise="none")).tensors
    for snr_db in (0, 30):
        assert planner.make_plan(source, Growth(width=2, snr_db=snr_db)).tensors


@pytest.mark.parametrize("entries", [["full_attention"], "full_attention", {"a": 1}])
def test_a_list_with_fewer_entries_than_layers_is_refused(entries: Any, model_dir: ModelDir, tmp_path: Path) -> None:
    shutil.copytree(model_dir("qwen3-grouped-tied"), tmp_path / "source")
    edit_json(tmp_path / "source/config.json", layer_types=entries)
    with pytest.raises(HypercloneError, match="fewer entries than layers"):
        hyperclone.plan(tmp_path / "source", Growth(layers="2x"))


@pytest.mark.parametrize(
    ("growth", "warned"),
    [
        (Growth(ffn=36, allow_rounding=True, dtype="bf16"), "ffn 36: .* multiples of 8 in BF16"),
        (Growth(ffn=40, dtype="bf16"), ""),
        (Growth(ffn=37), "ffn 37: .* multiples of 4 in F32"),
        (Growth(ffn=36), ""),
    ],
)
def test_experts_that_transformers_default_kernel_refuses_are_warned_of(
    growth: Growth, warned: str, model_dir: Callable[..., Path]
) -> None:
    """torch: strides should be multiple of 16 bytes."""
    warnings = " ".join(hyperclone.plan(model_dir("qwen3-moe"), growth).warnings)
    assert re.search(warned, warnings) if warned else "kernel" not in warnings
