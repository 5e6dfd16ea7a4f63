"""Write the tables of docs/code-map.md from the packages' and modules' docstrings.

    python docs/code_map.py

The order of packages is that of the layers in pyproject.toml. Nothing is imported: docstrings are read from the files.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hyperclone"
PAGE = ROOT / "docs" / "code-map.md"
BEGIN, END = "<!-- begin: python docs/code_map.py -->", "<!-- end -->"


def main() -> None:
    """Rewrite the generated part of the page."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")


def with_tables(page: str) -> str:
    """The page with its generated part replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """The drawing of the layers, and a section for each package, from the top layer down."""
    layers = _layers()
    drawing = "\n".join(["```", *(" | ".join(layer) for layer in layers), "```", ""])
    names = [name for layer in layers for name in layer]
    packages = [name for name in names if (PACKAGE / name).is_dir()]
    loose = [PACKAGE / "__init__.py", PACKAGE / "__main__.py"]
    loose += [path for name in names if (path := PACKAGE / f"{name}.py").is_file()]
    sections = [_section(PACKAGE / name) for name in packages]
    sections.append("### Modules beside the packages\n\n" + _table(loose, PACKAGE))
    return "\n".join([drawing, *sections])


def _layers() -> list[list[str]]:
    """Names of packages and modules, layer by layer, as import-linter enforces them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def _section(package: Path) -> str:
    """One package: what it is, and a row for each of its modules and data files."""
    files = [
        path
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name != "__init__.py" and "__pycache__" not in path.parts
    ]
    modules = _table([path for path in files if path.suffix == ".py"], package)
    data = _data(files, package)
    heading = f"### {package.name}/\n\n{_summary(package / '__init__.py')}\n\n"
    return heading + modules + (f"\nData: {data}.\n" if data else "")


def _table(modules: list[Path], base: Path) -> str:
    rows = [f"| `{path.relative_to(base)}` | {_summary(path)} |" for path in modules]
    return "\n".join(["| module | |", "|---|---|", *rows, ""])


def _data(files: list[Path], package: Path) -> str:
    """Data files; those of one folder and kind together."""
    kinds: dict[str, None] = {}
    for path in (path for path in files if path.suffix != ".py"):
        folder = path.parent.relative_to(package)
        kinds[f"`{path.name}`" if folder == Path() else f"`{folder}/`"] = None
    return ", ".join(kinds)


def _summary(module: Path) -> str:
    """The first sentence of a module's docstring."""
    paragraph = (ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0].replace("|", r"\|")


if __name__ == "__main__":
    main()
