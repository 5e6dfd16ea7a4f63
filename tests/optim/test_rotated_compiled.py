"""RotatedAdamW under torch.compile: the same steps as without, which test_rotated.py holds against the mathematics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperclone.expansion import compiled as kernels
from hyperclone.expansion import copy_map
from hyperclone.optim.rotated_adamw import RotatedAdamW
from hyperclone.optim.rotation import Rotation

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor the kernel of one_pass.py is used before what torch compiles."""
    monkeypatch.setattr(kernels, "kernels", lambda: None)


def stepped(
    maps: tuple[copy_map.CopyMap, ...], gradients: list[torch.Tensor], weight: torch.Tensor, **options: Any
) -> torch.nn.Parameter:
    """A weight after a step with each gradient; the learning rate changes with every one."""
    parameter = torch.nn.Parameter(weight.clone())
    group = {"params": [parameter], "param_names": ["w"], "lr": 0.1, "weight_decay": 0.1, "eps": 1e-8}
    optimizer = RotatedAdamW([group], {"w": Rotation(maps)}, differences=4.0, **options)
    for gradient in gradients:
        optimizer.param_groups[0]["lr"] *= 0.9
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter


HALVES, INTERLEAVED = copy_map.axis(6, 12), copy_map.product([copy_map.axis(3, 3), copy_map.axis(2, 4)])
COMPILED = {
    "halves": (HALVES, HALVES),
    "interleaved": (INTERLEAVED, HALVES),
    "some have copies": (copy_map.axis(8, 12), HALVES),
    "padding": (copy_map.axis(5, 12, padded=True), HALVES),
    "one dimension": (HALVES,),
    "no copies": (copy_map.axis(12, 12), copy_map.axis(12, 12)),
    "three, as they were": (copy_map.axis(4, 12), HALVES),
}


@pytest.mark.parametrize("maps", COMPILED.values(), ids=COMPILED)
def test_compiled_it_takes_the_same_steps(maps: tuple[copy_map.CopyMap, ...]) -> None:
    torch.manual_seed(0)
    weight, *gradients = (torch.randn([12] * len(maps), dtype=torch.float64) for _ in range(4))
    expected = stepped(maps, gradients, weight)
    found = stepped(maps, gradients, weight, compile=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_equal_copies_stay_equal_to_the_bit(device: str) -> None:
    """On a GPU a product and a sum become one operation: equal copies must leave no rounding there either."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    torch.manual_seed(0)
    axis = copy_map.axis(37, 74)
    weight, *gradients = (torch.randn(37, 37).repeat(2, 2).to(device) for _ in range(6))
    found = stepped((axis, axis), gradients, weight, compile=True).detach()
    assert torch.equal(found, found[:37, :37].repeat(2, 2))


def test_layers_share_what_is_compiled() -> None:
    """Nothing is compiled again when a learning rate changes, and there may be more shapes than torch's limit."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    weights = {f"{n}.{size}": torch.nn.Parameter(torch.randn(2 * size, 4)) for n in range(2) for size in range(1, 10)}
    turned = {
        name: Rotation((copy_map.axis(len(one) // 2, len(one)), copy_map.axis(2, 4))) for name, one in weights.items()
    }
    group = {
        "params": list(weights.values()),
        "param_names": list(weights),
        "lr": 0.1,
        "weight_decay": 0.1,
        "eps": 1e-8,
    }
    optimizer = RotatedAdamW([group], turned, compile=True)
    for _ in range(3):
        optimizer.param_groups[0]["lr"] *= 0.9
        for one in weights.values():
            one.grad = torch.randn_like(one)
        optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 9
