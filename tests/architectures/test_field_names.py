"""A config field may have another name that the config class accepts, too: `[aliases]` of the family files."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hyperclone
from hyperclone import Growth
from hyperclone.architectures.registry import families
from tests.helpers import unmodified
from tests.helpers.edits import edit_json
from tests.helpers.models import MODELS, ONCE
from tests.helpers.rows_more import ALIBI

ModelDir = Callable[..., Path]
# What config classes read beside their fields: no other name of one, or one that says how layers are made.
_NO_ALIAS = {
    "sliding_window_pattern", "partial_rotary_factor", "layer_types", "full_attention_interval",
    "first_k_dense_replace", "moe_layer_freq", "global_attn_every_n_layers",
    "hybrid_override_pattern", "mtp_hybrid_override_pattern",
    "q_head_dim", "head_dim", "rope_scaling", "sliding_window_size",
}  # fmt: skip
# Other names that constructors take, of which the class has no table.
_TAKEN = {
    "n_embed": "hidden_size", "tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size",
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_expand": "expand",
    "mamba_conv_bias": "use_conv_bias", "mamba_chunk_size": "chunk_size", "mamba_dt_min": "time_step_min",
    "mamba_dt_max": "time_step_max", "mamba_dt_limit": "time_step_limit", "mamba_dt_init_floor": "time_step_floor",
}  # fmt: skip
# Fields that the class compares with others, so that no value of a test's is accepted alone.
_COMPARED = {
    ("gpt_neo", "num_layers"), ("internlm3", "attention_bias"), ("internlm3", "mlp_bias"), ("mellum", "num_mtp_layers"),
}  # fmt: skip
# The first row of each model type, and one that grows without new layers, which write the config once more.
_FIRST = {model_type: name for name, (model_type, _) in reversed((MODELS | ALIBI).items()) if name not in ONCE}
ROWS = ["gpt2-other-scales", *(name for model_type, name in _FIRST.items() if families()[model_type].aliases)]


def config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def pairs_of_class(model_type: str) -> set[frozenset[str]]:
    """Names of the same field: those of the class's attribute map, and arguments that its constructor knows besides."""
    cls = config_class(model_type)
    own = inspect.getsource(cls.__post_init__) if "__post_init__" in inspect.getsource(cls) else ""
    read = set(re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", own)) - _NO_ALIAS
    made = {name for name in dir(cls) if isinstance(getattr(cls, name), property)}  # from other fields
    pairs = {frozenset(pair) for pair in cls.attribute_map.items() if pair[1] not in made}
    return pairs | {frozenset((name, _TAKEN[name])) if name in _TAKEN else frozenset((name,)) for name in read}


@pytest.mark.parametrize("model_type", sorted(families()))
def test_the_table_has_the_names_of_the_config_class(model_type: str) -> None:
    family = families()[model_type]
    assert {frozenset(pair) for pair in family.aliases.items()} == pairs_of_class(model_type)
    for alias, name in family.aliases.items():
        default = getattr(config_class(model_type)(), name, None)
        if (model_type, name) in _COMPARED or isinstance(default, list | tuple):
            continue
        old, new = {bool: (not default, default), float: (12.0, 24.0), str: ("relu", "silu")}.get(
            type(default), (12, 24)
        )
        for config in ({alias: old}, {name: old}, {alias: old, name: new}, {name: new, alias: old}):
            read = getattr(config_class(model_type).from_dict(dict(config)), name)
            assert read == family.fields(config)[name] == old, config


def nonsense(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 2
        case list():
            return value[::-1]
    return "relu"


def renamed(source: Path, target: Path, *, both: bool) -> Path:
    """A copy of a model whose config has the other names of its fields, or both names, of which one says nonsense."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    done: set[str] = set()
    for alias, name in families()[config["model_type"]].aliases.items():
        if name in done or config.get(name, config.get(alias)) is None:
            continue
        done.add(name)
        old, new = (name, alias) if name in config else (alias, name)
        value = config.pop(old)
        config |= {alias: value, name: nonsense(value)} if both else {new: value}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.quick(3)
@pytest.mark.parametrize("both", [False, True], ids=["other name", "both names"])
@pytest.mark.parametrize("name", ROWS)
def test_the_grown_config_has_the_sources_names_and_transformers_reads_them(
    name: str, both: bool, model_dir: ModelDir, tmp_path: Path
) -> None:
    model_type = (MODELS | ALIBI)[name][0]
    growth = Growth(width=2, head_dim="2x") if name in ALIBI else Growth(width=2, layers="2x")
    if name == "gpt2-other-scales" or any(key in families()[model_type].refuse for key in ("identity", "deeper")):
        growth = Growth(width=2)
    source = renamed(model_dir(name), tmp_path / "source", both=both)
    grown = hyperclone.grow(source, tmp_path / "grown", growth, proof="structural")
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, grown.path))
    aliases = families()[model_type].aliases
    both_names = {*aliases, *aliases.values()}
    before_named, after_named = ({key for key in both_names if c.get(key) is not None} for c in (before, after))
    assert before_named == after_named
    assert unmodified.distance(grown.path, model_dir(name)) < unmodified.SAME
    if both:
        assert all(after[alias] == after[own] for alias, own in aliases.items() if alias in after and own in after)
    hyperclone.collapse(grown.path, tmp_path / "collapsed")
    assert json.loads((tmp_path / "collapsed/config.json").read_text()) == before
    assert hyperclone.verify(source, grown.path, proof="structural").passed


def test_a_model_that_transformers_saved_again_is_compared_by_the_fields_that_it_means(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = renamed(model_dir("gpt2-tied"), tmp_path / "source", both=False)
    grown = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), proof="structural").path
    aliased = json.loads((grown / "config.json").read_text())
    own = {name: aliased[alias] for alias, name in families()["gpt2"].aliases.items()}
    edit_json(grown / "config.json", **own, **dict.fromkeys(families()["gpt2"].aliases))
    assert hyperclone.verify(source, grown, proof="structural").passed
    edit_json(grown / "config.json", n_head=own["n_head"] * 2)
    assert any("n_head" in failure for failure in hyperclone.verify(source, grown, proof="structural").failures)
