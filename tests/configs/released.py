"""The released configs of this directory (README.md), and small ones that differ from them in their sizes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "released"
VOCAB = 304
_WINDOW = 8  # shorter than the proof's inputs
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "swa_num_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Sizes that are in the same proportion to the hidden size as before.
_WIDE = (
    "intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "moe_shared_expert_intermediate_size", "word_embed_proj_dim", "block_dim", "conv_dim",
)  # fmt: skip
# Sizes that are in the same proportion to the head dimension as before.
_HEAD_DIMS = ("head_dim", "kv_channels", "attention_head_dim", "rotary_dim", "swa_head_dim")
# What the sizes of latent attention, of its indexer, of state-space layers and of linear attention become.
_FIXED = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "o_lora_rank": 8, "o_groups": 2, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8, "swa_v_head_dim": 8, "index_head_dim": 8,
    "index_n_heads": 4, "index_topk": 512, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_head_dim": 8,
    "ssm_state_size": 16, "n_groups": 2, "num_hash_layers": 1, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Released:
    """One released config.

    Attributes:
        name: the model's name on the Hub.
        source: the web address, or the public package's file, where it was read.
        config: config.json's content.
        complete: whether all of it was there.
        note: what to know about it.
        shortened: which long list was cut.
    """

    name: str
    source: str
    config: dict[str, Any]
    complete: bool
    note: str = ""
    shortened: str = ""

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


@cache
def released() -> tuple[Released, ...]:
    """All of them, by type and name."""
    files = sorted(DIRECTORY.glob("*.json"))
    rows = [Released(**row) for file in files for row in json.loads(file.read_text("utf-8"))]
    return tuple(sorted(rows, key=lambda row: (row.model_type, row.name)))


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A released config with small sizes; every other field is as it was.

    Proportions stay where they can: query heads to key-value heads, hidden size to the heads, feed-forward and hidden
    size, rotated channels to head_dim. Of layers there are so many that every kind is there; lists with an entry for
    each layer are cut. Token ids and windows are made smaller only where they are too large, and `quantization_config`
    is left out, because the small weights are not quantized.
    """
    small = {key: value for key, value in config.items() if key != "quantization_config"}
    small |= _head_sizes(config)
    small |= {key: value for key, value in _FIXED.items() if isinstance(config.get(key), int)}
    small |= _expert_sizes(config)
    small |= _state_sizes(small)
    depth, layers = _first(config, _LAYERS), _layers(config)
    small |= {key: layers for key in _LAYERS if key in config}
    cut = {key: _cut(key, value, depth, layers) for key, value in small.items()}
    return _limit(cut)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next(int(config[name]) for name in names if config.get(name))


def _head_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, head_dim, hidden size, and what is proportional to them."""
    heads, hidden = _first(config, _HEADS), _first(config, _HIDDEN)
    given = config.get("head_dim") or config.get("attention_head_dim")
    head_dim = int(given) if given else hidden // heads
    kv_heads = next((int(config[name]) for name in _KV_HEADS if config.get(name)), heads)
    new_kv = 4 if kv_heads == heads else min(kv_heads, 2)
    new_heads = new_kv if kv_heads == heads else new_kv * min(heads // kv_heads, 4)
    dims = [dim for dim in (8, 16, 32, 64) if dim != new_heads]  # equal ones are hard to tell apart
    new_dim = next(dim for dim in (*dims, head_dim) if _rotates(config, dim, head_dim))
    new_hidden = max(16, round(hidden / (heads * head_dim) * new_heads * new_dim / 8) * 8)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "org_vocab_size": VOCAB}
    for names, size in ((_HEADS, new_heads), (_KV_HEADS, new_kv), (_HIDDEN, new_hidden)):
        sizes |= dict.fromkeys(names, size)
    # 1.5 times a multiple of 8 is one of 4: transformers runs experts in fp32 only where rows have whole 16 bytes.
    for keys, old, new, unit in ((_WIDE, hidden, new_hidden, 8), (_HEAD_DIMS, head_dim, new_dim, 4)):
        sizes |= {key: max(unit, round(config[key] * new / old / unit) * unit) for key in keys if config.get(key)}
    sizes |= _rope_factors(config, new_dim)
    if config.get("swa_num_key_value_heads"):
        sizes["swa_num_key_value_heads"] = 2 * new_kv
    return {key: value for key, value in sizes.items() if config.get(key)}


def _rotates(config: Mapping[str, Any], head_dim: int, old: int) -> bool:
    """Whether an even number of channels of a smaller head is rotated."""
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1))
    if isinstance(config.get("rotary_dim"), int) and "partial_rotary_factor" not in config:
        share = config["rotary_dim"] / old
    return int(head_dim * share) % 2 == 0 and int(head_dim * share) > 0


def _rope_factors(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """A factor for each pair of rotated channels, where there are such lists."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or not any(isinstance(value, list) for value in scaling.values()):
        return {}
    pairs = int(head_dim * config.get("partial_rotary_factor", 1)) // 2
    return {"rope_scaling": {k: v[:pairs] if isinstance(v, list) else v for k, v in scaling.items()}}


def _expert_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Four experts of which two are chosen; eight in two groups where they are in groups."""
    key = next((name for name in _EXPERTS if config.get(name)), None)
    if key is None:
        return {}
    groups = 2 if config.get("n_group", 1) > 1 else 1
    chosen = {name: min(2, config[name]) for name in ("num_experts_per_tok", "experts_per_token") if config.get(name)}
    grouped = {"n_group": groups, "topk_group": 1} if config.get("n_group") else {}
    return {key: 4 * groups, **chosen, **grouped}


def _state_sizes(small: Mapping[str, Any]) -> dict[str, Any]:
    """As many heads of state-space layers as their width has."""
    hidden = _first(small, _HIDDEN)
    heads = {"mamba_n_heads": small.get("mamba_d_head"), "mamba_num_heads": small.get("mamba_head_dim")}
    return {key: 2 * hidden // dim for key, dim in heads.items() if dim and key in small}


def _layers(config: Mapping[str, Any]) -> int:
    """The smallest number of first layers, two or more, that has every kind of layer."""
    depth = _first(config, _LAYERS)
    least = [2, 1 + (config.get("first_k_dense_replace") or 0), config.get("no_rope_layer_interval") or 0]
    least.append(config.get("full_attention_interval") or 0)
    pattern = config.get("sliding_window_pattern") or 0
    least.append(pattern if isinstance(pattern, int) else len(pattern))
    for key, value in config.items():
        if _per_layer(key, value, depth):
            kinds = list(map(str, value[:depth]))
            least.append(max(map(kinds.index, kinds)) + 1)
    return min(depth, max(least))


def _per_layer(key: str, value: Any, depth: int) -> bool:
    """Whether a list, or Nemotron-H's text, has an entry for each layer, and maybe one for a layer that predicts on."""
    listed = isinstance(value, list) or (isinstance(value, str) and key.endswith("_pattern"))
    return listed and depth > 3 and len(value) in (depth, depth + 1)


def _cut(key: str, value: Any, depth: int, layers: int) -> Any:
    """A value for fewer layers; GPT-Neo's [[kinds, times]] repeats its kinds less often."""
    if _per_layer(key, value, depth):
        return value[:layers] + value[depth:]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 2:
        kinds, _ = value[0]
        return [[kinds, ceil(layers / len(kinds))]]
    return value


def _limit(config: dict[str, Any]) -> dict[str, Any]:
    """Token ids within the vocabulary, and windows shorter than the proof's inputs."""
    for key, value in config.items():
        if key.endswith("token_id") and isinstance(value, list):
            config[key] = [token % VOCAB for token in value]
        elif (key.endswith("token_id") or key == "pad_id") and isinstance(value, int) and value >= VOCAB:
            config[key] = value % VOCAB
        elif key in ("sliding_window", "sliding_window_size", "window_size") and isinstance(value, int):
            config[key] = min(value, _WINDOW)
    return config
