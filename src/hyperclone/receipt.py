"""hyperclone.json, the receipt that travels with a grown model: how it was made, and what was proved.

It holds the request and seed, versions, hashes of every tensor of source and output, the figures of the proof, and
for every parameter the multipliers that keep the source's training dynamics, as plain numbers for any framework.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone import __version__
from hyperclone.checkpoint import read_json
from hyperclone.destination import RECEIPT
from hyperclone.errors import CheckpointError
from hyperclone.growth import Growth

if TYPE_CHECKING:
    from hyperclone.planning import Plan
    from hyperclone.proving import Proof

FILE = RECEIPT
_FORMAT = 1


@dataclass(frozen=True)
class Receipt:
    """What a receipt says that later work needs."""

    growth: Growth
    proved: bool
    source_config: dict[str, Any]
    output_sha256: dict[str, str]
    source_sha256: dict[str, str]
    file_sha256: dict[str, str]


def make(made: Plan, source: str, proof: Proof | None, files: dict[str, str]) -> dict[str, Any]:
    """The receipt's content; `files` are hashes of what was carried over (tokenizer, templates, licence)."""
    return {
        "format": _FORMAT,
        "hyperclone": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
        },
        "source": source,
        "growth": asdict(made.growth),
        "sizes": {axis: list(pair) for axis, pair in made.sizes.items()},
        "parameters": [made.source_parameters, made.parameters],
        "untied": made.untied,
        "proof": proof.summary() if proof else None,
        "training": {
            "law": "with AdamW: lr = source lr x lr, weight_decay = source's x weight_decay, eps = source's x eps; "
            "first moments x r, second moments x r^2 (docs/architecture.md)",
            "parameters": {tensor.name: tensor.multipliers for tensor in made.tensors},
        },
        "source_config": made.source_config,
        "sha256": {
            "output": proof.structure.output_sha256 if proof else {},
            "source": proof.structure.source_sha256 if proof else {},
            "files": files,
        },
    }


def digests(root: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of some small files, by their place below `root`."""
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def to_json(content: dict[str, Any]) -> str:
    """JSON as Hugging Face writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read(directory: Path) -> Receipt | None:
    """The receipt of a directory; None if it has none.

    Raises:
        CheckpointError: there is one, and it cannot be understood.
    """
    path = directory / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError("this receipt is of another format", file=path, field="format",
                              found=content.get("format"), expected=_FORMAT,
                              cure="use the version of hyperclone that wrote it")  # fmt: skip
    try:
        return Receipt(
            growth=Growth(**content["growth"]),
            proved=content["proof"] is not None,
            source_config=dict(content["source_config"]),
            output_sha256=dict(content["sha256"]["output"]),
            source_sha256=dict(content["sha256"]["source"]),
            file_sha256=dict(content["sha256"]["files"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("the receipt is incomplete", file=path, found=repr(error)) from None
