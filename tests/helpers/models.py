"""Small real models of every shape that matters, made on the fly with unmodified transformers and saved to disk."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from itertools import chain
from pathlib import Path
from typing import Any

import torch

from hyperclone.hf.tiny_models import randomize_parameters
from tests.helpers import rows_decoders, rows_dense, rows_drafted, rows_hybrid, rows_mixtures, rows_more, rows_stacked

torch.set_num_threads(1)

VOCAB = 300
_COMMON = {"vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 64}
_LLAMA = {**_COMMON, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_NEOX = {**_COMMON, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "rotary_pct": 0.5}
_OPT = {**_COMMON, "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}

# name -> (model_type, config). Every row is grown, proved and compared; adding a family adds a row.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-grouped-tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama-grouped-untied": ("llama", {**_LLAMA, "tie_word_embeddings": False}),
    "llama-multihead": ("llama", {**_LLAMA, "num_key_value_heads": 4}),
    "llama-multiquery-tied": ("llama", {**_LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-free-head-dim": ("llama", {**_LLAMA, "head_dim": 16}),
    "mistral-window": ("mistral", {**_LLAMA, "sliding_window": 8}),
    "neox-parallel": ("gpt_neox", {**_NEOX, "use_parallel_residual": True}),
    "neox-sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "neox-tied": ("gpt_neox", {**_NEOX, "tie_word_embeddings": True}),
    "opt": ("opt", _OPT),
    "opt-untied": ("opt", {**_OPT, "tie_word_embeddings": False}),
    "opt-no-bias": ("opt", {**_OPT, "enable_bias": False}),
    "opt-projected-post-norm": ("opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt-plain-norms": ("opt", {**_OPT, "layer_norm_elementwise_affine": False}),
}

MODELS |= rows_dense.ROWS | rows_drafted.ROWS | rows_more.ROWS
MODELS |= rows_decoders.ROWS | rows_mixtures.ROWS | rows_hybrid.ROWS | rows_stacked.ROWS

# Most of the last rows put together what the others have, so each of these is grown and compared once. Those with
# something new (a layout, a kind of layer, names) go through every test, as the others do.
_NEW_KINDS = {
    "apertus", "bamba", "codegen", "deepseek_v3", "diffllama", "exaone-biases", "glm4_moe", "gpt_bigcode-multiquery",
    "gpt_oss", "internlm3", "jamba", "laguna", "lfm3", "minimax", "nanochat", "nemotron_h", "qwen3_next", "sarvam_mla",
}  # fmt: skip
ONCE = frozenset(rows_decoders.ROWS | rows_mixtures.ROWS | rows_hybrid.ROWS | rows_stacked.ROWS) - _NEW_KINDS
FULLY = [name for name in MODELS if name not in ONCE]


# One row for each kind of arithmetic. `make quick` runs what is parametrized over rows with these alone.
REPRESENTATIVE = frozenset({"llama-grouped-tied", "neox-parallel", "opt", "gpt2-tied", "olmo2", "mixtral"})


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A model of MODELS with every parameter random: a forgotten bias or gain must show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = (MODELS | rows_more.ALIBI)[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**config, **overrides}))
    model = randomize_parameters(model, seed=seed).to(dtype)
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())  # as checkpoints store them: routers
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name.endswith(kept):
            tensor.data = tensor.data.float()
    return model


def save_tokenizer(path: Path) -> None:
    """A byte-level tokenizer with a chat template: 256 bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    raw = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )  # fmt: skip
    tokenizer.save_pretrained(path)


def save_optimizer_state(model: Any, directory: Path) -> None:
    """Take one step with AdamW, and save its state in a new directory as transformers' Trainer does."""
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "param_names": names}])
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    directory.mkdir()
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
