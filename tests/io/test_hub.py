"""A Hub id: a plan fetches headers only, a growth the model's own files; both without a network in these tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CheckpointError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning.plan import Plan

ModelDir = Callable[..., Path]


@pytest.fixture
def hub(model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub with one model, `someone/small`; returns what was fetched of it."""
    directory = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    fetched: list[str] = []

    def hf_hub_download(repo: str, file: str, *, revision: str | None = None) -> str:
        fetched.append(file)
        if repo != "someone/small":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository")
        return str(directory / file)

    def headers(self: Any, repo: str, *, revision: str | None = None) -> Any:
        fetched.append("headers")
        tensors = {
            name: SimpleNamespace(dtype=e.dtype, shape=list(e.shape), data_offsets=(e.offset, e.offset + e.nbytes))
            for name, e in Checkpoint.open(directory).entries.items()
        }
        return SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})

    def snapshot_download(
        repo: str, *, revision: str | None, allow_patterns: Sequence[str] = (), local_files_only: bool = False
    ) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        fetched.append("model")
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", headers)
    return fetched


def test_a_plan_fetches_config_and_headers_only_and_equals_that_of_the_directory(
    hub: list[str], model_dir: ModelDir
) -> None:
    plan = hyperclone.plan("someone/small", Growth(width=2))
    assert hub == ["config.json", "headers"]
    assert (
        plan.tensors == hyperclone.plan(model_dir("llama-grouped-tied", dtype=torch.bfloat16), Growth(width=2)).tensors
    )


def test_a_growth_names_the_hub_id_in_card_and_receipt(hub: list[str], tmp_path: Path) -> None:
    hyperclone.grow("someone/small", tmp_path / "grown", Growth(width=2), proof="structural")
    assert hub == ["model"]
    assert json.loads((tmp_path / "grown/hyperclone.json").read_text())["source"] == "someone/small"
    assert "base_model: someone/small" in (tmp_path / "grown/README.md").read_text()


def test_what_is_neither_here_nor_there_is_refused(hub: list[str]) -> None:
    with pytest.raises(CheckpointError, match="neither a local directory nor an accessible model"):
        hyperclone.plan("someone/else", Growth(width=2))


def test_a_local_directory_has_no_revisions(model_dir: ModelDir) -> None:
    with pytest.raises(CheckpointError, match="revision"):
        hyperclone.plan(model_dir("opt"), Growth(width=2), revision="main")


def test_the_command_line_asks_the_hub_once_and_shows_the_plan_before_anything_is_written(
    hub: list[str], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from hyperclone.cli.main import app

    grow = ["grow", "someone/small", str(tmp_path / "grown"), "--width", "2", "--proof", "none"]
    dry = CliRunner().invoke(app, [*grow, "--dry-run"])
    assert (dry.exit_code, hub) == (0, ["config.json", "headers"])
    assert "hidden size" in dry.output
    assert not (tmp_path / "grown").exists()
    hub.clear()
    result = CliRunner().invoke(app, grow)
    assert (result.exit_code, hub) == (0, ["model"])
    assert result.output.index("hidden size") < result.output.index("Wrote")


def test_a_plan_can_be_refused_by_who_sees_it(model_dir: ModelDir, tmp_path: Path) -> None:
    def refuse(plan: Plan) -> None:
        assert plan.sizes["hidden"] == (32, 64)
        raise RuntimeError("too wide")

    with pytest.raises(RuntimeError, match="too wide"):
        hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2), on_plan=refuse)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cached(model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `org/tiny` in a Hub cache without a network; all tests run in the Hub's offline mode."""
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789" * 4
    repository = tmp_path / "hub/models--org--tiny"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(model_dir("llama-grouped-tied"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return snapshot


@pytest.mark.parametrize("unreachable", ["offline mode", "no network"])
def test_without_a_network_a_cached_model_is_found_by_its_id(
    unreachable: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unreachable == "no network":  # an error of the HTTP library, which is no OSError

        def refuse(*_: object, **__: object) -> None:
            raise huggingface_hub.errors.HfHubHTTPError.__bases__[0]("connection refused")

        monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", refuse)
    plan = hyperclone.plan("org/tiny", Growth(width=2))
    assert plan.tensors == hyperclone.plan(cached, Growth(width=2)).tensors
    assert hyperclone.plan("org/tiny", Growth(width=2), revision=cached.name).tensors == plan.tensors
    grown = hyperclone.grow("org/tiny", tmp_path / "grown", Growth(width=2), proof="structural")
    assert json.loads((grown.path / "hyperclone.json").read_text())["source"] == "org/tiny"
    (cached / "model.safetensors").unlink()  # as a plan with a network leaves it
    with pytest.raises(CheckpointError, match="neither a local directory nor an accessible model"):
        hyperclone.plan("org/tiny", Growth(width=2))


def test_what_the_hub_refuses_is_not_taken_from_the_cache(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        response = SimpleNamespace(headers={}, request=None)
        raise huggingface_hub.errors.GatedRepoError("access is gated", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", refuse)
    with pytest.raises(CheckpointError, match="access is gated"):
        hyperclone.plan("org/tiny", Growth(width=2))
