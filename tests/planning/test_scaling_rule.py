"""The scaling rule's multipliers with numbers, as its docstring derives them."""

from __future__ import annotations

import pytest

from hyperclone.planning import scaling_rule


def test_adamw_and_sgd_have_the_multipliers_of_a_copys_scale_and_gradient() -> None:
    assert scaling_rule.adamw(0.5, 0.25) == {"lr": 0.5, "weight_decay": 2.0, "eps": 0.25}
    assert scaling_rule.sgd(0.5, 0.25) == {"lr": 2.0, "weight_decay": 0.5}


@pytest.mark.parametrize(
    ("shape", "adjust", "expected"),
    [((8, 2), "original", 2.0), ((2, 8), "original", 1.0), ((3, 2), "original", 1.5**0.5), ((4, 4), "original", 1.0),
     ((25, 4), "match_rms_adamw", 1.0), ((4, 25), "match_rms_adamw", 1.0), ((4, 100), "match_rms_adamw", 2.0)],
)  # fmt: skip
def test_muon_adjusts_the_learning_rate_to_the_shape(shape: tuple[int, int], adjust: str, expected: float) -> None:
    assert scaling_rule.adjustment(shape, adjust) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("adjust", "lr"),
    # p = 8 copies of rows, q = 2 of columns: sqrt(p q) = 4. Adjustments: sqrt(8 / 4) and sqrt(64 / 8), or by
    # 0.2 sqrt(8) and 0.2 sqrt(64).
    [("original", 0.5 * 4 * (2 / 8) ** 0.5), ("match_rms_adamw", 0.5 * 4 * (8 / 64) ** 0.5)],
)
def test_muon_has_the_multipliers_of_rows_and_columns(adjust: str, lr: float) -> None:
    found = scaling_rule.muon(0.5, 0.125, (8, 4), (64, 8), adjust)
    assert found == pytest.approx({"lr": lr, "weight_decay": 1 / lr, "eps": 0.125 * 4}, rel=1e-14)


def test_the_receipts_entry_has_all_optimizers_and_muon_only_for_hidden_matrices() -> None:
    entry = scaling_rule.record(0.5, 0.25, (8, 4), (64, 8), hidden=True)
    assert entry.keys() == {"s", "r", "lr", "weight_decay", "eps", "sgd", "muon"}
    assert (entry["s"], entry["r"], entry["lr"], entry["sgd"]["lr"]) == (0.5, 0.25, 0.5, 2.0)
    assert entry["muon"] == {
        adjust: scaling_rule.muon(0.5, 0.25, (8, 4), (64, 8), adjust) for adjust in ("original", "match_rms_adamw")
    }
    assert "muon" not in scaling_rule.record(0.5, 0.25, (8,), (64,), hidden=False)
