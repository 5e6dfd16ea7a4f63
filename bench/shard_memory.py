"""What loading a model takes of a process's memory in a sharded training: its shards read alone, or the whole first.

    python -m bench.shard_memory --work /scratch [--ranks 2 4] [-o bench/results/shard-memory.json]

A Llama of 82M parameters with random bf16 weights is written (327 MB in fp32, as it is trained), and `hyperclone train
--sharding full` is started on it by that many processes on CPUs (gloo), up to its first step. The figure is the peak of
a process's resident memory from before the model is built until its shards are there, less what was resident before;
the largest of all processes. Beside it: the same where every process loads the whole model, which is then sharded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from bench.grow import fresh, publish

SHAPE = {"vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
         "num_attention_heads": 12, "num_key_value_heads": 12, "tie_word_embeddings": False}  # fmt: skip
WAYS = ("whole", "shards")
ROOT = Path(__file__).parents[1]


class _Loaded(Exception):  # no error of ours, which the training would take for one
    """The weights are there."""


def _resident(field: str) -> int:
    """Bytes: VmRSS of now, or VmHWM, the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def load(work: Path, way: str) -> None:
    """In each process: train up to the first step, and write what that took."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  # libraries are no part of what loading takes

    import hyperclone
    from hyperclone.training import run_callbacks, shard_reading
    from tests.helpers import launch_on_cpu

    launch_on_cpu.allow_shards()
    before, unread_model = 0, shard_reading.unread_model

    def begin(*arguments: Any) -> Any:
        nonlocal before
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = _resident("VmRSS")
        return unread_model(*arguments) if way == "shards" else None

    def end(*_: Any, **__: Any) -> None:
        raise _Loaded

    training = hyperclone.Training(
        model=str(work / "model"), data=[str(work / "text.jsonl")], output=str(work / f"run-{way}"),
        cache=str(work / "cache"), seq_len=16, batch_tokens=64, micro_batch=1, tokens=64, lr=1e-3, held_out=0.1,
        sharding="full",
    )  # fmt: skip
    with (
        mock.patch.object(shard_reading, "unread_model", begin),
        mock.patch.object(run_callbacks.StepCallback, "on_train_begin", end),
    ):
        try:
            hyperclone.train(training)
        except _Loaded:
            taken = _resident("VmHWM") - before
    rank = os.environ["RANK"]
    (work / f"{way}.{rank}").write_text(str(taken))
    torch.distributed.destroy_process_group()


def measured(work: Path, way: str, ranks: int) -> int:
    """Bytes that the process took which took most."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    shutil.rmtree(work / f"run-{way}", ignore_errors=True)
    subprocess.run(
        [sys.executable, *launcher, "-m", "bench.shard_memory", "--work", str(work), "--way", way],
        check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return max(int((work / f"{way}.{rank}").read_text()) for rank in range(ranks))


def make(work: Path) -> int:
    """Write model, tokenizer and text; bytes of the model in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.helpers.models import save_tokenizer
    from tests.helpers.training_text import documents, jsonl

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16")).to(torch.bfloat16)
    model.save_pretrained(fresh(work / "model"))
    save_tokenizer(work / "model")
    jsonl(work / "text.jsonl", documents(30))
    return sum(4 * parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--work", type=Path, required=True, help="scratch directory for the model")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    if args.way:
        load(args.work, args.way)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    size, figures = make(args.work), []
    for ranks in args.ranks:
        taken = {way: measured(args.work, way, ranks) for way in WAYS}
        figures.append({
            "ranks": ranks,
            "model_MB": round(size / 1e6),
            "shard_MB": round(size / ranks / 1e6),
            **{f"{way}_MB": round(taken[way] / 1e6) for way in WAYS},
            "ratio": round(taken["shards"] / taken["whole"], 2),
        })  # fmt: skip
    publish({"figures": figures}, args.output)


if __name__ == "__main__":
    main()
