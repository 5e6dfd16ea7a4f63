"""What CI installs is locked, is what pyproject.toml asks for, and has its licenses listed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINE = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+) --hash=sha256:(?P<digest>[0-9a-f]{64})")


def locked(file: str) -> dict[str, str]:
    """Versions by name. Every line has a hash."""
    lines = (ROOT / ".ci" / file).read_text("utf-8").splitlines()[1:]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match["name"]: match["version"] for match in found if match}


def asked(*extras: str) -> Iterator[Requirement]:
    """What the package asks for with these extras, and with those that they include."""
    yield from map(Requirement, PROJECT["dependencies"])
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if requirement.name == "hyperclone":
                yield from asked(*requirement.extras)
            else:
                yield requirement


def test_the_locked_packages_are_what_the_project_asks_for() -> None:
    versions = locked("locked.txt")
    for requirement in asked("all", "dev"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
                   if not line.startswith("#")]  # fmt: skip
    for requirement in constraints:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)
    assert {"pip", "setuptools"} == set(locked("locked-build.txt"))


def test_every_locked_package_has_its_license_listed() -> None:
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    listed = re.findall(r"^\| \**([a-z0-9-]+)\** \| \S", page, re.M)
    names = [name for name in listed if name != "package"]
    assert sorted(names) == sorted(locked("locked.txt")), "run: python .ci/lock.py && python docs/dependencies.py"
