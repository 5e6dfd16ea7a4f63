"""Tables in docs/findings.md are those of the committed studies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tables(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "studies/tables.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_findings_have_the_tables_of_the_studies() -> None:
    checked = tables("--check", str(ROOT / "docs/findings.md"))
    assert checked.returncode == 0, checked.stderr


def test_a_table_that_is_not_the_studys_is_found_and_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: recipes -->\n| made up |\n<!-- end -->\nafter\n")
    checked = tables("--check", str(page))
    assert checked.returncode == 1
    assert "a table is not the studies'" in checked.stderr
    assert tables("--write", str(page)).returncode == 0
    assert tables("--check", str(page)).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table: recipes -->\n| arm |")
    assert text.endswith("<!-- end -->\nafter\n")
    (rotated,) = (line for line in text.splitlines() if "rotated AdamW" in line)
    cells = [cell.strip() for cell in rotated.strip("|").split("|")]
    assert cells[1:4] == ["5M", "3", "5e-4, differences 4e-3"]
    assert "2.18x (2.13x to 2.23x)" in cells  # over the published recipe
    assert text.split("<!-- end -->")[0].count("\n") == 2 + 2 + 5  # a line for each arm
