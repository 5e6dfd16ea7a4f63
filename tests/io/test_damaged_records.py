"""Receipts, configs, indexes and optimizer states that are damaged: refused with one of our errors, and exit code 2."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError
from tests.helpers.examples import examples

ModelDir = Callable[..., Path]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def pair(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = model_dir("llama-grouped-tied")
    return source, hyperclone.grow(source, tmp_path_factory.mktemp("pair") / "grown", Growth(width=2)).path


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be replaced in nested tables and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, one in inner for deeper in paths_of(one, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@pytest.mark.parametrize("field", ["growth", "sha256", "sizes", "training", "source_config", "format"])
@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_a_part_of_a_receipt_of_the_wrong_kind_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, field: str, value: Any
) -> None:
    shutil.copytree(pair[1], tmp_path / "grown")
    content = json.loads((pair[1] / receipt.FILE).read_text())
    (tmp_path / "grown" / receipt.FILE).write_text(json.dumps({**content, field: value}))
    with pytest.raises(CheckpointError, match="receipt"):
        hyperclone.verify(pair[0], tmp_path / "grown", proof="structural")


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), by=ANYTHING)
def test_whatever_a_receipt_says_reading_and_using_it_ends_in_an_error_of_ours(
    pair: tuple[Path, Path], tmp_path: Path, data: st.DataObject, by: Any
) -> None:
    content = json.loads((pair[1] / receipt.FILE).read_text())
    path = data.draw(st.sampled_from(paths_of(content)))
    if not (tmp_path / "grown").exists():
        shutil.copytree(pair[1], tmp_path / "grown")
    (tmp_path / "grown" / receipt.FILE).write_text(json.dumps(replaced(content, path, by)))
    with contextlib.suppress(HypercloneError):
        hyperclone.verify(pair[0], tmp_path / "grown", proof="structural")


@pytest.mark.parametrize("eps", [None, [], "x", float("nan"), True])
def test_a_field_that_is_scaled_must_be_a_number(model_dir: ModelDir, tmp_path: Path, eps: Any) -> None:
    shutil.copytree(model_dir("llama-grouped-tied"), tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "rms_norm_eps": eps}))
    with pytest.raises(CheckpointError, match="no number"):
        hyperclone.plan(tmp_path / "source", Growth(hidden="1.5x"))
