"""Time and memory of `hyperclone grow`, against copying the output's bytes and against growing in memory.

    python bench/grow.py model path/to/model --work /scratch        # a real model; whole processes, five rounds
    python bench/grow.py kinds 1.1b --layers 6 --work /scratch      # types, widths, expansions and noise
    python bench/grow.py threads 1.1b --layers 6 --work /scratch  # 1, 2, 4 threads, as far as there are cores
    python bench/grow.py shape 8b --layers 4 16 32 --work /scratch  # Llama-3-8B's shape with random data

Every command runs as its own process. Time is wall time until its output is synced to disk, from the start of the
process; memory is the process's peak resident size as the kernel reports it. In each round the copy, the growth and
the in-memory baseline run one after another on the same disk, and ratios are taken within a round, so that drifts of
the machine's speed cancel. The source is in the page cache. Before each command old outputs are removed, and a pause
follows: a virtual machine gives free memory back to its host, and what then writes first would pay for getting it back.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

PAUSE = float(os.environ.get("BENCH_PAUSE", "6"))  # seconds
KINDS: dict[str, list[str]] = {  # options of `grow`
    "2x": ["--width", "2"],
    "2x diagonal": ["--width", "2", "--expansion", "diagonal"],
    "2x no noise": ["--width", "2", "--noise", "none"],
    "2x gaussian": ["--width", "2", "--noise", "gaussian"],
    "2x fp16": ["--width", "2", "--dtype", "fp16"],
    "2x fp32": ["--width", "2", "--dtype", "fp32"],
    "1.5x": ["--width", "1.5", "--allow-rounding"],
    "3x": ["--width", "3"],
    "4x": ["--width", "4"],
}
SHAPES = {  # hidden, ffn, heads, KV heads, vocabulary
    "8b": (4096, 14336, 32, 8, 128256),
    "1b": (2048, 8192, 32, 8, 128256),
    "1.1b": (2048, 5632, 32, 4, 32000),  # TinyLlama's, with 22 layers
    "0.3b": (1024, 2816, 16, 4, 32000),
    "tiny": (256, 1024, 8, 2, 4096),
}

# The baseline, as one would write it by hand: both models in memory, tensors copied and halved (symmetric, 2-fold,
# no noise).
IN_MEMORY = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
source = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
config = AutoConfig.from_pretrained(sys.argv[1])
for field in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
    setattr(config, field, 2 * getattr(config, field))
grown = AutoModelForCausalLM.from_config(config, dtype=source.dtype)
old = dict(source.named_parameters())
with torch.no_grad():
    for name, parameter in grown.named_parameters():
        weight = old[name]
        if weight.dim() == 1:
            parameter.copy_(torch.cat([weight, weight]) / (2 if name == "model.norm.weight" else 1))
        elif "embed" in name:
            parameter.copy_(torch.cat([weight, weight], 1))
        else:
            half = torch.cat([weight, weight], 1) / 2
            parameter.copy_(half if "lm_head" in name else torch.cat([half, half]))
grown.save_pretrained(sys.argv[2])
"""

# The same by hyperclone, with noise.
GROW_MODEL = """
import sys
from hyperclone import Growth, grow_model
from transformers import AutoModelForCausalLM
source = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
grow_model(source, Growth(width=2)).save_pretrained(sys.argv[2])
"""


@dataclass
class Cost:
    """What a command took.

    Attributes:
        seconds: wall time until everything is on disk.
        user, system: processor seconds.
        peak: resident bytes.
    """

    seconds: float
    user: float
    system: float
    peak: float


def measure(command: list[str], *, sync: bool = True) -> Cost:
    """What a command that must succeed takes; with `sync`, until all is on the disk."""
    os.sync()
    time.sleep(PAUSE)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{message}")
    if sync:
        os.sync()
    return Cost(time.perf_counter() - start, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024.0)


def copy_command(files: list[Path], target: Path) -> list[str]:
    """A command that copies with large blocks and one fsync for each file."""
    script = (
        "import os, shutil, sys\n"
        "for f in sys.argv[2:]:\n"
        "    with open(f, 'rb') as a, open(os.path.join(sys.argv[1], os.path.basename(f)), 'wb') as b:\n"
        "        shutil.copyfileobj(a, b, 16 << 20); b.flush(); os.fsync(b.fileno())\n"
    )
    return [sys.executable, "-c", script, str(target), *map(str, files)]


def hyperclone(*arguments: object) -> list[str]:
    """A command line of hyperclone."""
    return [sys.executable, "-c", "from hyperclone.cli.main import main; main()", *map(str, arguments)]


def fresh(path: Path) -> Path:
    """The path, with nothing there."""
    shutil.rmtree(path, ignore_errors=True)
    return path


# Both directories read and hashed with all cores: what a proof of the bytes alone would take.
READ_AND_HASH = """
import hashlib, os, sys
from concurrent.futures import ThreadPoolExecutor
def one(job):
    file, start = job
    buffer, hashed = memoryview(bytearray(16 << 20)), hashlib.sha256()
    with open(file, "rb") as stream:
        stream.seek(start)
        for _ in range(4):
            hashed.update(buffer[:stream.readinto(buffer)])
jobs = [(f, start) for f in sys.argv[1:] for start in range(0, os.path.getsize(f), 64 << 20)]
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(one, jobs))
"""


def bench_model(source: Path, work: Path, rounds: int) -> dict[str, Any]:
    """A 2-fold growth with and without its structural proof, and what they are measured against, interleaved."""
    costs: dict[str, list[Cost]] = {}
    out, copy = work / "grown", work / "copy"

    def run(name: str, command: list[str]) -> None:
        costs.setdefault(name, []).append(measure(command))

    warm(source)
    for _ in range(rounds):
        run("grow", hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none"))
        fresh(copy).mkdir()
        run("copy", copy_command(sorted(out.glob("*.safetensors")), copy))
        fresh(copy)
        run("verify", hyperclone("verify", source, out, "--proof", "structural"))
        files = [*source.glob("*.safetensors"), *out.glob("*.safetensors")]
        run("read and hash", [sys.executable, "-c", READ_AND_HASH, *map(str, files)])
        run("grow + structural proof",
            hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "structural"))  # fmt: skip
        run("collapse", hyperclone("collapse", out, fresh(copy)))
        run("in memory", [sys.executable, "-c", IN_MEMORY, str(source), str(fresh(copy))])
        run("in memory, grow_model", [sys.executable, "-c", GROW_MODEL, str(source), str(fresh(copy))])
    nbytes = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    fresh(out), fresh(copy)
    run("start-up", [sys.executable, "-c", "import torch, numba"])
    return {"source": source.name, "output_bytes": nbytes, **summary(costs, against="copy"),
            "verify_to_read_and_hash": ratio(costs["verify"], costs["read and hash"])}  # fmt: skip


def thread_kinds() -> dict[str, list[str]]:
    """Options of growths with 1, 2 and 4 threads, as far as the machine has cores."""
    counts = [count for count in (1, 2, 4) if count <= (os.cpu_count() or 1)]
    return {_counted(count, "thread"): ["--width", "2", "--threads", str(count)] for count in counts}


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count > 1)


def bench_kinds(
    shape: str, layers: int, work: Path, rounds: int, kinds: dict[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Growths of every kind, each against a copy of its own output: all results so far, after each kind."""
    source, out, copy = work / f"{shape}-{layers}", work / "grown", work / "copy"
    subprocess.run([sys.executable, __file__, "make", shape, str(layers), str(fresh(source))], check=True)
    found = {}
    for kind, options in kinds.items():
        costs: dict[str, list[Cost]] = {"grow": [], "copy": []}
        for _ in range(rounds):
            warm(source)
            costs["grow"].append(measure(hyperclone("grow", source, fresh(out), *options, "--proof", "none")))
            fresh(copy).mkdir()
            costs["copy"].append(measure(copy_command(sorted(out.glob("*.safetensors")), copy)))
            fresh(copy)
        nbytes = sum(f.stat().st_size for f in out.glob("*.safetensors"))
        found[kind] = {"output_bytes": nbytes, **summary(costs, against="copy")}
        yield found
    fresh(out), fresh(source)


def warm(directory: Path) -> None:
    """Bring the weights into the page cache."""
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(16 << 20):
                pass


def summary(costs: dict[str, list[Cost]], *, against: str) -> dict[str, Any]:
    """Medians, all wall times, and ratios within a round."""
    return {
        "seconds": {name: [round(cost.seconds, 2) for cost in rounds] for name, rounds in costs.items()},
        "user_seconds": {name: round(median(c.user for c in rounds), 2) for name, rounds in costs.items()},
        "system_seconds": {name: round(median(c.system for c in rounds), 2) for name, rounds in costs.items()},
        "peak_MB": {name: round(max(c.peak for c in rounds) / 1e6) for name, rounds in costs.items()},
        f"ratio_to_{against}": {
            name: ratio(rounds, costs[against]) for name, rounds in costs.items() if len(rounds) == len(costs[against])
        },
    }


def ratio(costs: list[Cost], others: list[Cost]) -> list[float]:
    """[median, smallest, largest] ratio of wall times within a round."""
    ratios = [one.seconds / other.seconds for one, other in zip(costs, others, strict=True)]
    return [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))]


def make_source(path: Path, shape: str, layers: int) -> None:
    """Write a bf16 Llama of a given shape, one file for each layer, with random values that repeat."""
    import torch
    from safetensors.torch import save_file

    hidden, ffn, heads, kv_heads, vocab = SHAPES[shape]
    head_dim = hidden // heads
    path.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "num_hidden_layers": layers, "vocab_size": vocab, "tie_word_embeddings": False, "dtype": "bfloat16",
        "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    # The length is odd, so that no two rows of a head are the same and no two tokens equally likely.
    pool = torch.randn((1 << 24) - 3, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)

    def random(*shape: int) -> torch.Tensor:
        count = math.prod(shape)
        return pool.repeat(-(-count // pool.numel()))[:count].view(shape)

    weight_map: dict[str, str] = {}

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))

    for i in range(layers):
        p, q, kv = f"model.layers.{i}.", heads * head_dim, kv_heads * head_dim
        save(f"layer-{i:03}.safetensors", {
            p + "input_layernorm.weight": random(hidden), p + "post_attention_layernorm.weight": random(hidden),
            p + "self_attn.q_proj.weight": random(q, hidden), p + "self_attn.k_proj.weight": random(kv, hidden),
            p + "self_attn.v_proj.weight": random(kv, hidden), p + "self_attn.o_proj.weight": random(hidden, q),
            p + "mlp.gate_proj.weight": random(ffn, hidden), p + "mlp.up_proj.weight": random(ffn, hidden),
            p + "mlp.down_proj.weight": random(hidden, ffn),
        })  # fmt: skip
    save("embedding.safetensors", {"model.embed_tokens.weight": random(vocab, hidden)})
    save("head.safetensors", {"lm_head.weight": random(vocab, hidden), "model.norm.weight": random(hidden)})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def bench_shape(shape: str, layers: list[int], work: Path, source_in: Path, *, keep_copy: bool) -> list[dict[str, Any]]:
    """Peak memory and speed at several depths: memory must not grow with the size."""
    results = []
    for depth in layers:
        source, out = source_in / f"{shape}-{depth}", work / "grown"
        # In a separate process: the peak of a child includes what its parent had resident when it forked.
        subprocess.run([sys.executable, __file__, "make", shape, str(depth), str(fresh(source))], check=True)
        grow = measure(hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none"))
        proof = measure(hyperclone("verify", source, out, "--proof", "structural"))
        files = sorted(out.glob("*.safetensors"))
        nbytes = sum(f.stat().st_size for f in files)
        copied = 0.0
        if keep_copy and shutil.disk_usage(work).free > nbytes * 1.05:
            fresh(work / "copy").mkdir()
            copied = measure(copy_command(files, work / "copy")).seconds
        results.append(
            {
                "shape": shape,
                "layers": depth,
                "source_GB": round(sum(f.stat().st_size for f in source.iterdir()) / 1e9, 2),
                "output_GB": round(nbytes / 1e9, 2),
                "parameters_B": round(nbytes / 2e9, 2),
                "grow_seconds": round(grow.seconds, 1),
                "grow_MB_per_s": round(nbytes / 1e6 / grow.seconds),
                "grow_peak_MB": round(grow.peak / 1e6),
                "copy_seconds": round(copied, 1) or None,
                "ratio_to_copy": round(grow.seconds / copied, 2) if copied else None,
                "verify_seconds": round(proof.seconds, 1),
                "verify_peak_MB": round(proof.peak / 1e6),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        fresh(out), fresh(work / "copy"), fresh(source)
    return results


def machine() -> dict[str, Any]:
    """Date, processor and versions."""
    import importlib.metadata as metadata

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "date": date.today().isoformat(), "cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "safetensors", "numpy", "numba")},
    }  # fmt: skip


def publish(content: dict[str, Any], output: Path | None) -> None:
    """Print what was measured and on which machine as JSON, and write it where `output` is given."""
    text = json.dumps({"machine": machine(), **content}, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    model = kinds.add_parser("model")
    model.add_argument("source", type=Path)
    every, threads = kinds.add_parser("kinds"), kinds.add_parser("threads")
    for kind in (every, threads):
        kind.add_argument("shape", choices=SHAPES)
        kind.add_argument("--layers", type=int, default=6)
    for kind in (model, every, threads):
        kind.add_argument("--rounds", type=int, default=5 if kind is model else 3)
    shape = kinds.add_parser("shape")
    shape.add_argument("shape", choices=SHAPES)
    shape.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    shape.add_argument("--source-in", type=Path, help="where to write the source (default: --work)")
    shape.add_argument("--copy", action="store_true", help="also copy the output, if it fits on the disk")
    for kind in (model, every, threads, shape):
        kind.add_argument("--work", type=Path, required=True, help="scratch directory on the disk to measure")
        kind.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    make = kinds.add_parser("make", help="only write the source of `shape`")
    make.add_argument("shape", choices=SHAPES)
    make.add_argument("layers", type=int)
    make.add_argument("path", type=Path)
    args = parser.parse_args()
    if args.kind == "make":
        make_source(args.path, args.shape, args.layers)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if args.kind == "model":
        figures: Any = bench_model(args.source, args.work, args.rounds)
    elif args.kind in ("kinds", "threads"):
        chosen = KINDS if args.kind == "kinds" else thread_kinds()
        for figures in bench_kinds(args.shape, args.layers, args.work, args.rounds, chosen):
            publish({"what": args.kind, "figures": figures}, args.output)
        return
    else:
        figures = bench_shape(args.shape, args.layers, args.work, args.source_in or args.work, keep_copy=args.copy)
    publish({"what": args.kind, "figures": figures}, args.output)


if __name__ == "__main__":
    main()
