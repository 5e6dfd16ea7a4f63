"""Run a causal language model on fixed inputs, and measure how much two sets of logits differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from hyperclone.hf.continuation import Runnable, extend, foreseen

PROMPT = "The Congress of the United States"
REAL_TEXT = "real text"
POOLED = "ForSequenceClassification"
_CUTS = 8  # lengths of each row, of which such a model gives one vector of logits
_ROWS = 64  # logits compared at once: vocabularies are large


@dataclass(frozen=True)
class Probe:
    """Named inputs: (B, S) token ids, and a (B, S) mask that is true at real tokens."""

    name: str
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ModelOutputs:
    """Logits (positions, vocab) for each probe; a continuation's tokens (T,) and their logits (T, vocab).

    Of a classifier: logits (positions or sequences, labels), and a continuation of no tokens.
    """

    logits: list[Tensor]
    tokens: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Distance:
    """How much logits differ from a reference.

    Attributes:
        positions: token positions compared.
        relative: |logits - reference|_2 / |reference|_2 over all logits.
        maximum: largest |logits - reference|.
        kl: mean KL(reference || logits) in nats.
        top1: share of positions where both have the same most likely token.
    """

    positions: int
    relative: float
    maximum: float
    kl: float
    top1: float


@dataclass(frozen=True)
class ProbeSizes:
    """How many tokens the probes have.

    Attributes:
        rows, length: of the real text.
        random: length of each of the two rows of random tokens beside real text.
        random_alone: the same where there is no real text.
        padded: length of the two rows of a padded batch.
        steps: tokens generated with the KV cache.
    """

    rows: int
    length: int
    random: int
    random_alone: int
    padded: int
    steps: int


FULL = ProbeSizes(rows=4, length=128, random=64, random_alone=64, padded=48, steps=24)
FEW = ProbeSizes(rows=1, length=64, random=32, random_alone=32, padded=16, steps=8)  # beside FULL in a wider type
# 64 tokens in all, with text as without: 24 or none, 2 rows of 8 or 20, twice 6 + 4 of a padded batch, 4 generated.
FEWEST = ProbeSizes(rows=1, length=24, random=8, random_alone=20, padded=6, steps=4)


def make_probes(
    tokenizer: Any | None, *, vocab: int, context: int, sizes: ProbeSizes, avoid: frozenset[int] = frozenset()
) -> tuple[list[Probe], Tensor]:
    """Inputs that every architecture can take, and a prompt (P,) to continue.

    Args:
        tokenizer: for real text; without one, all tokens are random (seed 0).
        vocab: size of the vocabulary.
        context: longest sequence the model can take.
        sizes: how many tokens.
        avoid: tokens that stand for images in a model that sees them; another takes their place.
    """
    text_ids, rows, length = torch.tensor([], dtype=torch.long), sizes.rows, 0
    if tokenizer is not None:
        text = resources.files("hyperclone.hf").joinpath("probe_text.txt").read_text("utf-8")
        text_ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
        length = min(sizes.length, context, len(text_ids) // rows)
    with_text = length > 1 and bool((text_ids < vocab).all())
    plain = next((token for token in range(min(3, vocab - 1), vocab) if token not in avoid), 0)
    forbidden = torch.tensor(sorted(avoid), dtype=torch.long)
    random_length = min(sizes.random if with_text else sizes.random_alone, context)
    random = torch.randint(vocab, (2, random_length), generator=torch.Generator().manual_seed(0))
    random = random.where(~torch.isin(random, forbidden), torch.tensor(plain))
    probes = [_unpadded("random tokens", random)]
    flow, prompt = random.flatten(), random[0, :8]
    if tokenizer is not None and with_text:
        flow, prompt = text_ids, torch.tensor(tokenizer(PROMPT)["input_ids"], dtype=torch.long)
        probes.insert(0, _unpadded(REAL_TEXT, flow[: rows * length].view(rows, length)))
    padded = min(sizes.padded, context, len(flow) // 2)
    short = torch.arange(padded) < padded - padded // 3
    for name, mask in (("right padding", short), ("left padding", short.flip(0))):
        both = torch.stack([torch.ones(padded, dtype=torch.bool), mask])
        probes.append(Probe(name, flow[: 2 * padded].view(2, padded), both))
    return probes, prompt[: max(1, (context - 1) // 2)]


def _unpadded(name: str, ids: Tensor) -> Probe:
    return Probe(name, ids, torch.ones_like(ids, dtype=torch.bool))


def run(
    model: Runnable, probes: Sequence[Probe], prompt: Tensor, *, steps: int, expected: Tensor | None = None
) -> ModelOutputs:
    """Logits at every real token, and `steps` tokens decoded greedily, one at a time, with the KV cache.

    Args:
        model, probes, prompt, steps: what to run, and on what.
        expected: the first tokens of the continuation as they probably are, so that a model which is read part by part
            need not be read for each of them; the result is the same.
    """
    calls: list[Callable[[], Any]] = [partial(_on_probe, model.module, probe) for probe in probes]
    if not model.module.can_generate():
        return _without_continuation(model.run(calls))
    *logits, done = model.run([*calls, partial(extend, model.module, prompt, steps if expected is None else 1)])
    if expected is not None:
        done = foreseen(model, prompt, done, expected, steps=steps)
    return ModelOutputs(logits, done.tokens, done.logits)


def run_teacher_forced(model: Runnable, probes: Sequence[Probe], prompt: Tensor, tokens: Tensor) -> ModelOutputs:
    """The same inputs, and a given continuation (T,) in one pass, without a cache."""
    if not model.module.can_generate():
        return _without_continuation(model.run([partial(_on_probe, model.module, probe) for probe in probes]))
    whole = _unpadded("continuation", torch.cat([prompt, tokens])[None])
    *logits, scores = model.run([partial(_on_probe, model.module, probe) for probe in (*probes, whole)])
    return ModelOutputs(logits, tokens, scores[len(prompt) - 1 : -1])


def _without_continuation(logits: list[Tensor]) -> ModelOutputs:
    return ModelOutputs(logits, torch.empty(0, dtype=torch.long), logits[0][:0])


@torch.inference_mode()
def _on_probe(module: Any, probe: Probe) -> Tensor:
    """Logits (positions, vocab) at a probe's real tokens; of a model that pools, (sequences, labels)."""
    if type(module).__name__.endswith(POOLED):
        return _pooled(module, probe)
    mask = None if bool(probe.mask.all()) else probe.mask.long()
    output = module(input_ids=probe.ids, attention_mask=mask, use_cache=False, return_dict=True)
    logits: Tensor = output.logits[probe.mask]
    return logits


def _pooled(module: Any, probe: Probe) -> Tensor:
    """Logits (N, labels) of a classifier that reads one position: of each row cut at several lengths, one at a time."""
    pad = module.config.get_text_config().pad_token_id
    rows = []
    for ids, mask in zip(probe.ids, probe.mask, strict=True):
        known = ids if pad is None else ids.where(mask, torch.tensor(pad))  # by which it finds the last real token
        for length in sorted({max(1, len(ids) * part // _CUTS) for part in range(1, _CUTS + 1)}):
            if bool(mask[:length].any()):
                inputs = {"input_ids": known[None, :length], "attention_mask": mask[None, :length].long()}
                rows.append(module(**inputs, use_cache=False, return_dict=True).logits[0])
    return torch.stack(rows)


def distance(logits: Tensor, reference: Tensor) -> Distance:
    """How much `logits` differ from `reference`, both (positions, vocab), computed in fp64."""
    maximum = kl = same = 0.0
    for a, b in zip(_pieces(logits), _pieces(reference), strict=True):
        a, b = a.double(), b.double()
        maximum = max(maximum, float((a - b).abs().max()))
        kl += float((b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1))).sum())
        same += float((a.argmax(-1) == b.argmax(-1)).sum())
    count = len(logits)
    return Distance(count, relative_distance(logits, reference), maximum, max(kl / count, 0.0), same / count)


def relative_distance(logits: Tensor, reference: Tensor) -> float:
    """`relative` of `distance` alone, to the bit, in half of its time."""
    gap = size = 0.0
    for a, b in zip(_pieces(logits), _pieces(reference), strict=True):
        a, b = a.double(), b.double()
        gap += float((a - b).square().sum())
        size += float(b.square().sum())
    # Of logits that are all zero (a head that was initialized with zeros), the same ones differ by nothing.
    return math.sqrt(gap / size) if size else 0.0 if gap == 0 else math.inf


def _pieces(logits: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(logits), _ROWS):
        yield logits[start : start + _ROWS]


def perplexity(logits: Tensor, ids: Tensor) -> float:
    """Perplexity of each row's next tokens; logits (B * S, vocab) for ids (B, S)."""
    rows = logits.view(*ids.shape, -1)
    losses = [torch.nn.functional.cross_entropy(r[:-1].double(), t[1:]) for r, t in zip(rows, ids, strict=True)]
    loss = float(torch.stack(losses).mean())
    return math.exp(loss) if loss < 700 else math.inf
