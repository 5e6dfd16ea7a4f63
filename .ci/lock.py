"""Write .ci/locked*.txt: every package that the set-up installs for tests, with the hash of the file it comes from.

    python .ci/lock.py      in the environment that is to be locked: Linux on x86-64, Python 3.11

`make test LOCKED=.ci/locked` installs these files and nothing else. locked-build.txt is what builds the packages
that come as sources.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ("pip", "setuptools")


def main() -> None:
    """Ask pip what it would install into an empty environment, from where, and with which hashes."""
    write(HERE / "locked-build.txt", resolve(*BUILD))
    write(HERE / "locked.txt", resolve("-c", str(ROOT / "constraints.txt"), f"{ROOT}[all,dev]"))


def resolve(*requirements: str) -> list[dict[str, Any]]:
    """pip's report of each package but our own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, *requirements], check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout)
    return [package for package in report["install"] if "dir_info" not in package["download_info"]]


def write(file: Path, packages: list[dict[str, Any]]) -> None:
    """A requirements file of pip, by name."""
    lines = ["# python .ci/lock.py"]
    for package in sorted(packages, key=name):
        version = package["metadata"]["version"].partition("+")[0]  # torch's processor wheel is 2.13.0+cpu
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name(package)}=={version} --hash=sha256:{digest}")
    file.write_text("\n".join(lines) + "\n")


def name(package: dict[str, Any]) -> str:
    """As package indexes have it."""
    return canonicalize_name(package["metadata"]["name"])


if __name__ == "__main__":
    main()
