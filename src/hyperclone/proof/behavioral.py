"""The behavioural proof: source and grown model, loaded from disk by stock transformers, give the same logits.

It does not trust our own reading of an architecture: a wrong family file can pass the structural proof, not this one.

What is tolerated is derived, not chosen. On the same inputs the source itself is run in the computing type and in
the next wider one; the difference, `own`, is what rounding does to this model. Rounding errors of a dot product grow
with the size of its terms and, being independent, with the root of their number. A grown layer has n times as many
terms, and the absolute values of the shares of a weight sum to at most a = sqrt(n B (1 + q)) times the weight in root
mean square (q the noise-to-signal power ratio; B = 1/n for symmetric, 1 for diagonal). So the grown model may differ
from the wide source by `4 a sqrt(n) own`; the 4 covers the spread between two draws of rounding errors. Gaussian
noise, and factors that the stored type cannot hold, move weights by a rounding error of the stored type as well, whose
effect is the source's `own` in that type.

New experts (upcycling.py) round a block's output y more often than the dense block: the weights p of a token's k
experts, their products with y, and k - 1 sums. Relative to one rounding of y these have mean squares of at most
sum p^2 <= 1, the same, and k - 1 (no partial sum is larger than y): k + 1 together. One rounding of y is among what
`own` measures, so the square of `own` grows by at most k + 1 times itself, and the tolerance by sqrt(k + 2). A single
expert has weight 1, and adds nothing.
"""

from __future__ import annotations

import gc
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hyperclone.expansion.grown_tensors import stored_type
from hyperclone.hf import logits
from hyperclone.hf.memory import available_memory
from hyperclone.hf.models import load_model, load_tokenizer, max_positions, model_errors, quiet
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Progress, digest, worker_pool
from hyperclone.planning.recipe import Expansion, Noise

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan

_SPREAD = 4.0
_CEILING = 0.5  # whatever rounding may explain, this is another function
_FLOOR = 1.0  # own rounding is taken to be at least this many units: a small model may round to itself by luck


@dataclass(frozen=True)
class Measured(logits.Distance):
    """The grown model's distance from the source in the next wider type.

    Attributes:
        what: the inputs.
        dtype: the computing type.
        own: `relative` of the source itself between the two types.
        tolerance: the largest `relative` that rounding explains (see the module).
        perplexity: of source and grown model, both in the computing type, where the inputs are text.
    """

    what: str
    dtype: str
    own: float
    tolerance: float
    perplexity: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Within tolerance; false for NaN."""
        return self.relative <= self.tolerance


@dataclass
class Behaviour:
    """What the behavioural proof found.

    Attributes:
        measured: every comparison.
        prompt, source_text, grown_text: the same prompt continued greedily by both, in fp32.
        skipped: what was not measured, and why.
        failures: one sentence for each thing that is wrong.
    """

    measured: list[Measured] = field(default_factory=list)
    prompt: str = ""
    source_text: str = ""
    grown_text: str = ""
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def prove_behaviour(origin: Checkpoint, path: Path, made: Plan, *, progress: Progress | None = None) -> Behaviour:
    """Compare both models in the stored type (where narrower than fp32) and in fp32, and save the grown one again."""
    found = Behaviour()
    logits_size = 900 * max(size for _, size in made.sizes.values()) * 20  # positions x vocabulary, several of them
    needed, there = max(4.5 * made.parameters, 9 * made.source_parameters) + logits_size + 1e9, available_memory()
    if needed > there:
        found.skipped.append(
            f"logits: running both models takes {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are "
            "free. The structural proof covers every weight; run `hyperclone verify` on a larger machine for the rest."
        )
        return found
    comparing = _Comparing(origin, path, made, found, progress)
    if comparing.tokenizer is None:
        found.skipped.append("real text: the source has no usable tokenizer; random tokens only")
    # In fp32, a weight that was rounded to fp32 is off by as much as everything else is.
    rounding = comparing.compare(comparing.stored, torch.float32) if comparing.narrow else None
    comparing.compare(torch.float32, torch.float64, rounding=rounding)
    comparing.save_again()
    if made.keeps_function:
        found.failures += [
            f"{m.what}, {m.dtype}: logits differ by {m.relative:.2e} of their size; rounding explains {m.tolerance:.2e}"
            for m in found.measured
            if not m.passed
        ]
    return found


class _Comparing:
    """The two models of a proof, and where its findings go."""

    def __init__(self, origin: Checkpoint, path: Path, made: Plan, found: Behaviour, progress: Progress | None) -> None:
        self.origin, self.path, self.made, self.found, self.progress = origin, path, made, found, progress
        self.tokenizer = load_tokenizer(origin.path)
        self.mixed = len({tensor.dtype for tensor in made.tensors}) > 1
        self.stored = stored_type(max(made.tensors, key=lambda t: t.nbytes))
        self.narrow = self.stored in (torch.bfloat16, torch.float16)
        self.stages, self.stage = (7 if self.narrow else 4), 0
        self.advance(0)

    def advance(self, stages: int = 1) -> None:
        self.stage += stages
        if self.progress:
            self.progress("compare", self.stage, self.stages)

    def compare(self, compute: torch.dtype, wide: torch.dtype, *, rounding: float | None = None) -> float:
        """Add the measurements in one computing type; returns the largest `own`."""
        made, found = self.made, self.found
        small = compute != torch.float32
        context = max_positions(made.config) or 1 << 30
        probes, prompt = logits.make_probes(self.tokenizer, vocab=made.sizes["vocab"][0], context=context, small=small)
        steps = max(1, min(8 if small else 24, context - len(prompt)))
        if not any(probe.name == logits.REAL_TEXT for probe in probes) and self.tokenizer is not None:
            self.tokenizer = None
            found.skipped.append("real text: the tokenizer does not fit the model; random tokens only")
        source = self.load_source(compute)
        with model_errors(self.origin.path):
            plain = logits.run(source, probes, prompt, steps=steps)
            self.advance()
            source = source.to(wide)
            truth = logits.run_teacher_forced(source, probes, prompt, plain.tokens)
        del source
        gc.collect()
        self.advance()
        grown, wrong = load_model(self.path, compute)
        found.failures += wrong
        with model_errors(self.path):
            mine = logits.run(grown, probes, prompt, steps=steps)
        del grown
        gc.collect()
        self.advance()

        # Greedy paths may part where two tokens are equally likely; up to and at that step the inputs are the same.
        shared = int((mine.tokens == plain.tokens).long().cumprod(0).sum()) + 1
        rows = [
            *zip([p.name for p in probes], plain.logits, truth.logits, mine.logits, strict=True),
            ("KV cache", plain.steps[:shared], truth.steps[:shared], mine.steps[:shared]),
        ]
        factor, name = tolerated_factor(made), str(compute).removeprefix("torch.")
        rounded = made.growth.recipe.noise is Noise.GAUSSIAN or made.rounds
        largest = 0.0
        for i, (what, theirs, true, ours) in enumerate(rows):
            if "padding" in what and not bool((theirs.isfinite() & true.isfinite()).all()):
                # Windows of padding only, as in Gemma 2 with eager attention: nothing of ours, and nothing to compare.
                found.skipped.append(f"{what}, {name}: the source itself gives NaN there")
                continue
            for side, values in (("source", true), ("grown model", ours)):
                if not bool(values.isfinite().all()):
                    found.failures.append(f"{what}, {name}: logits of the {side} are not all finite")
            own = max(logits.distance(theirs, true).relative, _FLOOR * torch.finfo(compute).eps)
            perplexity = None
            if what == logits.REAL_TEXT:
                perplexity = (logits.perplexity(theirs, probes[i].ids), logits.perplexity(ours, probes[i].ids))
            extra = 0.0 if not rounded else own if rounding is None else rounding
            gap, tolerance = logits.distance(ours, true), min(factor * (own + extra), _CEILING)
            facts: dict[str, Any] = {**vars(gap), "own": own, "tolerance": tolerance, "perplexity": perplexity}
            found.measured.append(Measured(what=what, dtype=name, **facts))
            largest = max(largest, own)
        if self.tokenizer is not None and not small:
            found.prompt = logits.PROMPT
            found.source_text = self.tokenizer.decode(plain.tokens, skip_special_tokens=True)
            found.grown_text = self.tokenizer.decode(mine.tokens, skip_special_tokens=True)
        return largest

    def load_source(self, compute: torch.dtype) -> Any:
        """The source as the growth saw it: rounded to the output's type, where --dtype asked for another one."""
        source, wrong = load_model(self.origin.path, compute)
        self.found.failures += [f"source, {line}" for line in wrong if "unexpected" not in line]
        if self.made.growth.dtype is not None and self.stored != compute:
            with torch.no_grad():
                for parameter in source.parameters():
                    parameter.copy_(parameter.to(self.stored))
        return source

    def save_again(self) -> None:
        """Load the output, save it with save_pretrained, and compare every tensor's bytes with the first."""
        # Inside a directory that is being built, so that an interruption leaves nothing; never inside a finished one.
        building = self.path.name.endswith(".partial")
        scratch_in = self.path if building else Path(tempfile.gettempdir())
        if self.mixed:
            self.found.skipped.append("save and reload: the source mixes types, which transformers does not keep")
        elif shutil.disk_usage(scratch_in).free < 1.1 * self.made.nbytes:
            self.found.skipped.append("save and reload: not enough disk for a second copy")
        else:
            model, _ = load_model(self.path, self.stored)
            with tempfile.TemporaryDirectory(prefix=".hyperclone-", dir=scratch_in) as scratch:
                with quiet():
                    model.save_pretrained(scratch)
                del model
                first, second = Checkpoint.open(self.path), Checkpoint.open(scratch)
                names = sorted(first.entries.keys() & second.entries.keys())
                with worker_pool(None) as pool:
                    before, after = (list(pool.map(lambda n, c=c: digest(c, n), names)) for c in (first, second))
            odd = sorted(first.entries.keys() ^ second.entries.keys())
            self.found.failures += [f"{name}: gained or lost when transformers saves the model again" for name in odd]
            self.found.failures += [
                f"{name}: changed when transformers loads and saves the model"
                for name, a, b in zip(names, before, after, strict=True)
                if a != b
            ]
        self.advance()


def tolerated_factor(made: Plan) -> float:
    """4 a sqrt(n), times sqrt(k + 2) for several experts of a token, as derived at the head of this module."""
    n = max(tensor.inputs for tensor in made.tensors)
    q = 0.0 if made.growth.recipe.noise is Noise.NONE else 10 ** (-made.growth.snr_db / 10)
    spread = n if made.growth.recipe.expansion is Expansion.DIAGONAL else 1.0
    k = made.growth.top_k if made.growth.experts is not None else 1
    return _SPREAD * math.sqrt(spread * (1 + q)) * math.sqrt(n) * (math.sqrt(k + 2) if k > 1 else 1.0)
