"""Fixtures of all tests."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import examples  # noqa: F401 - it registers the profiles of hypothesis
from tests.helpers.models import MODELS, REPRESENTATIVE, build, save_tokenizer

torch.set_num_threads(1)


_modules = 0  # that were imported when garbage was last collected and what is left was frozen


def pytest_runtest_teardown() -> None:
    """What imports leave behind stays for good, so no later gc.collect() need walk it: every proof calls that twice."""
    global _modules
    if len(sys.modules) > _modules + 100:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark cases for `make quick`, and put the slowest modules first.

    A row beyond REPRESENTATIVE repeats what a representative says: `matrix`; a test without these keeps one case.
    """
    rows = {item: _rows(item) for item in items}
    kept = {_test(item) for item, names in rows.items() if names and names <= REPRESENTATIVE}
    for item, names in rows.items():
        if names <= REPRESENTATIVE:
            continue
        if _test(item) in kept:
            item.add_marker(pytest.mark.matrix)
        kept.add(_test(item))
    _mark_all_but_the_first(items)
    items.sort(key=_turn)


# They start processes that train, so one of them that came last would keep one worker busy while the other is idle.
SLOWEST = ("demo/test_demo.py", "study/test_study.py", "training/test_train_processes.py", "training/test_train.py")


def _turn(item: pytest.Item) -> int:
    """Modules in SLOWEST by their place there, all others after them, in the order of collection."""
    module = item.path.relative_to(Path(__file__).parent).as_posix()
    return SLOWEST.index(module) if module in SLOWEST else len(SLOWEST)


def _mark_all_but_the_first(items: list[pytest.Item]) -> None:
    """Cases beyond the number that a test's `quick` marker names: `matrix`."""
    counts: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("quick")
        if marker is None or item.get_closest_marker("matrix"):
            continue
        counts[_test(item)] += 1
        if counts[_test(item)] > marker.args[0]:
            item.add_marker(pytest.mark.matrix)


def _rows(item: pytest.Item) -> set[str]:
    """The rows of MODELS that a case is about."""
    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    return {value for value in values if isinstance(value, str)} & MODELS.keys()


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_dir(name, dtype=..., seed=...) -> a saved model with tokenizer; made once. Do not write into it."""
    made: dict[tuple[str, ...], Path] = {}

    def get(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, shard: str = "5GB") -> Path:
        key = (name, str(dtype), str(seed), shard)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            build(name, seed=seed, dtype=dtype).save_pretrained(made[key], max_shard_size=shard)
            save_tokenizer(made[key])
        return made[key]

    return get
