"""hyperclone.json, the receipt that travels with a grown model: how it was made, and what was proved.

It holds the request and seed, versions, hashes of every tensor of source and output, the figures of the proof, and
for every parameter the multipliers that keep the source's training dynamics, as plain numbers for any framework.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.architectures import family_file
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError
from hyperclone.io.destination import RECEIPT
from hyperclone.io.files import read_json
from hyperclone.planning import scaling_rule
from hyperclone.planning.growth import Growth
from hyperclone.version import __version__

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

FILE = RECEIPT
_FORMAT = 1


@dataclass(frozen=True)
class Receipt:
    """What a receipt says that later work needs."""

    growth: Growth
    family: Family | None  # None where it is one that ships with the package
    proved: bool
    source_config: dict[str, Any]
    output_sha256: dict[str, str]
    source_sha256: dict[str, str]
    file_sha256: dict[str, str]
    sizes: dict[str, int]  # of the grown model's axes
    training: dict[str, dict[str, Any]]  # settings of every parameter (training/law.py)
    optimizer_state: dict[str, Any] | None  # the grown one, if there is one (optimizer_state/writer.py)

    @property
    def first_copy_moments(self) -> bool:
        """Whether the model came with moments of its first copies only."""
        return self.optimizer_state is not None and self.optimizer_state["moments"] == "first-copy"


def make(
    made: Plan,
    source: str,
    proof: Proof | None,
    files: dict[str, str],
    optimizer_state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The receipt's content.

    Args:
        made, source, proof: what was grown, from where, and what was proved.
        files: hashes of what was carried over (tokenizer, templates, licence).
        optimizer_state: what is to be remembered of a grown optimizer state.
    """
    return {
        "format": _FORMAT,
        "hyperclone": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
        },
        "source": source,
        "growth": asdict(made.growth),
        "family": {"file": Path(made.family.file).name, "text": made.family.text} if made.family.text else None,
        "sizes": {axis: list(pair) for axis, pair in made.sizes.items()},
        "parameters": [made.source_parameters, made.parameters],
        "untied": made.untied,
        "proof": proof.summary() if proof else None,
        "training": {
            "law": "with AdamW: lr = source lr x lr, weight_decay = source's x weight_decay, eps = source's x eps; "
            "first moments x r, second moments x r^2; sgd and muon likewise, momentum x r (docs/training.md)"
            + ("; for experts and routers a starting point only" if made.growth.experts is not None else ""),
            "parameters": parameter_settings(made),
        },
        **({"optimizer_state": optimizer_state} if optimizer_state else {}),
        "source_config": made.source_config,
        "sha256": {
            "output": proof.structure.output_sha256 if proof else {},
            "source": proof.structure.source_sha256 if proof else {},
            "files": files,
        },
    }


def parameter_settings(made: Plan) -> dict[str, dict[str, Any]]:
    """For every output tensor, the settings of every optimizer relative to the source's, as plain numbers."""
    return {
        t.name: scaling_rule.record(t.scale, t.gradient, t.source_shape, t.shape,
                           hidden=len(t.shape) == 2 and t.layout.reads is not None and "vocab" not in t.layout.axes)
        for t in made.tensors
    }  # fmt: skip


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
        told = content.get("family")
        return Receipt(
            growth=Growth(**content["growth"]),
            family=family_file.own(str(told["text"]), file=str(told["file"])) if told is not None else None,
            proved=content["proof"] is not None,
            source_config=dict(content["source_config"]),
            output_sha256=dict(content["sha256"]["output"]),
            source_sha256=dict(content["sha256"]["source"]),
            file_sha256=dict(content["sha256"]["files"]),
            sizes={axis: new for axis, (_, new) in content["sizes"].items()},
            training=dict(content["training"]["parameters"]),
            optimizer_state=content.get("optimizer_state"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("the receipt is incomplete", file=path, found=repr(error)) from None
