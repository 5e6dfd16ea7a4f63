"""What a run is, as a short key: two runs with the same key would compute the same, so a finished one is reused.

A key is a hash of the model's files, the growth, the options that change results, and the bytes of the data. Names of
arms, paths of files, and how often a run logs or saves are no part of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from hyperclone import units
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError
from hyperclone.io.files import read_json, to_json
from hyperclone.planning.growth import Growth
from hyperclone.training import data_sources, mixture
from hyperclone.training.config import skipped

_UNRELATED = (
    "cache",
    "log_every",
    "save_every",
    "keep",
    "report_to",
    "micro_batch",
    "anatomy",
)  # these change no result
_TILED = ("order", "tiled")  # what keys from before there was another order mean
_MODEL = ("config.json", "tokenizer.json", "*.safetensors")


def of(*parts: Any) -> str:
    """A key of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def clone(source: str, growth: Growth, moments: str | None) -> str:
    """A key of a model that is grown from the one with the key `source`."""
    asked = {
        field.name: value
        for field in fields(Growth)
        if ((value := getattr(growth, field.name)) != field.default or field.name == _TILED[0])
        and (field.name, value) != _TILED
    }
    return of("clone", source, asked, moments)


def model(directory: Path) -> str:
    """A key of a model directory: config, tokenizer and weights, if it has any.

    Of a grown one also what training takes from its receipt.

    Raises:
        CheckpointError: there is no model.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError("not a model directory: it has no config.json", file=directory)
    grown = receipt.read(directory)
    if grown is None:
        return of(_model_digests(directory))
    family = None if grown.family is None else grown.family.text
    return of(
        _model_digests(directory),
        {name: value for name, value in asdict(grown.growth).items() if (name, value) != _TILED},
        grown.source_config,
        family,
        grown.training,
        grown.optimizer_state,
        *([] if grown.source_lr is None else [grown.source_lr]),
    )


def _model_digests(directory: Path) -> list[str]:
    files = [file for pattern in _MODEL for file in sorted(directory.glob(pattern))]
    return [_config_digest(file) if file.name == "config.json" else _digests([file])[0] for file in files]


def _config_digest(file: Path) -> str:
    """Without what a config says of the model's growth, which the receipt says as well."""
    content = read_json(file)
    if content.pop(receipt.CONFIG_FIELD, None) is None:
        return _digests([file])[0]
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def training(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a training as plain data that says what it computes."""
    settings: dict[str, Any] = {}
    for name, value in sorted(options.items()):
        if name == "data":
            settings[name] = _mixture(value)
        elif name == "eval_data":
            settings[name] = text(value)
        elif name == "skip_tokens":
            settings |= {name: count} if (count := skipped(value)) else {}
        elif name in ("tokens", "batch_tokens"):
            settings[name] = units.parse(value, name)
        elif name not in _UNRELATED:
            settings[name] = list(value) if isinstance(value, tuple) else value
    return settings


def _mixture(data: str | Sequence[str]) -> list[Any]:
    """Digests of the text; of a mixture, each source's share and digests."""
    sources = mixture.sources_of(data)
    if len(sources) == 1:
        return text(sources[0].spelled)
    return [[str(source.share), *text(source.spelled)] for source in sources]


def text(spelled: str | Iterable[str]) -> list[str]:
    """Digests of the files that `--data` means; of a Hub dataset, its name."""
    digests: list[str] = []
    for one in [spelled] if isinstance(spelled, str) else spelled:
        for source in data_sources.find(one):
            digests += _digests(source.files) if source.files else [source.spelled]
    return digests


def _digests(files: Iterable[Path]) -> list[str]:
    return [_digest(file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file (of what is in it, if it is .gz or .xz), taken once for each size and time of change."""
    with (
        gzip.open(file) if file.suffix == ".gz" else lzma.open(file) if file.suffix == ".xz" else file.open("rb")
    ) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
