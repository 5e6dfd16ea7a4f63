"""What the user should know before a growth: notes and warnings, one small function for each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.heads import LABELS
from hyperclone.io.tensor_files import DTYPES
from hyperclone.planning import head_scaling
from hyperclone.planning.any_width import PaddedAxis
from hyperclone.planning.growth import OUTPUT_DTYPES, Growth
from hyperclone.planning.recipe import Expansion, Noise
from hyperclone.units import human_count

TWOFOLD = "2x is the factor that pays most reliably in training (arXiv 2605.13405)."
MOST_TOKENS = 20  # for each parameter
FADES = f"past about {MOST_TOKENS}, the advantage over a random start fades (arXiv 2605.13405)."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the notes depend on.

    Attributes:
        growth, family, sizes: the request, what it is for, and (old, new) of every axis.
        config: the source's.
        stored_dtypes: types in which the source's tensors are stored.
        scaled: how many tensors are stored as small numbers with scales.
        folded: norm tensors that carry the tied head's 1/n.
        tied, untied: the source's head shares the embedding; the grown model's no longer does.
        padded: axes with padding channels.
        dropped: stored tensors that no model loads.
        omitted_prefix: which the names in the source's files lack, and so those of the grown model.
        deeper: layers are added.
        fused_queries: queries are rescaled, and some share a tensor with keys and values.
        has_last_norm: a norm could carry a tied head's 1/n.
        rounded: by the name of a stored type, the tensors that are rounded to it.
        roots: why weights are multiplied by roots besides padding channels (exact_ways.py).
    """

    growth: Growth
    family: Family
    sizes: Mapping[str, tuple[int, int]]
    config: Mapping[str, Any]
    stored_dtypes: frozenset[str]
    scaled: int
    folded: frozenset[str]
    tied: bool
    untied: bool
    padded: Mapping[str, PaddedAxis]
    dropped: tuple[str, ...]
    omitted_prefix: str
    deeper: bool
    fused_queries: bool
    has_last_norm: bool
    rounded: Mapping[str, tuple[str, ...]]
    roots: tuple[str, ...]

    @property
    def factor(self) -> float:
        """The largest factor by which an axis grows; 1 where none does."""
        return max(new / old for old, new in self.sizes.values())

    @property
    def equal_copies(self) -> bool:
        """There are copies, and no noise makes them differ."""
        return self.growth.recipe.noise is Noise.NONE and self.factor > 1


@dataclass(frozen=True)
class Notes:
    """Sentences: what the user should know, and what they must know."""

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def notes_on(facts: Facts) -> Notes:
    """The notes and warnings that apply."""
    notes, warnings = ([note(facts) for note in functions] for functions in (_NOTES, _WARNINGS))
    return Notes(tuple(text for text in notes if text), tuple(text for text in warnings if text))


def listed(names: Iterable[str], *, most: int = 3) -> str:
    """Names of tensors in a sentence: layers and experts as *, and of more than `most` such names only the first."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))
    more = f" and {len(kinds) - most} more" if len(kinds) > most else ""
    return ", ".join(kinds[:most]) + more


def notes_on_tokens(tokens: int, parameters: int) -> Notes:
    """The same on training a grown model with `parameters` parameters on `tokens` tokens."""
    text = f"{human_count(tokens)} tokens are {tokens / parameters:.3g} for each parameter of the grown model"
    return Notes(notes=(f"{text}.",)) if tokens <= MOST_TOKENS * parameters else Notes(warnings=(f"{text}: {FADES}",))


def dropout(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Config fields that ask for dropout in training."""
    fields = family.fields(config).items()
    return [field for field, rate in fields if _is_dropout(field) and isinstance(rate, int | float) and rate > 0]


def _is_dropout(field: str) -> bool:
    """A rate that acts on single units of the language model; layer drop and the heads of classifiers do not."""
    return "drop" in field and field != "layerdrop" and not field.startswith(("classifier", "summary"))


def _classifier(facts: Facts) -> str | None:
    if not facts.family.head:
        return None
    count = facts.sizes[LABELS][1]
    what = "of tokens" if facts.family.head == "ForTokenClassification" else "of sequences"
    return f"A classifier {what} with {count} label{'s' if count != 1 else ''}, which stay as they are."


def _head_stays_tied(facts: Facts) -> str | None:
    if not facts.folded:
        return None
    norms = " and ".join(sorted(facts.folded)) + (" is" if len(facts.folded) == 1 else " are")
    return f"The head stays tied to the embedding: instead of the head's weights, {norms} divided among the copies."


def _head_is_untied(facts: Facts) -> str | None:
    if not (facts.tied and facts.untied) or facts.growth.untie:
        return None
    if facts.has_last_norm:
        return "The head is untied, since a tied one would divide the last norm, whose gains would have to be rounded."
    return "The head is untied: this model has no last norm that could be divided among the copies in its stead."


def _padding_channels(facts: Facts) -> str | None:
    if (hidden := facts.padded.get("hidden")) is None:
        return None
    old, new = facts.sizes["hidden"]
    root = math.sqrt(hidden.share)
    how = (
        f"gains of norms are multiplied by {root:.4g}, and {hidden.eps} by {float(hidden.share):.4g}"
        if hidden.eps
        else f"the norms' eps cannot follow, so what writes the hidden state is multiplied by {1 / root:.4g}, and what "
        f"reads it by {root:.4g}"
    )
    return (
        f"{new} is no multiple of {old}: {new % old} channels copy nothing and are hidden from the norms: {how}. "
        "The only error is one rounding of each of these weights."
    ) + ("" if facts.roots else " Whole multiples are exact.")


def _untie_changes_nothing(facts: Facts) -> str | None:
    if facts.growth.untie and not facts.tied:
        return "The source's head is not tied, so untie changes nothing."
    return None


def _dropped_buffers(facts: Facts) -> str | None:
    if not (count := len(facts.dropped)):
        return None
    tensors = f"{count} stored tensor{'s' if count != 1 else ''}"
    return f"{tensors} that the model does not load will be left out ({facts.dropped[0]})."


def _base_names(facts: Facts) -> str | None:
    if not (prefix := facts.omitted_prefix):
        return None
    return f"The source was saved from its base model: as in its files, names in the grown model's lack {prefix!r}."


def _no_remote_code(facts: Facts) -> str | None:
    if "auto_map" in facts.config:
        return "auto_map is left out of the config: the architecture is built in, and remote code is never run."
    return None


def _queries_rescaled(facts: Facts) -> str | None:
    old, new = facts.sizes[head_scaling.AXIS]
    if old == new:
        return None
    factors = " or ".join(f"{factor:.3g}" for factor in head_scaling.query_factors(old, new))
    return f"head_dim grows: queries are multiplied by {factors}, so that attention scores stay the same."


def _fused_queries(facts: Facts) -> str | None:
    if not facts.fused_queries:
        return None
    return (
        "Queries share a tensor with keys and values, which are not rescaled: with the training multipliers of that "
        "tensor, queries move too fast by their factor."
    )


def _own_family_file(facts: Facts) -> str | None:
    if not facts.family.text:
        return None
    return "The family file is your own: it is proved on a tiny random instance before anything is written."


def _gaussian_noise(facts: Facts) -> str | None:
    if facts.growth.recipe.noise is Noise.GAUSSIAN:
        return "Gaussian noise sums to zero only up to rounding in the stored type; the default, split, is exact."
    return None


def _conversion(facts: Facts) -> str | None:
    dtype = facts.growth.dtype
    if facts.scaled:
        return (
            f"{facts.scaled} tensors are stored as small numbers with scales (FP8 or MXFP4): they are multiplied by "
            f"their scales and converted to {dtype}. The grown model is not quantized."
        )
    if dtype and facts.stored_dtypes - {OUTPUT_DTYPES[dtype]}:
        return f"Weights are converted to {dtype} first; the proof compares with the converted source."
    return None


def _rounded_tensors(facts: Facts) -> str | None:
    if not facts.rounded:
        return None
    texts = []
    for dtype, names in facts.rounded.items():
        count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        texts.append(f"{count} rounded to {DTYPES[dtype][0]} ({listed(names)})")
    since = f", since {'; and '.join(facts.roots)}" if facts.roots else ""
    return f"{' and '.join(texts)}, which cannot hold their factors{since}. The function is kept up to this rounding."


def _large_factor(facts: Facts) -> str | None:
    return f"{facts.factor:g}x in one step: {TWOFOLD}" if facts.factor > 2 else None


def _experts_keep_the_function(facts: Facts) -> str | None:
    if facts.growth.experts is None:
        return None
    return (
        "Every expert is the source's feed-forward block, and the weights of a token's experts sum to 1, so the "
        "function is kept (sparse upcycling, arXiv 2212.05055). The new routers are randomly initialized from the seed."
    )


def _experts_need_balancing(facts: Facts) -> str | None:
    if facts.growth.experts is None:
        return None
    return (
        "Train with a load-balancing loss (output_router_logits, router_aux_loss_coef). An expert sees only some of "
        "the tokens, so for experts and routers the scaling rule is a starting point."
    )


def _experts_start_equal(facts: Facts) -> str | None:
    if facts.growth.experts is None or facts.factor != 1:
        return None
    return "The experts start equal; they diverge because the router sends them different tokens."


def _copied_layers_add_nothing(facts: Facts) -> str | None:
    if facts.deeper and not facts.growth.stacks:
        return "Copied layers add nothing at the start: their output projections are zero (arXiv 2401.02415)."
    return None


def _no_noise_but_something_else(facts: Facts) -> str | None:
    if not facts.equal_copies:
        return None
    if facts.growth.recipe.expansion is Expansion.DIAGONAL:
        return "No noise: the copies start equal; the diagonal expansion gives each a different gradient."
    if fields := dropout(facts.family, facts.config):
        return f"No noise: the copies start equal, and only dropout ({', '.join(fields)}) makes them diverge."
    return None


def _one_expert_starves_the_router(facts: Facts) -> str | None:
    if facts.growth.experts is None or facts.growth.top_k != 1:
        return None
    return (
        "With one expert for each token its weight is always 1, so the loss gives the routers no gradient: only a "
        "load-balancing loss will train them. Use --top-k 2 or more."
    )


def _stacking_changes_the_function(facts: Facts) -> str | None:
    if not (facts.deeper and facts.growth.stacks):
        return None
    return (
        "Stacking layers changes the function: the grown model is not its source (arXiv 2405.15319). The proof "
        "compares its weights with the source's and measures the change. Use --depth-mode identity to keep it."
    )


def _copies_never_diverge(facts: Facts) -> str | None:
    if not facts.equal_copies or _no_noise_but_something_else(facts):
        return None
    return (
        "The copies will never diverge in training. Without noise all copies of a unit compute the same value and "
        "receive the same gradient, and this model trains without dropout, so every update is the same for all of "
        "them (up to rounding): the added capacity is never used. Use --noise split (the default), or gaussian."
    )


def _experts_without_a_kernel(facts: Facts) -> str | None:
    """torch's grouped matrix product, which transformers chooses for experts, takes rows of whole 16 bytes."""
    if "experts" not in facts.sizes and facts.growth.experts is None:
        return None
    written = {OUTPUT_DTYPES[facts.growth.dtype]} if facts.growth.dtype else facts.stored_dtypes
    dtype = min(sorted(written), key=lambda name: DTYPES[name][1])
    numbers = 16 // DTYPES[dtype][1]
    odd = [f"{axis} {facts.sizes[axis][1]}" for axis in ("hidden", "ffn") if facts.sizes[axis][1] % numbers]
    if not odd or any(facts.sizes[axis][0] % numbers for axis in ("hidden", "ffn")):
        return None
    return (
        f"{' and '.join(odd)}: transformers' default kernel for experts takes multiples of {numbers} in {dtype}. "
        'Choose such a size, or load the model with experts_implementation="eager".'
    )


_NOTES: tuple[Callable[[Facts], str | None], ...] = (
    _classifier,
    _head_stays_tied,
    _head_is_untied,
    _padding_channels,
    _untie_changes_nothing,
    _dropped_buffers,
    _base_names,
    _no_remote_code,
    _queries_rescaled,
    _fused_queries,
    _own_family_file,
    _gaussian_noise,
    _conversion,
    _rounded_tensors,
    _large_factor,
    _experts_keep_the_function,
    _experts_need_balancing,
    _experts_start_equal,
    _copied_layers_add_nothing,
    _no_noise_but_something_else,
)
_WARNINGS: tuple[Callable[[Facts], str | None], ...] = (
    _experts_without_a_kernel,
    _one_expert_starves_the_router,
    _stacking_changes_the_function,
    _copies_never_diverge,
)
