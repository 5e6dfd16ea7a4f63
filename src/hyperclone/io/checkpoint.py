"""Reading a Hugging Face model directory: safetensors and JSON only, never pickle, never remote code.

Headers are validated before any weight is read (tensor_files.py).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hyperclone.architectures import registry
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError, HypercloneError
from hyperclone.io import scaled_weights, weight_files
from hyperclone.io.files import LARGEST_FILE, LFS_SIZE, exists, open_regular, read_json, refuse_lfs_pointer, user_path
from hyperclone.io.local_paths import nearest
from hyperclone.io.tensor_files import DTYPES, Entry, TensorFiles, read_header
from hyperclone.io.views import view
from hyperclone.units import human_bytes

QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
_READ_HERE = (
    "transformers reads these FP8 weights only with the package compressed-tensors. They are read here without it, for "
    "the proof as well: each number times its scale."
)
# Copied to the grown directory. Everything else (weights in other formats, code, optimizer state) is left behind.
_CARRIED = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|.*\.model(\.v\d+)?|tekken\.json|merges\.txt|vocab\.txt|.*\.jinja|.*\.tiktoken|LICENSE.*|NOTICE.*|.*USE_POLICY.*",
    re.IGNORECASE,
)


class Checkpoint(TensorFiles):
    """A validated model directory; `Checkpoint.open` makes one.

    Attributes:
        path: the directory.
        config: config.json.
        files: the names of its safetensors files.
        entries: every stored tensor by its name in the whole model, in file order.
        notes: how the files were read, where that is not plain, in sentences.
        as_found: transformers loads this very model from the directory by itself, or the whole that it is a part of.
        left_out: bytes of the tensors of a whole that are not its text model's; None if this is no part of a whole.
        placeholders: token ids that stand for images and the like in the whole.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: dict[str, Any],
        files: Sequence[str],
        entries: dict[str, Entry],
        notes: Sequence[str] = (),
        as_found: bool = True,
        left_out: int | None = None,
        placeholders: frozenset[int] = frozenset(),
        user_family: Family | None = None,
    ) -> None:
        """Store what has been read and checked.

        Args:
            path, config, files, entries, notes, as_found, left_out, placeholders: the attributes.
            user_family: the user's family file; None for the family that ships for the config's model type.
        """
        super().__init__(path, entries)
        self.config, self.files, self.notes, self.as_found = config, tuple(files), tuple(notes), as_found
        self.left_out, self.placeholders = left_out, placeholders
        self._user_family = user_family

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        family: Family | None = None,
        text_model: bool = False,
        dequantize: bool = False,
        notes: Sequence[str] = (),
    ) -> Checkpoint:
        """Read and check config and headers; no weight is touched.

        Args:
            path: the directory.
            family: the user's family file; by default the one that ships for the config's model type.
            text_model: only the text model of a model that also sees images.
            notes: on how the directory was found.
            dequantize: read FP8 and MXFP4 weights as what they stand for; config and entries are those of that model.

        Raises:
            CheckpointError: the directory is incomplete, inconsistent, corrupt, quantized, pickled or an adapter.
        """
        directory = user_path(path)
        _check_directory(directory)
        config = weight_files.read_config(directory)
        weights = weight_files.find(directory, config)
        entries = _read_headers(directory, weights.names)
        if weights.weight_map is not None:
            _check_index(directory, weights.weight_map, entries)
        whole, entries = dequantized(config, entries, directory / "config.json", allowed=dequantize)
        by_a_package = whole != config and _needs_a_package(config)
        config = whole
        seen = view(config, entries, family, text_model=text_model)
        check_own_file(directory / "config.json", directory)
        carried_files(directory)  # raises for links and devices, before anything else opens them
        return cls(
            directory,
            config=seen.config,
            files=weights.names,
            entries=seen.entries,
            notes=(
                *notes,
                *weights.notes,
                *seen.notes,
                *_notes_on_tokenizer(directory),
                *((_READ_HERE,) if by_a_package else ()),
            ),
            as_found=weights.as_found and seen.as_found and not by_a_package,
            left_out=seen.left_out,
            placeholders=seen.placeholders,
            user_family=family,
        )

    @property
    def family(self) -> Family:
        """The architecture.

        Raises:
            FamilyError: it is unknown.
        """
        return registry.of_config(self.config, user_family=self._user_family)

    @property
    def carried_files(self) -> list[Path]:
        """Files besides config and weights that belong to the model: tokenizer, templates, license."""
        return carried_files(self.path)

    @property
    def identity(self) -> str:
        """Changes when the files change: their path, names, sizes or times."""
        # The change time as well: copying tools set the modification time back, and nobody can set this one.
        stats = [(self.path / file).stat() for file in ("config.json", *self.files)]
        return f"{self.path.resolve()}:{self.files}:{[(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]}"


def _check_directory(directory: Path) -> None:
    """Raise unless there is a directory, and no adapter alone in it."""
    there = exists(directory)
    if not there or not directory.is_dir():
        if there and directory.is_file() and directory.suffix == ".gguf":
            raise weight_files.gguf(directory)
        raise CheckpointError(
            "not a model directory" if there else "no such directory",
            file=directory,
            expected="a directory with config.json and *.safetensors",
            cure=nearest(directory) if not there else f"name the directory: {directory.parent}",
        )
    if not exists(directory / "config.json"):
        for file in sorted(directory.glob("*.gguf")):  # which come without a config
            raise weight_files.gguf(file)
    weight_files.refuse_lone_adapter(directory)


def _read_headers(directory: Path, files: Sequence[str]) -> dict[str, Entry]:
    """Every tensor of some files, each stored once."""
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(directory / file).items():
            if name in entries:
                raise CheckpointError(
                    "a tensor is stored twice",
                    tensor=name,
                    found=f"{entries[name].file} and {file}",
                    expected="one file",
                    cure="save the model again with save_pretrained into an empty directory",
                )
            entries[name] = entry
    return entries


def _check_index(directory: Path, weight_map: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    """Raise unless the index and the files name the same tensors in the same files."""
    for name, file in weight_map.items():
        if name not in entries:
            raise CheckpointError(
                "the index names a tensor that its file does not contain",
                file=directory / file,
                tensor=name,
                cure="download both again, or save the model again with save_pretrained into an empty directory",
            )
        if entries[name].file != file:
            raise CheckpointError(
                "the index and the files disagree about where a tensor is",
                tensor=name,
                found=entries[name].file,
                expected=file,
                cure="download both again, or save the model again with save_pretrained into an empty directory",
            )
    if extra := [name for name in entries if name not in weight_map]:
        raise CheckpointError(
            "a file contains a tensor that the index does not name",
            file=directory / entries[extra[0]].file,
            tensor=extra[0],
            cure="download both again, or save the model again with save_pretrained into an empty directory",
        )


def carried_files(path: Path) -> list[Path]:
    """Files of a model directory besides config and weights that belong to the model: tokenizer, templates, license.

    Raises:
        CheckpointError: one is no regular file, too large, or a link to somewhere else.
    """
    files = [p for p in sorted(path.iterdir()) if _CARRIED.fullmatch(p.name) and not p.is_dir()]
    for templates in (path / "chat_templates", path / "additional_chat_templates"):
        if templates.is_dir():
            files += sorted(p for p in templates.iterdir() if p.suffix == ".jinja" and not p.is_dir())
    for file in files:
        check_own_file(file, path)
    return files


def _notes_on_tokenizer(directory: Path) -> Iterator[str]:
    """A note where the tokenizer is code in the directory, without which the copied files do not make one."""
    file = directory / "tokenizer_config.json"
    try:
        remote = read_json(file).get("auto_map") if exists(file) else None
    except HypercloneError:  # as damaged as it is, it is copied
        return
    if isinstance(remote, dict) and "AutoTokenizer" in remote:
        code = ", ".join(sorted(path.name for path in directory.glob("token*.py"))) or "not in the directory"
        yield (
            f"The tokenizer needs code of its own ({code}), which is neither run nor copied: the proof uses random "
            "tokens. Copy it to the output, if you trust it."
        )


def check_own_file(file: Path, directory: Path) -> None:
    """Raise unless a file that is copied with a model is a regular one of the model's directory.

    A link may lead to a file in the directory, or in the store of a Hub cache that the directory is a snapshot of.
    Weights may be links to files anywhere, since their content has to fit the headers; of a file that is copied as it
    is, a link could give away any other file of this machine.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        status, real, home = file.stat(), file.resolve(strict=True), directory.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError("a file of the model cannot be read", file=file, found=error,
                              cure="remove it, or copy the file itself here") from None  # fmt: skip
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
        raise CheckpointError(
            "this belongs to the model by its name, but is no file of its size", file=file,
            found=human_bytes(status.st_size) if stat.S_ISREG(status.st_mode) else "not a regular file",
            expected=f"a file of at most {human_bytes(LARGEST_FILE)}", cure="remove it",
        )  # fmt: skip
    with os.fdopen(open_regular(file), "rb") as stream:
        refuse_lfs_pointer(file, stream.read(LFS_SIZE))
    stores = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(store in real.parents for store in stores):
        link, target = shlex.quote(str(file)), shlex.quote(str(real))
        raise CheckpointError("this file would be copied with the model, but is a link to a file elsewhere", file=file,
                              found=real, expected="a file in the model's directory",
                              cure=f"replace the link by the file: rm {link} && cp {target} {link}")  # fmt: skip


def _needs_a_package(config: Mapping[str, Any]) -> bool:
    """Whether transformers needs a further package to read a model that is read here without it."""
    methods = [config.get(field) for field in QUANTIZATION_FIELDS]
    return any(isinstance(one, dict) and one.get("quant_method") == "compressed-tensors" for one in methods)


def dequantized(
    config: dict[str, Any], entries: dict[str, Entry], file: Path, *, allowed: bool
) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Config and stored tensors of the model that FP8 or MXFP4 weights stand for; unquantized ones as they are.

    Args:
        config: of the model.
        entries: the stored tensors.
        file: config.json.
        allowed: whether quantized weights may be read at all.

    Raises:
        CheckpointError: the weights are quantized in another way, or damaged.
    """
    field = next((one for one in QUANTIZATION_FIELDS if one in config), QUANTIZATION_FIELDS[0])
    method = config.get(field)
    stored_so = allowed and not {entry.dtype for entry in entries.values()} <= DTYPES.keys()
    if stored_so and scaled_weights.known(method):
        left = {name: value for name, value in config.items() if name != field}
        return left, scaled_weights.scaled_entries(cast("Mapping[str, Any]", method), entries, file)
    refuse_quantized(config, file, entries.values())
    return config, entries


def refuse_quantized(config: Mapping[str, Any], file: Path, entries: Collection[Entry] = ()) -> None:
    """Raise CheckpointError if a config says that the weights are quantized.

    Args:
        config: of the model.
        file: that it was read from.
        entries: the stored tensors, where they are known: tools that merge or dequantize leave the field behind.
    """
    for field in QUANTIZATION_FIELDS:
        if (method := config.get(field)) is None:
            continue
        found = method.get("quant_method", "a method without a name") if isinstance(method, dict) else method
        types = sorted({entry.dtype for entry in entries})
        if types and DTYPES.keys() >= set(types):
            raise CheckpointError(
                f"the weights are stored as {' and '.join(types)}, but transformers would quantize them when it loads "
                "them, as this field asks",
                file=file,
                field=field,
                found=found,
                cure=f"remove {field} from config.json, so that the stored weights are the model, and grow that",
            )
        raise CheckpointError(
            "quantized checkpoints cannot be grown: their integers are not the weights",
            file=file,
            field=field,
            found=found,
            cure="grow the original bf16 / fp16 / fp32 checkpoint, then quantize the result"
            + ("" if types else "; if the weights are stored in one of these types, remove the field"),
        )
