"""Types in which this processor is slow: found by measuring, and both models run side by side in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from hyperclone.hf import side_by_side, slow_types


@pytest.fixture
def fresh_measurement() -> Iterator[None]:
    slow_types.is_slow.cache_clear()
    yield
    slow_types.is_slow.cache_clear()


@pytest.mark.usefixtures("fresh_measurement")
@pytest.mark.parametrize(("times", "slow"), [(1.0, False), (3.9, False), (4.1, True), (100.0, True)])
def test_a_type_is_slow_by_its_time_against_fp32_measured_once(
    times: float, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.dtype] = []

    def seconds(dtype: torch.dtype) -> float:
        measured.append(dtype)
        return 1e-3 * (times if dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(slow_types, "_seconds", seconds)
    assert [slow_types.is_slow(torch.bfloat16) for _ in range(3)] == [slow] * 3
    assert sorted(map(str, measured)) == ["torch.bfloat16", "torch.float32"]


def test_the_measurement_takes_milliseconds_of_products() -> None:
    assert 0.2 < slow_types.ratio_to_fp32(torch.float32) < 5  # of the same product twice; others use the machine too


def test_both_run_at_the_same_time_with_half_of_the_threads_each() -> None:
    before, meet, module = torch.get_num_threads(), threading.Barrier(2, timeout=30), torch.nn.Linear(2, 2)

    def run() -> int:
        meet.wait()  # neither ends before the other has begun
        return torch.get_num_threads()

    assert side_by_side.run(run, run, module=module) == (max(1, before // 2),) * 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("failing", ["first", "second"])
def test_what_one_raises_is_raised_and_nothing_is_left_running(failing: str) -> None:
    module, before, started = torch.nn.Sequential(torch.nn.Linear(2, 2)), threading.active_count(), threading.Event()

    def fail() -> None:
        assert started.wait(30)
        raise ValueError(failing)

    def go_on() -> None:
        started.set()
        while failing == "first":  # until the module ends it
            module(torch.ones(2))

    def fail_in_thread() -> None:
        started.set()
        fail()

    both = (fail, go_on) if failing == "first" else (go_on, fail_in_thread)
    with pytest.raises(ValueError, match=failing):
        side_by_side.run(*both, module=module)
    assert threading.active_count() == before
    module(torch.ones(2))  # no hook is left
