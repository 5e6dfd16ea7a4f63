"""Every causal language model of transformers has a family file, or a reason why it has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import zeros

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import not_grown, registry, support_table, text_models
from hyperclone.errors import FamilyError
from hyperclone.hf import coverage
from hyperclone.hf.model_types import causal_model_types
from tests.helpers.command import call
from tests.helpers.headers import headers


def test_every_causal_model_type_of_transformers_has_a_family_or_a_reason() -> None:
    rows = coverage.coverage()
    wholes = text_models.wholes().keys()
    assert frozenset(row.model_type for row in rows) - wholes == (causal_model_types() or frozenset()) - wholes
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
    assert rows["deepseek_v3"] == {
        "model_type": "deepseek_v3", "family": "deepseek_v3", "text_model": None, "reason": None,
    }  # fmt: skip
    assert rows["gemma3"] == {
        "model_type": "gemma3", "family": "gemma", "text_model": "gemma3_text", "reason": None,
    }  # fmt: skip
    assert rows["bert"]["family"] is None
    assert "encoder" in rows["bert"]["reason"]
    table = call("families", "--coverage")
    grown = sum(row["family"] is not None and row["text_model"] is None for row in rows.values())
    assert f"{grown} of {len(causal_model_types() or ())} causal" in table.stdout
    lines = {line.split()[0]: line for line in table.stdout.splitlines()}
    assert lines.keys() > rows.keys()  # in a pipe every name is whole, and every row one line
    assert lines["mistral3"].endswith("only its text model (mistral) grows, with --text-model")
    assert not any(line.endswith(" ") for line in lines.values())


def test_the_text_model_of_every_whole_that_is_listed_grows() -> None:
    for whole, text_model in text_models.wholes().items():
        assert registry.shipped(text_model) is not None, whole


WORDS = {
    "gemma3": ("families/gemma.toml", "give --text-model", "hidden: any"),
    "llama4": ("families/llama4_text.toml", "give --text-model"),
    "falcon": ("families/falcon.toml", "heads: with hidden", "ALiBi"),
    "opt": ("head dim: any", "the text model of blip-2"),
    "mamba": ("refused", "all of its layers are recurrent"),
    "t5": ("refused", "no causal language model of this type"),
}


@pytest.mark.parametrize("model", WORDS)
def test_what_is_known_about_one_model_type_is_told(model: str) -> None:
    shown = call("families", model)
    assert shown.returncode == 0, shown.stderr
    for word in WORDS[model]:
        assert word in shown.stdout
    about = json.loads(call("families", model, "--json").stdout)
    assert about["model_type"] == model
    assert (about["family"] is None) == (about["refused"] is not None) == ("refused" in WORDS[model])


def test_what_is_known_about_one_model_is_told_for_its_config(tmp_path: Path) -> None:
    def about(**config: object) -> dict[str, Any]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        told = [call("families", path, "--json") for path in (tmp_path, tmp_path / "config.json")]
        assert told[0].stdout == told[1].stdout, told[0].stderr
        answer: dict[str, Any] = json.loads(told[0].stdout)
        return answer

    fields = headers("lfm2-rounded").config
    assert about(**fields)["grows"]["ffn"] == "any"
    multiplied = about(**{**fields, "block_ffn_dim_multiplier": 1.5})
    assert (multiplied["grows"], multiplied["family"]) == ({}, "lfm2")
    assert "intermediate_size" in multiplied["refused"]
    whole = about(model_type="newer_vl", text_config=headers("llama-grouped-tied").config)
    assert (whole["text_model"], whole["family"], whole["refused"]) == ("llama", "llama", None)
    assert support_table.cells(registry.families()["opt"])["hidden"] == "(any)"
    assert about(**headers("opt").config)["grows"]["hidden"] == "any"
    assert about(**headers("opt-projected-post-norm").config)["grows"]["hidden"] == "multiples"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lama"], "did you mean llama"),
        (["./nowhere"], "no such file or directory"),
        (["llama", "--markdown"], "omit it, or llama"),
    ],
)
def test_a_model_that_is_not_known_is_refused_with_names_like_it(arguments: list[str], words: str) -> None:
    shown = call("families", *arguments)
    assert shown.returncode == 2
    assert words in shown.stderr
