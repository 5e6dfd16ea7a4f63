"""Proposed sizes are sizes that can be had, counted exactly, and ordered as the module says."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperclone
from hyperclone import Growth, units
from hyperclone.architectures.registry import of_config
from hyperclone.errors import GrowthError, OptionError
from hyperclone.planning import growth, planner
from hyperclone.planning.proposals import Proposal, Proposals, propose
from hyperclone.planning.size_search import Search
from tests.helpers.headers import headers
from tests.helpers.models import MODELS

ModelDir = Callable[..., Path]

PYTHIA_410M = {
    "model_type": "gpt_neox", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "vocab_size": 50304, "max_position_embeddings": 2048,
}  # fmt: skip
SMOLLM2_135M = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
BLOOM_560M = {"model_type": "bloom", "hidden_size": 1024, "n_head": 16, "n_layer": 24, "vocab_size": 250880}
OLMO_TIED = {
    "model_type": "olmo", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_hidden_layers": 16, "vocab_size": 50304, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 2, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN25_05B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def hollow(path: Path, config: dict[str, Any], *, dtype: str = "BF16") -> Path:
    """A model directory of real size whose weights are a hole in a file: it has headers, and takes no space."""
    family = of_config(config)
    header, end = {}, 0
    for name, layout in family.tensors(config).items():
        shape = layout.shape(family.sizes(config))
        begin, end = end, end + math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    content = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    proposed: dict[str, Path] = {}

    def get(name: str, config: dict[str, Any], dtype: str = "BF16") -> Path:
        if name not in proposed:
            proposed[name] = hollow(tmp_path_factory.mktemp("hollow") / name, config, dtype=dtype)
        return proposed[name]

    return get


def parameters_in_transformers(config: dict[str, Any]) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    return int(model.num_parameters())


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("name", "config", "dtype", "target"),
    [
        ("pythia", PYTHIA_410M, "F16", "800M"),
        ("smollm2", SMOLLM2_135M, "BF16", "400M"),
        ("bloom", BLOOM_560M, "F16", "1.9B"),
        ("olmo", OLMO_TIED, "F32", "4B"),  # is untied, so it gets a head
        ("qwen3", QWEN3, "BF16", "400M"),
        ("qwen2.5", QWEN25_05B, "BF16", "590M"),  # 2 KV heads of 7: 16 heads would be 2 of 8
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_proposal_is_near_and_has_the_parameters_that_transformers_counts(
    name: str, config: dict[str, Any], dtype: str, target: str, models: Callable[..., Path]
) -> None:
    source = models(name, config, dtype)
    proposed = propose(source, target)
    assert proposed.source_parameters == parameters_in_transformers(config)
    assert proposed.proposals
    for p in proposed.proposals:
        assert p.plan.parameters == parameters_in_transformers(p.plan.config)
        assert abs(p.off) <= 0.1
        assert p.off == pytest.approx(p.plan.parameters / units.parse(target, "params") - 1)
        assert hyperclone.plan(source, p.growth) == p.plan
        widths = p.plan.widths()
        for axis in ("hidden size", "feed-forward size"):
            old, new = widths[axis]
            assert new == old or new % 64 == 0
        old, new = widths["layers"]
        assert old <= new <= 2 * old
        heads = widths["attention heads"]
        if config["model_type"] == "bloom":  # the slopes of ALiBi depend on the number of heads
            assert heads[0] == heads[1]
        else:
            assert widths["head dimension"][0] == widths["head dimension"][1]
            assert heads[1] * widths["hidden size"][0] == heads[0] * widths["hidden size"][1]
            assert p.plan.sizes.get("group", (1, 1))[0] == p.plan.sizes.get("group", (1, 1))[1]


@pytest.mark.slow
def test_for_every_architecture_counting_agrees_with_planning() -> None:
    for name in MODELS:
        source = headers(name)
        search = Search(source, Growth(), 8)
        assert search.parameters == sum(math.prod(entry.shape) for entry in source.entries.values()), name
        kinds: dict[tuple[bool, bool, bool], Any] = {}
        for target in (1.3, 3.7):
            for candidate in search.near(round(target * search.parameters), within=0.1):
                kind = (candidate.layers > 1, candidate.hidden % 1 != 0, candidate.ffn % 1 != 0)
                kinds.setdefault(kind, candidate)
        assert kinds, name
        for candidate in kinds.values():
            plan = planner.make_plan(source, candidate.request)
            assert plan.parameters == candidate.parameters, (name, candidate)
            hidden, ffn = plan.sizes["hidden"], plan.sizes["ffn"]
            assert (candidate.hidden, candidate.ffn) == (hidden[1] / hidden[0], ffn[1] / ffn[0]), (name, candidate)


def test_pythia_1_4b_is_found_from_pythia_410m(models: Callable[..., Path]) -> None:
    proposed = propose(models("pythia", PYTHIA_410M, "F16"), 1_414_647_808)
    assert proposed.proposals[0].growth == Growth(width="2")
    assert (proposed.proposals[0].off, proposed.proposals[0].rounds, proposed.proposals[0].warnings) == (0, False, ())


def kind(p: Proposal) -> tuple[bool, bool]:
    return p.plan.deeper, p.plan.sizes["hidden"][1] % p.plan.sizes["hidden"][0] != 0


@pytest.mark.parametrize("target", ["450M", "560M", "800M", "1.1B", "1.3B", "1.43B", "2B", "5B"])
def test_proposals_are_ordered_as_promised_and_few(target: str, models: Callable[..., Path]) -> None:
    found = propose(models("pythia", PYTHIA_410M, "F16"), target).proposals
    assert 1 <= len(found) <= 9
    assert max([kind(p) for p in found].count(kind(q)) for q in found) <= 3

    def rank(p: Proposal) -> tuple[object, ...]:
        return p.rounds, *kind(p), any("2x in one step" in warning for warning in p.warnings), abs(p.off) > 0.02

    assert [rank(p) for p in found] == sorted(rank(p) for p in found)
    assert len({str(p.plan.sizes) + str(len(p.plan.layers)) for p in found}) == len(found)


def test_rounded_is_what_is_refused_without_being_asked_for(models: Callable[..., Path]) -> None:
    source = models("pythia", PYTHIA_410M, "F16")
    found = propose(source, "800M").proposals
    assert {p.rounds for p in found} == {True, False}
    for p in found:
        assert p.growth.allow_rounding == p.rounds
        strict = replace(p.growth, allow_rounding=False)
        if p.rounds:
            with pytest.raises(GrowthError, match="not exact"):
                hyperclone.plan(source, strict)
        else:
            assert hyperclone.plan(source, strict).parameters == p.plan.parameters
    assert not any(p.rounds for p in propose(source, "800M", request=Growth(dtype="fp32")).proposals)


def test_no_two_proposals_write_to_one_directory() -> None:
    """Two of these have 3.0M parameters."""
    proposed = propose(Path(hyperclone.__file__).parent / "demo/seedling", "3M", multiple_of=16)
    places = [proposed.command(p).split()[3] for p in proposed.proposals]
    assert len({units.human_count(p.plan.parameters) for p in proposed.proposals}) < len(places) == len(set(places))


def test_what_was_asked_for_beside_the_sizes_is_in_every_proposal(models: Callable[..., Path]) -> None:
    request = Growth(expansion="diagonal", noise="gaussian", seed=3, untie=True, snr_db=20)
    proposed = propose(models("smollm2", SMOLLM2_135M), "450M", request=request, multiple_of=128, revision=None)
    for p in proposed.proposals:
        assert (p.growth.expansion, p.growth.noise, p.growth.seed, p.growth.untie) == ("diagonal", "gaussian", 3, True)
        assert p.plan.untied
        assert "--expansion diagonal --noise gaussian --snr-db 20 --seed 3 --untie" in proposed.command(p)
        for axis in ("hidden", "ffn"):
            old, new = p.plan.sizes[axis]
            assert new == old or new % 128 == 0


def warnings(proposed: Proposals) -> list[str]:
    return [" ".join(p.warnings) for p in proposed.proposals]


def test_more_than_2x_and_more_than_20_tokens_for_each_parameter_are_warned_of(models: Callable[..., Path]) -> None:
    source = models("smollm2", SMOLLM2_135M)
    for proposed in (
        propose(source, "481M"),
        propose(source, "1B", tokens="5B"),
        propose(source, "481M", tokens="50B"),
    ):
        for p, text in zip(proposed.proposals, warnings(proposed), strict=True):
            largest = max(new / old for old, new in p.plan.widths().values())
            assert ("2x in one step" in text) == (largest > 2)
            assert ("20 tokens" in text) == (proposed.tokens is not None and proposed.tokens > 20 * p.plan.parameters)
            assert ("2605.13405" in text) == bool(text)
    assert all(warnings(propose(source, "1B", tokens="50B")))
    assert "20 tokens" in warnings(propose(source, "481M", tokens="50B"))[0]
    assert "20 tokens" not in warnings(propose(source, "481M", tokens="9B"))[0]


def test_tokens_beside_a_plan_are_remarked_on(models: Callable[..., Path]) -> None:
    source = models("smollm2", SMOLLM2_135M)
    enough, many = (hyperclone.plan(source, Growth(width=2), tokens=tokens) for tokens in ("9B", 48_136_665_600))
    assert any("9.0B tokens are 18.7 for each parameter" in note for note in enough.notes)
    assert not enough.warnings
    assert "100 for each parameter" in many.warnings[-1]
    assert "2605.13405" in many.warnings[-1]


def test_where_nothing_is_near_the_nearest_sizes_are_shown_and_it_is_said(models: Callable[..., Path]) -> None:
    proposed = propose(models("bloom", BLOOM_560M, "F16"), "1.18B")  # grows to multiples only
    assert any("Nothing comes within 10%" in note for note in proposed.notes)
    assert [p.growth.width for p in proposed.proposals] == ["2"]
    assert abs(proposed.proposals[0].off) > 0.1


def test_a_note_says_that_a_models_own_sizes_are_no_multiples(model_dir: ModelDir) -> None:
    proposed = propose(model_dir("opt"), "60_000")  # hidden 32, feed-forward 48
    assert any("hidden size, 32, is no multiple of 64" in note for note in proposed.notes)
    assert any("feed-forward size, 48, is no multiple of 64" in note for note in proposed.notes)
    for p in proposed.proposals:
        for axis in ("hidden", "ffn"):
            old, new = p.plan.sizes[axis]
            assert new == old or new % 64 == 0


@pytest.mark.parametrize(
    ("params", "options", "words", "error"),
    [
        ("many", {}, ["not a number of parameters", "1.3B"], OptionError),
        ("-1B", {}, ["not a number of parameters"], OptionError),
        ("1.23456B and more", {}, ["not a number"], OptionError),
        ("0", {}, ["not a number"], OptionError),
        ("1.5", {}, ["not a number"], OptionError),
        ("100M", {}, ["no more parameters", "100,000,000", "134,515,008"], GrowthError),
        ("134515008", {}, ["no more parameters"], GrowthError),
        ("1.3T", {}, ["1,000 times", "unit"], GrowthError),
        ("1B", {"request": Growth(width=2, ffn="1x")}, ["--params", "--width 2", "--ffn 1x"], GrowthError),
        ("1B", {"request": Growth(layers="2x")}, ["--params", "--layers 2x"], GrowthError),
        ("1B", {"request": Growth(snr_db=70)}, ["snr_db", "0 to 30 dB"], GrowthError),
        ("1B", {"multiple_of": 0}, ["multiple_of", "0"], OptionError),
        ("1B", {"multiple_of": 10**6}, ["multiples of 1000000", "--multiple-of"], GrowthError),
        ("1B", {"tokens": "lots"}, ["not a number of tokens"], OptionError),
        (None, {"multiple_of": 8}, ["--multiple-of", "--params"], OptionError),
    ],
    ids=str,
)
def test_what_cannot_be_proposed_is_explained(
    params: str | None, options: dict[str, Any], words: list[str], error: type[Exception], models: Callable[..., Path]
) -> None:
    with pytest.raises(error) as caught:
        propose(models("smollm2", SMOLLM2_135M), params, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_model_that_its_family_refuses_is_refused_with_that_reason(models: Callable[..., Path]) -> None:
    config = {
        "model_type": "stablelm", "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
        "num_key_value_heads": 8, "num_hidden_layers": 2, "vocab_size": 1000, "qk_layernorm": True,
    }  # fmt: skip
    with pytest.raises(GrowthError, match="norms of its own"):
        propose(models("stablelm", config), "20M")


@given(st.integers(1, 40), st.integers(0, 200))
def test_a_spelled_size_is_read_as_that_size(old: int, more: int) -> None:
    sizes = {"hidden": old, "ffn": 5, "heads": 1, "head_dim": 2}
    request = Growth(hidden=growth.spelled(old, old + more))
    assert growth.resolve(request, sizes, deeper=True)["hidden"] == old + more


@pytest.mark.parametrize(
    ("text", "count"),
    [("1.3B", 1_300_000_000), ("1_300_000_000", 1_300_000_000), ("350M", 350_000_000), ("350m", 350_000_000),
     ("26e9", 26 * 10**9), ("1.5e9", 15 * 10**8), (" 2 T ", 2 * 10**12), ("7", 7), (8, 8), ("0.1k", 100)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str | int, count: int) -> None:
    assert units.parse(text, "params") == count


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\nfrom hyperclone.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_a_proposed_command_is_one_that_can_be_run(models: Callable[..., Path]) -> None:
    source = models("smollm2", SMOLLM2_135M)
    proposed = run("plan", source, "--params", "450M", "--tokens", "50B")
    assert (proposed.returncode, proposed.stderr.strip()) == (0, "set()")  # neither torch nor transformers
    commands = [line.split(maxsplit=1)[1] for line in proposed.stdout.splitlines() if "hyperclone grow" in line]
    data = json.loads(run("plan", source, "--params", "450M", "--json").stdout)
    assert commands == [p["command"] for p in data["proposals"]]
    first = commands[0].split()
    again = run("plan", source, *first[4:], "--json")
    assert json.loads(again.stdout)["parameters"][1] == data["proposals"][0]["parameters"]
    assert f"{data['proposals'][0]['parameters']:,}" in proposed.stdout
    assert "2605.13405" in proposed.stdout
    dry = run("grow", *first[2:4], *first[4:], "--dry-run")
    assert dry.returncode == 0, dry.stderr
