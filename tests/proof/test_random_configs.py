"""Whatever the architecture, its sizes and the growth: the same logits, the same model in transformers, and back.

hypothesis draws models and growths (random_configs.py). The reference is transformers in float64 and the bytes
of the source's safetensors; hyperclone's own proof takes no part. A growth may be refused, with a reason; that not too
many are is checked for every architecture. By default there are a few examples of each, always the same;
HYPOTHESIS_PROFILE=long draws many, and others each time.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, reject
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.architectures import registry
from hyperclone.hf.models import quiet
from hyperclone.hf.tiny_models import randomize_parameters
from tests.helpers.examples import examples, scale
from tests.helpers.random_configs import DRAWN, VARIED, Case, cases

pytestmark = pytest.mark.matrix

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
_EXACT = 5e-6  # of the logits; norms compute in fp32 inside transformers, whatever the model's type
_SPREAD = 16  # what the grown model may be off, in units of what it does to a model to move its weights by an ulp
_FIT = 0.1  # at least this share of the cases of an architecture must be accepted (MPT: only larger heads)

THOROUGH = examples(
    3,  # that are not refused
    derandomize=scale() <= 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=True,
)


@pytest.mark.parametrize("model_type", DRAWN if scale() <= 1 else [*DRAWN, *VARIED])
def test_any_growth_of_any_model_keeps_its_function_and_can_be_undone(model_type: str) -> None:
    seen: Counter[str] = Counter()

    @THOROUGH
    @given(cases(model_type))
    def holds(case: Case) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            reason = hold(case, Path(scratch))
        seen[reason or "kept"] += 1
        if reason:
            event(f"refused: {reason}")
            reject()

    holds()
    assert seen["kept"] >= _FIT * seen.total(), dict(seen)


def hold(case: Case, scratch: Path) -> str | None:
    """The contract for one case; returns the reason for which hyperclone refuses it, if it does."""
    source, grown, again = scratch / "source", scratch / "grown", scratch / "again"
    _make(case, source)
    try:
        growth = Growth(**case.growth)
        plan = hyperclone.grow(source, grown, growth, proof="none").plan
    except HypercloneError as refusal:
        return _reason(refusal)

    stored = _DTYPES[growth.dtype] if growth.dtype else getattr(torch, case.dtype)
    exact = growth.noise != "gaussian" and not plan.rounds
    if plan.keeps_function:
        ulp = torch.finfo(torch.float32 if exact or stored == torch.float64 else stored).eps
        runs = _answers(source, stored), _answers(grown), _answers(source, stored, ulp)
        for what, one, two, moved in zip(("plain", "cached", "padded"), *runs, strict=False):
            off, allowed = _distance(two, one), _EXACT + _SPREAD * _distance(moved, one)
            assert off <= allowed, f"{what}: logits are off by {off:.2e} of their size, allowed are {allowed:.2e}"

    hyperclone.collapse(grown, again)
    old, new, wide = (_weights(path) for path in (source, again, grown))
    assert new.keys() == old.keys() - set(plan.dropped)
    grown_name = {tensor.source: tensor.name for tensor in plan.tensors if tensor.original}
    for name in new:
        expected, copies = old[name].to(stored), wide[grown_name[name]]
        assert new[name].dtype == stored
        if exact:
            assert new[name].equal(expected), name
        else:  # each share was rounded once, and a factor put in and taken out again
            shares = copies.numel() / expected.numel() * float(copies.abs().max())
            size = shares + 2 * float(expected.abs().max()) + 2 * plan.family.gain_offset
            assert (new[name].double() - expected.double()).abs().max() <= size * torch.finfo(stored).eps, name
    return None


def _reason(refusal: HypercloneError) -> str:
    assert refusal.problem
    assert refusal.details.keys() & {"cure", "expected", "field"}, refusal
    return refusal.problem


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _make(case: Case, path: Path) -> None:
    """The model of a case, saved by unmodified transformers; a case that these refuse is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet():
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.model_type, **case.config))
            randomize_parameters(model, seed=case.seed).to(getattr(torch, case.dtype)).save_pretrained(path)
            if case.bare:
                _strip(path / "config.json", case)
            _answers(path)
    except Exception as error:
        event(f"unmodified transformers refuses it: {type(error).__name__}: {str(error)[:60]}")
        reject()


def _strip(file: Path, case: Case) -> None:
    """Leave out what the config class assumes anyway for a model of this type and depth."""
    from transformers import AutoConfig

    depth = registry.families()[case.model_type].layers
    unmodified = AutoConfig.for_model(case.model_type, **{depth: case.config[depth]})
    assumed = json.loads(unmodified.to_json_string(use_diff=False))
    config = json.loads(file.read_text())
    needed = ("model_type", depth)
    file.write_text(json.dumps({k: v for k, v in config.items() if k in needed or k not in assumed or assumed[k] != v}))


@torch.inference_mode()
def _answers(path: Path, rounded_to: torch.dtype = torch.float64, moved: float = 0.0) -> list[torch.Tensor]:
    """Float64 logits of a batch, of a token after its cache, and of a batch padded on the left.

    Args:
        rounded_to: the type to which the weights are rounded first.
        moved: then every weight is moved by up to this share of itself.
    """
    from transformers import AutoModelForCausalLM

    draw = torch.Generator().manual_seed(1)
    with quiet():
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float64, output_loading_info=True, experts_implementation="eager"
        )
        assert not any(info.values()), info
        for parameter in model.parameters():
            exact = parameter.to(rounded_to).double()
            parameter.copy_(
                exact if not moved else exact * (1 + moved * (torch.rand(exact.shape, generator=draw) - 0.5))
            )
        ids = torch.randint(3, model.config.vocab_size, (2, 13), generator=torch.Generator().manual_seed(2))
        plain = model(input_ids=ids[:, :12], use_cache=True)
        cache = getattr(plain, "past_key_values", None)  # GPT-1's class has none: it sees all tokens again
        cached = model(input_ids=ids if cache is None else ids[:, 12:], past_key_values=cache, use_cache=True)
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[0, :5] = 0
        padded = model(input_ids=ids[:, :12], attention_mask=mask, use_cache=False).logits[mask.bool()]
    found = [plain.logits, cached.logits]
    # Gemma 2 in unmodified transformers gives NaN where a window holds nothing but padding.
    return [*found, padded] if bool(padded.isfinite().all()) else found


def _weights(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(path / "model.safetensors")
    return weights
