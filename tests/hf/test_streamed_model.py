"""A model that is read part by part computes what the same model in memory does, to the bit."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperclone.errors import CheckpointError
from hyperclone.hf import logits, streamed_model
from hyperclone.hf.lockstep import Lockstep
from hyperclone.hf.logits import ModelOutputs
from hyperclone.hf.models import LoadedModel, quiet
from hyperclone.hf.parameter_names import saved_tensors
from hyperclone.hf.streamed_model import StreamedModel
from hyperclone.io.buffers import Buffers
from hyperclone.io.checkpoint import Checkpoint
from tests.helpers import rows_hybrid
from tests.helpers.models import MODELS, ONCE, REPRESENTATIVE, VOCAB
from tests.helpers.rows_more import ALIBI

ModelDir = Callable[..., Path]
PROBES, PROMPT = logits.make_probes(None, vocab=VOCAB, context=64, sizes=logits.FULL)
STEPS = 12
# What is read, and when, follows from the model's class: one row of each, and one of each kind of arithmetic.
NAMES = sorted({*{kind: name for name, (kind, _) in MODELS.items()}.values(), *REPRESENTATIVE, *ALIBI})


# Mamba 1 adds up its states in another order where one token follows after the other.
STEPS_TO_ROUNDING = {"jamba"}


def same(first: ModelOutputs, second: ModelOutputs) -> bool:
    """Every logit and token is the same; NaN is NaN."""
    pairs = zip([*first.logits, first.steps, first.tokens], [*second.logits, second.steps, second.tokens], strict=True)
    return all(
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all()) for a, b in pairs
    )


def _to_rounding(first: ModelOutputs, second: ModelOutputs) -> ModelOutputs:
    """The first with the steps of the second, if these are equal but for rounding."""
    close = first.steps.shape == second.steps.shape and torch.allclose(first.steps, second.steps, atol=1e-5)
    return replace(first, steps=second.steps) if close else first


def outputs(model: Any, wide: torch.dtype, rounding: torch.dtype | None = None) -> list[ModelOutputs]:
    """All that a proof asks of a model."""
    with quiet():
        if rounding is not None:
            model.round_to(rounding)
        plain = logits.run(model, PROBES, PROMPT, steps=STEPS)
        model.to(wide)
        return [plain, logits.run_teacher_forced(model, PROBES, PROMPT, plain.tokens)]


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONCE])
def test_logits_are_those_of_the_model_in_memory_to_the_bit(name: str, model_dir: ModelDir) -> None:
    path = model_dir(name)
    cases = [(torch.float32, torch.float64, torch.bfloat16), (torch.bfloat16, torch.float32, None)]
    for dtype, wide, rounding in cases if name in REPRESENTATIVE else cases[:1]:
        loaded, streamed = LoadedModel(path, dtype), StreamedModel(Checkpoint.open(path), dtype)
        assert streamed.problems == loaded.problems == []
        pairs: Iterable[tuple[ModelOutputs, ModelOutputs]] = zip(
            outputs(loaded, wide, rounding), outputs(streamed, wide, rounding), strict=True
        )
        if name in STEPS_TO_ROUNDING:
            pairs = ((_to_rounding(a, b), b) for a, b in pairs)
        compared = [same(*pair) for pair in pairs]
        assert compared == [True] * 2


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONCE])
def test_tensors_to_save_are_those_that_are_saved(name: str, model_dir: ModelDir) -> None:
    path = model_dir(name)
    saved = saved_tensors(LoadedModel(path, torch.float32).module)
    streamed = {
        name: tensor.clone() for name, tensor in StreamedModel(Checkpoint.open(path), torch.float32).tensors_to_save()
    }
    assert streamed.keys() == saved.keys()
    assert all(tensor.equal(saved[name]) for name, tensor in streamed.items())


RIGHT = [
    *((name, right) for name in ("llama-grouped-tied", "mistral-window", "bloom", "falcon-40b", "phi3-longrope")
      for right in (0, 1, 5, STEPS)),
    # States of recurrent layers and convolutions beside keys and values; a class without a cache.
    *((name, 5) for name in (*rows_hybrid.ROWS, "openai-gpt")),
]  # fmt: skip


@pytest.mark.quick(4)
@pytest.mark.parametrize(("name", "right"), RIGHT)
def test_foreseen_tokens_change_no_bit_whether_they_are_right_or_not(
    name: str, right: int, model_dir: ModelDir
) -> None:
    path = model_dir(name)
    loaded, streamed = LoadedModel(path, torch.float32), StreamedModel(Checkpoint.open(path), torch.float32)
    with quiet():
        plain = logits.run(loaded, [], PROMPT, steps=STEPS)
        wrong_after = torch.where(torch.arange(STEPS) < right, plain.tokens, (plain.tokens + 1) % VOCAB)
        for expected in (wrong_after, wrong_after[:right]):
            foreseen = logits.run(streamed, [], PROMPT, steps=STEPS, expected=expected)
            assert same(plain, _to_rounding(foreseen, plain) if name in STEPS_TO_ROUNDING else foreseen)


class Counting(Checkpoint):
    """Counts how often each tensor is read."""

    reads: Counter[str]

    def read(self, name: str, start: int = 0, stop: int | None = None, *, buffers: Buffers | None = None) -> Tensor:
        """As in a checkpoint."""
        self.reads[name] += 1
        return super().read(name, start, stop, buffers=buffers)


def counting(path: Path) -> Counting:
    """A checkpoint that counts."""
    checkpoint = Counting.open(path)
    assert isinstance(checkpoint, Counting)
    checkpoint.reads = Counter()
    return checkpoint


@pytest.mark.parametrize("name", ["llama-grouped-untied", "qwen3_next", "nemotron_h"])
def test_a_part_is_read_once_for_all_probes_and_once_more_for_each_token(name: str, model_dir: ModelDir) -> None:
    stored = counting(model_dir(name))
    model = StreamedModel(stored, torch.float32)
    assert not stored.reads
    with quiet():
        tokens = logits.run(model, PROBES, PROMPT, steps=STEPS).tokens
        assert set(stored.reads.values()) == {STEPS}
        assert stored.reads.keys() == stored.entries.keys()
        stored.reads.clear()
        logits.run(model, PROBES, PROMPT, steps=STEPS, expected=tokens)
        assert set(stored.reads.values()) == {2}  # probes and prompt, then all tokens
        stored.reads.clear()
        logits.run_teacher_forced(model, PROBES, PROMPT, tokens)
        assert set(stored.reads.values()) == {1}


@pytest.mark.parametrize("name", ["llama-grouped-tied", "mixtral"])
def test_no_more_than_one_part_is_in_memory(name: str, model_dir: ModelDir) -> None:
    model = StreamedModel(Checkpoint.open(model_dir(name)), torch.float32)
    most, load = 0, model._load

    def in_memory() -> int:
        tensors = {id(tensor): tensor for tensor in model.module.state_dict(keep_vars=True).values()}
        return sum(
            tensor.numel() for tensor in tensors.values() if tensor.untyped_storage().nbytes() > tensor.element_size()
        )

    def watched(weights: Any) -> None:
        nonlocal most
        load(weights)
        most = max(most, in_memory())

    model._load = watched  # type: ignore[method-assign]
    with quiet():
        logits.run(model, PROBES, PROMPT, steps=2)
    assert 0 < most <= model.at_once
    assert in_memory() == 0


def test_what_is_not_in_memory_is_nan(model_dir: ModelDir) -> None:
    model = StreamedModel(Checkpoint.open(model_dir("opt")), torch.float32)
    assert all(bool(parameter.isnan().all()) for parameter in model.module.parameters())
    for hooked in model.module.modules():
        hooked._forward_pre_hooks.clear()
    with torch.inference_mode():
        assert bool(model.module(input_ids=PROMPT[None]).logits.isnan().all())


def test_problems_with_weights_are_those_that_transformers_finds(model_dir: ModelDir) -> None:
    stored = Checkpoint.open(model_dir("llama-grouped-untied"))
    stored.entries["other.weight"] = stored.entries.pop("model.norm.weight")
    model = StreamedModel(stored, torch.float32)
    assert model.problems == ["model.norm.weight: missing keys", "other.weight: unexpected keys"]


def test_a_model_with_a_weight_outside_of_all_parts_is_refused(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = streamed_model._part_modules
    monkeypatch.setattr(streamed_model, "_part_modules", lambda module: list(intact(module))[:-1])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        StreamedModel(Checkpoint.open(model_dir("llama-grouped-untied")), torch.float32)


def test_calls_pass_gates_together_and_return_in_order() -> None:
    log: list[object] = []
    lockstep = Lockstep(lambda number: log.append(number))

    def call(name: str) -> str:
        for number in (0, 1):
            lockstep.gate(number)
            log.append(name)
        return name

    assert lockstep.run([lambda: call("a"), lambda: call("b")]) == ["a", "b"]
    assert log == [0, "a", "b", 1, "a", "b"]
    lockstep.gate(7)  # outside of run
    assert log[-1] == 7


def test_an_error_in_one_call_ends_all_and_reaches_the_caller() -> None:
    lockstep = Lockstep(lambda number: None)
    passed = []

    def fails() -> None:
        lockstep.gate(0)
        raise ValueError("as expected")

    def goes_on() -> None:
        lockstep.gate(0)
        lockstep.gate(1)
        passed.append(1)

    before = threading.active_count()
    with pytest.raises(ValueError, match="as expected"):
        lockstep.run([goes_on, fails])
    assert not passed
    assert threading.active_count() == before


def test_a_gate_that_cannot_open_ends_all_calls() -> None:
    def refuse(number: int) -> None:
        raise CheckpointError("unreadable")

    lockstep = Lockstep(refuse)
    before = threading.active_count()
    with pytest.raises(CheckpointError):
        lockstep.run([lambda: lockstep.gate(0)] * 3)
    assert threading.active_count() == before
