"""The shape of the package: what a newcomer meets first stays small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hyperclone

PACKAGE = Path(hyperclone.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400  # lines of a module
PACKAGES = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]


def test_the_top_level_is_small() -> None:
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 25, sorted(entries)


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_a_package_imports_nothing_by_itself(path: Path) -> None:
    """Its `__init__` is a docstring: a re-export there would load torch for `plan` and `--help`."""
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_no_module_is_long() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_public_name_is_there() -> None:
    for name in hyperclone.__all__:
        assert getattr(hyperclone, name) is not None
