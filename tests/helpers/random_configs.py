"""Random small models of every known architecture, and random growths of them.

A config starts as that of its config class in transformers. Sizes go to the fields that the family file names for its
axes; every yes-or-no field of the class is generated, and so is every field that FIELDS knows by name. A new family,
or a new field of `Growth`, is generated without a change here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from hyperclone import Growth
from hyperclone.architectures import registry
from hyperclone.architectures.expression import evaluate, lead_field
from hyperclone.architectures.family import Family
from tests.helpers import rows_decoders, rows_hybrid, rows_mixtures, rows_stacked

# Yes-or-no fields that say what a model returns or is used for, not what it computes.
_NOT_DRAWN = {
    "output_hidden_states", "output_attentions", "output_router_logits", "return_dict", "use_cache", "is_decoder",
    "is_encoder_decoder", "add_cross_attention", "summary_use_proj", "summary_proj_to_labels", "tie_encoder_decoder",
    "use_bidirectional_attention",  # no next-token model
}  # fmt: skip
_MULTIPLIER = st.sampled_from([0.2, 0.5, 1.0, 3.0])
_EPS = st.sampled_from([1e-6, 1e-5, 1e-3])
_ACTIVATION = st.sampled_from(["relu", "gelu", "silu", "gelu_pytorch_tanh"])
_CONTEXT = st.integers(24, 40)
_OPTIONAL = {"clip_qkv": 0.5, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}

# Fields by name, generated where a config class has them.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.sampled_from([None, None, None, value, 4 * value]) for name, value in _OPTIONAL.items()},
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), _MULTIPLIER),
    **dict.fromkeys(("logits_scaling", "logit_scale"), _MULTIPLIER),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), _EPS),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation", "activation_function"), _ACTIVATION),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), _CONTEXT),
    "softmax_scale": st.sampled_from([None, None, None, None, 0.3]),
    "query_pre_attn_scalar": st.sampled_from([4, 16, 100]),
    "num_ln_in_parallel_attn": st.sampled_from([None, 1, 2]),
    "decoder_sparse_step": st.sampled_from([1, 1, 2]),
    "max_window_layers": st.integers(0, 3),
    "num_experts_per_tok": st.integers(1, 2),
    "original_max_position_embeddings": st.just(16),
}

# Types whose classes compare fields that would be drawn apart, or need lists: theirs start as a row of MODELS.
_ROWS: dict[str, list[dict[str, Any]]] = {}
for _rows in (rows_decoders, rows_mixtures, rows_hybrid, rows_stacked):
    for _model_type, _row in (_rows.ROWS | getattr(_rows, "MULTIPLIED", {})).values():
        _ROWS.setdefault(_model_type, []).append(_row)
DRAWN = sorted(registry.families().keys() - _ROWS.keys())  # whole configs
VARIED = sorted(_ROWS)  # rows with some fields drawn anew

_FACTORS = (1.5, 2, 2, 2.5, 3, 4)


@dataclass(frozen=True)
class Case:
    """A model to make, and how to grow it; `bare` leaves out of config.json what is the class's default anyway."""

    model_type: str
    config: dict[str, Any]
    dtype: str
    seed: int
    bare: bool
    growth: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn, model_type: str) -> Case:
    """A model of one type and a growth that may fit it."""
    family = registry.families()[model_type]
    if model_type in _ROWS:
        config = draw(_varied(model_type))
        sizes = _all_sizes(model_type, config)
    else:
        sizes = draw(_sizes(family))
        config = draw(_configs(model_type, sizes))
    if lead_field(family.axes["ffn"].size) is None:
        del sizes["ffn"]  # it follows hidden
    return Case(
        model_type,
        config,
        draw(st.sampled_from(["float32", "float32", "bfloat16", "float16"])),
        draw(st.integers(0, 99)),
        draw(st.booleans()),
        draw(_growths(sizes, alibi=any("ALiBi" in reason for reason in family.refuse.values()))),
    )


def _all_sizes(model_type: str, config: dict[str, Any]) -> dict[str, int]:
    """Sizes of the axes, and layers, of a config whose class fills in what it leaves out."""
    from transformers import AutoConfig

    family = registry.families()[model_type]
    try:
        whole = json.loads(AutoConfig.for_model(model_type, **config).to_json_string(use_diff=False))
        return {**family.sizes(whole), "layers": family.depth(whole)}
    except Exception:  # unmodified transformers refuses it, in whatever way, or it is no such model
        reject()


@st.composite
def _varied(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """A row of MODELS with up to two yes-or-no fields and all fields of FIELDS with one value drawn anew."""
    from transformers import AutoConfig

    config = dict(draw(st.sampled_from(_ROWS[model_type])))
    defaults = AutoConfig.for_model(model_type).to_dict()
    switches = [f for f, value in defaults.items() if isinstance(value, bool) and f not in _NOT_DRAWN]
    for field in draw(st.lists(st.sampled_from(switches), unique=True, max_size=2)):
        config[field] = draw(st.booleans())
    for field in (field for field in FIELDS if field in defaults and field != "num_experts_per_tok"):
        if isinstance(defaults[field], int | float | str) and draw(st.booleans()):
            config[field] = draw(FIELDS[field])
    return config


@st.composite
def _sizes(draw: st.DrawFn, family: Family) -> dict[str, int]:
    """A size for every axis."""
    head_dim = draw(st.sampled_from([4, 8, 16]))
    # Not all architectures have KV heads of their own; where they do, one is multi-query attention.
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if "heads" in family.axes:
        group = 1
    free = lead_field(family.axes["head_dim"].size) is not None and draw(st.booleans())
    hidden = kv_heads * group * (draw(st.sampled_from([4, 6, 10])) if free else head_dim)
    sizes = {
        "hidden": hidden, "ffn": draw(st.integers(3, 24)), "head_dim": head_dim, "kv_heads": kv_heads, "group": group,
        "heads": kv_heads, "vocab": draw(st.integers(20, 60)), "rotary": draw(st.sampled_from([2, 4])),
    }  # fmt: skip
    for name, axis in family.axes.items():
        if name not in sizes:  # the number of experts, and sizes that grow with another
            sizes[name] = draw(st.integers(2, 6))
            if axis.grows_with and draw(st.booleans()):
                sizes[name] = sizes[axis.grows_with]
    return {name: size for name, size in sizes.items() if name in family.axes} | {"layers": draw(st.integers(1, 3))}


@st.composite
def _configs(draw: st.DrawFn, model_type: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Fields that differ from the config class's defaults."""
    from transformers import AutoConfig

    family, defaults = registry.families()[model_type], AutoConfig.for_model(model_type).to_dict()
    config: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": draw(st.sampled_from([None, 0]))}
    for field, value in defaults.items():
        if field in FIELDS:
            config[field] = draw(FIELDS[field])
        elif isinstance(value, bool) and field not in _NOT_DRAWN:
            config[field] = draw(st.booleans())
        elif isinstance(value, dict) and (inner := [name for name in value if name in FIELDS]):
            config[field] = {name: draw(FIELDS[name]) for name in inner}  # MPT's attn_config
    depth = sizes["layers"]
    config[family.layers] = depth
    for name, axis in family.axes.items():
        field = lead_field(axis.size)
        if field and not (name == "head_dim" and axis.size != field and _implied(sizes)):
            config.setdefault(field, sizes[name])
    for field, text in family.write.items():
        config[field] = evaluate(text, sizes)
    if "sliding_window" in defaults:  # a class that has layers with a window by default needs one
        needed = "layer_types" in defaults and defaults["sliding_window"] is not None
        config["sliding_window"] = draw(st.sampled_from([3, 12] if needed else [None, 3, 12]))
    if "layer_types" in defaults and draw(st.booleans()):  # else the class makes the list
        windows = config["sliding_window"] and config.get("use_sliding_window", True)
        kind = st.sampled_from(["full_attention", "sliding_attention"] if windows else ["full_attention"])
        config["layer_types"] = draw(st.lists(kind, min_size=depth, max_size=depth))
    if "no_rope_layers" in defaults and draw(st.booleans()):
        config["no_rope_layers"] = draw(st.lists(st.integers(0, 1), min_size=depth, max_size=depth))
    if "mlp_only_layers" in defaults:
        config["mlp_only_layers"] = draw(st.lists(st.integers(0, depth - 1), unique=True, max_size=1))
    if "partial_rotary_factor" in (defaults.get("rope_parameters") or {}):
        partial = draw(st.sampled_from([0.5, 1.0]))
        config["rope_parameters"] = {**defaults["rope_parameters"], "partial_rotary_factor": partial}
    return config


def _implied(sizes: dict[str, int]) -> bool:
    """The config need not name head_dim."""
    return sizes["hidden"] == sizes["head_dim"] * sizes.get("heads", sizes.get("kv_heads", 1) * sizes.get("group", 1))


@st.composite
def _growths(draw: st.DrawFn, sizes: dict[str, int], *, alibi: bool) -> dict[str, Any]:
    """Arguments of a Growth; sizes that do not go together are generated too, and refused.

    `alibi`: the number of heads cannot grow, so what can is generated more often.
    """
    names = [field.name for field in fields(Growth)]
    heads = sizes.get("heads", sizes.get("kv_heads", 1) * sizes.get("group", 1))
    old = {**sizes, "heads": heads}
    free: list[str] = [name for name in ("hidden", "heads", "ffn") if name in old]
    growth: dict[str, Any] = {}
    ways = ["width", "width", "together", "together", "apart"]
    if "heads" in sizes and "head_dim" in names:
        ways += ["longer"] * (20 if alibi else 2)
    way = draw(st.sampled_from(ways))
    if way == "width":
        whole = [f for f in _FACTORS if all(f * old[name] % 1 == 0 for name in free)]
        growth["width"] = draw(st.sampled_from(whole))
    if way == "longer":
        growth["width"], growth["head_dim"] = draw(st.sampled_from([("2", "2x"), ("3", "3x")]))
        if "ffn" in free:
            growth["ffn"] = draw(st.none() | _one_size(sizes["ffn"]))
    if way == "together":  # hidden = heads x head_dim stays true
        more = heads + draw(st.integers(0, 3 * heads))
        growth["heads"] = _spelled(more, heads)
        growth["hidden"] = _spelled(sizes["hidden"] // heads * more, sizes["hidden"])
        if "ffn" in free:
            growth["ffn"] = draw(_one_size(sizes["ffn"])) if more > heads else "2x"
    rare = [name for name in names if name in old and name not in ("hidden", "ffn", "heads", "experts")]
    for name in free if way == "apart" else ():
        if draw(st.booleans()):
            growth[name] = draw(_one_size(old[name]))
    growth = growth or {free[-1]: "2x"}
    if "experts" in names and draw(st.integers(0, 19)) == 7:
        growth["experts"], growth["top_k"] = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    for name in rare:
        if draw(st.integers(0, 7)) == 3:
            growth[name] = draw(_one_size(old[name]))
    growth["expansion"] = draw(st.sampled_from(["symmetric", "diagonal"]))
    growth["noise"] = draw(st.sampled_from(["split", "split", "gaussian", "none"]))
    growth["snr_db"] = draw(st.sampled_from([10.0, 5.0, 20.0, 30.0]))
    growth["seed"] = draw(st.integers(0, 9))
    growth["untie"] = draw(st.booleans())
    growth["allow_rounding"] = draw(st.sampled_from([True, True, True, False]))
    growth["dtype"] = draw(st.sampled_from([None, None, "bf16", "fp16", "fp32", "fp64"]))
    growth["depth_mode"] = draw(st.sampled_from(["identity", "identity", "stack"]))
    return growth


def _one_size(old: int) -> st.SearchStrategy[str | int]:
    """The present size, a multiple, or any size up to three times as much."""
    return st.sampled_from(["1x", "2x", "3x"]) | st.integers(old, 3 * old).map(lambda size: _spelled(size, old))


def _spelled(size: int, old: int) -> str | int:
    """A size; as a factor, where it could be read as either."""
    return f"{size / old:.12g}x" if size % old == 0 or size <= 8 else size
