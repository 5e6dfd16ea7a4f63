"""RotatedMuon: what copies have in common follows the source's Muon; each block steps as a matrix of its own."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import layout
from hyperclone.errors import CheckpointError, FamilyError, GrowthError, HypercloneError, OptionError
from hyperclone.expansion import copy_map
from hyperclone.optim.matrix_blocks import blocks_of
from hyperclone.optim.rotated_muon import RotatedMuon, rotated_muon
from hyperclone.optim.rotation import Rotation
from hyperclone.planning.unchanged import unchanged_plan
from tests.helpers.training_steps import DECAY, FAMILIES, MAKE, batches, grow, in_double, in_float64, source, train

__all__ = ["in_float64"]
STEPS, LR = 10, 3e-3
COEFFICIENTS = 3.4445, -4.775, 2.0315
EXPERTS = ["mixtral", "granitemoe", "gpt_oss"]


def muon(model: Any, **options: Any) -> RotatedMuon:
    return rotated_muon(model, **{"lr": LR, "weight_decay": DECAY, "betas": (0.9, 0.95), **options})


def polynomial(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton and Schulz's iteration by the singular values, on which it acts one by one."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm().clamp(min=1e-7)
    for _ in range(steps):
        a, b, c = COEFFICIENTS
        values = a * values + b * values**3 + c * values**5
    result: torch.Tensor = left @ values.diag() @ right
    return result


def adjusted(matrix: torch.Tensor) -> torch.Tensor:
    """What Muon steps by at a learning rate of 1, with torch's "match_rms_adamw"."""
    return polynomial(matrix) * 0.2 * math.sqrt(max(matrix.shape))


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", [*FAMILIES, *EXPERTS])
@pytest.mark.parametrize("whole_matrices", [False, True], ids=["blocks", "whole"])
def test_a_clone_without_noise_follows_its_source(name: str, whole_matrices: bool) -> None:
    small = source(name)
    wide, made = grow(small, Growth(width=2, noise="none", allow_rounding=True))
    expected = train(small, [muon(small, grown=False)], batches(STEPS))
    # Only rounding makes copies differ here, and it would be orthogonalized as a gradient is.
    how: dict[str, Any] = {"whole_matrices": True} if whole_matrices else {"difference_lr": 0.0}
    assert train(wide, [muon(wide, receipt=made, **how)], batches(STEPS)) == pytest.approx(expected, abs=1e-10)
    assert abs(expected[-1] - expected[0]) > 1e-3


@pytest.mark.parametrize(
    "growth", [Growth(width=4, noise="none"), Growth(hidden="2x", heads="2x", ffn="3x", noise="none")]
)
def test_it_does_so_whatever_the_factors(growth: Growth) -> None:
    small = source("mistral-window")
    wide, made = grow(small, growth)
    expected = train(small, [muon(small, grown=False)], batches(STEPS))
    assert train(wide, [muon(wide, receipt=made, difference_lr=0.0)], batches(STEPS)) == pytest.approx(
        expected, abs=1e-10
    )


def test_whole_matrices_do_so_where_parts_of_a_fused_one_change_their_shape() -> None:
    """Gate and up are 48 x 32 each and 96 x 32 as one: the longer side is the other one once hidden is 64."""
    small = source("mixtral")
    wide, made = grow(small, Growth(hidden="2x", noise="none"))
    expected = train(small, [muon(small, grown=False)], batches(STEPS))
    found = train(wide, [muon(wide, receipt=made, whole_matrices=True)], batches(STEPS))
    assert found == pytest.approx(expected, abs=1e-10)


def test_without_copies_it_is_muon_for_the_matrices_in_the_layers_and_adamw_for_the_rest() -> None:
    ours, theirs = source("llama-grouped-untied"), source("llama-grouped-untied")
    hidden = {n: p for n, p in theirs.named_parameters() if n.endswith("proj.weight")}
    others = {n: p for n, p in theirs.named_parameters() if n not in hidden}
    decayed = {n: p for n, p in others.items() if p.dim() > 1}
    adamw = MAKE["adamw"](
        [{"params": list(decayed.values()), "lr": LR, "weight_decay": DECAY},
         {"params": [p for n, p in others.items() if n not in decayed], "lr": LR, "weight_decay": 0.0}]
    )  # fmt: skip
    momenta = {name: torch.zeros_like(p) for name, p in hidden.items()}
    expected, found = [], train(ours, [muon(ours, grown=False)], batches(STEPS))
    for ids in batches(STEPS):
        logits = theirs(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        expected.append(float(loss.detach()))
        with torch.no_grad():
            for name, p in hidden.items():
                assert p.grad is not None
                momenta[name] = 0.95 * momenta[name] + 0.05 * p.grad
                p.copy_(p * (1 - LR * DECAY) - LR * adjusted(0.05 * p.grad + 0.95 * momenta[name]))
        adamw.step()
        theirs.zero_grad()
    assert found == pytest.approx(expected, abs=1e-10)


def helmert(units: int, count: int) -> torch.Tensor:
    """(units count, units count): sums of copies first, then differences, for copies in blocks."""
    rows = torch.zeros(count, count, dtype=torch.float64)
    rows[0] = count**-0.5
    for b in range(1, count):
        rows[b, :b], rows[b, b] = (b * (b + 1)) ** -0.5, -((b / (b + 1)) ** 0.5)
    return torch.kron(rows, torch.eye(units, dtype=torch.float64))


def one_step(maps: tuple[copy_map.CopyMap, ...], gradient: torch.Tensor, *, reads: int = -1) -> torch.Tensor:
    """What a weight of zeros is after a step with learning rate 1, of differences 3."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    group = {"params": [weight], "param_names": ["w"], "lr": 1.0, "weight_decay": 0.0, "eps": 1e-7, "muon": True}
    blocks = {"w": blocks_of(maps, reads=reads)}
    optimizer = RotatedMuon([group], {"w": Rotation(maps)}, blocks, differences=3.0)
    weight.grad = gradient.clone()
    optimizer.step()
    return -weight.detach()


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 2), (1, 4), (2, 1), (1, 1)])
def test_each_block_of_sums_and_differences_is_a_matrix_of_its_own(rows: int, columns: int) -> None:
    gradient = torch.randn(4 * rows, 6 * columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient[:4] *= 100  # however large one of them is
    left, right = helmert(4, rows), helmert(6, columns)
    turned, expected = left @ gradient @ right.T, torch.zeros_like(gradient)
    for a in range(rows):
        for b in range(columns):
            block = slice(4 * a, 4 * a + 4), slice(6 * b, 6 * b + 6)
            expected[block] = adjusted(turned[block]) * (3.0 if a or b else 1.0)
    expected *= math.sqrt(rows * columns)  # copies s w of w have sqrt(k) s w in common
    found = one_step((copy_map.axis(4, 4 * rows), copy_map.axis(6, 6 * columns)), gradient)
    torch.testing.assert_close(found, left.T @ expected @ right, rtol=0, atol=1e-10)


FUSED = {
    # layout: which rows (of 24 with heads 2, head_dim 4) are queries, keys and values
    "(3 heads head_dim) <- hidden": [[*range(8 * i, 8 * i + 8)] for i in range(3)],
    "(heads 3 head_dim) <- hidden": [[*range(4 * i, 4 * i + 4), *range(12 + 4 * i, 16 + 4 * i)] for i in range(3)],
    "(query(heads head_dim) + 2 heads head_dim) <- hidden": [[*range(8 * i, 8 * i + 8)] for i in range(3)],
    "(heads (query(head_dim) + 2 head_dim)) <- hidden": [
        [*range(4 * i, 4 * i + 4), *range(12 + 4 * i, 16 + 4 * i)] for i in range(3)
    ],
}


@pytest.mark.parametrize("line", FUSED)
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_queries_keys_and_values_that_are_stored_as_one_are_three_matrices(line: str, transposed: bool) -> None:
    sizes = {"heads": (2, 2), "head_dim": (4, 4), "hidden": (5, 5)}
    rows, columns = (copy_map.of_dim(dim, sizes) for dim in layout.parse(line).dims)
    gradient = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(gradient)
    for part in FUSED[line]:
        expected[part] = adjusted(gradient[part])
    if transposed:
        found = one_step((columns, rows), gradient.T.contiguous(), reads=-2).T
    else:
        found = one_step((rows, columns), gradient)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_what_is_read_is_one_input_however_it_is_put_together() -> None:
    columns = copy_map.of_dim(layout.parse("hidden <- (2 head_dim)").dims[1], {"head_dim": (3, 3)})
    assert columns.part.tolist() == [0, 0, 0, 1, 1, 1]
    gradient = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = one_step((copy_map.axis(4, 4), columns), gradient)
    torch.testing.assert_close(found, adjusted(gradient), rtol=0, atol=1e-10)


def test_padding_channels_are_blocks_of_their_own_at_the_common_rate() -> None:
    maps = (copy_map.axis(4, 4), copy_map.axis(4, 6, padded=True))
    gradient = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([adjusted(gradient[:, :4]), adjusted(gradient[:, 4:])], 1)
    torch.testing.assert_close(one_step(maps, gradient), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["deepcopy", "pickle"],
)
def test_it_resumes_from_its_state_bit_for_bit_and_can_be_copied(duplicate: Callable[[Any], Any]) -> None:
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(width=2))
    start = copy.deepcopy(wide)
    whole = train(wide, [muon(wide, receipt=made, difference_lr=1e-2)], batches(6))
    optimizer = muon(start, receipt=made, difference_lr=1e-2)
    first = train(start, [optimizer], batches(6)[:3])
    saved = duplicate(optimizer.state_dict())
    rest = muon(start, receipt=made, difference_lr=1e-2)
    rest.load_state_dict(saved)
    assert first + train(start, [rest], batches(6)[3:]) == whole
    kinds = {name for state in saved["state"].values() for name in state}
    assert kinds == {"momentum_buffer", "step", "before", "rotated_avg", "rotated_avg_sq"}
    assert duplicate(rest)._blocks.keys() == rest._blocks.keys()


def test_it_parts_copies_sooner_with_a_rate_of_their_own() -> None:
    small = source("llama-grouped-tied")
    moved = []
    for options in ({"difference_lr": 10 * LR}, {}, {"whole_matrices": True}):
        wide, made = grow(small, Growth(width=2))
        weight = wide.model.layers[0].mlp.up_proj.weight
        start = weight.detach().clone()
        train(wide, [muon(wide, receipt=made, **options)], batches(STEPS))
        rows, columns = (copy_map.axis(size // 2, size) for size in weight.shape)
        change = Rotation((rows, columns)).forward(weight.detach() - start)
        moved.append(float(change[rows.old :].norm()))
    assert moved[0] > 5 * moved[1]
    assert moved[1] > 1.5 * moved[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-grouped-tied", "gpt2-untied", "mixtral"])
@pytest.mark.parametrize("past", ["muon", "adamw"])
def test_with_the_state_of_its_source_a_clone_goes_on(name: str, past: str, tmp_path: Path) -> None:
    small = source(name)
    before = muon(small, grown=False) if past == "muon" else MAKE["adamw"](
        [{"params": list(small.parameters()), "param_names": [n for n, _ in small.named_parameters()], "lr": LR}]
    )  # fmt: skip
    train(small, [before], batches(6, seed=1))
    small.save_pretrained(tmp_path / "source")
    torch.save(before.state_dict(), tmp_path / "source/optimizer.pt")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", Growth(width=2, noise="none"), optimizer_state=tmp_path / "source",
        proof="structural",
    )  # fmt: skip
    from transformers import AutoModelForCausalLM

    wide = in_double(AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float64))
    follows = muon(wide, difference_lr=0.0)
    loaded = hyperclone.load_state(follows, wide, tmp_path / "grown")
    assert (loaded.step, loaded.fresh) == (6, ())
    if past == "muon":
        expected = train(small, [before], batches(STEPS))
        assert train(wide, [follows], batches(STEPS)) == pytest.approx(expected, abs=1e-10)
        with pytest.raises(CheckpointError, match="belongs to another optimizer"):
            hyperclone.load_state(hyperclone.rotated_adamw(wide, lr=LR), wide, tmp_path / "grown")
    else:
        average = before.state[small.get_input_embeddings().weight]["exp_avg"]
        assert average.any()
        hidden = [p for group in follows.param_groups if group["muon"] for p in group["params"]]
        assert all(follows.state[p].keys() == {"momentum_buffer"} and follows.state[p]["momentum_buffer"].any()
                   for p in hidden)  # fmt: skip


def refusals() -> dict[str, tuple[Callable[[], object], type[HypercloneError], str]]:
    small = source("llama-grouped-tied")
    wide, made = grow(small, Growth(width=2))
    return {
        "no receipt": (lambda: muon(small), GrowthError, "no receipt"),
        "no copies": (lambda: muon(small, grown=False, difference_lr=1e-3), GrowthError, "difference_lr"),
        "whole": (lambda: muon(wide, receipt=made, whole_matrices=True, difference_lr=1e-3), GrowthError, "whole"),
        "adjustment": (lambda: muon(wide, receipt=made, adjust_lr_fn="mine"), OptionError, "match_rms_adamw"),
        "momentum": (lambda: muon(wide, receipt=made, momentum=1.0), OptionError, "momentum"),
        "rate": (lambda: muon(wide, receipt=made, lr=0.0), GrowthError, "nothing can be learned"),
        "an unknown model": (lambda: unchanged_plan({"model_type": "unheard-of"}), FamilyError, "unheard-of"),
    }


def test_what_cannot_be_meant_is_refused() -> None:
    for make, error, message in refusals().values():
        with pytest.raises(error, match=message):
            make()
