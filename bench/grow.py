"""Time and memory of `hyperclone grow`, against copying the output's bytes and against growing in memory.

    python bench/grow.py model path/to/model --work /scratch       # a real model; whole processes, five rounds
    python bench/grow.py shape 8b --layers 4 16 32 --work /scratch # Llama-3-8B's shape with random data

Every command runs as its own process. Time is wall time until its output is synced to disk; memory is the process's
peak resident size as the kernel reports it. In each round the copy, the growth and the in-memory baseline run one
after another on the same disk, and ratios are taken within a round, so that drifts of the machine's speed cancel.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

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


def measure(command: list[str]) -> tuple[float, float]:
    """(wall seconds until everything is on disk, peak resident bytes) of a command that must succeed."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{message}")
    os.sync()
    return time.perf_counter() - start, usage.ru_maxrss * 1024.0


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


def bench_model(source: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Time and memory of a 2-fold growth, of copying its output, and of the in-memory baseline, interleaved."""
    rows: dict[str, list[tuple[float, float]]] = {
        "grow": [],
        "grow + structural proof": [],
        "in memory": [],
        "copy": [],
    }
    out, copy = work / "grown", work / "copy"
    for _ in range(rounds + 1):
        rows["grow"].append(measure(hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none")))
        fresh(copy).mkdir()
        rows["copy"].append(measure(copy_command(sorted(out.glob("*.safetensors")), copy)))
        command = hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "structural")
        rows["grow + structural proof"].append(measure(command))
        rows["in memory"].append(measure([sys.executable, "-c", IN_MEMORY, str(source), str(fresh(copy))]))
    nbytes = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    rows = {name: figures[1:] for name, figures in rows.items()}  # the first round warms the caches
    fresh(out), fresh(copy)
    return {
        "source": source.name,
        "output_bytes": nbytes,
        "seconds": {name: [round(s, 2) for s, _ in figures] for name, figures in rows.items()},
        "median_seconds": {name: round(statistics.median(s for s, _ in f), 2) for name, f in rows.items()},
        "peak_MB": {name: round(max(m for _, m in figures) / 1e6) for name, figures in rows.items()},
        "ratio_to_copy": {
            name: round(statistics.median(f[0] / c[0] for f, c in zip(figures, rows["copy"], strict=True)), 2)
            for name, figures in rows.items()
        },
    }


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
        seconds, peak = measure(hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none"))
        proof_seconds, proof_peak = measure(hyperclone("verify", source, out, "--proof", "structural"))
        files = sorted(out.glob("*.safetensors"))
        nbytes = sum(f.stat().st_size for f in files)
        copied = 0.0
        if keep_copy and shutil.disk_usage(work).free > nbytes * 1.05:
            fresh(work / "copy").mkdir()
            copied, _ = measure(copy_command(files, work / "copy"))
        results.append(
            {
                "shape": shape,
                "layers": depth,
                "source_GB": round(sum(f.stat().st_size for f in source.iterdir()) / 1e9, 2),
                "output_GB": round(nbytes / 1e9, 2),
                "parameters_B": round(nbytes / 2e9, 2),
                "grow_seconds": round(seconds, 1),
                "grow_MB_per_s": round(nbytes / 1e6 / seconds),
                "grow_peak_MB": round(peak / 1e6),
                "copy_seconds": round(copied, 1) or None,
                "ratio_to_copy": round(seconds / copied, 2) if copied else None,
                "verify_seconds": round(proof_seconds, 1),
                "verify_peak_MB": round(proof_peak / 1e6),
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
        **{name: metadata.version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
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
    model.add_argument("--rounds", type=int, default=5)
    shape = kinds.add_parser("shape")
    shape.add_argument("shape", choices=SHAPES)
    shape.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    shape.add_argument("--source-in", type=Path, help="where to write the source (default: --work)")
    shape.add_argument("--copy", action="store_true", help="also copy the output, if it fits on the disk")
    for kind in (model, shape):
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
    else:
        figures = bench_shape(args.shape, args.layers, args.work, args.source_in or args.work, keep_copy=args.copy)
    publish({"what": args.kind, "figures": figures}, args.output)


if __name__ == "__main__":
    main()
