"""`hyperclone train` against a plain PyTorch loop of the same model: tokens/s, MFU, peak memory.

    python bench/train.py [--rounds 3] [--steps 40] [--threads 1] [-o bench/results/train.json]

Both train the same Llama on the same tokens: AdamW, clipping, accumulation, cosine schedule; fp32 on a CPU, bf16
autocast and torch.compile on a GPU. Each run is a process of its own; the two take turns, so that what else the machine
does falls on both. Tokens/s is that of the steps after the first quarter (compilation, caches), peak memory that of the
whole process (on a GPU: of its allocator). The plain loop does nothing else: no evaluation, no logs but its time, no
checkpoints. `hyperclone train` logs every tenth of the run and saves its checkpoint at the end, as it always does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

SMALL = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "tie_word_embeddings": True}  # fmt: skip
LARGE = {"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16,
         "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}  # fmt: skip  # for a GPU: 0.2B
LR, DECAY, BETAS, CLIP, SEED = 1e-3, 0.1, (0.9, 0.95), 1.0, 0


def sizes() -> tuple[dict[str, Any], int, int, int]:
    """(config, tokens of a window, windows of a batch, windows of a forward pass)."""
    return (LARGE, 1024, 64, 16) if torch.cuda.is_available() else (SMALL, 256, 16, 8)


def prepare(place: Path, steps: int) -> None:
    """A model without training and text for all steps: random words of the tokenizer's own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config, sequence, windows, _ = sizes()
    vocabulary = {"<|endoftext|>": 0, **{f"w{n}": n for n in range(1, config["vocab_size"])}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(place / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(place / "model")
    draw = random.Random(SEED)
    names = list(vocabulary)[1:]
    (place / "text.txt").write_text(" ".join(draw.choices(names, k=steps * windows * sequence + sequence)))


def ours(place: Path, steps: int) -> dict[str, float]:
    """One training by `hyperclone.train`."""
    import hyperclone
    from hyperclone.training import metrics

    _, sequence, windows, micro = sizes()
    output = Path(tempfile.mkdtemp(dir=place)) / "out"
    hyperclone.train(
        hyperclone.Training(
            model=str(place / "model"), data=[str(place / "text.txt")], output=str(output), cache=str(place / "cache"),
            held_out=0, sequence=sequence, batch=windows * sequence, micro_batch=micro,
            tokens=steps * windows * sequence,
            lr=LR, weight_decay=DECAY, beta1=BETAS[0], beta2=BETAS[1], clip=CLIP, seed=SEED, save_every=steps,
            log_every=max(1, steps // 10),
        )
    )  # fmt: skip
    lines = [line for line in metrics.read(output) if "tokens_per_second" in line and line["step"] > steps // 4]
    seconds = sum(1 / line["tokens_per_second"] for line in lines)  # logs are of equally many steps
    return {"tokens_per_second": len(lines) / seconds, "mfu": statistics.mean(line["mfu"] or 0 for line in lines)}


def plain(place: Path, steps: int) -> dict[str, float]:
    """The same by a loop that does nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, sequence, windows, micro = sizes()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    ids = torch.tensor(tokenizer((place / "text.txt").read_text())["input_ids"])
    data = ids[: steps * windows * sequence].view(steps, windows // micro, micro, sequence)
    model: Any = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32).to(device).train()
    model.config.use_cache = False
    forward = torch.compile(model) if gpu else model
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=LR, betas=BETAS, fused=gpu or None,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=LR / 10)
    times = []
    for batch in data:
        for part in batch:
            part = part.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                loss = forward(input_ids=part, labels=part).loss
            (loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    from hyperclone.training import flops

    kept = times[steps // 4 :]
    speed = (len(kept) - 1) * windows * sequence / (kept[-1] - kept[0])
    peak = flops.peak(device, "bf16" if gpu else "fp32")
    return {"tokens_per_second": speed, "mfu": speed * flops.per_token(model, sequence) / peak if peak else 0.0}


def measure(kind: str, place: Path, steps: int) -> None:
    """One run in this process; prints its figures."""
    found = (ours if kind == "hyperclone" else plain)(place, steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    print(json.dumps({**found, "peak_MB": memory / 1e6}))


def main() -> None:
    """Runs of both in turn; medians, ranges, ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--one", choices=["hyperclone", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.place, args.steps)
        return
    found: dict[str, list[dict[str, float]]] = {"hyperclone": [], "plain": []}
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if not torch.cuda.is_available():
        environment["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), args.steps)
        for _ in range(args.rounds):
            for kind, runs in found.items():
                command = [sys.executable, __file__, "--one", kind, "--place", scratch, "--steps", str(args.steps)]
                printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                runs.append(json.loads(printed.splitlines()[-1]))
                print(kind, {name: round(value, 3) for name, value in runs[-1].items()}, flush=True)
    config, sequence, windows, micro = sizes()
    gpu = torch.cuda.is_available()
    ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(*found.values(), strict=True)]
    content = {
        "date": date.today().isoformat(),
        "hardware": {"gpu": torch.cuda.get_device_name() if gpu else None, "cpu": platform.machine(),
                     "cores": os.cpu_count(), "threads": None if gpu else args.threads, "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(),
                     **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}},
        "seed": SEED, "config": config, "sequence": sequence, "batch": windows * sequence, "micro_batch": micro,
        "steps": args.steps, "precision": "bf16 autocast, compiled" if gpu else "fp32",
        "runs": found,
        "median": {kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                   for kind, runs in found.items()},
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
    }  # fmt: skip
    if not gpu:  # no peak is known
        for run in [*content["median"].values(), *(run for runs in found.values() for run in runs)]:
            run["mfu"] = None
    print(f"tokens/s of hyperclone train over the plain loop's: {content['ratio']}")
    if args.output:
        args.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
