"""No work twice: each command plans once, and every tensor's bytes are read and hashed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import grow as growing
from hyperclone.conversion import in_memory, provenance, receipt
from hyperclone.io.source import Source
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan
from hyperclone.proof import structural
from tests.helpers.command import call

ModelDir = Callable[..., Path]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Growth]:
    """Every growth that is planned, wherever `make_plan` is used."""
    planned: list[Growth] = []
    make_plan = planner.make_plan

    def counted(source: Source, growth: Growth, **options: Any) -> Plan:
        planned.append(growth)
        return make_plan(source, growth, **options)

    monkeypatch.setattr(planner, "make_plan", counted)
    monkeypatch.setattr("hyperclone.conversion.verify.make_plan", counted)
    return planned


def test_grow_and_verify_plan_once(plans: list[Growth], model_dir: ModelDir, tmp_path: Path) -> None:
    source, grown = model_dir("llama-grouped-tied"), tmp_path / "grown"
    assert call("grow", source, grown, "--width", "2", "--proof", "structural").returncode == 0
    assert len(plans) == 1
    plans.clear()
    assert call("verify", source, grown, "--proof", "structural").returncode == 0
    assert len(plans) == 1
    plans.clear()
    assert call("grow", source, tmp_path / "other", "--width", "2", "--dry-run").returncode == 0
    assert len(plans) == 1


def test_collapse_plans_once_in_fp64_for_the_types_and_once_in_these(
    plans: list[Growth], model_dir: ModelDir, tmp_path: Path
) -> None:
    growing.grow(model_dir("llama-grouped-tied", dtype=torch.bfloat16), tmp_path / "grown", Growth(width=2))
    plans.clear()
    hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert [growth.dtype for growth in plans] == ["fp64", None]


def test_the_plan_of_a_model_is_made_once(plans: list[Growth], model_dir: ModelDir, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir("llama-grouped-tied"))
    grown = in_memory.grow_model(model, Growth(width=2))
    grown.save_pretrained(tmp_path / "grown")
    plans.clear()
    in_its_config = provenance.plan_of_model(grown, None)
    assert len(plans) == 1  # the receipt in its config computes the settings of parameters from it too
    assert in_its_config.parameters == grown.num_parameters()
    found = receipt.read(tmp_path / "grown")
    assert found is not None
    assert found.plan is found.plan
    assert found.training == receipt.parameter_settings(found.plan)
    assert len(plans) == 2


def test_the_proof_of_a_mixture_hashes_every_original_once(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()
    read_source = structural._read_source

    def counted(result: Any, tensor: Any, *rest: Any, **options: Any) -> None:
        read_source(result, tensor, *rest, **options)
        hashed[tensor.source] += bool(result.source_sha256)

    monkeypatch.setattr(structural, "_read_source", counted)
    source = model_dir("llama-grouped-untied")
    done = hyperclone.grow(source, tmp_path / "grown", Growth(experts=8), proof="structural")
    assert done.proof is not None
    originals = {tensor.source for tensor in done.plan.tensors if not tensor.init_std}
    assert +hashed == Counter(originals)
    assert done.proof.structure.source_sha256.keys() == originals
    assert all(done.proof.structure.source_sha256.values())


def test_a_plan_asks_for_the_family_and_a_layouts_shape_once_for_thousands_of_experts(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperclone.architectures import registry
    from hyperclone.architectures.layout import Layout
    from hyperclone.io.checkpoint import Checkpoint

    calls: Counter[str] = Counter()
    known, shape = registry.known, Layout.shape

    def counted_known(*arguments: Any) -> Any:
        calls["family"] += 1
        return known(*arguments)

    def counted_shape(self: Layout, sizes: Any) -> tuple[int, ...]:
        calls["shape"] += 1
        return shape(self, sizes)

    source = Checkpoint.open(model_dir("mixtral"))
    monkeypatch.setattr(registry, "known", counted_known)
    monkeypatch.setattr(Layout, "shape", counted_shape)
    plan = planner.make_plan(source, Growth(width=2))
    lines = len({id(tensor.layout) for tensor in plan.tensors})
    assert len(plan.tensors) > 2 * lines
    assert calls["family"] <= 3
    assert calls["shape"] <= 5 * lines


def test_of_the_family_files_only_those_of_mixtures_are_parsed_to_find_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperclone.architectures import family_file, registry
    from hyperclone.planning import upcycling

    mixtures = {name for name, family in registry.families().items() if family.upcycled}
    assert {name for family in registry.upcycled() for name in family.model_types} == mixtures
    registry._family.cache_clear()
    parsed: list[str] = []
    parse = family_file.parse

    def counted(text: str, *, name: str, file: str) -> Any:
        parsed.append(name)
        return parse(text, name=name, file=file)

    monkeypatch.setattr(family_file, "parse", counted)
    family = upcycling.family_for("llama")
    assert family is not None
    assert len(parsed) == len(registry.upcycled()) < 10
