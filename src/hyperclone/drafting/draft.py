"""Draft a family file for an unknown architecture, from its config alone, and prove it.

The meaning of fields follows from their effects on shapes (probe.py), the layout of dimensions from their sizes
(dimensions.py), and the role of dimensions from the module that owns a tensor: outputs are the rows of a Linear and the
columns of a Conv1D. Everything else is guessed, tried and marked as a guess. A tiny random instance is grown in memory
with one hypothesis after another. The first one that keeps the logits for every growth that the config can express is
drafted, and then takes the full proof.

A draft covers only the config that it was drafted from. Tensors that the architecture has with other settings get no
lines, so a model that has them is refused.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures import family_file, text_models
from hyperclone.architectures.family import Family
from hyperclone.conversion import in_memory
from hyperclone.drafting import dimensions, probe
from hyperclone.drafting.dimensions import DraftedAxes, TensorLayouts, toml_value
from hyperclone.drafting.probe import ConfigFields
from hyperclone.drafting.toml_text import Architecture, Hypothesis, family_text
from hyperclone.errors import HypercloneError
from hyperclone.hf import tiny_models
from hyperclone.hf.models import load_model, model_errors, quiet
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint, refuse_quantized
from hyperclone.io.files import user_path
from hyperclone.io.scratch import scratch_directory
from hyperclone.planning import checks, planner, unknown
from hyperclone.planning.growth import Growth
from hyperclone.proof import family_validation

_FIRST = "2x widths"
# Growths that a draft is tried with. The first must pass; results of the others are comments at the top of the file.
_GROWTHS = {
    _FIRST: Growth(width=2),
    "hidden size alone": Growth(hidden="2x"),
    "feed-forward size alone": Growth(ffn="2x"),
    "heads alone": Growth(heads="2x"),
    "query heads alone": Growth(heads="2x", kv_heads="1x"),
    "layers": Growth(layers="2x"),
}
_MAX_HYPOTHESES = 64
_SAME = 1e-4  # relative difference of fp32 logits in the search; the full proof derives its tolerance
_WRONG = "the logits change by"


@dataclass
class Draft:
    """A drafted family file.

    Attributes:
        text: the file.
        results: a growth that was tried -> the failure, or "" if it passed.
        failures: why the draft is not proved; empty if it is.
    """

    text: str
    results: dict[str, str]
    failures: list[str]

    @property
    def proved(self) -> bool:
        """Whether it passed the full proof on a tiny random instance at 2x widths."""
        return not self.failures

    @property
    def passed(self) -> list[str]:
        """The growths that were tried and gave equal logits."""
        return [name for name, failure in self.results.items() if not failure]

    @property
    def guesses(self) -> int:
        """The number of lines that are marked as guesses."""
        return self.text.count("# guess")


def draft(source: str | os.PathLike[str]) -> Draft:
    """Draft a family file.

    Args:
        source: a model directory, a config.json, or a Hub id; only its config is read, and headers if there are any.
            Of a model that also sees images, the text model is drafted.

    Raises:
        HypercloneError: transformers makes no language model of this config, or its sizes cannot be found.
    """
    config = hub.config(source)
    if text_models.has_text_model(config):
        config = text_models.text_config(config, head_stored=False)
    refuse_quantized(config, Path("config.json"))
    with scratch_directory() as scratch:
        instance = scratch / "source"
        architecture, small = _inspect(config, instance)
        if architecture.not_understood:
            failures = [f"{name}: not understood" for name in architecture.not_understood]
            if (reason := unknown.limit(config)) is not None:
                failures.insert(0, reason)
            return Draft(family_text(architecture, Hypothesis()), {}, failures)
        hypothesis, results = _search(architecture, small, instance)
        if _any_width(architecture, hypothesis, small):
            results["1.5x widths"] = ""
        text = family_text(architecture, hypothesis)
        failures = [f"{_FIRST}: {results[_FIRST]}"] if results[_FIRST] else _full_proof(text, instance)
    result = Draft(text, results, failures or _check_weights(source, text))
    result.text = family_text(architecture, hypothesis, heading=_heading(result))
    return result


def _inspect(config: Mapping[str, Any], instance: Path) -> tuple[Architecture, dict[str, Any]]:
    """Inspect shapes, with the head tied and untied, and the order in which the modules of a tiny instance run.

    Args:
        config: the source's.
        instance: directory to save the tiny instance in.

    Returns:
        The architecture, and the config with few layers. There is no instance if some tensor is not understood.
    """
    fields = probe.probe_fields(config)
    small, head, embedding = fields.config, "", ""
    tied, untied = (probe.build({**small, "tie_word_embeddings": value}) for value in (True, False))
    heads = list(untied.tensors.keys() - tied.tensors.keys()) if tied and untied else []
    if tied and untied and len(heads) == 1 and tied.tied.get(heads[0]) in tied.tensors:
        head, embedding = heads[0], tied.tied[heads[0]]
        fields.config, fields.base = {**small, "tie_word_embeddings": False}, replace(untied, tied=tied.tied)
    architecture = Architecture(fields, *_axes_and_layouts(fields, frozenset()), head, embedding)
    if head:
        without = {key: value for key, value in small.items() if key != "tie_word_embeddings"}
        architecture.axes.defaults["tie_word_embeddings"] = bool(probe.full_config(without).get("tie_word_embeddings"))
    if architecture.not_understood:
        return architecture, small
    tiny_models.save_tiny_model(instance, small, _family(family_text(architecture, Hypothesis())))
    last, norm, architecture.rms = _run_order(load_model(instance, torch.float32)[0])
    architecture.layouts = dimensions.candidate_layouts(fields, architecture.axes, last)
    # A last norm with a number in its name belongs to a layer: then there is none in front of the head.
    in_front = [t.name for t in fields.base.tensors.values() if t.module == norm and t.name == t.pattern]
    architecture.fold = tuple(sorted(in_front, reverse=True)) if head else ()
    return architecture, small


def _family(text: str) -> Family:
    return family_file.from_text(text, file="draft")


def _axes_and_layouts(fields: ConfigFields, last: frozenset[str]) -> tuple[DraftedAxes, dict[str, TensorLayouts]]:
    """Axes and candidate layouts. A head_dim that the config leaves out stays so if some tensors ignore it."""
    axes = dimensions.draft_axes(fields)
    layouts = dimensions.candidate_layouts(fields, axes, last)
    absent = fields.head_dim and fields.config.get(fields.head_dim) is None
    if absent and not all(tensor.complete for tensor in layouts.values()):
        fields.head_dim = None
        axes = dimensions.draft_axes(fields)
        layouts = dimensions.candidate_layouts(fields, axes, last)
    return axes, layouts


def _run_order(model: Any) -> tuple[frozenset[str], str, bool]:
    """(the matrices that run last in their attention modules, the last norm in the model, whether it is an RMSNorm)."""
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    calls: list[str] = []
    hooks = [leaf.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, leaf in leaves.items()]
    with quiet(), torch.inference_mode():
        model(input_ids=torch.arange(8)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    kinds = {name: probe.module_kind(leaf) for name, leaf in leaves.items()}
    last = {name.rpartition(".")[0]: name for name in calls if kinds[name] in ("linear", "conv1d")}
    norm = next((name for name in reversed(calls) if kinds[name] == "norm"), "")
    return frozenset(last.values()), norm, bool(norm) and "rms" in type(leaves[norm]).__name__.lower()


def _search(architecture: Architecture, small: Mapping[str, Any], instance: Path) -> tuple[Hypothesis, dict[str, str]]:
    """The hypothesis that passes most trials, and the failure of each trial ("" if it passed)."""
    model, _ = load_model(instance, torch.float32)
    trials = [(name, model, growth) for name, growth in _GROWTHS.items()]
    if architecture.head:  # also with the other choice: a tie changes what the last norm must contain
        tie = not model.config.tie_word_embeddings
        with scratch_directory() as scratch:
            family = _family(family_text(architecture, Hypothesis()))
            tiny_models.save_tiny_model(scratch, {**small, "tie_word_embeddings": tie}, family)
            other, _ = load_model(scratch, torch.float32)
        trials.append(("with the head tied" if tie else "with the head untied", other, _GROWTHS[_FIRST]))
    best: tuple[Hypothesis, dict[str, str]] | None = None
    for hypothesis in itertools.islice(_hypotheses(architecture), _MAX_HYPOTHESES):
        text, results = family_text(architecture, hypothesis), dict[str, str]()
        for name, trial_model, growth in trials:
            results[name] = _try(trial_model, text, growth)
            if results[_FIRST] and best is not None:
                break
        if best is None or _score(results) > _score(best[1]):
            best = hypothesis, results
        if not any(failure.startswith(_WRONG) for failure in results.values()):
            break
    assert best is not None
    return best


def _score(results: Mapping[str, str]) -> tuple[bool, int]:
    """Passing the first trial counts most, then the number of trials passed."""
    return not results[_FIRST], sum(not failure for failure in results.values())


def _hypotheses(architecture: Architecture) -> Iterator[Hypothesis]:
    """Every choice of candidate layouts, then again with what some models do to gains and embeddings."""
    ambiguous = sorted({dim for layouts in architecture.layouts.values() for dim in layouts.dims if len(dim) > 1})
    sides = (False, True) if any(layouts.tensor.stacked for layouts in architecture.layouts.values()) else (False,)
    for multiplied, gain in ((False, False), (False, True), (True, False), (True, True)):
        if multiplied and not architecture.embedding:
            return
        # The likeliest candidates of all dimensions first.
        for indices in sorted(itertools.product(*(range(len(dim)) for dim in ambiguous)), key=sum):
            chosen = {dim: dim[i] for dim, i in zip(ambiguous, indices, strict=True)}
            for transposed in sides:
                yield Hypothesis(chosen, multiplied, gain, transposed)


def _try(model: Any, text: str, growth: Growth) -> str:
    """Grow a tiny model in memory; the failure, or "" if the logits stay the same."""
    try:
        source = in_memory.InMemory(model, family=_family(text))
        plan = planner.make_plan(source, growth)
        ids = torch.randint(model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
        with model_errors(Path("draft")), torch.inference_mode():
            grown = in_memory.build_grown(model, source, plan)
            before, after = (each(input_ids=ids, use_cache=False).logits.double() for each in (model, grown))
    except HypercloneError as error:
        return f"refused: {error.problem}"
    distance = float((after - before).norm() / before.norm())
    return "" if distance <= _SAME else f"{_WRONG} {distance:.1e} of their size"


def _any_width(architecture: Architecture, hypothesis: Hypothesis, small: Mapping[str, Any]) -> bool:
    """Try [residual], which lets hidden grow to any size; it stays in the draft only if the logits stay the same."""
    for residual, eps in _residuals(architecture, _family(family_text(architecture, hypothesis))):
        architecture.residual = residual
        omitted = eps if eps and eps not in architecture.fields.config else None
        if omitted:
            architecture.axes.defaults[omitted] = architecture.fields.full[omitted]
        family = _family(family_text(architecture, hypothesis))
        with scratch_directory() as scratch:
            tiny_models.save_tiny_model(scratch, small, family)  # its eps is large enough to matter
            model, _ = load_model(scratch, torch.float32)
        # Heads that a norm sees together grow to multiples only, but hidden need not.
        if not all(_try(model, family.text, growth) for growth in (Growth(width=1.5), Growth(hidden="1.5x"))):
            return True
        if omitted:
            del architecture.axes.defaults[omitted]
    architecture.residual = ""
    return False


def _residuals(architecture: Architecture, family: Family) -> Iterator[tuple[str, str | None]]:
    """([residual] lines, config field of the norms' eps): norms scaled, then the stream, last with norms behind blocks.

    See planning/any_width.py.
    """
    padding = f'padding = "{"zero" if architecture.rms else "mean"}"'
    eps = [key for key, value in architecture.fields.full.items() if "eps" in key and isinstance(value, float)]
    if len(eps) == 1:
        yield f"hidden = {{ {padding}, eps = {toml_value(eps[0])} }}", eps[0]
    yield f"hidden = {{ {padding} }}", None
    norms = [line.pattern for line in family.lines if line.layout.norm and "hidden" in line.layout.axes]
    if behind := [pattern for pattern in norms if "{i}" in pattern and "post" in pattern]:
        yield f"hidden = {{ {padding}, post_norms = [{', '.join(map(toml_value, behind))}] }}", None


def _full_proof(text: str, instance: Path) -> list[str]:
    """Failures of the full proof of the tiny instance at 2x widths."""
    try:
        source = Checkpoint.open(instance, family=_family(text))
        return family_validation.prove_tiny(planner.make_plan(source, _GROWTHS[_FIRST])).failures
    except HypercloneError as error:
        return [error.problem]


def _check_weights(source: str | os.PathLike[str], text: str) -> list[str]:
    """Why the draft does not fit the source's tensors, if the source is a directory that has any."""
    directory = user_path(source)
    if not directory.is_dir() or not any(directory.glob("*.safetensors")):
        return []
    try:
        family = _family(text)
        whole = text_models.has_text_model(hub.config(directory))
        checkpoint = Checkpoint.open(directory, family=family, text_model=whole)
        config = checkpoint.config
        checks.check_tensors(checkpoint, family, family.tensors(config), tied=family.tied(config))
    except HypercloneError as error:
        return [", ".join([error.problem, *error.details.values()])]
    return []


def _heading(draft: Draft) -> list[str]:
    """Comments on what was proved and what was not."""
    import transformers

    version = f"transformers {transformers.__version__}"
    others = [name for name in draft.passed if name != _FIRST]
    if draft.proved:
        lines = [f"# Proved on a tiny random instance at {_FIRST}, {version}."]
        lines += [f"# Equal logits as well: {', '.join(others)}."] if others else []
    else:
        lines = [f"# NOT PROVED, {version}. {draft.failures[0]}.",
                 f"# Equal logits: {', '.join(draft.passed) or 'for none of the growths that were tried'}.",
                 *(f"# {hint}" for hint in HINTS)]  # fmt: skip
    wrong = [(name, failure) for name, failure in draft.results.items() if failure.startswith(_WRONG)]
    lines += [f"# {name}: {failure}." for name, failure in wrong if name != _FIRST]
    refused = [name for name, failure in draft.results.items() if failure.startswith("refused")]
    lines += [f"# Not possible with this config or in transformers: {', '.join(refused)}."] if refused else []
    return lines


HINTS = (
    "Check: the order inside fused dimensions; scales that depend on a size ([multiplied]); gains stored as",
    "gain - 1 (gain_offset); anything that depends on the number of heads (ALiBi: [refuse]) or computes positions",
    "from hidden.",
)
