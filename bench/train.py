"""`hyperclone train`, also with rotated AdamW, against a plain PyTorch loop: tokens/s, MFU, peak memory.

    python bench/train.py [--rounds 5] [--steps 24] [--threads 1] [-o bench/results/train.json]

All train the same Llama on the same tokens: AdamW, clipping, accumulation, cosine schedule; fp32 on a CPU, bf16
autocast and torch.compile (--no-compile: without) on a GPU. The third is `hyperclone train` of a clone of these sizes,
with rotated AdamW. Each run is a process of its own; they take turns, so that other load on the machine affects all.
Tokens/s is that of the steps after the first quarter (compilation, caches), peak memory that of the whole process (on a
GPU: of its allocator). On a CPU, tokens in a second of the process's own computing time are measured over the same
steps: other processes hardly affect that figure. The plain loop writes no logs and saves no checkpoints. `hyperclone
train` logs every tenth of the run, checks that the loss is a number, and saves its checkpoint after the last step, as
it always does. Every quarter of the run both take the loss of the same held-out text, which is measured by itself.
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
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

SMALL = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256,
         "tie_word_embeddings": True}  # fmt: skip
LARGE = {"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16,
         "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}  # fmt: skip  # for a GPU: 0.2B
LR, DECAY, BETAS, CLIP, SEED = 1e-3, 0.1, (0.9, 0.95), 1.0, 0
EVALUATION = 64  # windows


def sizes() -> tuple[dict[str, Any], int, int, int]:
    """(config, tokens of a window, windows of a batch, windows of a forward pass)."""
    return (LARGE, 1024, 64, 16) if torch.cuda.is_available() else (SMALL, 256, 32, 8)


def evaluation_interval(steps: int) -> int:
    """Steps between evaluations."""
    return max(1, steps // 4)


def prepare(directory: Path, steps: int) -> None:
    """Write a random model, a clone of the same sizes, and text for all steps: random words of the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    import hyperclone

    config, seq_len, windows, _ = sizes()
    vocabulary = {"<|endoftext|>": 0, **{f"w{n}": n for n in range(1, config["vocab_size"])}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(SEED)
    half = {name: config[name] // 2 for name in config if name.endswith(("hidden_size", "intermediate_size", "_heads"))}
    for name, sizes_ in {"model": config, "source": {**config, **half}}.items():
        built = AutoConfig.for_model("llama", **sizes_, bos_token_id=0, eos_token_id=0)
        AutoModelForCausalLM.from_config(built).save_pretrained(directory / name)
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(directory / name)
    hyperclone.grow(directory / "source", directory / "clone", hyperclone.Growth(width=2))
    grown = AutoConfig.from_pretrained(directory / "clone").to_dict()
    assert all(grown[name] == size for name, size in config.items()), "the clone has other sizes"
    draw = random.Random(SEED)
    names = list(vocabulary)[1:]
    for file, count in (("text.txt", steps * windows), ("held_out.txt", EVALUATION)):
        (directory / file).write_text(" ".join(draw.choices(names, k=(count + 1) * seq_len)))


class Clock:
    """Wall and computing time of steps and of evaluations."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self._mark = self._now()

    def step(self) -> None:
        """A step has ended: the time since the last call was spent in it."""
        self.steps.append(self._lap())

    def logged(self) -> None:
        """The last step has been logged, which is a part of it."""
        self.steps[-1] = [a + b for a, b in zip(self.steps[-1], self._lap(), strict=True)]

    def evaluated(self) -> None:
        """An evaluation has ended."""
        self.evaluations.append(self._lap())

    def figures(self, step_tokens: int, evaluation_tokens: int) -> dict[str, float | None]:
        """Tokens per second, and per second of computing time, but for the first steps and evaluation."""
        gpu = torch.cuda.is_available()
        first, figures = len(self.steps) // 4 + 1, dict[str, float | None]()
        for prefix, laps, tokens in (
            ("", self.steps[first:], step_tokens),
            ("evaluation_", self.evaluations[1:], evaluation_tokens),
        ):
            wall, own = (sum(times) for times in zip(*laps, strict=True))
            figures[f"{prefix}tokens_per_second"] = tokens * len(laps) / wall
            figures[f"{prefix}tokens_per_cpu_second"] = None if gpu else tokens * len(laps) / own
        return figures

    def _lap(self) -> list[float]:
        before, self._mark = self._mark, self._now()
        return [b - a for a, b in zip(before, self._mark, strict=True)]

    def _now(self) -> list[float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [time.perf_counter(), time.process_time()]


def ours(directory: Path, steps: int, *, compiled: bool, model: str = "model") -> Clock:
    """One training by `hyperclone.train`; a clone is trained with its usual optimizer."""
    import hyperclone
    from hyperclone.training.events import Event, HeldOutEvaluated, LossLogged, StepTaken

    _, seq_len, windows, micro = sizes()
    output = Path(tempfile.mkdtemp(dir=directory)) / "out"
    clock = Clock()

    def watch(event: Event) -> None:
        if isinstance(event, StepTaken):
            clock.step()
        elif isinstance(event, LossLogged):
            clock.logged()
        elif isinstance(event, HeldOutEvaluated) and event.step:
            clock.evaluated()

    hyperclone.train(
        hyperclone.Training(
            model=str(directory / model), data=[str(directory / "text.txt")], output=str(output),
            cache=str(directory / "cache"),
            eval_data=[str(directory / "held_out.txt")], eval_every=evaluation_interval(steps), eval_early=False,
            seq_len=seq_len, batch_tokens=windows * seq_len, micro_batch=micro,
            tokens=steps * windows * seq_len, warmup=0, compile=compiled,
            lr=LR, weight_decay=DECAY, beta1=BETAS[0], beta2=BETAS[1], max_grad_norm=CLIP, seed=SEED, save_every=steps,
            log_every=max(1, steps // 10),
        ),
        watch=watch,
    )  # fmt: skip
    return clock


def plain(directory: Path, steps: int, *, compiled: bool) -> Clock:
    """The same training by a plain loop."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, seq_len, windows, micro = sizes()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    ids, held_out = (
        torch.tensor(tokenizer((directory / name).read_text())["input_ids"]) for name in ("text.txt", "held_out.txt")
    )
    held_out = held_out[: EVALUATION * seq_len].view(-1, micro, seq_len)
    data = ids[: steps * windows * seq_len].view(steps, windows // micro, micro, seq_len)
    model: Any = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32).to(device).train()
    model.config.use_cache = False
    forward = torch.compile(model) if compiled else model
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=LR, betas=BETAS, fused=gpu or None,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=LR / 10)
    clock = Clock()
    for step, batch in enumerate(data, 1):
        for part in batch:
            part = part.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                loss = forward(input_ids=part, labels=part).loss
            (loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.step()
        if step % evaluation_interval(steps) == 0 or step == steps:
            model.eval()
            losses = []
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                for part in held_out:
                    part = part.to(device)
                    losses.append(forward(input_ids=part, labels=part).loss)
            torch.stack(losses).mean().item()
            model.train()
            clock.evaluated()
    return clock


def utilization(directory: Path, speed: float) -> float | None:
    """MFU at a speed in tokens/s; None where the device's peak is not known."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hyperclone.training import flops

    gpu = torch.cuda.is_available()
    peak = flops.peak(torch.device("cuda" if gpu else "cpu"), "bf16" if gpu else "fp32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory / "model"))
    return speed * flops.per_token(model, sizes()[1]) / peak if peak else None


KINDS: dict[str, Callable[..., Clock]] = {"hyperclone": ours, "plain": plain, "rotated": partial(ours, model="clone")}
BASES = {"hyperclone": "plain", "rotated": "hyperclone"}  # what each is compared with


def measure(kind: str, directory: Path, steps: int, *, compiled: bool) -> None:
    """One run in this process; prints its figures."""
    load = os.getloadavg()[0]
    clock = KINDS[kind](directory, steps, compiled=compiled)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    _, seq_len, windows, _ = sizes()
    found = clock.figures(windows * seq_len, EVALUATION * seq_len)
    mfu = utilization(directory, found["tokens_per_second"] or 0.0)
    print(json.dumps({**found, "mfu": mfu, "peak_MB": memory / 1e6, "load_before": round(load, 2)}))


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    """Runs of each in turn; medians, ranges, ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--no-compile", action="store_true", help="on a GPU")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--one", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    compiled = gpu and not args.no_compile
    if args.one:
        measure(args.one, args.directory, args.steps, compiled=compiled)
        return
    from hyperclone.training import hardware  # only now: the plain loop's process does without

    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if not gpu:
        environment["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), args.steps)
        for _ in range(args.rounds):
            for kind, runs in found.items():
                command = [sys.executable, __file__, "--one", kind, "--directory", scratch, "--steps", str(args.steps),
                           *(["--no-compile"] if args.no_compile else [])]  # fmt: skip
                printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                runs.append(json.loads(printed.splitlines()[-1]))
                print(kind, {name: value and round(value, 3) for name, value in runs[-1].items()}, flush=True)
    config, seq_len, windows, micro = sizes()
    figures = [name for name, value in found["plain"][0].items() if value is not None and name != "load_before"]
    ratios = {
        f"{name}, {kind} over {base}": spread(
            [a[name] / b[name] for a, b in zip(found[kind], found[base], strict=True)]
        )
        for kind, base in BASES.items()
        for name in figures
        if name != "mfu"
    }
    content = {
        "date": date.today().isoformat(),
        "hardware": {**hardware.this_machine(), "threads": None if gpu else args.threads},
        "versions": {"python": platform.python_version(),
                     **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}},
        "seed": SEED, "config": config, "seq_len": seq_len, "batch_tokens": windows * seq_len, "micro_batch": micro,
        "steps": args.steps, "precision": "bf16 autocast" if gpu else "fp32", "compiled": compiled,
        **{kind: {"mfu": None, **{name: spread([run[name] for run in runs]) for name in figures}}
           for kind, runs in found.items()},
        "run by run": ratios,
        "runs": found,
    }  # fmt: skip
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['median']:.3f} ({ratio['lowest']:.3f} to {ratio['highest']:.3f})")
    if args.output:
        args.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
