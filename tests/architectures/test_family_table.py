"""What the table of families says is what the planner does, and what the docs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hyperclone import Growth
from hyperclone.architectures import registry, support_table
from hyperclone.cli.display.families import table
from hyperclone.errors import GrowthError
from hyperclone.io.hub import Headers
from hyperclone.planning import planner
from tests.helpers.headers import headers
from tests.helpers.models import MODELS

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_docs_are_in_step_with_the_family_files() -> None:
    assert DOCS.read_text() == support_table.markdown(), "run: hyperclone families --markdown > docs/families.md"


def test_every_model_type_is_listed_once_with_names_that_people_know() -> None:
    rows = support_table.summary()
    assert sorted(t for row in rows for t in row["model_types"]) == sorted(registry.families())
    for row in rows:
        assert row["models"], f"families/{row['family']}.toml has no models = [...]"
        assert all(row["grows"][axis] for axis in ("hidden", "ffn", "heads", "layers"))


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_every_family_and_cuts_nothing_off(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(width=console.width))
    console.file.close()
    text = console.export_text()
    assert "…" not in text
    for name in ("Pythia", "llama", "gemma3_text", "ALiBi", "with hidden"):
        assert name in text
    assert ("KV heads" in text.splitlines()[0]) == (width >= 120)


def refusal(model: Headers, **growth: Any) -> str:
    """Why it cannot be grown so; empty where it can."""
    try:
        planner.make_plan(model, Growth(**growth))
    except GrowthError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MODELS)
def test_a_cell_says_what_the_planner_does(name: str) -> None:
    model = headers(name)
    family, old = model.family, model.family.sizes(model.config)
    cells = {title: cell(family) for title, cell in support_table.COLUMNS.items()}
    notes = " ".join(support_table.notes(family))

    def is_noted(why: str) -> bool:
        return why.split("\n")[0].removeprefix("this model cannot be grown like this: ") in notes

    if is_noted(refusal(model, ffn="2x")):
        return  # refused whatever the growth
    attention = "head_dim" if cells["heads"] == "stay" else "heads"
    together = ["hidden", attention, *(["ffn"] if cells["ffn"] == "with hidden" else [])]
    assert refusal(model, **dict.fromkeys(together, "2x")) == ""

    uneven = refusal(model, **dict.fromkeys(together, "1.5x"))
    when = family.residual["hidden"].when if cells["hidden"] == "(any)" else None
    fillable = cells["hidden"] != "multiples" and (when is None or bool(family.value(when, model.config)))
    assert ("can only grow to multiples" in uneven) == (not fillable), uneven

    assert (refusal(model, ffn=str(old["ffn"] + 1)) == "") == (cells["ffn"] == "any")

    heads = refusal(model, heads="2x")
    match cells["heads"]:
        case "any" | "multiples":
            assert heads == "" or is_noted(heads) or "`hidden_size / num_attention_heads` must stay" in notes
        case "with hidden":
            assert "head_dim" in heads or is_noted(heads)
        case _:
            assert is_noted(heads)
    if cells["heads"] == "multiples":
        assert "can only grow to multiples" in refusal(model, heads="1.5x")

    larger = refusal(model, **{**dict.fromkeys(together, "2x"), "heads": None, "head_dim": "2x"})
    assert (larger == "" or is_noted(larger)) == (cells["head dim"] == "any"), larger

    deeper = refusal(model, layers="2x")
    assert deeper == "" or is_noted(deeper)
    stacked = refusal(model, layers="2x", depth_mode="stack")
    assert (stacked == "") == (cells["layers"] != "stay") or (family.counted and "cannot express" in stacked), stacked
