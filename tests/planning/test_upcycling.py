"""A dense model grown into a mixture of experts computes the dense model's function; all else still holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family, registry
from hyperclone.architectures.family_file import parse
from hyperclone.errors import CheckpointError, CollapseError, FamilyError, GrowthError
from hyperclone.expansion import noise
from hyperclone.hf.models import load_model
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning import planner
from tests.helpers.edits import edit_json
from tests.helpers.models import build

ModelDir = Callable[..., Path]
DENSE = ["llama-grouped-tied", "llama-multihead", "llama-free-head-dim", "mistral-window", "qwen3-grouped-tied",
         "qwen3-multihead-untied", "qwen3-biases"]  # fmt: skip
ROUTER = {"mixtral": "model.layers.{}.block_sparse_moe.gate.weight", "qwen3_moe": "model.layers.{}.mlp.gate.weight"}
DOWN = {"mixtral": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
        "qwen3_moe": "model.layers.{}.mlp.experts.{}.down_proj.weight"}  # fmt: skip


@pytest.fixture(scope="session")
def dense(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """model_dir, and a Qwen 3 with biases but without a window."""

    def get(name: str, **options: Any) -> Path:
        if name != "qwen3-biases":
            return model_dir(name, **options)
        path = tmp_path_factory.mktemp(name)
        build("qwen3-grouped-tied", attention_bias=True, **options).save_pretrained(path)
        return path

    return get


def config_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "config.json").read_text())
    return content


def edit(path: Path, **fields: Any) -> None:
    """Change config.json; None removes a field."""
    config = {key: value for key, value in {**config_of(path), **fields}.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))


def logits(path: Path) -> torch.Tensor:
    """In fp64 (the routers of transformers give their weights in fp32 all the same)."""
    model, wrong = load_model(path, torch.float64)
    assert not wrong
    with torch.inference_mode():
        result: torch.Tensor = model(torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(7))).logits
    return result


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.quick(6)
@pytest.mark.parametrize(
    "growth",
    [
        Growth(experts=4),
        Growth(experts=2, top_k=1),
        Growth(experts=2, top_k=2, width=2),
        Growth(experts=4, top_k=1, ffn="1.5x"),
        Growth(experts=4, top_k=3, layers="1.5x"),
        Growth(experts=3, width=2, layers="2x", expansion="diagonal"),
    ],
    ids=lambda growth: "-".join(f"{k}{v}" for k, v in vars(growth).items() if v != getattr(Growth(), k)),
)
@pytest.mark.parametrize("name", DENSE)
def test_the_mixture_computes_the_dense_function(name: str, growth: Growth, dense: ModelDir, tmp_path: Path) -> None:
    source = dense(name)
    hyperclone.grow(source, tmp_path / "grown", growth, proof="structural")
    assert relative(logits(tmp_path / "grown"), logits(source)) < 1e-6


@pytest.mark.parametrize("name", ["llama-grouped-tied", "mistral-window"])
def test_a_hidden_size_that_is_no_multiple(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    growth = Growth(experts=4, hidden="1.5x", ffn="1.5x")
    hyperclone.grow(model_dir(name), tmp_path / "grown", growth, proof="structural")
    assert relative(logits(tmp_path / "grown"), logits(model_dir(name))) < 1e-5  # factors rounded to fp32


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["mistral-window", "qwen3-grouped-tied"])
def test_both_proofs_pass_and_again_from_the_receipt(
    name: str, dtype: torch.dtype, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name, dtype=dtype)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(experts=4, top_k=3, ffn=2))
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert all(measured.passed for measured in done.proof.behavior.measured)
    again = hyperclone.verify(source, tmp_path / "grown", proof="structural")
    assert again.passed
    assert (again.structure.new_routers, again.structure.bit_equal) == (2, again.structure.tensors - 2)


@pytest.mark.parametrize("name", ["llama-grouped-tied", "qwen3-grouped-tied"])
def test_the_function_is_the_same_whatever_the_routers_say(name: str, model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir(name), tmp_path / "grown", Growth(experts=4, width=2), proof="none")
    weights = load_file(tmp_path / "grown/model.safetensors")
    for layer in range(2):
        router = weights[ROUTER[str(config_of(tmp_path / "grown")["model_type"])].format(layer)]
        router.copy_(torch.randn(router.shape, generator=torch.Generator().manual_seed(layer)))
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    assert relative(logits(tmp_path / "grown"), logits(model_dir(name))) < 1e-6


@pytest.mark.parametrize("name", ["llama-grouped-untied", "qwen3-multihead-untied"])
def test_experts_are_the_dense_block_and_differ_where_they_are_split(
    name: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = load_file(model_dir(name) / "model.safetensors")
    down = source["model.layers.1.mlp.down_proj.weight"]
    for growth in (Growth(experts=3), Growth(experts=3, ffn=2, order="tiled")):
        hyperclone.grow(model_dir(name), tmp_path / f"{growth.ffn}", growth, proof="none")
    pattern = DOWN[str(config_of(tmp_path / "2")["model_type"])]
    same, split = (load_file(tmp_path / which / "model.safetensors") for which in ("None", "2"))
    assert all(same[pattern.format(1, e)].equal(down) for e in range(3))
    wide = [split[pattern.format(1, e)].double() for e in range(3)]
    assert all((w[:, :48] + w[:, 48:]).equal(down.double()) for w in wide)
    assert not wide[0].equal(wide[1])
    assert not wide[1].equal(wide[2])


@pytest.mark.slow
def test_routers_are_normal_numbers_that_depend_on_seed_and_layer_only(model_dir: ModelDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("mistral-window"), source)
    edit(source, initializer_range=0.5)
    runs = {"a": {}, "b": {"shard_size": "20KB", "threads": 3}}
    for run, options in runs.items():
        hyperclone.grow(source, tmp_path / run, Growth(experts=64), proof="none", **options)  # type: ignore[arg-type]
    hyperclone.grow(source, tmp_path / "c", Growth(experts=64, seed=1), proof="none")
    a, b, c = (
        {k: v for file in sorted((tmp_path / run).glob("*.safetensors")) for k, v in load_file(file).items()}
        for run in "abc"
    )
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    first, second = (a[ROUTER["mixtral"].format(layer)] for layer in (0, 1))
    assert float(first.std()) == pytest.approx(0.5, abs=0.03)
    assert float(first.mean()) == pytest.approx(0, abs=0.05)
    assert not first.equal(second)
    assert not first.equal(c[ROUTER["mixtral"].format(0)])
    # The noise with which a wider router is split has draws of its own.
    expected = noise.normal(noise.draws(0, ROUTER["mixtral"].format(0), rows=range(64), columns=32))
    assert abs(float(torch.corrcoef(torch.stack([expected.flatten(), first.flatten()]))[0, 1])) < 0.1


@pytest.mark.parametrize("growth", [Growth(experts=4), Growth(experts=3, width=2, layers="1.5x")], ids=["", "grown"])
@pytest.mark.parametrize("name", DENSE)
def test_collapse_gives_the_dense_model_back_bit_for_bit(
    name: str, growth: Growth, dense: ModelDir, tmp_path: Path
) -> None:
    source = dense(name, dtype=torch.bfloat16)
    hyperclone.grow(source, tmp_path / "grown", growth, proof="structural")
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    one, two = (load_file(path / "model.safetensors") for path in (source, tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(one[k].view(torch.int16).equal(two[k].view(torch.int16)) for k in one)
    assert config_of(source) == config_of(tmp_path / "again")


def test_collapse_ignores_trained_routers_and_refuses_trained_experts(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(experts=4), proof="structural")
    file = tmp_path / "grown/model.safetensors"
    weights = load_file(file)
    weights[ROUTER["mixtral"].format(0)] += 1
    save_file(weights, file, {"format": "pt"})
    assert hyperclone.collapse(tmp_path / "grown", tmp_path / "again").exact
    weights[DOWN["mixtral"].format(0, 2)][0, 0] += 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CollapseError, match=r"layers\.0\.block_sparse_moe\.experts\.2\.w2"):
        hyperclone.collapse(tmp_path / "grown", tmp_path / "third")


@pytest.mark.parametrize("pattern", [ROUTER["mixtral"], DOWN["mixtral"].replace("{}", "1", 1)])
def test_the_structural_proof_names_a_wrong_router_or_expert(pattern: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source, name = model_dir("mistral-window"), pattern.format(1)
    hyperclone.grow(source, tmp_path / "grown", Growth(experts=2, width=2), proof="structural")
    weights = load_file(tmp_path / "grown/model.safetensors")
    weights[name][1, 3] += 1e-3
    save_file(weights, tmp_path / "grown/model.safetensors", {"format": "pt"})
    found = hyperclone.verify(source, tmp_path / "grown", proof="structural")
    assert any(failure.startswith(f"{name}: does not collapse") for failure in found.structure.failures)


def test_weights_that_do_not_sum_to_one_fail_the_behavioral_proof(model_dir: ModelDir, tmp_path: Path) -> None:
    from hyperclone.proof.behavioral import prove_behavior

    source = model_dir("qwen3-grouped-tied")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(experts=4), proof="structural")
    edit(tmp_path / "grown", norm_topk_prob=False)
    assert prove_behavior(Checkpoint.open(source), tmp_path / "grown", done.plan).failures


# What a mixture's config class would give another meaning, had it been left out.
FIELDS = ("rms_norm_eps", "hidden_act", "max_position_embeddings", "num_key_value_heads", "tie_word_embeddings",
          "attention_dropout", "initializer_range", "rope_parameters", "hidden_size", "num_attention_heads",
          "vocab_size", "num_hidden_layers", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-multihead", dict.fromkeys(("rms_norm_eps", "rope_parameters", "max_position_embeddings", "head_dim",
                                           "num_key_value_heads", "hidden_act", "tie_word_embeddings"))),
        ("llama-multihead", {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LLAMA3, "sliding_window": 4}),
        ("llama-grouped-tied", {"rope_parameters": {**LLAMA3, "rope_theta": 2e4}, "rms_norm_eps": 1e-3}),
        ("mistral-window", dict.fromkeys(("rms_norm_eps", "rope_parameters", "max_position_embeddings", "head_dim",
                                          "sliding_window"))),
        ("qwen3-grouped-tied", dict.fromkeys(("rms_norm_eps", "rope_parameters", "max_position_embeddings",
                                              "sliding_window", "layer_types", "max_window_layers"))),
        ("qwen3-grouped-tied", {"use_sliding_window": True, "sliding_window": 5,
                                "layer_types": ["sliding_attention"] * 2}),
    ],
)  # fmt: skip
def test_what_a_config_leaves_out_keeps_its_meaning(
    name: str, changes: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    source = tmp_path / "source"
    shutil.copytree(model_dir(name), source)
    edit(source, **changes)
    hyperclone.grow(source, tmp_path / "grown", Growth(experts=2), proof="structural")
    before, after = (AutoConfig.from_pretrained(path) for path in (source, tmp_path / "grown"))
    assert {f: getattr(before, f) for f in FIELDS} == {f: getattr(after, f) for f in FIELDS}
    window = None if before.model_type == "llama" else before.sliding_window
    assert after.sliding_window == window
    assert after.head_dim == before.head_dim
    assert relative(logits(tmp_path / "grown"), logits(source)) < 1e-6


def test_an_explicit_null_window_stays_none(model_dir: ModelDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("mistral-window"), source)
    (source / "config.json").write_text(json.dumps({**config_of(source), "sliding_window": None}))
    plan = planner.make_plan(Checkpoint.open(source), Growth(experts=2))
    assert plan.config["sliding_window"] is None


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama-biases", {}, ["mixtral", "no counterpart", "bias"]),
        ("mixtral", {}, ["no mixture", "mixtral", "llama, mistral, qwen3"]),
        ("gpt2-tied", {}, ["no mixture", "gpt2"]),
        ("qwen3-biases-window", {}, ["qwen3_moe", "window"]),
        ("qwen3-grouped-tied", {"use_sliding_window": True, "layer_types": None}, ["qwen3_moe", "window"]),
        ("llama-multihead", {"initializer_range": 0.0}, ["initializer_range", "0.02"]),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_reason(
    name: str, changes: dict[str, Any], words: list[str], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir(name), source)
    edit(source, **changes)
    with pytest.raises((GrowthError, CheckpointError)) as refused:
        hyperclone.plan(source, Growth(experts=4))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"experts": 1}, "2 or more"), ({"experts": True}, "2 or more"), ({"experts": "4"}, "2 or more"),
        ({"experts": 4, "top_k": 5}, "1 to 4"), ({"experts": 4, "top_k": 0}, "1 to 4"), ({"top_k": 3}, "--experts"),
    ],
)  # fmt: skip
def test_numbers_of_experts_that_make_no_sense_are_refused(request_: dict[str, Any], word: str) -> None:
    with pytest.raises(GrowthError, match=word):
        Growth(**request_)


def test_a_model_in_memory_and_a_mixture_without_receipt_are_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="grow the directory"):
        hyperclone.grow_model(build("llama-grouped-tied"), Growth(experts=4))
    source = model_dir("llama-grouped-tied")
    hyperclone.grow(source, tmp_path / "grown", Growth(experts=4), proof="structural")
    (tmp_path / "grown/hyperclone.json").unlink()
    assert hyperclone.verify(source, tmp_path / "grown", proof="structural").passed  # its config says the same
    edit_json(tmp_path / "grown/config.json", hyperclone=None)
    with pytest.raises(GrowthError, match="random routers"):
        hyperclone.verify(source, tmp_path / "grown")


def test_the_receipt_speaks_of_the_dense_source(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("qwen3-multihead-untied")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(experts=4, ffn=2), proof="structural")
    receipt = json.loads((tmp_path / "grown/hyperclone.json").read_text())
    assert receipt["source_config"] == config_of(source)
    assert receipt["sha256"]["source"].keys() == load_file(source / "model.safetensors").keys()
    stored = load_file(tmp_path / "grown/model.safetensors")
    assert receipt["sha256"]["output"].keys() == receipt["training"]["parameters"].keys() == stored.keys()
    assert (receipt["growth"]["experts"], receipt["growth"]["top_k"]) == (4, 2)
    # As unmodified transformers counts: the dense model, the mixture, and the mixture with two of four experts.
    count = [
        sum(w.numel() for w in load_file(path / "model.safetensors").values()) for path in (source, tmp_path / "grown")
    ]
    assert [done.plan.source_parameters, done.plan.parameters] == receipt["parameters"] == count
    experts = sum(weight.numel() for name, weight in stored.items() if ".experts." in name)
    assert done.plan.active_parameters == count[1] - experts // 2
    assert "sparse upcycling" in (tmp_path / "grown/README.md").read_text()


def test_training_separates_experts_that_start_equal(model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(experts=4), proof="none")
    model, _ = load_model(tmp_path / "grown", torch.float32)
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].mlp.experts.down_proj.grad
    assert all(relative(gradient[e], gradient[0]) > 0.1 for e in (1, 2, 3))


def test_one_expert_for_each_token_leaves_routers_untrained_and_warns(model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(
        model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(experts=4, top_k=1), proof="none"
    )
    assert any("--top-k 2" in warning for warning in done.plan.warnings)
    model, _ = load_model(tmp_path / "grown", torch.float32)
    with torch.no_grad():  # experts that differ
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.add_(0.1 * torch.randn(layer.mlp.experts.down_proj.shape))
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    assert float(model.model.layers[0].mlp.gate.weight.grad.abs().max()) < 1e-6


def test_every_mixture_names_dense_types_and_tensors_that_are_known() -> None:
    mixtures = {mixture.name: mixture for mixture in registry.families().values() if mixture.upcycled}
    assert mixtures.keys() == {"mixtral", "qwen3_moe"}
    for mixture in mixtures.values():
        assert mixture.upcycled is not None
        for model_type in mixture.upcycled.dense:
            patterns = {line.pattern for line in registry.families()[model_type].lines}
            assert set(mixture.upcycled.tensors.values()) <= patterns


@pytest.mark.parametrize(
    ("there", "wrong"),
    [('router = "model.', 'router = "'), ('experts.{e}.w1.weight" = "', 'experts.{e}.w4.weight" = "')],
)
def test_a_family_file_whose_upcycling_names_unlisted_tensors_is_refused(there: str, wrong: str) -> None:
    text = Path(str(family.__file__)).with_name("families").joinpath("mixtral.toml").read_text()
    head, tail = text.split("[upcycled]")
    assert there in tail
    with pytest.raises(FamilyError, match="does not list"):
        parse(head + "[upcycled]" + tail.replace(there, wrong), name="mixtral", file="mixtral.toml")
