"""Describe a small Llama without weights, for a study to train from random weights.

    python studies/blank.py --hidden 64 --layers 4 DIR

The tokenizer is Seedling's (a byte-level BPE of 2048 tokens), so that losses of all sizes can be compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

SEEDLING = Path(__file__).parents[1] / "src/hyperclone/demo/seedling"


def write(target: Path, *, hidden: int, layers: int, head_dim: int = 16, tokenizer: Path = SEEDLING) -> None:
    """config.json and tokenizer of a Llama: two query heads for each KV head, ffn 2.75 times hidden.

    The same bytes with every version of transformers, so that runs are found again by their keys.
    """
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    heads = hidden // head_dim
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "vocab_size": len(loaded), "hidden_size": hidden, "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "head_dim": head_dim, "max_position_embeddings": 256, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
        "bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id, "pad_token_id": None,
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
        "mlp_bias": False, "pretraining_tp": 1, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "transformers_version": "5.24.0", "use_cache": True,
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, target)


def main() -> None:
    """Write one directory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=16)
    parser.add_argument("--tokenizer", type=Path, default=SEEDLING)
    args = parser.parse_args()
    write(args.directory, hidden=args.hidden, layers=args.layers, head_dim=args.head_dim, tokenizer=args.tokenizer)


if __name__ == "__main__":
    main()
