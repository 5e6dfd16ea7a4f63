"""What a request, a source's config and headers, or two configs are refused with, word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io.hub import Headers
from hyperclone.planning import planner
from hyperclone.planning.growth import resolve, resolve_layers
from hyperclone.planning.plan import Plan
from tests.helpers import models, rows_more
from tests.helpers.headers import headers
from tests.helpers.messages import Refusal, check_refusal
from tests.proof.test_rounded_families import ROWS

SMOLLM2 = {"hidden": 576, "ffn": 1536, "kv_heads": 3, "group": 3, "head_dim": 64, "vocab": 49152}
PYTHIA = {"hidden": 1024, "ffn": 4096, "heads": 16, "head_dim": 64}


MULTIPLIED = (
    "the model multiplies its embedding by the square root of the hidden size, which is divided out: a root is a power "
    "of two only where the hidden size grows 1x, 4x or 16x"
)
QUERIES = "queries are multiplied by a root where head_dim grows, which is a power of two only for 1x, 4x or 16x"
PADDED = (
    "48 is no multiple of the hidden size 32, so that padding channels have to be hidden from the norms; whole "
    "multiples have none"
)


def since(*reasons: str) -> str:
    return f", since {'; and '.join(reasons)}"


def cure_of_rounding(dtype: str, *ways: str) -> str:
    return (
        f"exact in {dtype}: {', or '.join(ways)}; else write fp32 (--dtype fp32), or accept that the logits move, "
        f"about as much as computing in {dtype} moves them; the proof measures it (--allow-rounding)"
    )


def growth(**options: Any) -> Growth:
    """A request, of values of any type."""
    return Growth(**options)


def source(name: str, dtype: str = "F32", *, without: str | None = None, **fields: Any) -> Headers:
    """A source with these fields in its config, all of one type, and without tensors whose names begin so."""
    with pytest.MonkeyPatch.context() as patched:
        for row, values in {**ROWS, **rows_more.ALIBI}.items():
            patched.setitem(models.MODELS, row, values)
        config = {**headers(name).config, **fields}
    entries = Headers.from_config(config, dtype=dtype).entries
    return Headers(config, {n: e for n, e in entries.items() if without is None or not n.startswith(without)})


def stored(name: str, tensor: str, **changes: Any) -> Headers:
    """A source of which one tensor is stored otherwise."""
    whole = source(name)
    entry = whole.entries.get(tensor, whole.entries["model.norm.weight"])
    return Headers(whole.config, {**whole.entries, tensor: replace(entry, file="a.safetensors", **changes)})


def plan(source: Headers, **options: Any) -> Plan:
    """The plan of a growth."""
    return planner.make_plan(source, Growth(**options))


def between(name: str, other: str, **fields: Any) -> Plan:
    """The plan that leads from one model to another, whose config has these fields."""
    return planner.plan_from_sizes(source(name), source(other, **fields).config)


def with_own_family(name: str, *, without: str) -> Headers:
    """A source with a family file of the user's: its own without this section."""
    whole = source(name)
    text = (Path(registry.__file__).parent / whole.family.file).read_text()
    sections = [section for section in text.split("\n\n") if not section.startswith(f"[{without}]")]
    return replace(whole, user_family=family_file.parse("\n\n".join(sections), name="mine", file="mine.toml"))


REFUSALS: dict[str, Refusal] = {
    "seed": Refusal(lambda: growth(seed=1.5), GrowthError, "not a seed",
        {"field": "seed", "found": "1.5", "expected": "a whole number from 0"}),
    "seed, a boolean": Refusal(lambda: growth(seed=True), GrowthError, "not a seed",
        {"field": "seed", "found": "True", "expected": "a whole number from 0"}),
    "untie": Refusal(lambda: growth(untie="no"), GrowthError, "not a boolean",
        {"field": "untie", "found": "'no'", "expected": "True or False"}),
    "allow_rounding": Refusal(lambda: growth(allow_rounding=1), GrowthError, "not a boolean",
        {"field": "allow_rounding", "found": "1", "expected": "True or False"}),
    "level of the noise, a text": Refusal(lambda: growth(snr_db="10"), GrowthError, "not a noise level",
        {"field": "snr_db", "found": "'10'", "expected": "-40 to 80 dB"}),
    "level of the noise, a boolean": Refusal(lambda: growth(snr_db=True), GrowthError, "not a noise level",
        {"field": "snr_db", "found": "True", "expected": "-40 to 80 dB"}),
    "faintest noise": Refusal(lambda: growth(snr_db=80.5), GrowthError, "noise level out of range",
        {"field": "snr_db", "found": "80.5", "expected": "-40 to 80 dB"}),
    "loudest noise": Refusal(lambda: growth(snr_db=-40.5), GrowthError, "noise level out of range",
        {"field": "snr_db", "found": "-40.5", "expected": "-40 to 80 dB"}),
    "experts": Refusal(lambda: growth(experts=1), GrowthError, "not a number of experts",
        {"field": "experts", "found": "1", "expected": "2 or more"}),
    "experts of each token": Refusal(lambda: growth(experts=4, top_k=5), GrowthError,
        "a token cannot be routed to this many experts", {"field": "top_k", "found": "5", "expected": "1 to 4"}),
    "experts of each token, without experts": Refusal(lambda: growth(top_k=3), GrowthError,
        "a token cannot be routed to this many experts",
        {"field": "top_k", "found": "3", "expected": "1 to 2", "cure": "give --experts as well"}),
    "key-value heads": Refusal(lambda: resolve(Growth(width=2, kv_heads="2x"), PYTHIA), GrowthError,
        "this architecture has no separate key-value heads", {"field": "kv_heads", "found": "2x", "cure": "use heads"}),
    "nothing grows": Refusal(lambda: resolve(Growth(), SMOLLM2), GrowthError,
        "nothing to grow: every width stays as it is",
        {"cure": "give --width 2, or --hidden, --ffn, --heads, --layers by factor (2x) or size"}),
    "layers": Refusal(lambda: resolve_layers(Growth(layers=100_001), 2), GrowthError, "too many layers",
        {"field": "layers", "found": "100001", "expected": "at most 100000"}),
    "no width": Refusal(lambda: resolve(Growth(hidden="two"), SMOLLM2), GrowthError, "not a width",
        {"field": "hidden", "found": "two", "expected": "a factor (2 or 2x) or a size (1152)"}),
    "zero": Refusal(lambda: resolve(Growth(hidden=0), SMOLLM2), GrowthError, "not a width",
        {"field": "hidden", "found": "0", "expected": "a factor (2 or 2x) or a size (1152)"}),
    "width, no factor": Refusal(lambda: growth(width="two"), GrowthError, "not a width",
        {"field": "width", "found": "two", "expected": "a factor (2 or 2x) or a size (1152)"}),
    "layers, no number": Refusal(lambda: resolve_layers(Growth(layers="two"), 2), GrowthError, "not a width",
        {"field": "layers", "found": "two", "expected": "a factor (2 or 2x) or a size (1152)"}),
    "experts of each token, a boolean": Refusal(lambda: growth(experts=4, top_k=True), GrowthError,
        "a token cannot be routed to this many experts",
        {"field": "top_k", "found": "True", "expected": "1 to 4"}),
    "head dimension, no width": Refusal(lambda: resolve(Growth(head_dim="two"), SMOLLM2), GrowthError, "not a width",
        {"field": "head_dim", "found": "two", "expected": "a factor (2 or 2x) or a size (1152)"}),
    "a smaller factor": Refusal(lambda: resolve(Growth(ffn="0.5x"), SMOLLM2), GrowthError,
        "a model cannot be grown to a smaller size", {"field": "ffn", "found": "0.5x", "expected": "1 or more"}),
    "a large factor": Refusal(lambda: resolve(Growth(hidden="65x"), SMOLLM2), GrowthError,
        "this is too large for a factor, and probably a size",
        {"field": "hidden", "found": "65x", "expected": "1.5, 2, 3, ...",
         "cure": "give sizes as --hidden, --ffn and --heads"}),
    "width": Refusal(lambda: growth(width=1152), GrowthError, "this is too large for a factor, and probably a size",
        {"field": "width", "found": "1152", "expected": "1.5, 2, 3, ...",
         "cure": "give sizes as --hidden, --ffn and --heads"}),
    "a smaller size": Refusal(lambda: resolve(Growth(hidden=288), SMOLLM2), GrowthError, "smaller than in the source",
        {"field": "hidden", "found": "288", "expected": "576 or more"}),
    "a smaller size that may be a factor": Refusal(lambda: resolve(Growth(hidden=64), SMOLLM2), GrowthError,
        "smaller than in the source",
        {"field": "hidden", "found": "64", "expected": "576 or more", "cure": "write 64x if it is meant as a factor"}),
    "a factor or a size": Refusal(lambda: resolve(Growth(heads=3), {**PYTHIA, "heads": 2}), GrowthError,
        "this could be a factor or a size", {"field": "heads", "found": "3", "expected": "3x for 6, or 1.5x for 3"}),
    "a size between": Refusal(lambda: resolve(Growth(heads=14), SMOLLM2), GrowthError, "no such size",
        {"field": "heads", "found": "14", "expected": "12 or 15"}),
    "a factor between": Refusal(lambda: resolve(Growth(hidden="1.0001x"), SMOLLM2), GrowthError, "no such size",
        {"field": "hidden", "found": "1.0001x, that is 576.058", "expected": "576 or 577"}),
    "a bare factor between": Refusal(lambda: resolve(Growth(hidden=1.0001), SMOLLM2), GrowthError, "no such size",
        {"field": "hidden", "found": "1.0001, that is 576.058", "expected": "576 or 577"}),
    "key-value heads between": Refusal(lambda: resolve(Growth(heads=18, kv_heads="1.5x"), SMOLLM2), GrowthError,
        "no such size", {"field": "kv_heads", "found": "1.5x, that is 4.5", "expected": "4 or 5"}),
    "heads between key-value heads": Refusal(lambda: resolve(Growth(heads=20, kv_heads=6), SMOLLM2), GrowthError,
        "no such size", {"field": "heads", "found": "20", "expected": "18 or 24"}),
    "heads that no number of key-value heads divides": Refusal(
        lambda: resolve(Growth(heads="2x", kv_heads=100_000), SMOLLM2), GrowthError, "no such size",
        {"field": "heads", "found": "2x, that is 18", "expected": "another size"}),
    "as many heads as there are": Refusal(lambda: resolve(Growth(heads=9, kv_heads="2x"), SMOLLM2), GrowthError,
        "no such size", {"field": "heads", "found": "9", "expected": "18"}),
    "heads of one key-value head between": Refusal(lambda: resolve(Growth(heads="1.3x"), {**SMOLLM2, "kv_heads": 1}),
        GrowthError, "no such size", {"field": "heads", "found": "1.3x, that is 3.9", "expected": "3 or 4"}),
    "a tensor of another architecture": Refusal(
        lambda: plan(stored("llama-multihead", "model.extra.weight", shape=(2, 3)), width=2), CheckpointError,
        "a stored tensor is not part of this architecture",
        {"file": "a.safetensors", "tensor": "model.extra.weight", "found": "[2, 3]",
         "expected": "the tensors of families/llama.toml for this config",
         "cure": "if it is a real weight, the family file needs a line for it; if it is a leftover, remove it"}),
    "a tensor that is missing": Refusal(
        lambda: plan(source("llama-multihead", without="model.layers.1.mlp.up"), width=2), CheckpointError,
        "a tensor of this architecture is missing",
        {"tensor": "model.layers.1.mlp.up_proj.weight", "expected": "[48, 32] (ffn <- hidden)",
         "cure": "the checkpoint may be incomplete or without its head, or config.json may be another model's"}),
    "a head that is missing": Refusal(lambda: plan(source("llama-grouped-untied", without="lm_head"), width=2),
        CheckpointError, "the head is not stored, so transformers would initialize it randomly",
        {"tensor": "lm_head.weight",
         "expected": "a whole causal language model; this one may have been saved from its base model",
         "cure": 'set "tie_word_embeddings": true in config.json if the embedding may be the head; else '
         "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) stores one with such values"}),
    "a head and its bias that are missing": Refusal(
        lambda: plan(source("phi-multihead-untied", without="lm_head"), width=2), CheckpointError,
        "the head is not stored, so transformers would initialize it randomly",
        {"tensor": "lm_head.weight",
         "expected": "a whole causal language model; this one may have been saved from its base model",
         "cure": "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) stores one with such values"}),
    "a bias of the head that is missing": Refusal(
        lambda: plan(source("phi-multihead-untied", without="lm_head.bias"), width=2), CheckpointError,
        "the head is not stored, so transformers would initialize it randomly",
        {"tensor": "lm_head.bias",
         "expected": "a whole causal language model; this one may have been saved from its base model",
         "cure": "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) stores one with such values"}),
    "a tensor of another size": Refusal(
        lambda: plan(stored("llama-multihead", "model.norm.weight", shape=(31,)), width=2), CheckpointError,
        "a tensor's size disagrees with the config",
        {"file": "a.safetensors", "tensor": "model.norm.weight", "found": "[31]", "expected": "[32] (norm(hidden))"}),
    "a tensor of another type": Refusal(
        lambda: plan(stored("llama-multihead", "model.norm.weight", dtype="I8"), width=2), CheckpointError,
        "a tensor of this type cannot be grown",
        {"file": "a.safetensors", "tensor": "model.norm.weight", "found": "I8", "expected": "BF16, F16, F32, F64",
         "cure": "grow the original bf16 / fp16 / fp32 checkpoint"}),
    "rounding": Refusal(lambda: plan(source("llama-grouped-tied", "BF16"), hidden=48), GrowthError,
        "this growth is not exact in BF16: 5 tensors would have to be rounded",
        {"tensor": "model.layers.0.input_layernorm.weight", "found": "a factor of 0.816497" + since(PADDED),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("BF16", "--hidden 2x")}),
    "rounding of one tensor": Refusal(lambda: plan(source("gemma-untied-multiquery", "BF16"), width=2), GrowthError,
        "this growth is not exact in BF16: 1 tensor would have to be rounded",
        {"tensor": "model.embed_tokens.weight", "found": "a factor of 0.707107" + since(MULTIPLIED),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("BF16", "--width 2 --hidden 1x", "--width 2 --hidden 4x", "--width 4x")}),
    "rounding in fp16": Refusal(lambda: plan(source("gemma-untied-multiquery", "F16"), width=4, kv_heads="4x"),
        GrowthError, "this growth is not exact in F16: 1 tensor would have to be rounded",
        {"tensor": "model.embed_tokens.weight", "found": "a factor of 0.5" + since(MULTIPLIED),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("F16", "--width 4 --hidden 1x --kv-heads 4x")}),
    "rounding of queries": Refusal(lambda: plan(source("gpt2-untied", "BF16"), hidden="2x", head_dim="2x"), GrowthError,
        "this growth is not exact in BF16: 4 tensors would have to be rounded",
        {"tensor": "transformer.h.0.attn.c_attn.bias", "found": "a factor of 0.707107" + since(QUERIES),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("BF16", "--hidden 4x --head-dim 4x", "--hidden 2x --heads 2x")}),
    "rounding of queries in fp16": Refusal(lambda: plan(source("gpt2-untied", "F16"), hidden="4x", head_dim="4x"),
        GrowthError, "this growth is not exact in F16: 4 tensors would have to be rounded",
        {"tensor": "transformer.h.0.attn.c_attn.bias", "found": "a factor of 0.5" + since(QUERIES),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("F16", "--hidden 4x --heads 4x")}),
    "rounding of queries with unequal copies": Refusal(
        lambda: plan(source("gpt2-untied", "BF16"), hidden="1.5x", head_dim="1.5x"), GrowthError,
        "this growth is not exact in BF16: 9 tensors would have to be rounded",
        {"tensor": "transformer.h.0.attn.c_attn.bias",
         "found": "a factor of 1.22474 or 0.612372" + since(QUERIES, PADDED),
         "expected": "powers of two (in F16, of 1 or more), or a type in which rounding does not matter",
         "cure": cure_of_rounding("BF16", "--hidden 4x --head-dim 4x", "--hidden 2x --heads 2x")}),
    "rounding of gains": Refusal(lambda: plan(source("nemotron-multihead", "BF16"), hidden=48), GrowthError,
        "this growth is not exact in BF16: 5 tensors would have to be rounded",
        {"tensor": "model.layers.0.input_layernorm.weight",
         "found": "gains of which 1 is not stored, multiplied by 0.816497 or split" + since(PADDED),
         "expected": "gains that stay as they are, or a type in which rounding does not matter",
         "cure": cure_of_rounding("BF16", "--hidden 2x")}),
    "noise in bf16": Refusal(lambda: plan(source("llama-multihead", "BF16"), width=2, snr_db=31), GrowthError,
        "split noise of this level is out of range in BF16",
        {"field": "snr_db", "found": "31 dB", "expected": "0 to 30 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "noise in fp16": Refusal(lambda: plan(source("llama-multihead", "F16"), width=2, snr_db=50.5), GrowthError,
        "split noise of this level is out of range in F16",
        {"field": "snr_db", "found": "50.5 dB", "expected": "0 to 50 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "noise in fp32": Refusal(lambda: plan(source("llama-multihead", "F32"), width=2, snr_db=-1), GrowthError,
        "split noise of this level is out of range in F32",
        {"field": "snr_db", "found": "-1 dB", "expected": "0 to 80 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "noise in fp64": Refusal(lambda: plan(source("llama-multihead", "F64"), width=2, snr_db=-0.5), GrowthError,
        "split noise of this level is out of range in F64",
        {"field": "snr_db", "found": "-0.5 dB", "expected": "0 to 80 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "Gaussian noise in bf16": Refusal(
        lambda: plan(source("llama-multihead", "BF16"), width=2, noise="gaussian", snr_db=4), GrowthError,
        "gaussian noise of this level is out of range in BF16",
        {"field": "snr_db", "found": "4 dB", "expected": "5 to 40 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "Gaussian noise in fp16": Refusal(
        lambda: plan(source("llama-multihead", "F16"), width=2, noise="gaussian", snr_db=61), GrowthError,
        "gaussian noise of this level is out of range in F16",
        {"field": "snr_db", "found": "61 dB", "expected": "5 to 60 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "Gaussian noise in fp32": Refusal(
        lambda: plan(source("llama-multihead", "F32"), width=2, noise="gaussian", snr_db=4.5), GrowthError,
        "gaussian noise of this level is out of range in F32",
        {"field": "snr_db", "found": "4.5 dB", "expected": "5 to 80 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "Gaussian noise in fp64": Refusal(
        lambda: plan(source("llama-multihead", "F64"), width=2, noise="gaussian", snr_db=-3), GrowthError,
        "gaussian noise of this level is out of range in F64",
        {"field": "snr_db", "found": "-3 dB", "expected": "5 to 80 dB",
         "cure": "choose a level in this range, or a wider dtype"}),
    "head dimension": Refusal(lambda: plan(source("llama-multihead"), head_dim=16), GrowthError,
        "head_dim of this architecture cannot grow",
        {"field": "head_dim", "found": "16", "expected": "8 (unchanged)",
         "cure": "rotary positions rotate channels at frequencies that depend on head_dim; grow the number of "
         "heads"}),
    "a short list of layers": Refusal(lambda: plan(source("qwen2-window", layer_types=["full_attention"]), layers="2x"),
        GrowthError, "a list of the config has fewer entries than layers",
        {"field": "layer_types", "found": "1", "expected": "2 entries"}),
    "no list of layers": Refusal(lambda: plan(source("qwen2-window", layer_types="full_attention"), layers="2x"),
        GrowthError, "a list of the config has fewer entries than layers",
        {"field": "layer_types", "found": "'full_attention'", "expected": "2 entries"}),
    "copies of some units": Refusal(lambda: plan(source("opt-projected-post-norm"), hidden=48, heads=6), GrowthError,
        "hidden of this model can only grow to multiples of 32",
        {"tensor": "model.decoder.embed_positions.weight", "field": "hidden", "found": "48", "expected": "32 or 64",
         "cure": "a norm needs equally many copies of all that it sees; other widths may have other factors"}),
    "copies of some units of a norm over heads": Refusal(lambda: plan(source("olmo2"), width=1.5), GrowthError,
        "kv_heads of this model can only grow to multiples of 2",
        {"tensor": "model.layers.0.self_attn.q_norm.weight", "field": "kv_heads", "found": "3", "expected": "2 or 4",
         "cure": "a norm needs equally many copies of all that it sees; other widths may have other factors"}),
    "layers that the config cannot express": Refusal(
        lambda: plan(with_own_family("qwen3-moe-first-dense", without="deeper"), layers="2x"), GrowthError,
        "the config of this architecture cannot express which of the new layers have which tensors",
        {"field": "i not in mlp_only_layers and (i + 1) % decoder_sparse_step == 0", "cure": "grow its widths only"}),
    "an eps that is no number": Refusal(lambda: plan(source("llama-multihead", rms_norm_eps="1e-6"), hidden=48),
        CheckpointError, "this field of the config is no number",
        {"file": "config.json", "field": "rms_norm_eps", "found": "1e-6", "expected": "a finite number"}),
    "another architecture": Refusal(lambda: between("llama-multihead", "opt"), GrowthError,
        "the second directory is not a growth of the first",
        {"field": "model_type", "found": "opt", "expected": "llama",
         "cure": "name the source first, then the grown directory"}),
    "a mixture without receipt": Refusal(lambda: between("llama-multihead", "mixtral"), GrowthError,
        "this mixture of experts has no receipt, so the seed of its random routers is not known",
        {"field": "model_type", "found": "mixtral", "cure": "keep hyperclone.json beside the weights"}),
    "sizes of the source": Refusal(lambda: between("llama-multihead", "llama-multihead"), GrowthError,
        "the second directory is not a growth of the first",
        {"field": "sizes", "found": "those of the source", "expected": "larger ones",
         "cure": "name the source first, then the grown directory"}),
    "smaller sizes": Refusal(lambda: between("llama-multihead", "llama-multihead", intermediate_size=40), GrowthError,
        "the second directory is not a growth of the first",
        {"field": "ffn", "found": "40", "expected": "48 or more",
         "cure": "name the source first, then the grown directory"}),
    "other sizes": Refusal(lambda: between("llama-multihead", "llama-multihead", intermediate_size=96, vocab_size=400),
        GrowthError, "the second directory is not a growth of the first",
        {"field": "vocab", "found": "400", "expected": "300",
         "cure": "name the source first, then the grown directory"}),
    "fewer layers": Refusal(
        lambda: between("llama-multihead", "llama-multihead", intermediate_size=96, num_hidden_layers=1), GrowthError,
        "the second directory is not a growth of the first",
        {"field": "layers", "found": "1", "expected": "2 or more",
         "cure": "name the source first, then the grown directory"}),
    "more query heads only": Refusal(
        lambda: between("llama-grouped-untied", "llama-grouped-untied", num_key_value_heads=4), GrowthError,
        "no such size", {"field": "heads", "found": "1x, that is 4", "expected": "8"}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_with_place_reason_and_cure(refusal: Refusal) -> None:
    check_refusal(refusal)


def test_where_transformers_cannot_derive_a_list_its_own_words_are_told() -> None:
    unreadable = source("smollm3-window", layer_types=None, no_rope_layers=None, no_rope_layer_interval="two")
    with pytest.raises(CheckpointError) as caught:
        plan(unreadable, layers="2x")
    found = caught.value.details.pop("found")
    assert "Error: " in found
    assert "\n" not in found
    assert caught.value.problem == (
        "transformers cannot read this config, and the config leaves out a list with one entry for each layer"
    )
    assert caught.value.details == {
        "file": "config.json", "field": "layer_types, no_rope_layers", "expected": "a list with an entry for each layer"
    }  # fmt: skip
