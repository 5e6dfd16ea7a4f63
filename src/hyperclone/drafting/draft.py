"""Propose a family file for an architecture that is not known, from its config alone, and prove it.

Fields are found by what they do to shapes (probe.py), dimensions by their sizes (dimensions.py), roles from the type of
module that owns a tensor: rows of a Linear are outputs, columns of a Conv1D are. What cannot be seen is guessed, tried
and marked. The judge is a tiny random instance, grown with each candidate in memory: the first that gives the source's
logits for every growth that the config can express is drafted, and then takes the full proof.

A draft speaks for its own config: tensors that other settings of the architecture would bring have no lines, so such a
model is refused rather than grown by a guess.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures import family_file
from hyperclone.conversion import in_memory
from hyperclone.drafting import dimensions, probe, toml_text
from hyperclone.drafting.dimensions import DraftedAxes, TensorLayouts, toml
from hyperclone.drafting.probe import ConfigFields, ProbedModel
from hyperclone.drafting.toml_text import Architecture, Hypothesis
from hyperclone.errors import HypercloneError
from hyperclone.hf import tiny_models
from hyperclone.hf.models import load_model, model_errors, quiet
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint, refuse_quantized
from hyperclone.planning import checks, planner
from hyperclone.planning.growth import Growth
from hyperclone.proof import family_validation

_FIRST = "2x widths"
# What a draft is tried with. The first must pass; the rest is said at the head of the file.
_GROWTHS = {
    _FIRST: Growth(width=2),
    "hidden size alone": Growth(hidden="2x"),
    "feed-forward size alone": Growth(ffn="2x"),
    "heads alone": Growth(heads="2x"),
    "query heads alone": Growth(heads="2x", kv_heads="1x"),
    "layers": Growth(layers="2x"),
}
_MOST_CANDIDATES = 64
_SAME = 1e-4  # relative distance of fp32 logits in the search; the full proof measures properly
_WRONG = "the logits change by"


@dataclass
class Draft:
    """A proposed family file.

    Attributes:
        text: the file.
        results: what was tried -> what went wrong, or "" if nothing did.
        failures: why it is not proved; empty when it is.
    """

    text: str
    results: dict[str, str]
    failures: list[str]

    @property
    def proved(self) -> bool:
        """It passed the full proof on a tiny random instance at 2x widths."""
        return not self.failures

    @property
    def passed(self) -> list[str]:
        """What was tried and gave equal logits."""
        return [what for what, wrong in self.results.items() if not wrong]

    @property
    def guesses(self) -> int:
        """How many lines are marked as guesses."""
        return self.text.count("# guess")


def draft(source: str | os.PathLike[str]) -> Draft:
    """Propose a family file.

    Args:
        source: a model directory, a config.json, or a Hub id; no weight is read.

    Raises:
        HypercloneError: transformers makes no language model of this config, or its sizes cannot be made out at all.
    """
    config = hub.config(source)
    refuse_quantized(config, Path("config.json"))
    with tempfile.TemporaryDirectory(prefix="hyperclone-") as scratch:
        place = Path(scratch) / "source"
        known, own = _look(config, place)
        if known.unread:
            return Draft(toml_text.write(known, Hypothesis()), {}, [f"{name}: not understood" for name in known.unread])
        candidate, results = _search(known, own, place)
        if _any_width(known, candidate, own):
            results["1.5x widths"] = ""
        text = toml_text.write(known, candidate)
        failures = [f"{_FIRST}: {results[_FIRST]}"] if results[_FIRST] else _full_proof(text, place)
    found = Draft(text, results, failures or _misfits(source, text))
    found.text = toml_text.write(known, candidate, heading=_heading(found))
    return found


def _look(config: Mapping[str, Any], place: Path) -> tuple[Architecture, dict[str, Any]]:
    """What can be seen: in shapes, with the head tied and not; and in the order in which a tiny instance runs.

    Returns:
        It, and the config with few layers; the instance is left at `place`.
    """
    found = probe.probe(config)
    own, head, embedding = found.config, "", ""
    tied, untied = (probe.build({**own, "tie_word_embeddings": value}) for value in (True, False))
    heads = list(untied.tensors.keys() - tied.tensors.keys()) if tied and untied else []
    if tied and untied and len(heads) == 1 and tied.tied.get(heads[0]) in tied.tensors:
        head, embedding = heads[0], tied.tied[heads[0]]
        found.config, found.base = {**own, "tie_word_embeddings": False}, ProbedModel(untied.tensors, tied.tied)
    known = Architecture(found, *_read(found, frozenset()), head, embedding)
    if head:
        without = {key: value for key, value in own.items() if key != "tie_word_embeddings"}
        known.axes.defaults["tie_word_embeddings"] = bool(probe.filled_in(without).get("tie_word_embeddings"))
    if known.unread:
        return known, own
    tiny_models.save_tiny_model(place, own, family_file.own(toml_text.write(known, Hypothesis()), file="draft"))
    last, norm, known.rms = _order(load_model(place, torch.float32)[0])
    known.reads = dimensions.read(found, known.axes, last)
    # A norm with a number in its name belongs to a layer: then none stands in front of the head.
    in_front = [t.name for t in found.base.tensors.values() if t.module == norm and t.name == t.pattern]
    known.fold = tuple(sorted(in_front, reverse=True)) if head else ()
    return known, own


def _read(found: ConfigFields, last: frozenset[str]) -> tuple[DraftedAxes, dict[str, TensorLayouts]]:
    """Axes and candidate layouts. A head size that the config leaves out stays so where some tensors ignore it."""
    axes = dimensions.axes(found)
    reads = dimensions.read(found, axes, last)
    if (
        found.head_dim
        and found.config.get(found.head_dim) is None
        and not all(read.complete for read in reads.values())
    ):
        found.head_dim = None
        axes = dimensions.axes(found)
        reads = dimensions.read(found, axes, last)
    return axes, reads


def _order(model: Any) -> tuple[frozenset[str], str, bool]:
    """The matrices that run last in their attention module, and the last norm of all, and whether it is an RMSNorm."""
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    calls: list[str] = []
    hooks = [leaf.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, leaf in leaves.items()]
    with quiet(), torch.inference_mode():
        model(input_ids=torch.arange(8)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    kinds = {name: probe.kind(leaf) for name, leaf in leaves.items()}
    last = {name.rpartition(".")[0]: name for name in calls if kinds[name] in ("linear", "conv1d")}
    norm = next((name for name in reversed(calls) if kinds[name] == "norm"), "")
    return frozenset(last.values()), norm, bool(norm) and "rms" in type(leaves[norm]).__name__.lower()


def _search(known: Architecture, own: Mapping[str, Any], place: Path) -> tuple[Hypothesis, dict[str, str]]:
    """The candidate that passes most trials, and what went wrong in each ("" if nothing did)."""
    model, _ = load_model(place, torch.float32)
    trials = [(what, model, growth) for what, growth in _GROWTHS.items()]
    if known.head:  # the other way round: a tie changes what the last norm carries
        tie = not model.config.tie_word_embeddings
        with tempfile.TemporaryDirectory(prefix="hyperclone-") as scratch:
            family = family_file.own(toml_text.write(known, Hypothesis()), file="draft")
            tiny_models.save_tiny_model(Path(scratch), {**own, "tie_word_embeddings": tie}, family)
            other, _ = load_model(Path(scratch), torch.float32)
        trials.append(("with the head tied" if tie else "with a head of its own", other, _GROWTHS[_FIRST]))
    best: tuple[Hypothesis, dict[str, str]] | None = None
    for candidate in itertools.islice(_candidates(known), _MOST_CANDIDATES):
        text, results = toml_text.write(known, candidate), dict[str, str]()
        for what, one, growth in trials:
            results[what] = _try(one, text, growth)
            if results[_FIRST] and best is not None:
                break
        if best is None or _score(results) > _score(best[1]):
            best = candidate, results
        if not any(wrong.startswith(_WRONG) for wrong in results.values()):
            break
    assert best is not None
    return best


def _score(results: Mapping[str, str]) -> tuple[bool, int]:
    return not results[_FIRST], sum(not wrong for wrong in results.values())


def _candidates(known: Architecture) -> Iterator[Hypothesis]:
    """Every way to read the ambiguous dimensions, then again with what some models do to embeddings and gains."""
    several = sorted({options for read in known.reads.values() for options in read.dims if len(options) > 1})
    for multiplied, gain in ((False, False), (False, True), (True, False), (True, True)):
        if multiplied and not known.embedding:
            return
        # The likeliest readings of all first.
        for indices in sorted(itertools.product(*(range(len(options)) for options in several)), key=sum):
            chosen = {options: options[i] for options, i in zip(several, indices, strict=True)}
            yield Hypothesis(chosen, multiplied, gain)


def _try(model: Any, text: str, growth: Growth) -> str:
    """What is wrong with a tiny model that is grown in memory; "" if nothing is."""
    try:
        origin = in_memory.InMemory(model, family=family_file.own(text, file="draft"))
        made = planner.make_plan(origin, growth)
        ids = torch.randint(model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
        with model_errors(Path("draft")), torch.inference_mode():
            grown = in_memory.realise(model, origin, made)
            before, after = (one(input_ids=ids, use_cache=False).logits.double() for one in (model, grown))
    except HypercloneError as error:
        return f"refused: {error.problem}"
    distance = float((after - before).norm() / before.norm())
    return "" if distance <= _SAME else f"{_WRONG} {distance:.1e} of their size"


def _any_width(known: Architecture, candidate: Hypothesis, own: Mapping[str, Any]) -> bool:
    """Try [residual], which lets hidden grow to any size; it stays in the draft only if the logits stay."""
    eps = [key for key, value in known.found.full.items() if "eps" in key and isinstance(value, float)]
    if len(eps) != 1:
        return False
    if eps[0] not in known.found.config:
        known.axes.defaults[eps[0]] = known.found.full[eps[0]]
    known.residual = f'hidden = {{ padding = "{"zero" if known.rms else "mean"}", eps = {toml(eps[0])} }}'
    family = family_file.own(toml_text.write(known, candidate), file="draft")
    with tempfile.TemporaryDirectory(prefix="hyperclone-") as scratch:
        tiny_models.save_tiny_model(Path(scratch), own, family)  # with an eps that shows
        model, _ = load_model(Path(scratch), torch.float32)
    if _try(model, family.text, Growth(width=1.5)):
        known.residual = ""
    return bool(known.residual)


def _full_proof(text: str, place: Path) -> list[str]:
    """What fails in the full proof of the tiny instance, at 2x widths."""
    try:
        origin = Checkpoint.open(place, family=family_file.own(text, file="draft"))
        return family_validation.prove(planner.make_plan(origin, _GROWTHS[_FIRST])).failures
    except HypercloneError as error:
        return [error.problem]


def _misfits(source: str | os.PathLike[str], text: str) -> list[str]:
    """What of the source's own weights has no place in the draft, where there are any."""
    place = Path(source)
    if not place.is_dir() or not any(place.glob("*.safetensors")):
        return []
    try:
        family = family_file.own(text, file="draft")
        origin = Checkpoint.open(place, family=family)
        checks.check_tensors(origin, family, family.tensors(origin.config), tied=family.tied(origin.config))
    except HypercloneError as error:
        return [", ".join([error.problem, *error.details.values()])]
    return []


def _heading(found: Draft) -> list[str]:
    """Comments that say what was proved and what was not."""
    import transformers

    version = f"transformers {transformers.__version__}"
    others = [what for what in found.passed if what != _FIRST]
    if found.proved:
        lines = [f"# Proved on a tiny random instance at {_FIRST}, {version}."]
        lines += [f"# Tried as well, with equal logits: {', '.join(others)}."] if others else []
    else:
        lines = [f"# NOT PROVED, {version}. {found.failures[0]}.",
                 f"# Equal logits: {', '.join(found.passed) or 'with no growth that was tried'}.",
                 *(f"# {hint}" for hint in HINTS)]  # fmt: skip
    wrong = [f"# {what}: {why}." for what, why in found.results.items() if why.startswith(_WRONG) and what != _FIRST]
    refused = [what for what, why in found.results.items() if why.startswith("refused")]
    return (
        lines
        + wrong
        + ([f"# Not possible for this config, or not in transformers: {', '.join(refused)}."] if refused else [])
    )


HINTS = (
    "Where to look: the order inside fused dimensions; scales that depend on a size ([multiplied]); gains stored as",
    "gain - 1 (gain_offset); what depends on the number of heads (ALiBi: [refuse]); positions computed from hidden.",
)
