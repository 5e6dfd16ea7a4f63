"""Sources by name: a local directory, or a model on the Hub, of which a plan fetches the headers only."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.registry import of_config
from hyperclone.errors import CheckpointError, HypercloneError, reason
from hyperclone.io import weight_files
from hyperclone.io.checkpoint import Checkpoint, dequantized
from hyperclone.io.files import exists, read_json, user_path
from hyperclone.io.local_paths import hub_id_of, local_path, nearest
from hyperclone.io.source import Source
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.io.views import view

# The files of a model at the top of its repository; other formats and subfolders are not downloaded.
_FILES = (
    "*.json", "model*.safetensors", "*.model", "*.model.v*", "*.txt", "*.jinja", "*chat_templates/*.jinja",
    "*.tiktoken", "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip

_TIMEOUT = 5  # seconds to reach the Hub in
_OUT_OF_ORDER = (408, 429, 500, 502, 503, 504)  # answers after which the Hub's client would try again


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


def headers(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    family: Family | None = None,
    text_model: bool = False,
) -> Source:
    """Config and tensor headers of a local directory or a Hub id; of the latter, a few kilobytes are fetched.

    Without a network, in the Hub's offline mode, or where the Hub is out of order, they are those of the model in the
    Hub's cache, and a note says so.

    Args:
        source, revision: the directory, or the Hub id and its revision.
        family: the user's family file.
        text_model: only those of the text model of a model that also sees images.

    Raises:
        CheckpointError: neither is accessible, or it is not a model that can be grown.
    """
    if (path := local_path(source, revision=revision)) is not None:
        return Checkpoint.open(path, family=family, text_model=text_model, dequantize=True)
    from huggingface_hub import HfApi

    with _hub_errors(source):
        try:
            check_accessible()
            source_config = _config(str(source), revision)
            repository = HfApi().get_safetensors_metadata(str(source), revision=revision)
        except unreachable() as error:
            path, note = _cached(source, revision, error)
            return Checkpoint.open(path, family=family, text_model=text_model, dequantize=True, notes=(note,))
    entries: dict[str, Entry] = {}
    for file, metadata in sorted(repository.files_metadata.items()):
        for name, info in metadata.tensors.items():
            begin, end = info.data_offsets
            entries[name] = Entry(file, str(info.dtype), tuple(info.shape), begin, end - begin)
    source_config, entries = dequantized(source_config, entries, Path("config.json"), allowed=True)
    seen = view(source_config, entries, family, text_model=text_model)
    return Headers(seen.config, seen.entries, family, seen.notes)


def config(source: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a local directory or a Hub id, or the JSON file at the path given.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = user_path(source)
    if exists(path) and path.is_file():
        return read_json(path)
    if (directory := local_path(source, revision=revision)) is not None:
        if not exists(directory):
            raise CheckpointError("no such file or directory", file=directory, cure=nearest(directory))
        return weight_files.read_config(directory)
    with _hub_errors(source):
        try:
            check_accessible()
            return _config(str(source), revision)
        except unreachable() as error:
            return read_json(_cached(source, revision, error)[0] / "config.json")


def _config(source: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    return read_json(Path(hf_hub_download(source, "config.json", revision=revision)))


def resolve(source: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True) -> Path:
    """The path of a local directory, or of a Hub id's snapshot downloaded to the Hub's cache.

    Args:
        source, revision: the directory, or the Hub id and its revision.
        weights: download them, too.

    Raises:
        CheckpointError: neither is accessible.
    """
    return fetch(source, revision=revision, weights=weights)[0]


def fetch(
    source: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True
) -> tuple[Path, tuple[str, ...]]:
    """The same, and notes: where the Hub is not accessible, the model is the one in its cache.

    Raises:
        CheckpointError: neither is accessible.
    """
    if (path := local_path(source, revision=revision)) is not None:
        return path, ()
    from huggingface_hub import snapshot_download

    with _hub_errors(source):
        try:
            check_accessible()
            files = [pattern for pattern in _FILES if weights or not pattern.endswith(".safetensors")]
            return Path(snapshot_download(str(source), revision=revision, allow_patterns=files)), ()
        except unreachable() as error:
            path, note = _cached(source, revision, error)
            return path, (note,)


def check_accessible() -> None:
    """Raise at once where there is no network: the Hub's client would try for half a minute.

    Raises:
        OSError: offline mode, or an error of the HTTP library.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return  # every call is refused at once
    response = get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    if response.status_code in _OUT_OF_ORDER:
        raise HfHubHTTPError(f"the Hub answers {response.status_code}", response=response)


def _cached(source: str | os.PathLike[str], revision: str | None, error: Exception) -> tuple[Path, str]:
    """The snapshot of a Hub id in the Hub's cache, and a note on it.

    Args:
        source, revision: what was asked for.
        error: why the Hub is not accessible; raised again if it has refused, or if there is no snapshot with weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if getattr(error, "response", None) is not None and status not in _OUT_OF_ORDER:
        raise error
    try:
        path = Path(snapshot_download(str(source), revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise error from None
    if not any(path.glob("*.safetensors")):
        raise error
    return path, f"The Hub is not accessible: {why(error)}. The model is the one in its cache, commit {path.name}."


def why(error: Exception) -> str:
    """Why the Hub is not accessible, in plain words, and what its client says of that."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "it was not asked, since its offline mode is on (HF_HUB_OFFLINE)"
    if getattr(error, "response", None) is not None:
        return f"it is out of order ({reason(error)})"
    return f"it could not be reached ({reason(error)})"


def public_name(source: str | os.PathLike[str]) -> str:
    """The name of a source in receipts and model cards: its Hub id, or a local directory's name without its path."""
    path = user_path(source)
    name = (hub_id_of(path) or path.resolve().name) if exists(path) else str(source)
    return os.fsencode(name).decode("utf-8", "replace")  # file names may hold any bytes, JSON may not


def on_hub(source: str | os.PathLike[str]) -> bool:
    """Whether `public_name` of a source is a Hub id."""
    path = user_path(source)
    return hub_id_of(path) is not None if exists(path) else local_path(source) is None


def unreachable() -> tuple[type[Exception], ...]:
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
        if not isinstance(error, (*unreachable(), ValueError)):
            raise
        response = getattr(error, "response", None)
        refused = response is not None and getattr(response, "status_code", None) not in _OUT_OF_ORDER
        answered = refused or isinstance(error, ValueError)
        raise CheckpointError(
            "neither a local directory nor an accessible model on the Hub",
            file=source,
            found=reason(error) if answered else f"the Hub is not accessible: {why(error)}",
            cure=nearest(user_path(source)) or _cure(answered=answered),
        ) from None


def _cure(*, answered: bool) -> str:
    """What to do about an id that the Hub has refused, or that it could not be asked for."""
    from huggingface_hub import constants

    if answered:
        return "check the spelling, and access to gated models (`hf auth login`)"
    check = "unset HF_HUB_OFFLINE, and check" if constants.HF_HUB_OFFLINE else "check the network and"
    return f"{check} the spelling; without the Hub, a model is found by its directory, or by its id in the Hub's cache"
