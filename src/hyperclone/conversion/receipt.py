"""hyperclone.json, the receipt in a grown directory: how the model was made, and what was proved.

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
    """The part of a receipt that is read again.

    Attributes:
        growth: the request.
        family: the user's own; None where it is one that ships with the package.
        proved: the growth was proved.
        source_config: config.json of the source.
        output_sha256, source_sha256: hashes of tensors, by name.
        file_sha256: hashes of the files that were carried over.
        sizes: of the grown model's axes.
        training: settings of every parameter relative to the source's (planning/scaling_rule.py).
        optimizer_state: record of the grown one, if there is one (optimizer_state/writer.py).
    """

    growth: Growth
    family: Family | None
    proved: bool
    source_config: dict[str, Any]
    output_sha256: dict[str, str]
    source_sha256: dict[str, str]
    file_sha256: dict[str, str]
    sizes: dict[str, int]
    training: dict[str, dict[str, Any]]
    optimizer_state: dict[str, Any] | None

    @property
    def first_copy_moments(self) -> bool:
        """Whether the model came with moments of its first copies only."""
        return self.optimizer_state is not None and self.optimizer_state["moments"] == "first-copy"


def make_receipt(
    plan: Plan,
    source: str,
    proof: Proof | None,
    *,
    files: dict[str, str],
    optimizer_state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The receipt's content.

    Args:
        plan: of the grown model.
        source: its public name: a Hub id, or the name of a local directory.
        proof: None where none was run.
        files: hashes of the files that were carried over (tokenizer, templates, license).
        optimizer_state: its record, where one was grown (optimizer_state/writer.py).
    """
    return {
        "format": _FORMAT,
        "hyperclone": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
        },
        "source": source,
        "growth": asdict(plan.growth),
        "family": {"file": Path(plan.family.file).name, "text": plan.family.text} if plan.family.text else None,
        "sizes": {axis: list(pair) for axis, pair in plan.sizes.items()},
        "parameters": [plan.source_parameters, plan.parameters],
        "untied": plan.untied,
        "proof": proof.summary() if proof else None,
        "training": {
            "rule": "with AdamW: lr = source lr x lr, weight_decay = source's x weight_decay, eps = source's x eps; "
            "first moments x r, second moments x r^2; sgd and muon likewise, momentum x r (docs/training.md)"
            + ("; for experts and routers only a starting point" if plan.growth.experts is not None else ""),
            "parameters": parameter_settings(plan),
        },
        **({"optimizer_state": optimizer_state} if optimizer_state else {}),
        "source_config": plan.source_config,
        "sha256": {
            "output": proof.structure.output_sha256 if proof else {},
            "source": proof.structure.source_sha256 if proof else {},
            "files": files,
        },
    }


def parameter_settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """For every output tensor, the settings of every optimizer relative to the source's, as plain numbers."""
    return {
        t.name: scaling_rule.record(t.scale, t.gradient, t.source_shape, t.shape,
                           hidden=len(t.shape) == 2 and t.layout.reads is not None and "vocab" not in t.layout.axes)
        for t in plan.tensors
    }  # fmt: skip


def read(directory: Path) -> Receipt | None:
    """The receipt of a directory; None if it has none.

    Raises:
        CheckpointError: there is one, but it cannot be read.
    """
    path = directory / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError("this receipt has another format", file=path, field="format",
                              found=content.get("format"), expected=_FORMAT,
                              cure="use the version of hyperclone that wrote it")  # fmt: skip
    try:
        family = content.get("family")
        return Receipt(
            growth=Growth(**content["growth"]),
            family=family_file.from_text(str(family["text"]), file=str(family["file"])) if family is not None else None,
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
