"""Training steps for the tests of the scaling rule: the same batches for source and clone, in float64 throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.conversion.in_memory import InMemory
from hyperclone.expansion.noise import normal_quantiles
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from tests.helpers.models import MODELS, VOCAB, build

CORE = [
    "llama-grouped-tied",
    "llama-grouped-untied",
    "mistral-window",
    "neox-parallel",
    "neox-tied",
    "opt",
    "opt-projected-post-norm",
]
# One row or more of every family in whose arithmetic something is different.
FAMILIES = [
    *CORE,
    "llama-biases",
    "opt-untied",
    "gpt2-tied",
    "gpt2-untied",
    "qwen2-grouped-tied",
    "qwen3-grouped-tied",
    "olmo2-tied-biases",
    "falcon-40b",
    "cohere",
    "gemma",
]
GEMMA = {
    "vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
NO_DROPOUT: dict[str, dict[str, Any]] = {
    "opt": {"dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and softmax of transformers compute in float32; keep float64, or differences of 1e-10 would be lost.

    A tensor that is float64 stays so when float32 is asked for. Everything else is unmodified.
    """
    normal_quantiles()  # cached: made in float64, the table would outlive this test
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def keep(self: Tensor, *args: Any, **values: Any) -> Tensor:
        narrows = self.dtype is torch.float64 and torch.float32 in (*args, values.get("dtype"))
        return self if narrows else to(self, *args, **values)

    def same_type(x: Tensor, *args: Any, **values: Any) -> Tensor:
        if x.dtype is torch.float64:
            values = {name: value for name, value in values.items() if name != "dtype"}
        return softmax(x, *args, **values)

    monkeypatch.setattr(torch.Tensor, "to", keep)
    monkeypatch.setattr(torch.Tensor, "float", lambda self, **values: keep(self, torch.float32, **values))
    monkeypatch.setattr(torch.nn.functional, "softmax", same_type)
    monkeypatch.setitem(MODELS, "gemma", ("gemma", GEMMA))


def source(name: str) -> Any:
    """A model of MODELS in training mode, float64, without dropout."""
    return in_double(build(name, **NO_DROPOUT.get(MODELS[name][0], {})))


def in_double(model: Any) -> Any:
    """The model in float64 and training mode; Gemma's root of hidden_size, which it keeps in fp32, as well."""
    model.set_experts_implementation("eager")  # the grouped kernels of mixtures of experts know no fp64
    for module in model.double().modules():
        if isinstance(getattr(module, "embed_scale", None), Tensor):
            module.embed_scale = torch.tensor(model.config.hidden_size, dtype=torch.float64).sqrt()
    return model.train()


def grow(model: Any, growth: Growth) -> tuple[Any, Plan]:
    """The grown model, in training mode, and its plan."""
    made = planner.make_plan(InMemory(model), growth)
    return in_double(hyperclone.grow_model(model, growth)), made


def batches(count: int, *, seed: int = 0) -> list[Tensor]:
    """(2, 8) token ids each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (2, 8), generator=generator) for _ in range(count)]


def train(model: Any, optimizers: Iterable[torch.optim.Optimizer], data: list[Tensor]) -> list[float]:
    """The loss before each step."""
    losses = []
    for ids in data:
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


LR, DECAY = {"adamw": 3e-3, "sgd": 3e-2, "muon": 1e-2}, 0.1
MAKE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95)),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True),
    "muon": lambda groups: torch.optim.Muon(groups),
}


def in_trainers_groups(model: Any) -> tuple[list[Any], list[Any]]:
    """Parameters that decay and those that do not, by transformers' own rule and in its order."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))
    named = list(model.named_parameters())
    return [p for n, p in named if n in decayed], [p for n, p in named if n not in decayed]


def plain(model: Any, optimizer: str) -> torch.optim.Optimizer:
    """The source's optimizer, as Trainer would build its groups; made without our code."""
    decayed, rest = in_trainers_groups(model)
    common: dict[str, Any] = {"lr": LR[optimizer]}
    return MAKE[optimizer](
        [{"params": decayed, "weight_decay": DECAY, **common}, {"params": rest, "weight_decay": 0.0, **common}]
    )
