"""Peak memory and time of `hyperclone verify`, both halves of the proof, in a process with a limit of memory.

    python -m bench.proof_memory 8b --layers 32 --limit 12 --work /scratch -o bench/results/proof-memory.json

A source with random bf16 weights and a byte-level tokenizer is written (bench/grow.py has the shapes), grown 2x in
every width, and verified in a process whose limit of resident memory (RLIMIT_RSS, as `ulimit -m` sets it) is --limit.
The proof keeps to it as it keeps to what the machine has free; the kernel does not enforce it, so the measured peak is
what counts, and one above the limit ends the script. Where both models fit, `--limit 0` measures the proof in memory.

`peak_MB` is the largest resident size that the kernel has seen. It includes pages of the libraries' files, and none of
the weights' files while these are read layer by layer, since nothing maps them; `peak_private_MB` is the largest
anonymous part of it in samples, 20 a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.grow import SHAPES, fresh, hyperclone, publish
from tests.helpers.models import save_tokenizer


@dataclass(frozen=True)
class Usage:
    """What a process took: wall seconds, peak resident and peak anonymous bytes, bytes read from the disk."""

    seconds: float
    peak: float
    private: float
    read: float


def measure(command: list[str], *, limit: float) -> tuple[dict[str, Any], Usage]:
    """The JSON that a command prints, and what it took, under a limit of resident bytes (0 for none)."""

    def restrict() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_RSS, (int(limit), int(limit)))

    start, private, read = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, preexec_fn=restrict)
        ended = threading.Event()

        def sample() -> None:
            nonlocal private, read
            while not ended.wait(0.05):
                status, io = (Path(f"/proc/{process.pid}/{name}").read_text() for name in ("status", "io"))
                private = max(private, 1024.0 * _number(status, "RssAnon:"))
                read = float(_number(io, "read_bytes:"))

        sampler = threading.Thread(target=sample)
        sampler.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        ended.set()
        sampler.join()
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read().decode()
    if not text:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return json.loads(text), Usage(time.perf_counter() - start, usage.ru_maxrss * 1024.0, private, read)


def _number(text: str, field: str) -> int:
    """The number after a field's name in a file of /proc; 0 where it is not there, as in a process that ends."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field)), 0)


def bench(shape: str, layers: int, limit: float, work: Path) -> dict[str, Any]:
    """Make, grow and verify one model."""
    source, out = work / f"{shape}-{layers}", work / "grown"
    make = [sys.executable, "-m", "bench.grow", "make", shape, str(layers), str(fresh(source))]
    subprocess.run(make, check=True)  # in a process of its own: a child's peak includes what its parent had at the fork
    save_tokenizer(source)
    subprocess.run(hyperclone("grow", source, fresh(out), "--width", 2, "--proof", "none"), check=True)
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (source, out)]
    proof, usage = measure(hyperclone("verify", source, out, "--json"), limit=limit)
    behavior = proof["behavior"]
    result = {
        "shape": shape,
        "layers": layers,
        "parameters_B": [round(size / 2e9, 2) for size in sizes],
        "files_GB": [round(size / 1e9, 2) for size in sizes],
        "limit_GB": limit / 1e9 or None,
        "verdict": proof["verdict"],
        "layer_by_layer": behavior["layer_by_layer"],
        "skipped": behavior["skipped"],
        "peak_MB": round(usage.peak / 1e6),
        "peak_private_MB": round(usage.private / 1e6),
        "seconds": round(usage.seconds, 1),
        "read_from_disk_GB": round(usage.read / 1e9, 1),
        "comparisons": [
            {key: m[key] for key in ("what", "dtype", "positions", "relative", "source_error", "tolerance", "top1")}
            for m in behavior["measured"]
        ],
    }
    print(json.dumps(result, indent=2), file=sys.stderr, flush=True)
    shutil.rmtree(out)
    shutil.rmtree(source)
    if limit and usage.peak > limit:
        raise SystemExit(f"{usage.peak / 1e9:.2f} GB were resident, which is above the limit")
    return result


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, nargs="+", default=[4])
    parser.add_argument("--limit", type=float, nargs="+", default=[12.0], help="GB; 0 for no limit")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory for source and grown model")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    figures = [bench(args.shape, n, 1e9 * limit, args.work) for n in args.layers for limit in args.limit]
    publish({"figures": figures}, args.output)


if __name__ == "__main__":
    main()
