"""The tables of what training on many machines takes are those that their scripts print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["scale", "distributed"])
def test_the_page_holds_the_scripts_table(name: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", f"bench.{name}"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    page = (ROOT / "docs/scale.md").read_text()
    shown = page.split(f"<!-- bench/{name}.py -->")[1].split(f"<!-- /bench/{name}.py -->")[0]
    assert shown.strip() == printed.strip()


def test_its_flops_and_sizes_are_those_of_the_model_in_transformers() -> None:
    """Against the FLOPs that training reports, from the grown model's own parameters on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hyperclone.io.hub import Headers
    from hyperclone.planning import planner
    from hyperclone.training import flops

    sys.path.insert(0, str(ROOT))
    try:
        from bench import scale
    finally:
        sys.path.pop(0)
    for case in scale.CASES:
        plan = planner.make_plan(Headers.from_config(case.config, dtype="BF16"), case.growth)
        kwargs = {key: value for key, value in plan.config.items() if key != "model_type"}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.config["model_type"], **kwargs))
        row = scale.figures(case, gpus=64, mfu=0.4)
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert row["flops_per_token"] == pytest.approx(flops.per_token(model, case.seq_len), rel=2e-3)  # norms, biases
