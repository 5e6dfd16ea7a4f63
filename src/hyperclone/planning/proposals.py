"""Growths of a model whose number of parameters comes near a target.

A proposal is a request that `planner.make_plan` has accepted, with the plan's count of all parameters (not only the
active ones of a mixture of experts). size_search.py finds the sizes; only growths that are shown are planned.

**Order.** The reader is about to pay for training, so best first means, in this order:

1. exact in the stored type, before growths that need --allow-rounding;
2. widths alone, before more layers, since most evidence on growing is about widths;
3. hidden a whole multiple (every channel copies a trained one), before padding channels;
4. no factor above 2x, the most reliable one (arXiv 2605.13405);
5. within 2 % of the target, before within 10 %;
6. hidden and feed-forward size by nearly the same factor, then nearness.

At most three of each kind (rules 2 and 3) are shown, so that they differ.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from hyperclone import units
from hyperclone.architectures import family_file
from hyperclone.errors import GrowthError, OptionError
from hyperclone.io import hub
from hyperclone.io.source import Source
from hyperclone.planning import checks, planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.notes import FADES, MOST_TOKENS, TWOFOLD
from hyperclone.planning.plan import Plan
from hyperclone.planning.size_search import Search, SizeCandidate
from hyperclone.units import parse_size

DEFAULT_MULTIPLE = 64
_NEAR, _ON_TARGET = 0.10, 0.02
_OF_A_KIND = 3
_NOTHING_NEAR = f"Nothing comes within {_NEAR:.0%} of the target; these come nearest."
_FURTHEST = 1000  # times the source's parameters: more is a slip of the unit


@dataclass(frozen=True)
class Proposal:
    """A growth and its plan.

    Attributes:
        growth: the request; allow_rounding is set only where it is needed, or was asked for.
        plan: of this growth.
        off: how far its parameters are from the target, as a fraction of it: 0.05 is 5 % too many.
        rounds: weights are rounded to bf16 or fp16, which moves the logits about as much as computing in it.
        warnings: the plan's, and on factors and tokens.
    """

    growth: Growth
    plan: Plan
    off: float
    rounds: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Proposals:
    """Growths near a number of parameters.

    Attributes:
        source: as the user wrote it.
        extra_flags: flags that every command needs besides those of a growth.
        model_type: of the source.
        source_parameters, target: numbers of parameters.
        multiple_of: what new sizes are multiples of.
        tokens: planned for training the grown model; None if not given.
        proposals: best first.
        notes: on the list as a whole.
    """

    source: str
    extra_flags: str
    model_type: str
    source_parameters: int
    target: int
    multiple_of: int
    tokens: int | None
    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]

    def command(self, proposal: Proposal) -> str:
        """The command that makes one of them."""
        count = units.human_count(proposal.plan.parameters)
        name = f"{PurePath(hub.public_name(self.source)).name}-to-{count}"
        alike = [p for p in self.proposals if units.human_count(p.plan.parameters) == count]
        if len(alike) > 1:  # no two commands write to one place
            name += f"-{alike.index(proposal) + 1}"
        places = f"{shlex.quote(self.source)} {shlex.quote(name)}"
        return f"hyperclone grow {places} {proposal.growth.flags()} {self.extra_flags}".rstrip()

    def summary(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "model_type": self.model_type,
            "parameters": [self.source_parameters, self.target],
            "multiple_of": self.multiple_of,
            "tokens": self.tokens,
            "proposals": [
                {
                    "command": self.command(p),
                    "parameters": p.plan.parameters,
                    "off": p.off,
                    "widths": {name: list(pair) for name, pair in p.plan.widths().items()},
                    "rounds": p.rounds,
                    "tokens_per_parameter": None if self.tokens is None else self.tokens / p.plan.parameters,
                    "warnings": list(p.warnings),
                }
                for p in self.proposals
            ],
            "notes": list(self.notes),
        }


def propose(
    source: str | os.PathLike[str],
    params: str | int | None,
    *,
    request: Growth | None = None,
    multiple_of: int | None = None,
    tokens: str | int | None = None,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    text_model: bool = False,
) -> Proposals:
    """Growths of a model near `params` parameters; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        params: the target: "1.3B", "350M" or a number. None, which --multiple-of alone gives, is an error.
        request: everything about the growth but its sizes.
        multiple_of: what every size that grows becomes a multiple of; by default 64.
        tokens: planned for training the grown model: "26B" or a number.
        shard_size: largest weight file, in bytes or as "5GB".
        revision: branch, tag or commit of a Hub id.
        family: a family file of your own.
        text_model: of a model that also sees images, its text model is grown on its own.

    Raises:
        OptionError: the target, the tokens or the multiple is not a number.
        GrowthError: the target is not larger than the source, the request has sizes, or this model has no such sizes.
        HypercloneError: the source cannot be read or grown at all.
    """
    request = request or Growth()
    _check_unsized(request)
    if params is None:
        raise OptionError(
            "--multiple-of needs a target", field="multiple_of", found=multiple_of, cure="give --params 1.3B too"
        )
    target = units.parse(params, "params")
    planned_tokens = None if tokens is None else units.parse(tokens, "tokens")
    unit = _unit(multiple_of)
    user_family = None if family is None else family_file.read(family)
    headers = hub.headers(source, revision=revision, family=user_family, text_model=text_model)
    search = Search(headers, request, unit)
    _check_target(target, search.parameters)
    candidates = list(search.near(target, within=_NEAR))
    near = [c for c in candidates if abs(_offset(c, target)) <= _NEAR]
    nearest = near or sorted(candidates, key=lambda c: abs(_offset(c, target)))[:_OF_A_KIND]
    proposals = _plan_best(headers, nearest, target, planned_tokens, shard_size=shard_size)
    if not proposals:
        planner.make_plan(headers, replace(request, ffn="2x"))  # raises where this model cannot be grown at all
        raise GrowthError(
            f"this model has no larger sizes that are multiples of {unit}", field="params", found=params,
            cure="give a smaller --multiple-of, or sizes of your own (--hidden, --ffn, --heads)",
        )  # fmt: skip
    return Proposals(
        source=str(source),
        extra_flags=_extra_flags(shard_size, revision, family) + (" --text-model" if text_model else ""),
        model_type=str(headers.config.get("model_type")),
        source_parameters=search.parameters,
        target=target,
        multiple_of=unit,
        tokens=planned_tokens,
        proposals=proposals,
        notes=(*_notes_on_multiples(search), *(() if near else (_NOTHING_NEAR,))),
    )


def _unit(multiple_of: int | None) -> int:
    unit = DEFAULT_MULTIPLE if multiple_of is None else multiple_of
    if isinstance(unit, bool) or not isinstance(unit, int) or unit < 1:
        raise OptionError("not a size", field="multiple_of", found=repr(unit), expected="1, 8, 64, 128, ...")
    return unit


def _notes_on_multiples(search: Search) -> list[str]:
    return [
        f"The source's {name} size, {search.old[axis]:,}, is no multiple of {search.unit}: it stays as it is where it "
        "does not grow."
        for axis, name in (("hidden", "hidden"), ("ffn", "feed-forward"))
        if search.old[axis] % search.unit
    ]


def _extra_flags(shard_size: str | int, revision: str | None, family: str | os.PathLike[str] | None) -> str:
    size = None if parse_size(str(shard_size)) == planner.DEFAULT_SHARD_SIZE else shard_size
    optional = {"--shard-size": size, "--revision": revision, "--family": family}
    return " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in optional.items() if value is not None)


def _check_unsized(request: Growth) -> None:
    sizes = ("width", "hidden", "ffn", "heads", "kv_heads", "head_dim", "layers", "experts")
    given = Growth(**{name: getattr(request, name) for name in sizes}).flags()
    if given:
        raise GrowthError(
            "--params proposes sizes, so no size can be given as well", field="params", found=given,
            cure=f"leave out {given} to see proposals, or --params to plan these sizes",
        )  # fmt: skip


def _check_target(target: int, present: int) -> None:
    if target <= present:
        raise GrowthError(
            "no more parameters than the model already has", field="params", found=f"{target:,}",
            expected=f"more than {present:,}",
        )  # fmt: skip
    if target > _FURTHEST * present:
        raise GrowthError(
            f"more than {_FURTHEST:,} times as large as the model", field="params", found=f"{target:,}",
            expected=f"{present + 1:,} to {_FURTHEST * present:,}", cure="check the unit: k, M, B or T",
        )  # fmt: skip


def _offset(candidate: SizeCandidate, target: int) -> float:
    return candidate.parameters / target - 1


def _kind(candidate: SizeCandidate) -> tuple[bool, bool]:
    return candidate.layers > 1, candidate.hidden % 1 != 0


def _largest_factor(candidate: SizeCandidate) -> float:
    return max(candidate.hidden, candidate.ffn, candidate.layers)


def _rank(candidate: SizeCandidate, target: int) -> tuple[object, ...]:
    """Lower is better: rules 2 to 6."""
    offset = abs(_offset(candidate, target))
    uneven = max(candidate.hidden, candidate.ffn) / min(candidate.hidden, candidate.ffn)
    near = offset if offset > _NEAR else offset > _ON_TARGET
    return *_kind(candidate), _largest_factor(candidate) > 2, near, round(uneven, 1), offset


def _plan_best(
    headers: Source, nearest: Iterable[SizeCandidate], target: int, tokens: int | None, *, shard_size: str | int
) -> tuple[Proposal, ...]:
    """The best of each kind that can be planned, best first."""
    kinds: Counter[tuple[bool, bool]] = Counter()
    proposals: list[Proposal] = []
    refused: GrowthError | None = None
    for candidate in sorted(nearest, key=lambda c: _rank(c, target)):
        if kinds[_kind(candidate)] == _OF_A_KIND:
            continue
        try:
            plan = planner.make_plan(headers, replace(candidate.request, allow_rounding=True), shard_size=shard_size)
        except GrowthError as error:
            refused = error
            continue
        kinds[_kind(candidate)] += 1
        rounds = bool(checks.rounded(plan.tensors))
        chosen = replace(candidate.request, allow_rounding=candidate.request.allow_rounding or rounds)
        warnings = plan.warnings
        if _largest_factor(candidate) > 2:
            warnings += (f"More than 2x in one step: {TWOFOLD}",)
        if tokens is not None and tokens > MOST_TOKENS * plan.parameters:
            warnings += (f"More than {MOST_TOKENS} tokens for each parameter: {FADES}",)
        plan = replace(plan, growth=chosen)
        proposals.append(Proposal(chosen, plan, plan.parameters / target - 1, rounds, warnings))
    if not proposals and refused is not None:
        raise refused  # its sizes fit, so the reason is in the rest of the request
    return tuple(sorted(proposals, key=lambda p: p.rounds))  # rule 1; sorted() keeps the order within
