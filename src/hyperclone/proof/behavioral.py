"""The behavioral proof: source and grown model, loaded from disk by unmodified transformers, give the same logits.

It does not depend on our understanding of an architecture: a wrong family file can pass the structural proof.
Models that do not fit in memory run layer by layer, with the same results.

By how much they may differ is derived from the source's own rounding errors: tolerance.py.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError
from hyperclone.expansion.grown_tensors import stored_type
from hyperclone.hf import logits, side_by_side
from hyperclone.hf.logits import ModelOutputs, Probe
from hyperclone.hf.memory import available_memory, give_back
from hyperclone.hf.models import LoadedModel, load_model, load_tokenizer, max_positions, model_errors
from hyperclone.hf.slow_types import is_slow
from hyperclone.hf.streamed_model import StreamedModel
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Progress
from hyperclone.planning.recipe import Noise
from hyperclone.proof import saving, tolerance

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan

_Model = LoadedModel | StreamedModel


@dataclass(frozen=True)
class LogitComparison(logits.Distance):
    """Distance of the grown model's logits from the source's in the next wider type, on some inputs.

    Attributes:
        what: which inputs.
        dtype: the computing type.
        source_error: `relative` of the source itself between the two types.
        tolerance: the largest `relative` that rounding explains (tolerance.py).
        perplexity: of source and grown model on the same real text, both in fp32; None in other comparisons, which
            have fewer tokens.
        predicted: tokens of the text that the perplexity is a mean over.
    """

    what: str
    dtype: str
    source_error: float
    tolerance: float
    perplexity: tuple[float, float] | None = None
    predicted: int = 0

    @property
    def passed(self) -> bool:
        """Within tolerance; false for NaN."""
        return self.relative <= self.tolerance


# By the head: what the rows of logits are, and what the largest logit of a row names.
_ROWS = {
    "": ("tokens", "next token"),
    "ForTokenClassification": ("tokens", "label"),
    "ForSequenceClassification": ("sequences", "label"),
}


@dataclass
class Behavior:
    """Result of the behavioral proof.

    Attributes:
        head: what the logits are of: "" for next tokens, else a classifier's head (architectures/heads.py).
        measured: every comparison.
        slow: the stored type, where this processor is so slow in it that fewer tokens are compared; else empty.
        prompt, source_text, grown_text: the same prompt continued greedily by both, in fp32.
        skipped: comparisons that were not made, and why.
        layer_by_layer: the models did not fit in memory, and were read layer by layer while they ran.
        failures: one sentence for each failed comparison.
    """

    head: str = ""
    measured: list[LogitComparison] = field(default_factory=list)
    slow: str = ""
    prompt: str = ""
    source_text: str = ""
    grown_text: str = ""
    skipped: list[str] = field(default_factory=list)
    layer_by_layer: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def rows(self) -> str:
        """What the rows of logits are, that `positions` counts: tokens, or sequences."""
        return _ROWS[self.head][0]

    @property
    def choice(self) -> str:
        """What the largest logit of a row names: the next token, or a label."""
        return _ROWS[self.head][1]


def prove_behavior(
    source: Checkpoint,
    directory: Path,
    plan: Plan,
    *,
    progress: Progress | None = None,
    layer_by_layer: bool | None = None,
) -> Behavior:
    """Compare both models in the stored type (where narrower than fp32) and in fp32, and save the grown one again.

    Args:
        source, directory, plan: the source, the grown model, and what it should be.
        progress: called after each run of a model.
        layer_by_layer: read both models layer by layer while they run; by default if they do not fit in memory.
    """
    behavior = Behavior(head=plan.family.head)
    if layer_by_layer is None:
        layer_by_layer, problem = _fit(source, directory, plan)
        if problem:
            behavior.skipped.append(problem)
            return behavior
    behavior.layer_by_layer = layer_by_layer
    pair = _ModelPair(source, directory, plan, behavior, progress)
    if pair.tokenizer is None:
        behavior.skipped.append("real text: the source has no usable tokenizer; random tokens only")
    # In fp32, a weight that was rounded to fp32 is off by as much as everything else is.
    rounding = pair.compare(pair.stored, torch.float32) if pair.narrow else None
    pair.compare(torch.float32, torch.float64, rounding=rounding)
    pair.save_again()
    pair.advance()
    if plan.keeps_function:
        behavior.failures += [
            f"{m.what}, {m.dtype}: logits differ by {m.relative:.2e} of their size; rounding explains {m.tolerance:.2e}"
            for m in behavior.measured
            if not m.passed
        ]
    return behavior


def _fit(source: Checkpoint, directory: Path, plan: Plan) -> tuple[bool, str]:
    """Whether the models have to run layer by layer for want of memory; a sentence if even that is not possible."""
    available = available_memory()
    fixed = 900 * max(size for _, size in plan.sizes.values()) * 20 + 1e9  # logits: positions x vocabulary; libraries
    # Bytes: fp32 beside bf16, as it is read; of the source, fp64 beside fp32, of which libraries may keep a part.
    # The rest of a whole, of which the source is the text model, is loaded with it: 9 bytes for each of 2, at most.
    needed = 4.5 * plan.parameters + 9 * plan.source_parameters + 4.5 * (source.left_out or 0) + fixed
    if needed <= available:
        return False, ""
    try:
        numbers = [StreamedModel(model, torch.float32).at_once for model in (source, Checkpoint.open(directory))]
    except CheckpointError as error:
        instead = f"and they cannot run layer by layer: {error.problem}"
    else:
        # Bytes: fp32 beside bf16, as it is read; of the source, fp64 beside fp32.
        least = max(12 * numbers[0], 6 * numbers[1]) + fixed
        if least <= available:
            return True, ""
        instead = f"{least / 1e9:.1f} GB layer by layer"
    return False, (
        f"logits: running both models takes {needed / 1e9:.1f} GB of memory, {instead}; {available / 1e9:.1f} GB are "
        "free. The structural proof covers every weight; run `hyperclone verify` on a larger machine for the rest."
    )


class _ModelPair:
    """The two models of a proof. Results are collected in `behavior`."""

    def __init__(
        self, source: Checkpoint, directory: Path, plan: Plan, behavior: Behavior, progress: Progress | None
    ) -> None:
        self.source, self.directory, self.plan = source, directory, plan
        self.behavior, self.progress = behavior, progress
        self.tokenizer = load_tokenizer(source.path)
        self.mixed = len({tensor.dtype for tensor in plan.tensors}) > 1
        self.stored = stored_type(max(plan.tensors, key=lambda t: t.nbytes))
        self.narrow = self.stored in (torch.bfloat16, torch.float16)
        self.slow = self.narrow and is_slow(self.stored)
        behavior.slow = _name(self.stored) if self.slow else ""
        self.stages, self.stage = (7 if self.narrow else 4), 0
        self.saved = False
        self.expected: Tensor | None = None  # a continuation by the source, where one saves passes through a model
        self.advance(0)

    def advance(self, stages: int = 1) -> None:
        self.stage += stages
        if self.progress:
            self.progress("compare", self.stage, self.stages)

    def compare(self, compute: torch.dtype, wide: torch.dtype, *, rounding: float | None = None) -> float:
        """Add the comparisons in one computing type.

        Args:
            compute, wide: the computing type and the next wider one.
            rounding: source error in the stored type, where weights were rounded to that; by default that in `compute`.

        Returns:
            The largest source error.
        """
        full = compute == torch.float32
        sizes = logits.FULL if full else logits.FEWEST if self.slow else logits.FEW
        context = max_positions(self.plan.config) or 1 << 30
        vocab = self.plan.sizes["vocab"][0]
        probes, prompt = logits.make_probes(
            self.tokenizer, vocab=vocab, context=context, sizes=sizes, avoid=self.source.placeholders
        )
        steps = max(1, min(sizes.steps, context - len(prompt)))
        if not any(probe.name == logits.REAL_TEXT for probe in probes) and self.tokenizer is not None:
            self.tokenizer = None
            self.behavior.skipped.append("real text: the tokenizer does not fit the model; random tokens only")
        plain, truth, grown = self.run_both(probes, prompt, steps, compute, wide)
        _free()
        # Greedy continuations may diverge where two tokens are equally likely; up to that step the inputs are the same.
        shared = int((grown.tokens == plain.tokens).long().cumprod(0).sum()) + 1
        rows: list[tuple[Probe | None, Tensor, Tensor, Tensor]] = [
            *zip(probes, plain.logits, truth.logits, grown.logits, strict=True),
        ]
        if self.plan.config.get("use_bidirectional_attention"):
            self.behavior.skipped.append(
                "KV cache: the model attends in both directions, so a cache changes its logits"
            )
        elif len(plain.tokens):
            rows.append((None, plain.steps[:shared], truth.steps[:shared], grown.steps[:shared]))
        source_errors = [self.add_comparison(probe, compute, *tensors, rounding=rounding) for probe, *tensors in rows]
        if self.tokenizer is not None and full and len(plain.tokens):
            self.behavior.prompt = logits.PROMPT
            self.behavior.source_text = self.tokenizer.decode(plain.tokens, skip_special_tokens=True)
            self.behavior.grown_text = self.tokenizer.decode(grown.tokens, skip_special_tokens=True)
        return max(0.0, *source_errors)  # where NaN never wins

    def open(self, model: Checkpoint, dtype: torch.dtype) -> _Model:
        return StreamedModel(model, dtype) if self.behavior.layer_by_layer else LoadedModel(model, dtype)

    def run_both(
        self, probes: Sequence[Probe], prompt: Tensor, steps: int, compute: torch.dtype, wide: torch.dtype
    ) -> tuple[ModelOutputs, ModelOutputs, ModelOutputs]:
        """(source in `compute`, source in `wide` on the same tokens, grown model in `compute`)."""
        if self.slow and compute == self.stored and not self.behavior.layer_by_layer:
            return self.run_side_by_side(probes, prompt, steps, compute, wide)
        source = self.load_source(compute)
        plain, truth = self.run_source(source, probes, prompt, steps, wide)
        if self.behavior.layer_by_layer and len(plain.tokens):
            self.expected = plain.tokens
        del source
        _free()
        model = self.load_grown(compute)
        grown = self.run_grown(model, probes, prompt, steps)
        self.advance()
        return plain, truth, grown

    def run_side_by_side(
        self, probes: Sequence[Probe], prompt: Tensor, steps: int, compute: torch.dtype, wide: torch.dtype
    ) -> tuple[ModelOutputs, ModelOutputs, ModelOutputs]:
        """The same, both models at once: torch multiplies slow types in one thread. The smaller one also saves."""
        source, model, to_save = self.load_source(compute), self.load_grown(compute), self.load_to_save()

        def smaller() -> tuple[ModelOutputs, ModelOutputs]:
            outputs = self.run_source(source, probes, prompt, steps, wide)
            if to_save is not None:
                self.save_whole(to_save)
            return outputs

        (plain, truth), grown = side_by_side.run(
            smaller, lambda: self.run_grown(model, probes, prompt, steps), module=model.module
        )
        self.advance()
        return plain, truth, grown

    def run_source(
        self,
        source: LoadedModel | StreamedModel,
        probes: Sequence[Probe],
        prompt: Tensor,
        steps: int,
        wide: torch.dtype,
    ) -> tuple[ModelOutputs, ModelOutputs]:
        """The source in its type, and in `wide` on the same tokens."""
        with model_errors(self.source.path):
            plain = logits.run(source, probes, prompt, steps=steps, expected=self.expected)
            self.advance()
            source.to(wide)
            truth = logits.run_teacher_forced(source, probes, prompt, plain.tokens)
        self.advance()
        return plain, truth

    def run_grown(self, model: _Model, probes: Sequence[Probe], prompt: Tensor, steps: int) -> ModelOutputs:
        with model_errors(self.directory):
            return logits.run(model, probes, prompt, steps=steps, expected=self.expected)

    def add_comparison(
        self,
        probe: Probe | None,
        compute: torch.dtype,
        plain: Tensor,
        truth: Tensor,
        grown: Tensor,
        *,
        rounding: float | None,
    ) -> float:
        """Compare the logits on one probe, or (None) those of generation with a KV cache; returns the source error."""
        what, dtype = probe.name if probe else "KV cache", _name(compute)
        if "padding" in what and not bool((plain.isfinite() & truth.isfinite()).all()):
            # Windows that hold padding only, as in Gemma 2 with eager attention: nothing to compare.
            self.behavior.skipped.append(f"{what}, {dtype}: the source itself gives NaN there")
            return 0.0
        for side, values in (("source", truth), ("grown model", grown)):
            if not bool(values.isfinite().all()):
                self.behavior.failures.append(f"{what}, {dtype}: logits of the {side} are not all finite")
        source_error = tolerance.source_error(logits.relative_distance(plain, truth), compute)
        rounded = self.plan.growth.recipe.noise is Noise.GAUSSIAN or self.plan.rounds
        extra = 0.0 if not rounded else source_error if rounding is None else rounding
        perplexity, predicted = None, 0
        language = not self.plan.family.head
        if language and probe and probe.name == logits.REAL_TEXT and compute == torch.float32:
            perplexity = (logits.perplexity(plain, probe.ids), logits.perplexity(grown, probe.ids))
            predicted = probe.ids[:, 1:].numel()
        self.behavior.measured.append(
            LogitComparison(
                **vars(logits.distance(grown, truth)),
                what=what,
                dtype=dtype,
                source_error=source_error,
                tolerance=tolerance.largest_difference(self.plan, source_error + extra),
                perplexity=perplexity,
                predicted=predicted,
            )
        )
        return source_error

    def load_source(self, compute: torch.dtype) -> _Model:
        """The source as it was grown: rounded to the output's type, where --dtype converts it."""
        source = self.open(self.source, compute)
        # Of a text model's whole, what sees images may not be stored; the text model's tensors have all been found.
        harmless = ("unexpected",) if self.source.left_out is None else ("unexpected", "missing")
        self.behavior.failures += [
            f"source, {line}" for line in source.problems if not any(w in line for w in harmless)
        ]
        if self.plan.growth.dtype is not None and self.stored != compute:
            source.round_to(self.stored)
        return source

    def load_grown(self, compute: torch.dtype) -> _Model:
        model = self.open(Checkpoint.open(self.directory), compute)
        self.behavior.failures += model.problems
        return model

    def save_again(self) -> None:
        """Compare every tensor with what transformers saves after it has loaded the output."""
        if self.behavior.layer_by_layer and not self.mixed:
            self.behavior.failures += saving.changed_part_by_part(self.directory, self.stored)
        elif (model := self.load_to_save()) is not None:
            self.save_whole(model)

    def load_to_save(self) -> Any | None:
        """The output in its type; None where it cannot be saved again, or has been already."""
        if self.saved:
            return None
        self.saved = True
        if self.mixed:
            self.skip_saving("the source mixes types, which transformers does not keep")
            return None
        try:
            saving.check_space(self.directory, self.plan.nbytes)
        except saving.NotSaved as reason:
            self.skip_saving(reason)
            return None
        return load_model(self.directory, self.stored)[0]

    def save_whole(self, model: Any) -> None:
        """Save it with save_pretrained, and compare."""
        try:
            self.behavior.failures += saving.changed_by_saving(model, self.directory)
        except saving.NotSaved as reason:
            self.skip_saving(reason)

    def skip_saving(self, reason: object) -> None:
        self.behavior.skipped.append(f"save and reload: {reason}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _free() -> None:
    gc.collect()
    give_back()
