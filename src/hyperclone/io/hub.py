"""Sources by name: a local directory, or a model on the Hub, of which a plan fetches the headers only."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.registry import of_config
from hyperclone.errors import CheckpointError, HypercloneError, reason
from hyperclone.io.checkpoint import Checkpoint, by_full_names, refuse_quantized
from hyperclone.io.files import exists, read_json
from hyperclone.io.source import Source
from hyperclone.io.tensor_files import DTYPES, Entry

# The files of a model at the top of its repository; other formats and subfolders are not downloaded.
_FILES = (
    "*.json", "model*.safetensors", "*.model", "*.model.v*", "*.txt", "*.jinja", "*chat_templates/*.jinja",
    "*.tiktoken", "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class Headers:
    """A source known by its config and headers only.

    Attributes:
        config: config.json.
        entries: its tensors by name.
        user_family: the user's family file; None for the family that ships for the config's model type.
        notes: how it was read, where that is not plain, in sentences.
    """

    config: dict[str, Any]
    entries: Mapping[str, Entry]
    user_family: Family | None = None
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The architecture."""
        return of_config(self.config, user_family=self.user_family)

    @classmethod
    def from_config(cls, config: dict[str, Any], *, dtype: str = "F64", user_family: Family | None = None) -> Headers:
        """The headers that a checkpoint with this config has, all of one type (by its name in safetensors)."""
        family = of_config(config, user_family=user_family)
        sizes = family.sizes(config)
        shapes = {name: layout.shape(sizes) for name, layout in family.tensors(config).items()}
        entries = {
            name: Entry("", dtype, shape, 0, math.prod(shape) * DTYPES[dtype][1]) for name, shape in shapes.items()
        }
        return cls(config, entries, user_family)


def headers(source: str | os.PathLike[str], *, revision: str | None = None, family: Family | None = None) -> Source:
    """Config and tensor headers of a local directory or a Hub id; of the latter, a few kilobytes are fetched.

    Without a network, or in the Hub's offline mode, they are those of the model in the Hub's cache.

    Raises:
        CheckpointError: neither is accessible, or it is not a model that can be grown.
    """
    if _is_local(source, revision):
        return Checkpoint.open(source, family=family)
    from huggingface_hub import HfApi

    source_config = config(source, revision=revision)
    with _hub_errors(source):
        try:
            repository = HfApi().get_safetensors_metadata(str(source), revision=revision)
        except _unreachable() as error:  # the Hub's own refusals come with an answer of its server
            if getattr(error, "response", None) is not None or (cached := _cached(source, revision)) is None:
                raise
            return Checkpoint.open(cached, family=family)
    entries = {}
    for file, metadata in sorted(repository.files_metadata.items()):
        for name, info in metadata.tensors.items():
            begin, end = info.data_offsets
            entries[name] = Entry(file, str(info.dtype), tuple(info.shape), begin, end - begin)
    refuse_quantized(source_config, Path("config.json"), entries.values())
    view = by_full_names(source_config, entries, family)
    return Headers(source_config, view.entries, family, view.notes)


def config(source: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a local directory or a Hub id, or the JSON file at the path given.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(source)
    if exists(path) and path.is_file():
        return read_json(path)
    if _is_local(source, revision):
        return read_json(path / "config.json", missing="not a model directory: it has no config.json")
    from huggingface_hub import hf_hub_download

    with _hub_errors(source):
        return read_json(Path(hf_hub_download(str(source), "config.json", revision=revision)))


def resolve(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The path of a local directory, or of a Hub id's snapshot downloaded to the Hub's cache.

    Raises:
        CheckpointError: neither is accessible.
    """
    if _is_local(source, revision):
        return Path(source)
    from huggingface_hub import snapshot_download

    with _hub_errors(source):
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(_FILES)))


def _cached(source: str | os.PathLike[str], revision: str | None) -> Path | None:
    """The snapshot of a Hub id in the Hub's cache; None if it is not there, or without weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(str(source), revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return path if any(path.glob("*.safetensors")) else None


def public_name(source: str | os.PathLike[str]) -> str:
    """The name of a source in receipts and model cards: its Hub id, or a local directory's name without its path."""
    path = Path(source)
    name = path.resolve().name if exists(path) else str(source)
    return os.fsencode(name).decode("utf-8", "replace")  # file names may hold any bytes, JSON may not


def _is_local(source: str | os.PathLike[str], revision: str | None) -> bool:
    local = exists(Path(source)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith(".")
    if local and revision is not None:
        raise CheckpointError("a local directory has no revisions", field="revision", found=revision, cure="omit it")
    return local


def _unreachable() -> tuple[type[Exception], ...]:
    """What the Hub's client raises where there is no network: its own errors, and those of the HTTP library it uses."""
    from huggingface_hub.errors import HfHubHTTPError

    http = HfHubHTTPError.__bases__[0]
    assert issubclass(http, Exception)
    return (http, OSError)


@contextmanager
def _hub_errors(source: str | os.PathLike[str]) -> Iterator[None]:
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        yield
    except HypercloneError:
        raise
    except NotASafetensorsRepoError:
        raise CheckpointError(
            "this repository has no safetensors weights",
            file=source,
            expected="model.safetensors, or its index",
            cure="convert once: AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) writes safetensors",
        ) from None
    except Exception as error:
        if not isinstance(error, (*_unreachable(), ValueError)):
            raise
        raise CheckpointError(
            "neither a local directory nor an accessible model on the Hub",
            file=source,
            found=reason(error),
            cure="check the spelling, the network, and access to gated models (`hf auth login`)",
        ) from None
