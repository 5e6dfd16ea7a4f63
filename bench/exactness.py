"""How exact a growth is: the figures of docs/mathematics.md.

python bench/exactness.py level                        # realized noise level of the exact split
python bench/exactness.py tolerance --work /scratch    # how much of the derived tolerance small models use
python bench/exactness.py rounding path/to/model --work /scratch   # exact split against rounded Gaussian noise
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import hyperclone
from bench.grow import fresh, publish
from hyperclone import Growth
from hyperclone.expansion import copy_map
from hyperclone.expansion.expand import TensorMap, expand
from hyperclone.planning.recipe import Expansion, Noise, Recipe

LEVELS = (-20, -10, 0, 5, 10, 20, 30, 40, 50, 60, 80)


def level() -> list[dict[str, Any]]:
    """Realized dB of a 384 x 384 Gaussian matrix, seed 0, n = 2, 3, 4."""
    weight = torch.randn(384, 384, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    rows = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for expansion in Expansion:
            for asked in LEVELS:
                realized = []
                for n in (2, 3, 4):
                    axis = copy_map.axis(384, 384 * n)
                    grown = TensorMap((axis, axis), 1, axis, axis, splits=True)
                    plain, noisy = (
                        expand(
                            weight.to(dtype), grown, Recipe(expansion=expansion, noise=noise, snr_db=asked), name="w"
                        ).double()
                        for noise in (Noise.NONE, Noise.SPLIT)
                    )
                    # Even splits by 3 differ from W/3 by rounding: take W C itself as the noise-free block.
                    if expansion is Expansion.SYMMETRIC:
                        plain = weight.to(dtype).double().repeat(n, n) / n
                    power = float((noisy - plain).square().sum())
                    realized.append(round(10 * math.log10(float(plain.square().sum()) / power), 2) if power else None)
                rows.append({"type": str(dtype)[6:], "expansion": str(expansion), "asked": asked, "realized": realized})
    return rows


def tolerance(work: Path) -> dict[str, Any]:
    """Error over tolerance of every comparison in the behavioral proofs of the tests' small models."""
    from tests.helpers.models import MODELS, build, save_tokenizer

    requests = [
        Growth(width=2),
        Growth(width=3, expansion="diagonal"),
        Growth(width=2, expansion="diagonal", noise="none"),
        Growth(width=3, noise="none"),
        Growth(width=2, noise="gaussian"),
    ]
    used = []
    names = [name for name in MODELS if name.startswith(("llama", "mistral", "neox", "opt"))]
    for name in names:
        for dtype in (torch.float32, torch.bfloat16):
            source = fresh(work / "source")
            build(name, dtype=dtype).save_pretrained(source)
            save_tokenizer(source)
            for request in requests:
                proof = hyperclone.grow(source, fresh(work / "grown"), request).proof
                assert proof is not None
                assert proof.behavior is not None
                used += [m.relative / m.tolerance for m in proof.behavior.measured]
    return {"models": len(names), "comparisons": len(used), "largest": round(max(used), 3),
            "median": round(statistics.median(used), 3)}  # fmt: skip


def rounding(source: Path, work: Path) -> list[dict[str, Any]]:
    """Relative fp32 logit error on real text and bit-equal tensors, in the source's own type."""
    rows = []
    for n in (2, 3):
        for noise in ("split", "gaussian", "none"):
            done = hyperclone.grow(source, fresh(work / "grown"), Growth(width=n, noise=noise))
            proof = done.proof
            assert proof is not None
            assert proof.behavior is not None
            (error,) = [m for m in proof.behavior.measured if (m.what, m.dtype) == ("real text", "float32")]
            rows.append(
                {"n": n, "noise": noise, "relative": f"{error.relative:.1e}", "kl": f"{error.kl:.1e}",
                 "top1": error.top1, "bit_equal": f"{proof.structure.bit_equal} of {proof.structure.tensors}",
                 "same_text": proof.behavior.source_text == proof.behavior.grown_text}
            )  # fmt: skip
            print(rows[-1], file=sys.stderr)
    fresh(work / "grown")
    return rows


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("level", "tolerance", "rounding"))
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, help="scratch directory")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.what != "level":
        args.work.mkdir(parents=True, exist_ok=True)
    figures: Any
    if args.what == "level":
        figures = level()
    elif args.what == "tolerance":
        figures = tolerance(args.work)
    else:
        figures = rounding(args.source, args.work)
    publish({"figures": figures}, args.output)


if __name__ == "__main__":
    main()
