"""The kernel's steps of rotated AdamW: those of torch's operations, which test_rotated.py holds against mathematics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.expansion import compiled, copy_map
from hyperclone.expansion.copy_map import CopyMap
from hyperclone.optim import adam_kernel, one_pass, rotated_step
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.recipe import OrderName


@contextmanager
def by_torch() -> Iterator[None]:
    """Steps without the kernel."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "kernels", lambda: None)
        yield


@contextmanager
def by_kernel_alone() -> Iterator[None]:
    """Steps of which none may be torch's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rotated_step, "advance_turned", None)
        yield


def optimizer_of(maps: dict[str, tuple[CopyMap, ...]], *, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """An optimizer of random weights, in the middle of its training: differences have seen two of four steps."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.nn.Parameter(torch.randn([axis.new for axis in axes], generator=generator, dtype=dtype))
        for name, axes in maps.items()
    }
    settings = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-2, "betas": (0.9, 0.95), **options}
    group = {"params": list(weights.values()), "param_names": list(weights), **settings}
    optimizer = RotatedAdamW([group], {name: Rotation(axes) for name, axes in maps.items()}, differences=3.0)
    for weight in weights.values():
        moments = [torch.randn(weight.shape, generator=generator, dtype=dtype) for _ in range(2)]
        state = {"step": torch.tensor(4.0), "rotated_avg": moments[0], "rotated_avg_sq": moments[1].square()}
        optimizer.state[weight] = {**state, "before": torch.tensor(2.0)}
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=dtype)
    return optimizer


def state_of(optimizer: Any) -> list[torch.Tensor]:
    """Weights and moments."""
    return [
        tensor
        for weight, state in optimizer.state.items()
        for tensor in (weight.detach(), state["rotated_avg"], state["rotated_avg_sq"])
    ]


def check(*maps: tuple[CopyMap, ...]) -> None:
    """Both take the same two steps, but for rounding."""
    ours, theirs = (optimizer_of({str(number): axes for number, axes in enumerate(maps)}) for _ in range(2))
    for _ in range(2):
        with by_kernel_alone():
            ours.step()
        with by_torch():
            theirs.step()
    for found, expected in zip(state_of(ours), state_of(theirs), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def axes(old: int, new: int, *, padded: bool = False) -> list[CopyMap]:
    """An axis in both orders."""
    orders: tuple[OrderName, ...] = ("tiled", "interleaved")
    return [copy_map.axis(old, new, order=order, padded=padded) for order in orders]


PAIRS, LONG, SOME = axes(3, 6), axes(517, 1034), axes(5, 13)  # of SOME, three units have three copies
PADDED, UNEVEN = axes(5, 12, padded=True), axes(5, 8)
HEADS = [copy_map.product([axis, copy_map.axis(8, 8)]) for axis in axes(3, 6)]
FUSED = [copy_map.concatenate([one, other]) for one, other in zip(HEADS, UNEVEN, strict=True)]
ONE = [copy_map.axis(7, 7)] * 2


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(PAIRS, LONG), (SOME, PAIRS), (UNEVEN, PADDED), (PADDED, HEADS), (FUSED, FUSED), (ONE, HEADS), (HEADS, ONE)],
)  # fmt: skip
@pytest.mark.parametrize("order", [0, 1], ids=["tiled", "side by side"])
def test_matrices_of_any_copies(rows: list[CopyMap], columns: list[CopyMap], order: int) -> None:
    check((rows[order], columns[order]))


@pytest.mark.parametrize("axis", [*PAIRS, *UNEVEN, *PADDED])
def test_vectors_and_experts(axis: CopyMap) -> None:
    check((axis,), (copy_map.axis(3, 3), axis, copy_map.axis(4, 4)), (copy_map.axis(3, 3), copy_map.axis(4, 4), axis))


@given(st.integers(1, 6), st.integers(0, 12), st.booleans(), st.integers(1, 3))
def test_runs_are_all_units_once_and_few(old: int, more: int, padded: bool, inner: int) -> None:
    for axis in axes(old, old + more, padded=padded):
        whole = copy_map.product([axis, copy_map.axis(inner, inner)])
        rotation = Rotation((whole,))
        assert rotation.runs is not None
        _, found = rotation.runs
        places: list[int] = []
        for runs in found:
            count = len(runs.starts)
            for start, size in zip(runs.starts.T, runs.sizes, strict=True):
                for unit in range(int(size)):
                    own = start + unit * (count if runs.side_by_side else 1)
                    assert len(set(whole.source[own].tolist())) == 1
                    assert count == 1 or whole.number[own].tolist() == list(range(count))
                    places += own.tolist()
        assert sorted(places) == list(range(whole.new))
    tiled = Rotation((copy_map.axis(old, 3 * old),)).runs
    beside = Rotation((copy_map.axis(old, 3 * old, order="interleaved"),)).runs
    assert tiled is not None
    assert beside is not None
    assert len(tiled[1][0].sizes) == len(beside[1][0].sizes) == 1


def test_experts_that_are_copied_themselves_are_left_to_torch() -> None:
    """Copies of experts and of their rows are turned one after the other, which is not the kernel's turn of rows."""
    axis = copy_map.axis(2, 4)
    assert Rotation((axis, axis, axis)).runs is None
    optimizer = optimizer_of({"w": (axis, axis, axis)})
    before = state_of(optimizer)[0].clone()
    optimizer.step()
    assert not torch.equal(before, state_of(optimizer)[0])


@pytest.mark.parametrize("order", ["tiled", "interleaved"])
def test_long_rows(order: Any) -> None:
    """And several parameters, a step of which is several calls."""
    long = copy_map.axis(517, 1034, order=order)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one_pass, "_BLOCK", 5000)
        check((copy_map.axis(6, 12, order=order), long), (long,), (long, copy_map.axis(3, 6, order=order)))


@pytest.mark.parametrize(("count", "order"), [(2, "tiled"), (2, "interleaved"), (3, "tiled")])
def test_equal_copies_stay_equal_to_the_bit(count: int, order: Any) -> None:
    """Rounding must not become a difference, which Adam would take for a gradient."""
    axis = copy_map.axis(37, 37 * count, order=order)
    optimizer = optimizer_of({"w": (axis, axis)}, dtype=torch.float32)
    (weight,) = optimizer.state
    generator = torch.Generator().manual_seed(1)
    optimizer.state.clear()

    def clone() -> torch.Tensor:
        return torch.randn(37, 37, generator=generator)[axis.source][:, axis.source]

    weight.data = clone()
    for _ in range(5):
        weight.grad = clone()
        with by_kernel_alone():
            optimizer.step()
    first = axis.number == 0
    found = weight.detach()
    assert torch.equal(found, found[first][:, first][axis.source][:, axis.source])


def test_the_number_of_threads_changes_nothing() -> None:
    results = []
    for threads in (1, 3):
        optimizer = optimizer_of({"w": (copy_map.axis(64, 128), copy_map.axis(30, 60))}, dtype=torch.float32)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(one_pass, "_BLOCK", 1000)
            patched.setattr(torch, "get_num_threads", lambda number=threads: number)
            optimizer.step()
        results.append(state_of(optimizer))
    assert all(map(torch.equal, *results))


def test_what_fails_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(adam_kernel, "adam_rows", fail)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    axis = copy_map.axis(4, 8)
    optimizer = optimizer_of({"a": (axis, axis), "b": (axis, axis)})
    with pytest.raises(MemoryError):
        optimizer.step()


def test_what_the_kernel_does_not_know_is_left_to_torch() -> None:
    axis = copy_map.axis(4, 8)
    turned, wide = Rotation((axis, axis)), torch.zeros(8, 8)
    settings: dict[str, Any] = {"step": 1.0, "before": 0.0, "group": {}}
    coordinates = rotated_step.Coordinates(turned, (), ())

    def applies(*tensors: torch.Tensor, coordinates: Any = coordinates) -> bool:
        made: Any = rotated_step.Update
        return one_pass.applies(made(*tensors, coordinates, **settings))

    assert applies(wide, wide, wide, wide)
    assert applies(*[wide.double()] * 4)
    assert not applies(*[wide.bfloat16()] * 4)
    assert not applies(wide, wide.double(), wide, wide)
    many = Rotation((copy_map.axis(2, 10), copy_map.axis(2, 8)))
    assert not applies(*[torch.zeros(10, 8)] * 4, coordinates=rotated_step.Coordinates(many, (), ()))
    assert not applies(torch.zeros(16, 16)[::2, ::2], wide, wide, wide)
    assert not applies(*[wide.to("meta")] * 4)
    assert not applies(wide, wide, wide, wide, coordinates=None)
    with by_torch():
        assert not applies(wide, wide, wide, wide)
