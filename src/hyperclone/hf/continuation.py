"""A prompt continued greedily with the KV cache, one token at a time; or in one pass, where the tokens are foreseen.

A model that is read part by part (hf/streamed_model.py) is read once for each token. The tokens of a grown model are
foreseen, as those of its source. So the steps of all tokens, which are ordinary steps with one token, go through each
layer one after the other while it is in memory. The first token that was not foreseen ends that; from there on the
model is read for each token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

# Methods of transformers' caches that a layer calls when it runs, and which argument is its number (`layer_idx`).
_OF_A_LAYER = {
    "update": 2, "update_indexer": 1, "get_conv_state": 0, "update_conv_state": 1, "get_recurrent_state": 0,
    "update_recurrent_state": 1,
}  # fmt: skip


class Runnable(Protocol):
    """A model in memory (hf/models.py), or one that is read part by part (hf/streamed_model.py)."""

    module: Any

    def run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """What calls of the module return."""


@dataclass(frozen=True)
class Continuation:
    """Tokens (T,), the logits (T, vocab) that they were chosen from, and the KV cache of all tokens but the last."""

    tokens: Tensor
    logits: Tensor
    cache: Any

    def __add__(self, following: Continuation) -> Continuation:
        """This one, and one that continues it."""
        tokens, logits = torch.cat([self.tokens, following.tokens]), torch.cat([self.logits, following.logits])
        return Continuation(tokens, logits, following.cache)


@torch.inference_mode()
def extend(module: Any, ids: Tensor, steps: int, cache: Any = None) -> Continuation:
    """The greedy continuation by `steps` tokens.

    Args:
        module: a causal language model.
        ids: (P,) what to continue.
        steps: how many tokens.
        cache: the KV cache of all of `ids` but the last; by default they are computed.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=0, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    module.generation_config = GenerationConfig()  # instead of the directory's, which may ask for beams or stop strings
    output = module.generate(
        ids[None], attention_mask=torch.ones_like(ids[None]), generation_config=settings, past_key_values=cache
    )
    return Continuation(output.sequences[0, len(ids) :], torch.cat(output.logits), output.past_key_values)


def foreseen(model: Runnable, prompt: Tensor, start: Continuation, expected: Tensor, *, steps: int) -> Continuation:
    """The continuation that begins with the one token of `start`, up to `steps` tokens.

    Args:
        model: read once if `expected` are its tokens; for each token if its class has no cache, or one of its own kind.
        prompt: (P,) what is continued.
        start: its continuation by one token.
        expected: (E,) the continuation's first tokens as they probably are.
        steps: length of the continuation.
    """
    if not _can_follow(start.cache):
        done: Continuation = model.run([partial(extend, model.module, prompt, steps)])[0]
        return done
    whole, caches = torch.cat([prompt, expected]), [start.cache]
    calls: list[Callable[[], Continuation]] = []
    for length in range(len(prompt) + 1, len(prompt) + min(steps, len(expected) + 1)):
        caches.append(_following(caches[-1], more=min(len(calls), 1)))
        calls.append(partial(extend, model.module, whole[:length], 1, caches[-1]))
    done = start
    for step, token, previous in zip(model.run(calls), expected, caches, strict=False):
        # Some models begin with a new cache at a certain length; the next step does not know of it.
        if not done.tokens[-1].equal(token) or done.cache is not previous:
            break
        done += step
    if (left := steps - len(done.tokens)) > 0:
        [rest] = model.run([partial(extend, model.module, torch.cat([prompt, done.tokens]), left, done.cache)])
        done += rest
    return done


def _can_follow(cache: Any) -> bool:
    """Whether a cache is of transformers' own classes, which `_following` knows, and in use: GPT-1 leaves it empty."""
    kinds = {type(cache), *map(type, getattr(cache, "layers", []))}
    if any(kind.__module__ != "transformers.cache_utils" for kind in kinds):
        return False
    return bool(cache.get_seq_length())


@torch.inference_mode()
def _following(previous: Any, *, more: int = 0) -> Any:
    """A KV cache for a step that goes through each layer right after the step that fills `previous`.

    It has the right length from the beginning, since masks and positions are made of it. What a layer has stored (keys
    and values, or the states of recurrent layers and convolutions) is taken from `previous` when the step is in that
    layer, where it is complete.

    Args:
        previous: the cache of the step before.
        more: by how many tokens that step will extend it.
    """
    cache = copy.deepcopy(previous)
    awaited = set(range(len(cache.layers)))
    for layer in cache.layers:
        if more and getattr(layer, "keys", None) is not None:  # recurrent layers have no length
            layer.update(*(torch.zeros_like(x[..., :more, :]) for x in (layer.keys, layer.values)))

    def complete(layer: int) -> None:
        if layer in awaited:
            awaited.remove(layer)
            cache.layers[layer] = copy.deepcopy(previous.layers[layer])  # states change in place

    for name, position in _OF_A_LAYER.items():
        if (method := getattr(cache, name, None)) is not None:
            setattr(cache, name, partial(_completed, complete, method, position))
    return cache


def _completed(
    complete: Callable[[int], None], method: Callable[..., Any], position: int, *arguments: Any, **keywords: Any
) -> Any:
    """What a method of a cache returns, after the layer that it is called for was taken from the cache before."""
    complete(keywords["layer_idx"] if "layer_idx" in keywords else arguments[position])
    return method(*arguments, **keywords)
