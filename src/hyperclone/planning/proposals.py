"""Which growths of a model come near a number of parameters?

A growth is proposed as a request that `planning.make` has accepted, with the plan's own count of all parameters (of a
mixture of experts: not of the active ones). sizing.py finds the sizes; only growths that are shown are planned.

**Order.** For someone who is about to pay for training, in this order:

1. exact in the stored type, before what needs --allow-rounding;
2. widths alone, before more layers, since what is known of growing is about widths;
3. hidden a whole multiple (every channel copies a trained one), before new channels that copy nothing;
4. no factor above 2x, the most reliable one (arXiv 2605.13405);
5. within 2 % of the target, before within 10 %;
6. hidden and feed-forward size by nearly the same factor, then nearness.

Of each kind (rules 2 and 3) at most three are shown, so that the choice is a real one.
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
from hyperclone.planning.size_search import Candidate, Search
from hyperclone.units import parse_size

DEFAULT_MULTIPLE = 64
_NEAR, _ON_TARGET = 0.10, 0.02
_OF_A_KIND = 3
_FURTHEST = 1000  # times the source's parameters: more is a slip of the unit


@dataclass(frozen=True)
class Proposal:
    """One growth, and its plan.

    Attributes:
        growth: the request; allow_rounding is set only where it is needed, or was asked for.
        plan: what planning it gave.
        off: how far its parameters are from the target, as a part of it: 0.05 is 5 % too many.
        rounds: weights are rounded to bf16 or fp16, so the function is kept up to some 1e-3 of the logits.
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
        source: as the user calls it.
        beside: options that every command needs, beside those of a growth.
        model_type: of the source.
        source_parameters, target: numbers of parameters.
        multiple_of: what new sizes are multiples of.
        tokens: planned for training the grown model; None if that was not said.
        found: best first.
        notes: on the whole list.
    """

    source: str
    beside: str
    model_type: str
    source_parameters: int
    target: int
    multiple_of: int
    tokens: int | None
    found: tuple[Proposal, ...]
    notes: tuple[str, ...]

    def command(self, proposal: Proposal) -> str:
        """What to type for one of them."""
        name = f"{PurePath(hub.public_name(self.source)).name}-to-{units.human_count(proposal.plan.parameters)}"
        places = f"{shlex.quote(self.source)} {shlex.quote(name)}"
        return f"hyperclone grow {places} {proposal.growth.flags()} {self.beside}".rstrip()

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
                for p in self.found
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
) -> Proposals:
    """Growths of a model near `params` parameters; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        params: the target: "1.3B", "350M" or a number. (None, which --multiple-of alone gives, is an error.)
        request: everything about the growth but its sizes.
        multiple_of: what every size that grows becomes a multiple of; by default 64.
        tokens: planned for training the grown model: "26B" or a number.
        shard_size: largest weight file, in bytes or as "5GB".
        revision: branch, tag or commit of a Hub id.
        family: a family file of your own.

    Raises:
        OptionError: the target, the tokens or the multiple is not a number.
        GrowthError: the target is not larger than the source, the request has sizes, or this model has no such sizes.
        HypercloneError: the source cannot be read or grown at all.
    """
    request = request or Growth()
    _check_unsized(request)
    if params is None:
        raise OptionError(
            "--multiple-of is for proposals", field="multiple_of", found=multiple_of, cure="give --params 1.3B too"
        )
    target = units.parse(params, "params")
    multiple_of = DEFAULT_MULTIPLE if multiple_of is None else multiple_of
    planned = None if tokens is None else units.parse(tokens, "tokens")
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:
        raise OptionError("not a size", field="multiple_of", found=repr(multiple_of), expected="1, 8, 64, 128, ...")
    own = None if family is None else family_file.read(family)
    headers = hub.headers(source, revision=revision, family=own)
    search = Search(headers, request, multiple_of)
    _check_target(target, search.parameters)
    candidates = list(search.near(target, within=_NEAR))
    near = [c for c in candidates if abs(_off(c, target)) <= _NEAR]
    nearest = near or sorted(candidates, key=lambda c: abs(_off(c, target)))[:_OF_A_KIND]
    found = _planned(headers, nearest, target, planned, shard_size=shard_size)
    if not found:
        planner.make_plan(headers, replace(request, ffn="2x"))  # raises where this model cannot be grown at all
        raise GrowthError(
            f"this model has no larger sizes that are multiples of {multiple_of}", field="params", found=params,
            cure="give a smaller --multiple-of, or sizes of your own (--hidden, --ffn, --heads)",
        )  # fmt: skip
    notes = [
        f"This model's own {name} size, {search.old[axis]:,}, is no multiple of {multiple_of}: it stays so where it "
        "does not grow."
        for axis, name in (("hidden", "hidden"), ("ffn", "feed-forward"))
        if search.old[axis] % multiple_of
    ]
    if not near:
        notes.append(f"Nothing comes within {_NEAR:.0%} of the target; these come nearest.")
    size = None if parse_size(str(shard_size)) == planner.DEFAULT_SHARD_SIZE else shard_size
    others = {"--shard-size": size, "--revision": revision, "--family": family}
    beside = " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in others.items() if value is not None)
    model_type = str(headers.config.get("model_type"))
    return Proposals(
        str(source), beside, model_type, search.parameters, target, multiple_of, planned, found, tuple(notes)
    )


def _check_unsized(request: Growth) -> None:
    sizes = ("width", "hidden", "ffn", "heads", "kv_heads", "head_dim", "layers", "experts")
    given = Growth(**{name: getattr(request, name) for name in sizes}).flags()
    if given:
        raise GrowthError(
            "--params proposes sizes, so no size can be given beside it", field="params", found=given,
            cure=f"leave out {given} to see proposals, or --params to plan these sizes",
        )  # fmt: skip


def _check_target(target: int, present: int) -> None:
    if target <= present:
        raise GrowthError(
            "no more parameters than the model has now", field="params", found=f"{target:,}",
            expected=f"more than {present:,}",
        )  # fmt: skip
    if target > _FURTHEST * present:
        raise GrowthError(
            f"more than {_FURTHEST:,} times as large as the model", field="params", found=f"{target:,}",
            expected=f"more than {present:,}, and not by so much", cure="check the unit: k, M, B or T",
        )  # fmt: skip


def _off(candidate: Candidate, target: int) -> float:
    return candidate.parameters / target - 1


def _kind(candidate: Candidate) -> tuple[bool, bool]:
    return candidate.layers > 1, candidate.hidden % 1 != 0


def _most(candidate: Candidate) -> float:
    return max(candidate.hidden, candidate.ffn, candidate.layers)


def _merit(candidate: Candidate, target: int) -> tuple[object, ...]:
    """Less is better: rules 2 to 6."""
    off = abs(_off(candidate, target))
    uneven = max(candidate.hidden, candidate.ffn) / min(candidate.hidden, candidate.ffn)
    return *_kind(candidate), _most(candidate) > 2, off if off > _NEAR else off > _ON_TARGET, round(uneven, 1), off


def _planned(
    headers: Source, nearest: Iterable[Candidate], target: int, tokens: int | None, *, shard_size: str | int
) -> tuple[Proposal, ...]:
    """The best of each kind that can be planned, best first."""
    kinds: Counter[tuple[bool, bool]] = Counter()
    found: list[Proposal] = []
    refused: GrowthError | None = None
    for candidate in sorted(nearest, key=lambda c: _merit(c, target)):
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
        if _most(candidate) > 2:
            warnings += (f"More than 2x in one step: {TWOFOLD}",)
        if tokens is not None and tokens > MOST_TOKENS * plan.parameters:
            warnings += (f"More than {MOST_TOKENS} tokens for each parameter: {FADES}",)
        plan = replace(plan, growth=chosen)
        found.append(Proposal(chosen, plan, plan.parameters / target - 1, rounds, warnings))
    if not found and refused is not None:
        raise refused  # not for its sizes, which fit, but for the rest of the request
    return tuple(sorted(found, key=lambda p: p.rounds))  # rule 1; sorted() keeps the order within
