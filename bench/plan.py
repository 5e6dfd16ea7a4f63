"""Time of `hyperclone plan` as a whole process, of models with many files and many tensors.

    python -m bench.plan --work /scratch -o bench/results/plan.json

The models have headers and no weights on disk (their files are sparse): a Llama with 1,002 tensors in 100 files, and
Mixtrals with 400 experts in 4 and in 16 layers. CPU seconds (user and system) say more than wall seconds where others
use the machine; `python -c pass` and `hyperclone --help` stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.grow import fresh, hyperclone, publish
from hyperclone.io.hub import Headers

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 111, "vocab_size": 1024,
    "tie_word_embeddings": False, "dtype": "bfloat16", "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
_MIXTRAL = {**_LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 400,
            "num_experts_per_tok": 2}  # fmt: skip
MODELS = {  # name -> (config, files)
    "100 files": (_LLAMA, 100),
    "400 experts, 4 layers": ({**_MIXTRAL, "num_hidden_layers": 4}, 8),
    "400 experts, 16 layers": ({**_MIXTRAL, "num_hidden_layers": 16}, 8),
}


def make(path: Path, config: dict[str, Any], files: int) -> int:
    """Write a model whose weights are holes in its files; its number of tensors."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    entries = Headers.from_config(config, dtype="BF16").entries
    names, weight_map = list(entries), {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        header: dict[str, Any] = {}
        position = 0
        for name in names[len(names) * number // files : len(names) * (number + 1) // files]:
            end = position + 2 * math.prod(entries[name].shape)
            header[name] = {"dtype": "BF16", "shape": entries[name].shape, "data_offsets": [position, end]}
            position, weight_map[name] = end, file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (path / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + position)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return len(names)


def measure(command: list[str], rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a process, in each round."""
    wall, cpu = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        wall.append(round(time.perf_counter() - start, 3))
        cpu.append(round(usage.ru_utime + usage.ru_stime, 3))
    wall, cpu = wall[1:], cpu[1:]  # the first round compiles and warms the caches
    return {
        "cpu_seconds": cpu, "median_cpu_seconds": statistics.median(cpu),
        "wall_seconds": wall, "least_wall_seconds": min(wall),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Scratch directory.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="Write the figures here as JSON.")
    args = parser.parse_args()
    rows: dict[str, Any] = {
        "python -c pass": measure([sys.executable, "-c", "pass"], args.rounds),
        "hyperclone --help": measure(hyperclone("--help"), args.rounds),
    }
    for name, (config, files) in MODELS.items():
        tensors = make(fresh(args.work / "model"), config, files)
        command = hyperclone("plan", args.work / "model", "--width", 2)
        rows[name] = {"tensors": tensors, "files": files, **measure(command, args.rounds)}
    fresh(args.work / "model")
    publish({"what": "hyperclone plan --width 2", "figures": rows}, args.output)


if __name__ == "__main__":
    main()
