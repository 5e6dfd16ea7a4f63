"""Every causal language model of transformers has a family file, or a reason why it has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import not_grown, registry
from hyperclone.errors import FamilyError
from hyperclone.hf import coverage
from hyperclone.hf.model_types import causal_model_types
from tests.helpers.command import call


def test_every_causal_model_type_of_transformers_has_a_family_or_a_reason() -> None:
    rows = coverage.coverage()
    assert frozenset(row.model_type for row in rows) == causal_model_types()
    new = [row.model_type for row in rows if row.reason == coverage.UNKNOWN]
    assert not new, "write a family file for these types, or a reason into architectures/not_grown.toml"


def test_nothing_that_grows_has_a_reason_not_to() -> None:
    assert not not_grown.reasons().keys() & registry.families().keys()


def test_a_reason_names_each_type_once_and_completes_a_sentence() -> None:
    import tomllib

    file = Path(not_grown.__file__).with_suffix(".toml")
    table: dict[str, list[str]] = tomllib.loads(file.read_text("utf-8"))
    types = [model_type for names in table.values() for model_type in names]
    assert len(types) == len(set(types))
    for reason, names in table.items():
        assert names == sorted(names)
        assert reason[0].islower() or reason[0].isdigit()
        assert not reason.endswith(".")


@pytest.mark.parametrize("model_type", ["bitnet", "xglm", "zamba2"])
def test_plan_says_why_no_family_file_describes_a_type(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 32}))
    save_file({"model.embed.weight": zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(FamilyError, match="this architecture is not known") as caught:
        hyperclone.plan(tmp_path, Growth(width=2))
    assert not_grown.reasons()[model_type] in caught.value.details["cure"]


@pytest.mark.slow
def test_the_command_lists_families_and_reasons() -> None:
    shown = call("families", "--coverage", "--json")
    assert shown.returncode == 0, shown.stderr
    rows = {row["model_type"]: row for row in json.loads(shown.stdout)}
    assert rows["deepseek_v3"] == {"model_type": "deepseek_v3", "family": "deepseek_v3", "reason": None}
    assert rows["bert"]["family"] is None
    assert "encoder" in rows["bert"]["reason"]
    table = call("families", "--coverage")
    assert f"{sum(row['family'] is not None for row in rows.values())} of {len(rows)} causal" in table.stdout
