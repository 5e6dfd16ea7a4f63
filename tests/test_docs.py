"""The documents agree with the repository: links, paths, options, the code map, one sentence a line."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from bench import tables
from hyperclone.cli.main import app
from hyperclone.errors import StudyError
from hyperclone.planning.growth import Growth
from hyperclone.study import config_file
from hyperclone.training.config import Training
from tests import test_structure

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/hyperclone/hyperclone/blob/main/"  # so that README's links work on a package index, too
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROSE = [page for page in PAGES if page.parent.name == "docs" or page.name == "README.md"]
PROSE_IDS = [page.name for page in PROSE]
_HISTORY = {"log.md", "CHANGELOG.md"}  # they may name options that are gone

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w/.*-])((?:[\w-]+/)+[\w.-]+\.(?:py|toml|yaml|json|csv|svg|md|runs))(?![\w*])")
_COMMAND = re.compile(r"(?:-m )?\bhyperclone ((?:family draft|[a-z]+)\b[^#\n|`]*)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_TWO = re.compile(r"""(?<!\b[A-Z])[.!?][)"”*_`]*\s+["“(*_\[]*[A-Z`]""")  # a sentence ends, and another begins
_OTHER_PROGRAMS = {"--help", "--safe_serialization",   # torchrun, pip, git, hf upload; bench scripts
    "--nnodes", "--nproc-per-node", "--node-rank", "--rdzv-backend", "--rdzv-endpoint", "--no-deps", "--dest",
    "--config_file", "--gpus", "--mfu", "--size", "--private", "--exclude",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_exist(page: Path) -> None:
    broken = [link for link in links(page.read_text("utf-8")) if not reaches(page, link)]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    named = set(_PATH.findall(written(page)))
    bases = (ROOT, ROOT / "src/hyperclone", page.parent)
    assert not {path for path in named if not any((base / path).exists() for base in bases)}


@pytest.mark.parametrize("page", PROSE, ids=PROSE_IDS)
def test_options_that_are_shown_belong_to_their_command(page: Path) -> None:
    text = written(page).replace("\\\n", " ")
    assert not {f"{command} {flag}" for command, flags in commands(text) for flag in flags - options_of(command)}


@pytest.mark.parametrize("page", [p for p in PROSE if p.name not in _HISTORY], ids=lambda page: page.name)
def test_commands_that_are_shown_whole_are_accepted_with_their_values(page: Path) -> None:
    """Parsed as on the command line, up to where files are opened: arguments, types, choices, ranges."""
    for shown in whole_commands(written(page)):
        name = next(name for name in all_commands() if shown[: len(name.split())] == name.split())
        context = all_commands()[name].make_context(name, shown[len(name.split()) :])
        given = {field: value for field, value in context.params.items() if value is not None}
        request = {"train": Training, "grow": Growth, "plan": Growth}.get(name)
        if request is not None and not str(given.get("model")).endswith(".toml"):  # a run file has the rest
            named = {field.name for field in dataclasses.fields(request)}
            request(**{field: value for field, value in given.items() if field in named})


def test_commands_that_are_shown_are_found() -> None:
    block = "$ A=1 hyperclone plan SRC --width 2  # sizes\n$ torchrun --x 8 -m hyperclone train m \\\n  --data d"
    text = f"```console\n{block}\n```"
    assert list(whole_commands(text)) == [["plan", "SRC", "--width", "2"], ["train", "m", "--data", "d"]]
    assert sum(len(list(whole_commands(written(page)))) for page in PROSE) > 30


@pytest.mark.parametrize("page", PROSE, ids=PROSE_IDS)
def test_arms_that_are_named_as_a_control_are_in_their_study(page: Path) -> None:
    text = written(page)
    of_study = re.findall(r"hyperclone report (studies/[\w-]+)\.runs [^`\n]*--control (\w+)", text)
    assert not [(study, arm) for study, arm in of_study if arm not in arms(study)]
    every = set().union(*(arms(f"studies/{file.stem}") for file in (ROOT / "studies").glob("*.toml")))
    assert set(re.findall(r"--control ([a-z][\w-]*)", text)) <= every


@pytest.mark.parametrize("page", [p for p in PROSE if p.name not in _HISTORY], ids=lambda page: page.name)
def test_options_that_are_named_are_options_of_some_command(page: Path) -> None:
    every = set().union(*(options_of(name) for name in all_commands())) | _OTHER_PROGRAMS
    assert not set(re.findall(r"(?<![\w-])--[a-z][\w-]*", written(page))) - every


def test_options_that_messages_and_docstrings_name_are_options_of_some_command() -> None:
    """A cure that names an option which is gone helps nobody."""
    every = set().union(*(options_of(name) for name in all_commands())) | _OTHER_PROGRAMS | {"--version"}
    named: dict[str, set[str]] = {}
    for module in (ROOT / "src/hyperclone").rglob("*.py"):
        if module.name == "palette.py":  # its -- are variables of CSS
            continue
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*\b", node.value):
                    named.setdefault(flag, set()).add(module.name)
    named.pop("--no", None)  # the beginning of --no-compile
    assert {flag: sorted(files) for flag, files in named.items() if flag not in every} == {}


@pytest.mark.parametrize("page", PROSE, ids=PROSE_IDS)
def test_a_line_has_one_sentence_and_a_sentence_one_line(page: Path) -> None:
    lines = list(prose_lines(written(page)))
    assert not [line for line, _ in lines if _TWO.search(line)], "two sentences on a line"
    assert not [line for line, continued in lines if continued and not re.search(r"[.!?:)\]]\W*$", line)], "wrapped"


def test_sentences_are_counted() -> None:
    assert _TWO.search("One. Two.")
    assert _TWO.search("One (or two.) Three.")
    assert _TWO.search("**One.** *Two* follows.")
    assert _TWO.search("It is 2.5. `code` follows.")
    assert not _TWO.search("Samragh et al. 2024 report 2.2x, e.g. in `a.b` and on H. Smith's page.")


def test_the_code_map_is_the_tree() -> None:
    page = ROOT / "docs" / "code-map.md"
    assert page.read_text("utf-8") == code_map().with_tables(page.read_text("utf-8")), "run: python docs/code_map.py"
    for package in (ROOT / "src/hyperclone").iterdir():
        if (package / "__init__.py").is_file():
            section = page.read_text("utf-8").split(f"### {package.name}/\n")[1].split("\n### ")[0]
            for module in package.rglob("[!_]*.py"):
                assert f"`{module.relative_to(package)}`" in section


def test_what_contributing_says_about_the_code_is_what_is_checked() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawing = code_map().tables().split("```")[1].strip()
    assert f"```\n{drawing}\n```" in page, "the layers of pyproject.toml"
    assert f"modules of at most {test_structure.LONGEST} " in page
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert f"at most {settings['ruff']['line-length']} characters in a line" in page
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", page)) <= targets
    markers = {marker.split(":")[0].split("(")[0] for marker in settings["pytest"]["ini_options"]["markers"]}
    assert markers == {marker for marker in markers if f"`{marker}" in page}


def test_the_reference_has_every_option_of_a_training() -> None:
    page = (ROOT / "docs" / "training-reference.md").read_text("utf-8")
    named = set(re.findall(r"`(--[a-z0-9-]+)`", page))
    assert options_of("train") - {"--help"} <= named


def test_the_study_file_that_is_shown_can_be_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "study.md").read_text("utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my.toml").write_text(shown)
    study = config_file.read(tmp_path / "my.toml")
    assert (study.control, study.headline, list(study.sources)) == ("random", "clone", ["base"])
    every_key = {
        "label",
        "group",
        "random",
        "source",
        "model",
        "growth",
        "grow_at",
        "moments",
        "train",
        "tune",
        "like",
        "branches",
    }
    assert not {key for key in every_key if not re.search(rf"^(# )?{key} = ", shown, re.MULTILINE)}
    with_all = "[arms.x]\n" + "\n".join(f"{key} = 1" for key in [*every_key, "nonsense"])
    (tmp_path / "keys.toml").write_text(f'[train]\ndata = "a"\ntokens = 1\n{with_all}\n')
    with pytest.raises(StudyError) as unknown:
        config_file.read(tmp_path / "keys.toml")
    assert set(str(unknown.value.details["expected"]).split(", ")) == every_key


def test_every_key_of_a_family_file_is_explained() -> None:
    page = (ROOT / "docs" / "family-files.md").read_text("utf-8")
    files = (ROOT / "src/hyperclone/architectures/families").glob("*.toml")
    keys = set().union(*(tomllib.loads(file.read_text("utf-8")) for file in files))
    assert not {key for key in keys if f"| `{key}` |" not in page}


def written(page: Path) -> str:
    """A page without what is made of docstrings."""
    return page.read_text("utf-8").split("<!-- begin: python docs/code_map.py -->")[0]


def links(text: str) -> Iterator[str]:
    """Targets that lie in this repository."""
    for link in _LINK.findall(_FENCE.sub("", text)):
        if link.startswith(BLOB):
            yield "/" + link.removeprefix(BLOB)
        elif not re.match(r"[a-z]+:", link):
            yield link


def reaches(page: Path, link: str) -> bool:
    """Whether a link leads to a file, and to a heading if it names one."""
    path, _, anchor = link.partition("#")
    target = ROOT / path[1:] if path.startswith("/") else page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target.read_text("utf-8")))


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[tuple[str, set[str]]]:
    """(command, its flags) of every `hyperclone COMMAND ...` in a text."""
    for shown in _COMMAND.findall(text):
        name = next((name for name in all_commands() if re.match(rf"{name}\b", shown)), None)
        if name is not None:
            yield name, set(_FLAG.findall(shown))


def whole_commands(text: str) -> Iterator[list[str]]:
    """The parts of every `$ hyperclone ...` in blocks of a text, without launchers, comments and elisions."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\$ (?:[A-Z_]+=\S+ )*(?:torchrun .*-m )?hyperclone (.*)", line)
            if found is not None and "..." not in line:
                yield shlex.split(found[1].split(" > ")[0], comments=True)


@cache
def arms(study: str) -> set[str]:
    """Arms of a study of this repository, by its path without suffix."""
    return set(tomllib.loads((ROOT / f"{study}.toml").read_text("utf-8"))["arms"])


@cache
def all_commands() -> dict[str, Any]:
    """Every command by the words that call it."""
    group: Any = typer.main.get_command(app)  # click's types have moved between versions of typer
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {sub}": each for sub, each in below.items()}
    return found


@cache
def options_of(command: str) -> set[str]:
    """All spellings of a command's options."""
    spelled = (option for p in all_commands()[command].params for option in (*p.opts, *p.secondary_opts))
    return {option for option in spelled if option.startswith("--")} | {"--help"}


def prose_lines(text: str) -> Iterator[tuple[str, bool]]:
    """(line, whether the paragraph continues below it) outside code, tables, headings and comments."""
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", _FENCE.sub("", text), flags=re.DOTALL)
    lines = [*text.splitlines(), ""]
    for line, below in pairwise(lines):
        if re.match(r"\s*(\||#|<!--|!\[|$)", line):
            continue
        line = re.sub(r"`[^`]+`", "`code`", re.sub(r"^\s*(?:[*-]|\d+\.|>) ", "", line).strip())
        yield line, bool(re.match(r"\s*[^\s*\-|#<>!\d]", below))


def code_map() -> ModuleType:
    """docs/code_map.py."""
    spec = importlib.util.spec_from_file_location("code_map", ROOT / "docs" / "code_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_performance_page_are_those_of_the_committed_results() -> None:
    page = tables.PAGE.read_text("utf-8")
    assert page == tables.with_tables(page), "run: python -m bench.tables"
