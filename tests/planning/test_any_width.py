"""Which tensors a growth with padding channels multiplies, and by how much, in every kind of family."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

import pytest

from hyperclone import Growth
from hyperclone.architectures import layout
from hyperclone.planning import any_width, planner
from tests.planning.test_messages import source

# At 1.5x a = 2/3 of the channels are copies. Of each kind of tensor, by which power of sqrt(a) it is multiplied; what
# is not listed stays as it is. A tied head adds the embedding's power, inverted, to the last norm.
SCALED_NORMS: dict[str, dict[str, int]] = {  # gains, and eps in the config
    "llama-grouped-tied": {"input_layernorm.weight": 1, "post_attention_layernorm.weight": 1, "model.norm.weight": 1},
    "neox-parallel": {"input_layernorm.weight": 1, "post_attention_layernorm.weight": 1, "final_layer_norm.weight": 1},
    "gpt2-untied": {"ln_1.weight": 1, "ln_2.weight": 1, "ln_f.weight": 1},
    # The model multiplies its embedding by the root of the hidden size, which is 1/a times as large.
    "gemma2": {
        "embed_tokens.weight": 1, "input_layernorm.weight": 1, "post_attention_layernorm.weight": 1,
        "pre_feedforward_layernorm.weight": 1, "post_feedforward_layernorm.weight": 1,
    },
}  # fmt: skip
SCALED_STREAM: dict[str, dict[str, int]] = {  # what writes it, and what reads it or the gain in front of that
    "qwen3-grouped-tied": {
        "embed_tokens.weight": -1, "o_proj.weight": -1, "down_proj.weight": -1, "input_layernorm.weight": 1,
        "post_attention_layernorm.weight": 1, "model.norm.weight": 1 + 1,
    },
    "olmo": {  # norms without gains
        "embed_tokens.weight": -1, "o_proj.weight": -1, "down_proj.weight": -1, "q_proj.weight": 1, "k_proj.weight": 1,
        "v_proj.weight": 1, "gate_proj.weight": 1, "up_proj.weight": 1, "lm_head.weight": 1,
    },
    "olmo2-tied-biases": {  # norms behind the blocks, whose gains stay
        "embed_tokens.weight": -1, "o_proj.weight": -1, "o_proj.bias": -1, "down_proj.weight": -1, "q_proj.weight": 1,
        "k_proj.weight": 1, "v_proj.weight": 1, "gate_proj.weight": 1, "up_proj.weight": 1, "model.norm.weight": 1 + 1,
    },
    "opt": {  # the embedding's width is another axis, but the same stream; biases of norms go with their tied head
        "embed_tokens.weight": -1, "embed_positions.weight": -1, "out_proj.weight": -1, "out_proj.bias": -1,
        "fc2.weight": -1, "fc2.bias": -1, "self_attn_layer_norm.weight": 1, "final_layer_norm.weight": 1,
        "decoder.final_layer_norm.weight": 1 + 1, "decoder.final_layer_norm.bias": 0 + 1,
    },
    "opt-plain-norms": {  # untied, since no norm can carry the head's share
        "embed_tokens.weight": -1, "embed_positions.weight": -1, "out_proj.weight": -1, "out_proj.bias": -1,
        "fc2.weight": -1, "fc2.bias": -1, "q_proj.weight": 1, "k_proj.weight": 1, "v_proj.weight": 1, "fc1.weight": 1,
        "lm_head.weight": 1,
    },
    "phi-qk-norms": {
        "embed_tokens.weight": -1, "dense.weight": -1, "dense.bias": -1, "fc2.weight": -1, "fc2.bias": -1,
        "input_layernorm.weight": 1, "final_layernorm.weight": 1,
    },
    "qwen3-moe-first-dense": {
        "embed_tokens.weight": -1, "o_proj.weight": -1, "down_proj.weight": -1, "input_layernorm.weight": 1,
        "post_attention_layernorm.weight": 1, "model.norm.weight": 1,
    },
}  # fmt: skip
EPS = {"llama-grouped-tied": "rms_norm_eps", "neox-parallel": "layer_norm_eps", "gpt2-untied": "layer_norm_epsilon",
       "gemma2": "rms_norm_eps"}  # fmt: skip


@pytest.mark.parametrize("case", (SCALED_NORMS | SCALED_STREAM).items(), ids=SCALED_NORMS | SCALED_STREAM)
def test_every_tensor_is_multiplied_as_its_place_beside_the_norms_asks(case: tuple[str, dict[str, int]]) -> None:
    name, powers = case
    heads = "2x" if name == "olmo2-tied-biases" else "1.5x"  # its norms of queries and keys need even copies
    plan = planner.make_plan(source(name), Growth(hidden="1.5x", heads=heads, noise="none"))
    assert "hidden" in plan.padding
    used = set()
    for tensor in plan.tensors:
        ends = [end for end in powers if re.search(rf"(^|\.){re.escape(end)}$", tensor.name)]
        end = max(ends, key=len, default="")
        if end == "final_layer_norm.weight" and ".layers." not in tensor.name:
            end = "decoder.final_layer_norm.weight" if name == "opt" else end
        used.add(end)
        assert tensor.factor == pytest.approx((2 / 3) ** (powers.get(end, 0) / 2), rel=1e-15), tensor.name
    assert used >= powers.keys()
    changed = {field for field, value in plan.config.items() if "eps" in field and value != plan.source_config[field]}
    assert changed == ({EPS[name]} if name in EPS else set())
    if name in EPS:
        assert plan.config[EPS[name]] == pytest.approx(plan.source_config[EPS[name]] * 2 / 3, rel=1e-15)


def test_a_tensor_with_two_padded_axes_is_multiplied_for_both() -> None:
    whole = source("olmo")  # a family whose norms have no gains
    axes = {
        "hidden": any_width.PaddedAxis(Fraction(2, 3), None, frozenset(), {True: False, False: False}),
        "ffn": any_width.PaddedAxis(Fraction(4, 5), None, frozenset(), {True: False, False: True}),
    }
    factor = functools.partial(any_width.squared_factor, axes, whole.family)
    for source_name, line, expected in (
        ("model.layers.0.mlp.up_proj.weight", "ffn <- hidden", Fraction(5, 4) * Fraction(2, 3)),
        ("model.layers.0.mlp.down_proj.weight", "hidden <- ffn", Fraction(3, 2) * Fraction(4, 5)),
        ("lm_head.weight", "vocab <- ffn", Fraction(1)),  # a gain outside of the layers stands in front
        ("lm_head.weight", "vocab <- hidden", Fraction(2, 3)),
        ("model.embed_tokens.weight", "vocab ffn", Fraction(5, 4)),
        ("model.embed_tokens.weight", "vocab head_dim", Fraction(1)),
    ):
        assert factor(layout.parse(line), source=source_name) == expected, line


def test_where_every_channel_is_a_copy_nothing_is_multiplied() -> None:
    plan = planner.make_plan(source("qwen3-grouped-tied"), Growth(hidden="3x", noise="none"))
    assert {tensor.factor for tensor in plan.tensors} == {1.0}
    assert plan.config["rms_norm_eps"] == plan.source_config["rms_norm_eps"]


def test_the_share_of_copies_counts_every_whole_copy() -> None:
    plan = planner.make_plan(source("llama-multihead"), Growth(hidden=100, noise="none"))  # 3 x 32 of 100
    (norm,) = [tensor for tensor in plan.tensors if tensor.name == "model.norm.weight"]
    assert norm.factor == pytest.approx(0.96**0.5, rel=1e-15)
    assert plan.config["rms_norm_eps"] == pytest.approx(0.96e-6, rel=1e-15)
