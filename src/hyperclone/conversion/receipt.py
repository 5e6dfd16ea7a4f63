"""hyperclone.json, the receipt in a grown directory: how the model was made, and what was proved.

It holds the request and seed, versions, hashes of every tensor of source and output, the figures of the proof, and
for every parameter the multipliers that keep the source's training dynamics, as plain numbers for any framework.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.architectures import family_file
from hyperclone.architectures.family import Family
from hyperclone.conversion.source_rate import SourceRate
from hyperclone.errors import CheckpointError
from hyperclone.io.destination import RECEIPT
from hyperclone.io.files import exists, read_json
from hyperclone.io.hub import Headers
from hyperclone.planning import planner, scaling_rule
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import TensorPlan
from hyperclone.units import is_finite
from hyperclone.version import __version__

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

FILE = RECEIPT
_FORMAT = 1
CONFIG_FIELD = planner.GROWN_FIELD
_SETTINGS = {"s", "r", "lr", "weight_decay", "eps", "sgd"}  # of every tensor; hidden matrices have muon as well


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
        text_model: the source is the text model of a model that also sees images.
        source: the source's public name; "" if it was grown in memory.
        optimizer_state: record of the grown one, if there is one (optimizer_state/writer.py).
        source_lr: peak learning rate of the source's own training; None where it is not known (source_rate.py).
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
    text_model: bool = False
    source: str = ""
    source_lr: float | None = None

    @functools.cached_property
    def plan(self) -> Plan:
        """The growth in fp64, in which every growth is possible: a grown model may be of another type by now."""
        return _plan(self.source_config, self.growth, self.family)

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
    text_model: bool = False,
    rate: SourceRate | None = None,
) -> dict[str, Any]:
    """The receipt's content.

    Args:
        plan: of the grown model.
        source: its public name: a Hub id, or the name of a local directory.
        proof: None where none was run.
        files: hashes of the files that were carried over (tokenizer, templates, license).
        text_model: the source is the text model of a model that also sees images.
        optimizer_state: its record, where one was grown (optimizer_state/writer.py).
        rate: of the source's own training.
    """
    return {
        "format": _FORMAT,
        "hyperclone": __version__,
        "versions": dict(_versions()),
        "source": source,
        **({"text_model": True} if text_model else {}),
        "growth": asdict(plan.growth),
        "family": _family_record(plan),
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
        **({"source_lr": {"lr": rate.lr, "file": rate.file}} if rate else {}),
        "source_config": plan.source_config,
        "sha256": {
            "output": proof.structure.output_sha256 if proof else {},
            "source": proof.structure.source_sha256 if proof else {},
            "files": files,
        },
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of Python and of the packages that make and read weights."""
    packages = ("torch", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def parameter_settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """For every output tensor, the settings of every optimizer relative to the source's, as plain numbers."""
    return {
        t.name: scaling_rule.record(t.scale, t.gradient, t.source_shape, t.shape, hidden=_is_hidden(t))
        for t in plan.tensors
    }  # fmt: skip


def _is_hidden(tensor: TensorPlan) -> bool:
    """Whether a tensor is a matrix in the blocks, or one for each expert."""
    layout = tensor.layout
    return len(tensor.shape) in (2, 3) and layout.reads is not None and "vocab" not in layout.axes


def config_field(plan: Plan, *, text_model: bool = False) -> dict[str, Any]:
    """What the config of a grown model says of its growth, so that it goes wherever the model is saved.

    Args:
        plan: of the growth.
        text_model: as of `make_receipt`.
    """
    return {
        "format": _FORMAT,
        **({"text_model": True} if text_model else {}),
        "growth": asdict(plan.growth),
        "family": _family_record(plan),
        "source_config": {name: value for name, value in plan.source_config.items() if name != CONFIG_FIELD},
    }


def from_config(config: Mapping[str, Any], *, file: object = "config.json") -> Receipt | None:
    """The receipt of a grown model that is saved without one, from its config; None if the config holds none.

    There are no hashes in it, and the parameters' settings are computed again.

    Raises:
        CheckpointError: there is one, but it cannot be read.
    """
    if (content := config.get(CONFIG_FIELD)) is None:
        return None
    try:
        if (found := _table(content, CONFIG_FIELD)["format"]) != _FORMAT:
            raise ValueError(f"format {found} instead of {_FORMAT}")
        growth, family = _growth(content["growth"]), _family(content.get("family"))
        source_config = _table(content["source_config"], "source_config")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("what the config says of the model's growth is incomplete or corrupt", file=file,
                              field=CONFIG_FIELD, found=error, cure="remove the field") from None  # fmt: skip
    plan = _plan(source_config, growth, family)
    receipt = Receipt(
        growth=growth, family=family, proved=False, source_config=source_config, output_sha256={}, source_sha256={},
        file_sha256={}, sizes={axis: new for axis, (_, new) in plan.sizes.items()}, training=parameter_settings(plan),
        optimizer_state=None, text_model=content.get("text_model") is True,
    )  # fmt: skip
    vars(receipt)["plan"] = plan  # what the cached property would make again
    return receipt


def read(directory: Path) -> Receipt | None:
    """The receipt of a directory, or of the model in memory that was saved there; None if there is none.

    Raises:
        CheckpointError: there is one, but it cannot be read.
    """
    path = directory / FILE
    if not exists(path):
        config = directory / "config.json"
        return from_config(read_json(config), file=config) if exists(config) else None
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError("this receipt has another format", file=path, field="format",
                              found=content.get("format"), expected=_FORMAT,
                              cure="use the version of hyperclone that wrote it")  # fmt: skip
    try:
        hashes = _table(content["sha256"], "sha256")
        state = content.get("optimizer_state")
        return Receipt(
            growth=_growth(content["growth"]),
            family=_family(content.get("family")),
            proved=content["proof"] is not None,
            source_config=_table(content["source_config"], "source_config"),
            output_sha256=_texts(hashes["output"], "sha256.output"),
            source_sha256=_texts(hashes["source"], "sha256.source"),
            file_sha256=_texts(hashes["files"], "sha256.files"),
            sizes={axis: _new_size(pair, axis) for axis, pair in _table(content["sizes"], "sizes").items()},
            training={
                name: _settings(entry, f"training.parameters.{name}")
                for name, entry in _table(_table(content["training"], "training")["parameters"], "training").items()
            },
            optimizer_state=None if state is None else _state(state),
            text_model=content.get("text_model") is True,
            source=str(content.get("source", "")),
            source_lr=_source_lr(content.get("source_lr")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("the receipt is incomplete or corrupt", file=path, found=error,
                              cure="restore it, or grow the model again") from None  # fmt: skip


def _growth(content: object) -> Growth:
    """A recorded growth; from before there was another order, copies are tiled."""
    return Growth(**{"order": "tiled", **_table(content, "growth")})


def _plan(source_config: dict[str, Any], growth: Growth, family: Family | None) -> Plan:
    return planner.make_plan(Headers.from_config(source_config, user_family=family), replace(growth, dtype="fp64"))


def _family_record(plan: Plan) -> dict[str, str] | None:
    """The family file, where it is the user's own; `_family` reads it again."""
    return {"file": Path(plan.family.file).name, "text": plan.family.text} if plan.family.text else None


def _family(value: object) -> Family | None:
    if value is None:
        return None
    table = _table(value, "family")
    return family_file.from_text(str(table["text"]), file=str(table["file"]))


def _table(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{field} is no table")
    return value


def _texts(value: object, field: str) -> dict[str, str]:
    table = _table(value, field)
    if not all(isinstance(text, str) for text in table.values()):
        raise TypeError(f"{field} holds something else than texts")
    return table


def _new_size(pair: object, axis: str) -> int:
    match pair:
        case [int(_), int(new)] if new > 0:
            return new
    raise TypeError(f"sizes.{axis} is no pair of sizes")


def _settings(value: object, field: str) -> dict[str, Any]:
    """A tensor's entry, as planning/scaling_rule.py records it: finite numbers, by optimizer where they differ."""
    entry = _table(value, field)
    if missing := _SETTINGS - entry.keys():
        raise KeyError(f"{field}.{min(missing)}")
    _check_numbers(entry, field)
    return entry


def _check_numbers(value: object, field: str) -> None:
    if isinstance(value, dict):
        for name, one in value.items():
            _check_numbers(one, f"{field}.{name}")
    elif not is_finite(value):
        raise TypeError(f"{field} is no finite number")


def _source_lr(value: object) -> float | None:
    if value is None:
        return None
    lr = _table(value, "source_lr")["lr"]
    if not is_finite(lr) or lr <= 0:
        raise TypeError("source_lr.lr is no learning rate")
    return float(lr)


def _state(value: object) -> dict[str, Any]:
    """The record of a grown optimizer state (optimizer_state/writer.py)."""
    state = _table(value, "optimizer_state")
    for name in ("optimizer", "moments"):
        if not isinstance(state[name], str):
            raise TypeError(f"optimizer_state.{name} is no text")
    steps = [] if state["step"] is None else [state["step"]]
    if not all(type(step) is int for step in (*steps, *_table(state["steps"], "optimizer_state.steps").values())):
        raise TypeError("optimizer_state: the steps are no whole numbers")
    _texts(state["sha256"], "optimizer_state.sha256")
    return state
