"""What the user should know before a growth: notes and warnings, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

from hyperclone.architectures.family import Family
from hyperclone.planning import head_scaling
from hyperclone.planning.growth import OUTPUT_DTYPES, Growth
from hyperclone.units import human_count

if TYPE_CHECKING:
    from hyperclone.io.source import Source


TWOFOLD = "2x is the factor that pays most reliably in training (arXiv 2605.13405)."
MOST_TOKENS = 20  # for each parameter
FADES = f"past about {MOST_TOKENS}, what growing gains over a random start fades (arXiv 2605.13405)."


def remarks(
    source: Source,
    fam: Family,
    request: Growth,
    sizes: Mapping[str, tuple[int, int]],
    *,
    folded: frozenset[str],
    tied: bool,
    untied: bool,
    dropped: tuple[str, ...],
    deeper: bool,
    fused_queries: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(notes, warnings)."""
    notes, warnings = [], []
    grown = [axis for axis, (old, new) in sizes.items() if new != old]
    factor = max((sizes[axis][1] / sizes[axis][0] for axis in grown), default=1.0)
    if folded:
        names, n = " and ".join(sorted(folded)), sizes["hidden"][1] / sizes["hidden"][0]
        notes.append(f"The head stays tied to the embedding: its 1/{n:g} goes into {names}.")
    if tied and untied and not request.untie:
        notes.append("The head is untied: this model has no last norm that could carry the head's 1/n.")
    if request.untie and not tied:
        notes.append("The head was not tied to begin with; untie changes nothing.")
    if dropped:
        notes.append(f"{_count(dropped, 'stored buffer')} that no current model loads will be left out ({dropped[0]}).")
    if "auto_map" in source.config:
        notes.append("auto_map is left out of the config: the architecture is built in, and remote code is never run.")
    if (size := sizes[head_scaling.AXIS])[0] != size[1]:
        factors = " or ".join(f"{factor:.3g}" for factor in head_scaling.query_factors(*size))
        notes.append(f"Heads grow in size: queries are multiplied by {factors}, so that every score stays.")
    if fused_queries:
        notes.append(
            "Queries share a tensor with keys and values, which are not multiplied: with the training multipliers of "
            "that tensor, queries move too fast by their factor."
        )
    if fam.text:
        notes.append(
            "The family file is one of yours: it is proved on a tiny random instance before anything is written."
        )
    if request.noise == "gaussian":
        notes.append(
            "Gaussian noise sums to zero only up to rounding in the stored type; the default, split, is exact."
        )
    if request.dtype and any(OUTPUT_DTYPES[request.dtype] != entry.dtype for entry in source.entries.values()):
        notes.append(f"Weights are converted to {request.dtype} first; the proof compares with the converted source.")
    if factor > 2:
        notes.append(f"{factor:g}x in one step: {TWOFOLD}")
    if request.experts is not None:
        notes += [
            "Every expert is the source's feed-forward block, and the weights of a token's experts sum to 1, so the "
            "function stays (sparse upcycling, arXiv 2212.05055). The routers are new, drawn from the seed.",
            "Train with a load-balancing loss (output_router_logits, router_aux_loss_coef). An expert sees some tokens "
            "only, so for experts and routers the training multipliers are a starting point, not a law.",
        ]
        if factor == 1:
            notes.append("The experts start equal; that the router sends them other tokens is what will separate them.")
        if request.top_k == 1:
            warnings.append(
                "With one expert for each token its weight is always 1, so the loss gives the routers no gradient: "
                "only a load-balancing loss will train them. Use --top-k 2 or more."
            )
    if deeper and request.depth_mode == "stack":
        warnings.append(
            "Stacking layers changes the function: the grown model is not its source (arXiv 2405.15319). The proof "
            "holds its weights against the source's and measures the change. Use --depth-mode identity to keep it."
        )
    elif deeper:
        notes.append("Copied layers add nothing at the start: their output projections are zero (arXiv 2401.02415).")
    if request.noise == "none" and factor > 1:
        active = dropout(fam, source.config)
        if request.expansion == "diagonal":
            notes.append("No noise: the copies start equal; the diagonal expansion gives each its own gradient.")
        elif active:
            notes.append(f"No noise: the copies start equal and only dropout ({', '.join(active)}) will separate them.")
        else:
            warnings.append(
                "The copies will never separate in training. Without noise all copies of a unit compute the same "
                "value and receive the same gradient, and this model trains without dropout, so every update is the "
                "same for all of them (up to rounding): the wider model stays the small one for ever. "
                "Use --noise split (the default), or gaussian."
            )
    return tuple(notes), tuple(warnings)


def on_tokens(tokens: int, parameters: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(notes, warnings) on training a grown model with `parameters` parameters on `tokens` tokens."""
    each = f"{human_count(tokens)} tokens are {tokens / parameters:.3g} for each parameter of the grown model"
    return ((f"{each}.",), ()) if tokens <= MOST_TOKENS * parameters else ((), (f"{each}: {FADES}",))


def dropout(fam: Family, config: Mapping[str, Any]) -> list[str]:
    """Config fields that ask for dropout in training."""
    return [k for k, v in fam.fields(config).items() if _is_dropout(k) and isinstance(v, int | float) and v > 0]


def _is_dropout(field: str) -> bool:
    """A rate that acts on single units of the language model; layer drop and the heads of classifiers do not."""
    return "drop" in field and field != "layerdrop" and not field.startswith(("classifier", "summary"))


def _count(things: Sized, noun: str) -> str:
    number = len(things)
    return f"{number} {noun}{'s' if number != 1 else ''}"
