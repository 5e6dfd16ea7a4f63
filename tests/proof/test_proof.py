"""Promise 1: the grown model computes the source's function, and the proof fails when it does not."""

from __future__ import annotations

import functools
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hyperclone
from hyperclone import Growth
from hyperclone.cli.display import plan_and_proof
from hyperclone.errors import ProofFailed
from hyperclone.expansion import grown_tensors
from hyperclone.hf import logits
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.proof.behavioral import prove_behavior
from hyperclone.proof.structural import prove_structure
from hyperclone.units import share
from tests.helpers.edits import forget_growth
from tests.helpers.models import MODELS, ONCE, REPRESENTATIVE, save_tokenizer

ModelDir = Callable[..., Path]
GROWTHS = {
    "symmetric": Growth(width=2, noise="none"),
    "diagonal": Growth(width=2, noise="none", expansion="diagonal"),
    "noisy-symmetric": Growth(width=2),
    "noisy-diagonal": Growth(width=2, expansion="diagonal"),
    "three-noisy-symmetric": Growth(width=3),
    "three-symmetric": Growth(width=3, noise="none"),
    "three-noisy-diagonal": Growth(width=3, expansion="diagonal"),
    "gaussian": Growth(width=2, noise="gaussian"),
    "three-gaussian-diagonal": Growth(width=3, noise="gaussian", expansion="diagonal"),
}


def logits_of(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits in float64 through unmodified transformers, with nothing of ours involved."""
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, output_loading_info=True, experts_implementation="eager"
    )
    assert not any(info.values()), info
    with torch.inference_mode():
        output: torch.Tensor = model.eval()(ids).logits
        return output


IDS = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(1))


@functools.cache
def source_logits(source: Path) -> torch.Tensor:
    """Of IDS, by a model that `model_dir` made: nobody writes into it, so it is loaded once for all its growths."""
    return logits_of(source, IDS)


# Factors, noise and indices are put together freely, so these reach every row, and the others one row of each kind.
ONE = "three-noisy-diagonal"
EVERYWHERE = {"noisy-symmetric", "noisy-diagonal", "three-noisy-diagonal", "three-gaussian-diagonal"}


@pytest.mark.quick(28)
@pytest.mark.parametrize(
    ("name", "growth"),
    [(name, growth) for name in MODELS for growth in GROWTHS
     if growth == ONE or (name not in ONCE and growth in EVERYWHERE) or name in REPRESENTATIVE],
)  # fmt: skip
def test_a_grown_models_logits_equal_its_sources(name: str, growth: str, model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir(name)
    hyperclone.grow(source, tmp_path / "grown", GROWTHS[growth], proof="none")
    before, after = source_logits(source), logits_of(tmp_path / "grown", IDS)
    # Norms compute in fp32 inside transformers, whatever the model's type.
    assert (after - before).norm() / before.norm() < 2e-6


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": "2x", "heads": "2x"},
        {"ffn": 96},
        {"ffn": "3x", "hidden": 64, "heads": 8},
        {"hidden": "3x", "heads": "3x", "ffn": "2x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama-grouped-tied", "neox-parallel", "opt", "opt-projected-post-norm"])
def test_widths_grow_independently(name: str, sizes: dict[str, Any], model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir(name)
    hyperclone.grow(source, tmp_path / "grown", Growth(**sizes), proof="none")
    before, after = source_logits(source), logits_of(tmp_path / "grown", IDS)
    assert (after - before).norm() / before.norm() < 2e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama-multiquery-tied", {"heads": "2x"}),
        ("llama-multiquery-tied", {"heads": "4x", "kv_heads": 2}),
        ("llama-grouped-untied", {"heads": "2x", "kv_heads": "1x"}),
        ("llama-grouped-untied", {"heads": "4x", "kv_heads": "2x"}),
        ("llama-grouped-untied", {"hidden": "2x"}),
        ("llama-free-head-dim", {"heads": "2x"}),
        ("mistral-window", {"heads": 12}),
    ],
    ids=str,
)
def test_heads_grow_apart_from_hidden_where_the_config_can_say_so(
    name: str, sizes: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir(name)
    hyperclone.grow(source, tmp_path / "grown", Growth(**sizes), proof="none")
    before, after = source_logits(source), logits_of(tmp_path / "grown", IDS)
    assert (after - before).norm() / before.norm() < 2e-6


def test_sizes_that_transformers_refuses_are_refused_by_the_plan(model_dir: ModelDir) -> None:
    with pytest.raises(hyperclone.HypercloneError, match="hidden_size / num_attention_heads"):
        hyperclone.plan(model_dir("llama-free-head-dim"), Growth(heads=12))


@pytest.mark.quick(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["llama-grouped-tied", "neox-parallel", "opt"])
def test_the_full_proof_passes_in_every_stored_type_and_measures_everything(
    name: str, dtype: torch.dtype, model_dir: ModelDir, tmp_path: Path
) -> None:
    done = hyperclone.grow(model_dir(name, dtype=dtype), tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.structure.bit_equal == done.proof.structure.tensors > 0
    behavior = done.proof.behavior
    assert behavior is not None
    assert not behavior.skipped
    kinds = {"real text", "random tokens", "right padding", "left padding", "KV cache"}
    computed = {"float32"} | ({str(dtype).removeprefix("torch.")} if dtype != torch.float32 else set())
    assert {(m.what, m.dtype) for m in behavior.measured} == {(k, c) for k in kinds for c in computed}
    assert behavior.source_text == behavior.grown_text != ""


def test_tied_heads_stay_tied_and_untie_gives_the_head_a_tensor(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    hyperclone.grow(source, tmp_path / "tied", Growth(width=2, order="tiled"), proof="structural")
    hyperclone.grow(source, tmp_path / "untied", Growth(width=2, untie=True, order="tiled"))
    assert json.loads((tmp_path / "tied/config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    assert json.loads((tmp_path / "untied/config.json").read_text())["tie_word_embeddings"] is False
    head, source_head = (
        load_file(tmp_path / "untied/model.safetensors")["lm_head.weight"],
        load_file(source / "model.safetensors")["model.embed_tokens.weight"],
    )
    assert (head[:, :32].float() + head[:, 32:].float()).equal(source_head.float())


def test_a_tied_model_without_a_last_norm_is_untied_and_says_so(model_dir: ModelDir, tmp_path: Path) -> None:
    plan = hyperclone.plan(model_dir("opt-plain-norms"), Growth(width=2))
    assert plan.untied
    assert any("untied" in note for note in plan.notes)


def test_dtype_conversion_is_proved_against_the_converted_source(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2, dtype="bf16"))
    assert done.proof is not None
    assert done.proof.structure.bit_equal == done.proof.structure.tensors
    assert {t.dtype for t in load_file(tmp_path / "grown/model.safetensors").values()} == {torch.bfloat16}
    assert hyperclone.verify(source, tmp_path / "grown").passed


# --- sabotage: each wrong model must fail, and the tensor must be named -------------------------------------------


def drop_the_division(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.mlp.down_proj.weight"
    t[name] *= 2
    return name


def swap_two_kv_heads(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.0.self_attn.k_proj.weight"
    t[name] = torch.cat([t[name][8:16], t[name][:8], t[name][16:]])
    return name


def forget_a_bias(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.0.mlp.up_proj.bias"
    t[name][48:] = 0
    return name


def flip_the_lowest_bit(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.self_attn.o_proj.weight"
    t[name].view(torch.int16)[3, 5] ^= 1
    return name


def flip_a_bit_of_a_norm(t: dict[str, torch.Tensor]) -> str:
    name = "model.norm.weight"
    t[name].view(torch.int16)[40] ^= 1
    return name


def swap_two_rows_of_the_embedding(t: dict[str, torch.Tensor]) -> str:
    name = "model.embed_tokens.weight"
    t[name][[7, 8]] = t[name][[8, 7]]
    return name


def put_a_nan(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.mlp.gate_proj.weight"
    t[name][-1, -1] = torch.nan
    return name


def put_an_infinity(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.input_layernorm.weight"
    t[name][0] = torch.inf
    return name


def lose_a_tensor(t: dict[str, torch.Tensor]) -> str:
    name = "model.layers.1.mlp.gate_proj.weight"
    del t[name]
    return name


def add_a_tensor(t: dict[str, torch.Tensor]) -> str:
    t["model.extra.weight"] = torch.zeros(2)
    return "model.extra.weight"


SABOTAGE = [
    drop_the_division, swap_two_kv_heads, forget_a_bias, flip_the_lowest_bit, flip_a_bit_of_a_norm,
    swap_two_rows_of_the_embedding, put_a_nan, put_an_infinity, lose_a_tensor, add_a_tensor,
]  # fmt: skip


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bf16 model with biases and tied grouped-query attention, and its growth without a receipt."""
    from tests.helpers.models import build

    base = tmp_path_factory.mktemp("sabotage")
    model = build("llama-biases", dtype=torch.bfloat16, tie_word_embeddings=True)
    model.save_pretrained(base / "source")
    save_tokenizer(base / "source")
    hyperclone.grow(base / "source", base / "grown", Growth(width=2, order="tiled"), proof="structural")
    return base / "source", base / "grown"


@pytest.mark.parametrize("receipt", [True, False], ids=["with-receipt", "without-receipt"])
@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda f: f.__name__)
def test_sabotage_fails_the_proof_and_names_the_tensor(
    sabotage: Callable[[dict[str, torch.Tensor]], str], receipt: bool, grown: tuple[Path, Path], tmp_path: Path
) -> None:
    source, intact = grown
    broken = tmp_path / "broken"
    shutil.copytree(intact, broken)
    if not receipt:
        forget_growth(broken)
        assert hyperclone.verify(source, broken, proof="structural").passed
    tensors = load_file(broken / "model.safetensors")
    name = sabotage(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, broken / "model.safetensors", {"format": "pt"})
    proof = hyperclone.verify(source, broken)
    assert not proof.passed
    assert any(name in failure for failure in proof.failures)


def test_a_change_of_the_grown_config_fails_the_proof(grown: tuple[Path, Path], tmp_path: Path) -> None:
    source, intact = grown
    shutil.copytree(intact, tmp_path / "broken")
    config = json.loads((tmp_path / "broken/config.json").read_text())
    (tmp_path / "broken/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    proof = hyperclone.verify(source, tmp_path / "broken", proof="structural")
    assert not proof.passed
    assert any("rms_norm_eps" in failure for failure in proof.failures)


def test_moved_noise_is_caught_by_the_receipts_hashes(grown: tuple[Path, Path], tmp_path: Path) -> None:
    """Weight moved from one copy to another keeps the function; the files are still not those that were proved."""
    source, intact = grown
    shutil.copytree(intact, tmp_path / "moved")
    tensors = load_file(tmp_path / "moved/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = tensors[name]
    tensors[name] = torch.cat([weight[:, 32:], weight[:, :32]], 1)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "moved/model.safetensors", {"format": "pt"})
    proof = hyperclone.verify(source, tmp_path / "moved", proof="structural")
    assert proof.structure.passed
    assert not proof.passed
    assert any(name in failure and "receipt" in failure for failure in proof.failures)


def test_a_wrong_family_file_passes_the_structural_and_fails_the_behavioral_proof(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The behavioral proof does not trust our understanding of the architecture, and nothing is published."""
    from hyperclone.architectures import family_file, registry

    text = (Path(registry.__file__).parent / "families/llama.toml").read_text()
    # Key heads flattened the other way round: sizes agree, heads are mixed.
    wrong = text.replace(
        'k_proj.weight"           = "(kv_heads head_dim)', 'k_proj.weight"           = "(head_dim kv_heads)'
    )
    assert wrong != text
    false = family_file.parse(wrong, name="llama", file="families/llama.toml")
    monkeypatch.setattr(registry, "shipped", lambda model_type: false)
    with pytest.raises(ProofFailed) as caught:
        hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", Growth(width=2))
    assert caught.value.proof.structure.passed
    assert any("real text" in failure for failure in caught.value.proof.failures)
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize("broken", ["expand_rows", "forgets_fold"])
def test_a_broken_growth_is_never_published(
    broken: str, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.expansion import expand, grown_tensors
    from hyperclone.planning import tied_head

    if broken == "expand_rows":
        intact = expand.expand_rows
        monkeypatch.setattr(grown_tensors, "expand_rows", lambda *a, **k: intact(*a, **k) * 1.01)
    else:
        monkeypatch.setattr(tied_head, "decide", lambda *a, **k: tied_head.TiedHead())
    with pytest.raises(ProofFailed):
        hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2))
    assert not (tmp_path / "grown").exists()
    monkeypatch.undo()
    assert hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2)).proof  # starts again


def test_without_memory_the_logits_are_skipped_and_that_is_said(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.proof import behavioral

    monkeypatch.setattr(behavioral, "available_memory", lambda: 1e6)
    done = hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert not done.proof.behavior.measured
    assert "memory" in done.proof.behavior.skipped[0]


def test_tolerances_are_the_sources_own_rounding_times_the_derived_factor(model_dir: ModelDir, tmp_path: Path) -> None:
    from hyperclone.proof import tolerance

    done = hyperclone.grow(model_dir("neox-parallel", dtype=torch.bfloat16), tmp_path / "grown", Growth(width=2))
    assert tolerance.factor(done.plan) == pytest.approx(4 * (1 + 0.1) ** 0.5 * 2**0.5)
    assert done.proof is not None
    assert done.proof.behavior is not None
    for m in done.proof.behavior.measured:
        assert m.tolerance == pytest.approx(m.source_error * tolerance.factor(done.plan))
        assert m.source_error < (1e-4 if m.dtype == "float32" else 0.2)


def test_perplexities_that_are_shown_are_of_the_same_tokens(model_dir: ModelDir, tmp_path: Path) -> None:
    """In bf16 fewer tokens are compared; a perplexity of them beside one of all would look like a difference."""
    done = hyperclone.grow(model_dir("llama-grouped-tied", dtype=torch.bfloat16), tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.behavior is not None
    (measured,) = [m for m in done.proof.behavior.measured if m.perplexity is not None]
    assert (measured.what, measured.dtype) == ("real text", "float32")
    paths = model_dir("llama-grouped-tied", dtype=torch.bfloat16), tmp_path / "grown"
    source, grown = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths)
    vocab, context = source.config.vocab_size, source.config.max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    probes, _ = logits.make_probes(tokenizer, vocab=vocab, context=context, sizes=logits.FULL)
    (text,) = [probe.ids for probe in probes if probe.name == logits.REAL_TEXT]
    assert measured.predicted == text[:, 1:].numel() == measured.positions - len(text)
    for model, shown in zip((source, grown), measured.perplexity or (), strict=True):
        with torch.inference_mode():
            assert shown == pytest.approx(math.exp(float(model(text, labels=text).loss)), rel=1e-5)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(plan_and_proof.proof_table(done.proof))
    shown_lines = [line for line in console.export_text().splitlines() if "perplexity" in line]
    assert shown_lines == [
        f"perplexity, fp32, the same {measured.predicted} tokens of real text: source {{:.4f}}, grown {{:.4f}}".format(
            *measured.perplexity or ()
        )
    ]


def test_power_of_gaussian_noise_does_not_depend_on_slices(model_dir: ModelDir) -> None:
    plan = hyperclone.plan(model_dir("opt"), Growth(width=2, noise="gaussian"))
    tensor = max(plan.tensors, key=lambda t: t.nbytes)
    from hyperclone.io.checkpoint import Checkpoint

    weights = load_file(model_dir("opt") / "model.safetensors")[tensor.source]
    assert grown_tensors._power(tensor, Checkpoint.open(model_dir("opt"))) == pytest.approx(
        float(weights.double().square().mean()), rel=1e-12
    )


# --- what a fresh reader found ------------------------------------------------------------------------------------


def test_a_receipt_cannot_widen_the_bounds_until_another_function_passes(model_dir: ModelDir, tmp_path: Path) -> None:
    """Negated weights hidden in loud shares, with a receipt that calls them noise."""
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2, noise="gaussian", snr_db=5), proof="structural")
    tensors = load_file(tmp_path / "grown/model.safetensors")
    weights = load_file(source / "model.safetensors")
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        loud = torch.full_like(weights[name], 256)
        tensors[name] = torch.cat([loud, -weights[name] - loud], 1).repeat(2, 1)
    save_file(tensors, tmp_path / "grown/model.safetensors", {"format": "pt"})
    receipt = json.loads((tmp_path / "grown/hyperclone.json").read_text())
    receipt["sha256"] = {"output": {}, "source": {}, "files": {}}
    (tmp_path / "grown/hyperclone.json").write_text(json.dumps(receipt))
    proof = hyperclone.verify(source, tmp_path / "grown")
    assert any("down_proj" in failure for failure in proof.failures)
    assert any("no hashes" in failure for failure in proof.failures)


def test_the_sources_own_generation_settings_do_not_touch_the_proof(model_dir: ModelDir, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("llama-grouped-tied"), source)
    (source / "generation_config.json").write_text('{"num_beams": 4, "stop_strings": ["a"], "eos_token_id": 2}')
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert "num_beams" in (tmp_path / "grown/generation_config.json").read_text()


def test_what_a_model_writes_is_not_read_as_markup(model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.behavior is not None
    done.proof.behavior.source_text = done.proof.behavior.grown_text = "[/INST] [b]bold"
    console = Console(record=True, width=100)
    console.print(plan_and_proof.continuations(done.proof))
    assert console.export_text().count("[/INST] [b]bold") == 2


def test_a_tokenizer_of_another_model_is_skipped_and_said(model_dir: ModelDir, tmp_path: Path) -> None:
    from tests.helpers.models import build

    build("llama-grouped-tied", vocab_size=100).save_pretrained(tmp_path / "source")  # the tokenizer has 259
    save_tokenizer(tmp_path / "source")
    done = hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2))
    assert done.proof is not None
    assert done.proof.passed
    assert done.proof.behavior is not None
    assert any("tokenizer" in reason for reason in done.proof.behavior.skipped)


def test_a_swapped_tokenizer_is_noticed(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("opt")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="structural")
    (tmp_path / "grown/tokenizer.json").write_text("{}")
    proof = hyperclone.verify(source, tmp_path / "grown", proof="structural")
    assert any("tokenizer.json" in failure for failure in proof.failures)


def test_unrelated_or_swapped_directories_are_refused(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied")
    hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none")
    for first, second in ((source, source), (tmp_path / "grown", source), (model_dir("opt"), source)):
        with pytest.raises(hyperclone.HypercloneError, match="not a growth of the first"):
            hyperclone.verify(first, second, proof="structural")


def test_rounded_tensors_are_not_counted_as_bit_equal(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(hidden=48, allow_rounding=True))
    assert done.proof is not None
    structure = done.proof.structure
    assert (structure.rounded, structure.coarse, structure.bit_equal) == (5, 5, 15)
    assert done.proof.verdict == "proved"
    weights = load_file(source / "model.safetensors")
    products = [weights[name].double() * math.sqrt(32 / 48) for name in structure.rounded_names]
    errors = [float((exact.bfloat16().double() - exact).abs().max()) for exact in products]
    assert structure.largest_rounding == pytest.approx(max(errors), rel=1e-9)
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(plan_and_proof.proof_table(done.proof))
    headline, line, *rest = console.export_text().splitlines()
    assert headline.startswith("PROVED up to rounding (5 tensors rounded): ")
    norms = "model.layers.*.input_layernorm.weight, model.layers.*.post_attention_layernorm.weight, model.norm.weight"
    assert f"5 are rounded to their type ({norms}), largest difference {max(errors):.1e}" in line
    assert any("that of computing and that of the 5 weight tensors" in line for line in rest)
    assert any(f"5 tensors are rounded to bfloat16 ({norms})" in note for note in done.plan.notes)
    card = (done.path / "README.md").read_text()
    assert "computes the same function up to the rounding of 5 of its tensors" in card
    assert "knows exactly" not in card


def test_what_rounding_lost_is_measured_where_the_source_is_read_for_its_hash(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    grown = hyperclone.grow(source, tmp_path / "grown", Growth(hidden=48, allow_rounding=True), proof="none")
    reads: Counter[str] = Counter()
    stored = Checkpoint._stored

    def counted(self: Checkpoint, entry: Any, name: str, start: int, stop: int, buffers: Any = None) -> torch.Tensor:
        reads[name] += self.path == source
        return stored(self, entry, name, start, stop, buffers)

    monkeypatch.setattr(Checkpoint, "_stored", counted)
    structure = prove_structure(Checkpoint.open(source), grown.path, grown.plan)
    assert structure.largest_rounding > 0
    assert {reads[name] for name in structure.rounded_names} == {2}  # to compare, and to hash and measure


def test_rounding_to_fp32_is_no_rounding_of_the_function_but_is_counted(model_dir: ModelDir, tmp_path: Path) -> None:
    done = hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(hidden=48), proof="structural")
    assert done.proof is not None
    assert (done.proof.structure.rounded, done.proof.structure.coarse) == (5, 0)
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(plan_and_proof.proof_table(done.proof))
    headline, line = console.export_text().splitlines()[:2]
    assert headline.startswith("PROVED: ")
    assert f"largest difference {done.proof.structure.largest_rounding:.1e}" in line
    assert 0 < done.proof.structure.largest_rounding < 1e-6
    assert any("5 tensors are rounded to float32" in note for note in done.plan.notes)


def test_of_few_tokens_their_number_is_shown() -> None:
    shown = [share(part, count) for part, count in ((0.75, 4), (22 / 24, 24), (0.917, 512), (1.0, 30))]
    assert shown == ["3/4", "22/24", "91.7%", "100.0%"]


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_a_router_that_transformers_keeps_in_fp32_may_be_stored_in_bf16(
    layer_by_layer: bool, model_dir: ModelDir, tmp_path: Path
) -> None:
    """As in the released DeepSeek V3: transformers saves it in fp32, with the same values."""
    source, grown = tmp_path / "source", tmp_path / "grown"
    shutil.copytree(model_dir("deepseek_v3", dtype=torch.bfloat16), source)
    tensors = load_file(source / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, source / "model.safetensors", {"format": "pt"})
    plan = hyperclone.grow(source, grown, Growth(width=2), proof="structural").plan
    behavior = prove_behavior(Checkpoint.open(source), grown, plan, layer_by_layer=layer_by_layer)
    assert not behavior.failures
    assert not any("save" in skipped for skipped in behavior.skipped)


@pytest.mark.parametrize("tokenizer", [True, False], ids=["text", "random"])
def test_a_slow_type_sees_64_tokens_in_every_kind_of_input_and_fp32_the_same_as_ever(
    tokenizer: bool, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.proof import behavioral

    source = tmp_path / "source"
    shutil.copytree(model_dir("llama-grouped-tied", dtype=torch.bfloat16), source)
    if not tokenizer:
        for file in source.glob("tokenizer*"):
            file.unlink()
    plan = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none").plan
    results = {}
    for slow in (True, False):
        monkeypatch.setattr(behavioral, "is_slow", lambda dtype, slow=slow: slow)
        results[slow] = prove_behavior(Checkpoint.open(source), tmp_path / "grown", plan)
        assert not results[slow].failures
    by_type = {
        slow: {dtype: [m for m in result.measured if m.dtype == dtype] for dtype in ("bfloat16", "float32")}
        for slow, result in results.items()
    }
    assert by_type[True]["float32"] == by_type[False]["float32"]
    kinds = [m.what for m in by_type[True]["bfloat16"]]
    assert kinds == [m.what for m in by_type[False]["bfloat16"]]
    assert ("real text" in kinds) == tokenizer
    counts = {slow: sum(m.positions for m in measured["bfloat16"]) for slow, measured in by_type.items()}
    assert counts[False] > counts[True] == 64
    assert (results[True].slow, results[False].slow) == ("bfloat16", "")
    assert results[True].source_text == results[False].source_text
    proof = hyperclone.verify(source, tmp_path / "grown", proof="structural")
    proof.behavior = results[True]
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(plan_and_proof.proof_table(proof))
    fp32 = sum(m.positions for m in by_type[True]["float32"])
    line = f"tokens compared: 64 in bf16 and {fp32} in fp32; fewer in bf16, in which this processor is slow"
    assert line in console.export_text().splitlines()


def test_side_by_side_gives_the_figures_of_one_after_the_other(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.hf import side_by_side
    from hyperclone.proof import behavioral

    monkeypatch.setattr(behavioral, "is_slow", lambda dtype: True)
    source = model_dir("llama-biases", dtype=torch.float16)
    plan = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="none").plan
    together = prove_behavior(Checkpoint.open(source), tmp_path / "grown", plan)
    monkeypatch.setattr(side_by_side, "run", lambda first, second, module: (first(), second()))
    assert prove_behavior(Checkpoint.open(source), tmp_path / "grown", plan) == together
    assert together.measured
    assert not together.skipped
