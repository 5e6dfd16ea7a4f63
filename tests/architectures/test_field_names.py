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
from tests.helpers.models import MODELS
from tests.helpers.rows_more import ALIBI

ModelDir = Callable[..., Path]
# What config classes read beside their fields: no other name of one, or one that says how layers are made.
_NO_ALIAS = {"sliding_window_pattern", "partial_rotary_factor", "layer_types"}
# The first row of each model type, and one that grows without new layers, which write the config once more.
ROWS = ["gpt2-other-scales", *({model_type: name for name, (model_type, _) in reversed((MODELS | ALIBI).items())
                               if families()[model_type].aliases}).values()]  # fmt: skip


def config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def pairs_of_class(model_type: str) -> set[frozenset[str]]:
    """Names of the same field: those of the class's attribute map, and arguments that its constructor knows besides."""
    cls = config_class(model_type)
    own = inspect.getsource(cls.__post_init__) if "__post_init__" in inspect.getsource(cls) else ""
    read = set(re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", own)) - _NO_ALIAS
    pairs = {frozenset(pair) for pair in cls.attribute_map.items()}
    return pairs | {frozenset((name, "hidden_size")) if name == "n_embed" else frozenset((name,)) for name in read}


@pytest.mark.parametrize("model_type", sorted(families()))
def test_the_table_has_the_names_of_the_config_class(model_type: str) -> None:
    family = families()[model_type]
    assert {frozenset(pair) for pair in family.aliases.items()} == pairs_of_class(model_type)
    for alias, name in family.aliases.items():
        for config in ({alias: 12}, {name: 12}, {alias: 12, name: 24}, {name: 24, alias: 12}):
            read = getattr(config_class(model_type).from_dict(dict(config)), name)
            assert read == family.fields(config)[name] == 12, config


def renamed(source: Path, target: Path, *, both: bool) -> Path:
    """A copy of a model whose config has the other names of its fields, or both names, of which one says nonsense."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for alias, name in families()[config["model_type"]].aliases.items():
        old, new = (name, alias) if name in config else (alias, name)
        value = config.pop(old)
        config |= {alias: value, name: value + 2} if both else {new: value}
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
    if name == "gpt2-other-scales":  # its attention depends on the number of the layer
        growth = Growth(width=2)
    source = renamed(model_dir(name), tmp_path / "source", both=both)
    grown = hyperclone.grow(source, tmp_path / "grown", growth, proof="structural")
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, grown.path))
    aliases = families()[model_type].aliases
    assert {*aliases, *aliases.values()} & before.keys() == {*aliases, *aliases.values()} & after.keys()
    assert unmodified.distance(grown.path, model_dir(name)) < unmodified.SAME
    if both:
        assert all(after[alias] == after[own] for alias, own in aliases.items())
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
