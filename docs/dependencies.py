"""Write docs/dependencies.md: every package that hyperclone and its extras install, who needs it, and its license.

    python docs/dependencies.py     in the environment that .ci/locked.txt lists

Licenses are what each package's own metadata says.
"""

from __future__ import annotations

import re
from collections import deque
from email.message import Message
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
EXTRAS = ("", "train", "report", "eval", "examples", "dev")  # a package is listed with the first that needs it
TITLES = {
    "": "`pip install hyperclone`", "train": "`hyperclone[train]`, more than the above",
    "report": "`hyperclone[report]`, more than the above", "eval": "`hyperclone[eval]`, more than the above",
    "examples": "`hyperclone[examples]`, more than the above", "dev": "`hyperclone[dev]`, for tests only",
}  # fmt: skip
# What metadata says in words -> its SPDX name.
SPDX = {
    "Apache": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "MIT License": "MIT", "The MIT License (MIT)": "MIT",
    "BSD License": "BSD", "3-Clause BSD License": "BSD-3-Clause", "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "ISC License (ISCL)": "ISC",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
}  # fmt: skip


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """The page: a section for each extra, with what it adds to those before it."""
    seen: set[str] = set()
    sections = []
    for extra in EXTRAS:
        direct, needed = closure(extra)
        rows = [
            f"| {f'**{name}**' if name in direct else name} | {license_of(name)} |" for name in sorted(needed - seen)
        ]
        seen |= needed
        sections.append("\n".join([f"## {TITLES[extra]}", "", "| package | license |", "|---|---|", *rows]))
    head = (
        "# Dependencies and their licenses\n\n"
        "Written by `python docs/dependencies.py` from the packages' own metadata, for Linux and Python 3.11 "
        "with the versions that [CI locks](../.ci/locked.txt).\n"
        "Packages in bold are what hyperclone itself asks for; the others come with them.\n"
        "hyperclone itself is Apache-2.0."
    )
    return "\n\n".join([head, *sections]) + "\n"


def closure(extra: str) -> tuple[set[str], set[str]]:
    """(packages that hyperclone asks for with an extra, these and all that they need), by their names in indexes."""
    direct: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = deque([("hyperclone", extra)])
    while waiting:
        name, wanted = waiting.popleft()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
                continue
            needed = canonicalize_name(requirement.name)
            if name == "hyperclone":
                direct.add(needed)
            waiting += [(needed, one) for one in ("", *requirement.extras)]
    return direct - {"hyperclone"}, {name for name, _ in done} - {"hyperclone"}


def license_of(name: str) -> str:
    """The SPDX expression of a package's license.

    Raises:
        ValueError: its metadata names none, or in words that SPDX does not list.
    """
    said: Message = metadata.metadata(name)  # type: ignore[assignment] # it is one
    if expression := said["License-Expression"]:
        return str(expression)
    classified = [text.split(" :: ")[-1] for text in said.get_all("Classifier", []) if text.startswith("License ::")]
    words = [word for word in classified if word != "OSI Approved"] or [str(said["License"]).splitlines()[0]]
    names = [SPDX.get(word, word) for word in words]
    if not all(re.fullmatch(r"[A-Za-z0-9.\-]+( (AND|OR) [A-Za-z0-9.\-]+)*", one) for one in names):
        raise ValueError(f"{name}: a license in words: {names}")
    return " OR ".join(sorted(set(names)))


if __name__ == "__main__":
    main()
