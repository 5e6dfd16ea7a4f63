"""Reading a Hugging Face model directory: safetensors and JSON only, never pickle, never remote code.

Headers are validated before any weight is read; weights are read with plain `pread` into buffers of our own. A
memory map would be simpler, but its touched pages count as resident memory, up to the size of the checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.architectures.family import Family
from hyperclone.architectures.registry import full_names, of_config
from hyperclone.errors import CheckpointError
from hyperclone.io.files import exists, read_json
from hyperclone.io.tensor_files import Entry, TensorFiles, read_header

if TYPE_CHECKING:  # `plan` reads headers only and starts without torch
    pass

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Carried over to the grown directory. Everything else (other formats' weights, code, training state) is left behind.
_CARRIED = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|.*\.model(\.v\d+)?|tekken\.json|merges\.txt|vocab\.txt|.*\.jinja|.*\.tiktoken|LICENSE.*|NOTICE.*|.*USE_POLICY.*",
    re.IGNORECASE,
)


class Checkpoint(TensorFiles):
    """A validated model directory.

    Attributes:
        path: the directory.
        config: config.json.
        entries: every stored tensor by its name in the whole model, in file order.
    """

    def __init__(self, path: str | os.PathLike[str], *, family: Family | None = None) -> None:
        """Read and check config and headers; no weight is touched.

        Args:
            path: the directory.
            family: the user's own; by default the one that ships for the config's model type.

        Raises:
            CheckpointError: anything about the directory that would make its weights unreliable.
        """
        self.path = Path(path)
        if not exists(self.path) or not self.path.is_dir():
            raise CheckpointError(
                "not a model directory" if exists(self.path) else "no such directory",
                file=self.path,
                expected="a directory with config.json and *.safetensors",
            )
        # transformers would load an adapter that lies beside a whole model too, so that is not the model either.
        if (self.path / "adapter_config.json").exists():
            raise CheckpointError(
                "this is an adapter, not a model, or a model with an adapter beside it",
                file=self.path / "adapter_config.json",
                cure="merge it into its base model first (peft: model.merge_and_unload().save_pretrained(...))",
            )
        self.config = read_json(self.path / "config.json", missing="not a model directory: it has no config.json")
        refuse_quantised(self.config, self.path / "config.json")
        self.files = self._weight_files()
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            for name, entry in read_header(self.path / file).items():
                if name in self.entries:
                    raise CheckpointError(
                        "a tensor is stored twice",
                        tensor=name,
                        found=f"{self.entries[name].file} and {file}",
                        expected="one file",
                        cure="save the model again with save_pretrained into an empty directory",
                    )
                self.entries[name] = entry
        self._check_index()
        self._own_family = family
        self.entries = full_names(self.config, self.entries, own=family)
        super().__init__(self.path, self.entries)

    def _weight_files(self) -> list[str]:
        single, index = self.path / _WEIGHTS, self.path / _INDEX
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if (
                not isinstance(weight_map, dict)
                or not weight_map
                or not all(isinstance(v, str) for v in weight_map.values())
            ):
                raise CheckpointError("the index has no weight_map of names to files", file=index, field="weight_map")
            self._weight_map: dict[str, str] | None = weight_map
            files = sorted(set(weight_map.values()))
            for file in files:
                if Path(file).name != file or file in ("", ".."):
                    raise CheckpointError(
                        "the index points outside its directory", file=index, found=file, expected="a bare file name"
                    )
                if not (self.path / file).is_file():
                    raise CheckpointError(
                        "a file named by the index is missing",
                        file=self.path / file,
                        expected=f"{sum(v == file for v in weight_map.values())} tensors in it",
                        cure="download the missing shard again",
                    )
            if single.exists() and _WEIGHTS not in files:
                raise CheckpointError(
                    "both a single file and a sharded index are present, so it is unclear which one is the model",
                    file=self.path,
                    found=f"{_WEIGHTS} and {_INDEX}",
                    cure="remove the one that is out of date",
                )
            return files
        self._weight_map = None
        if single.is_file():
            return [_WEIGHTS]
        names = sorted(p.name for p in self.path.iterdir() if p.is_file())
        if pickles := [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
            raise CheckpointError(
                "the weights are pickled, and pickle can run code when it is read",
                file=self.path / pickles[0],
                expected=_WEIGHTS,
                cure="convert once, in a sandbox if you do not trust it: AutoModelForCausalLM.from_pretrained(SRC)"
                ".save_pretrained(OUT) writes safetensors",
            )
        if ggufs := [n for n in names if n.endswith(".gguf")]:
            raise CheckpointError(
                "the weights are in GGUF",
                file=self.path / ggufs[0],
                expected=_WEIGHTS,
                cure="convert with AutoModelForCausalLM.from_pretrained(SRC, gguf_file=...).save_pretrained(OUT)",
            )
        shards = [n for n in names if n.endswith(".safetensors")]
        raise CheckpointError(
            "shards without an index: which of them make the model is not known"
            if shards
            else "no safetensors weights in this directory",
            file=self.path,
            found=", ".join(shards[:3]) + (", ..." if len(shards) > 3 else "") if shards else None,
            expected=f"{_WEIGHTS} or {_INDEX}",
            cure="download the missing file again",
        )

    def _check_index(self) -> None:
        if self._weight_map is None:
            return
        for name, file in self._weight_map.items():
            if name not in self.entries:
                raise CheckpointError(
                    "the index names a tensor that its file does not hold",
                    file=self.path / file,
                    tensor=name,
                    cure="download both again, or save the model again with save_pretrained into an empty directory",
                )
            if self.entries[name].file != file:
                raise CheckpointError(
                    "the index and the files disagree about where a tensor is",
                    tensor=name,
                    found=self.entries[name].file,
                    expected=file,
                )
        if extra := [name for name in self.entries if name not in self._weight_map]:
            raise CheckpointError(
                "a file holds a tensor that the index does not name",
                file=self.path / self.entries[extra[0]].file,
                tensor=extra[0],
                cure="download both again, or save the model again with save_pretrained into an empty directory",
            )

    @property
    def family(self) -> Family:
        """What is known about the architecture.

        Raises:
            FamilyError: nothing is.
        """
        return of_config(self.config, own=self._own_family)

    @property
    def carried_files(self) -> list[Path]:
        """Files besides config and weights that belong to the model: tokenizer, templates, licence."""
        return carried_files(self.path)

    @property
    def identity(self) -> str:
        """Changes when the files change: their place, names, sizes and times."""
        # The change time as well: copying tools set the modification time back, and nobody can set this one.
        stats = [(self.path / file).stat() for file in ("config.json", *self.files)]
        return f"{self.path.resolve()}:{self.files}:{[(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]}"


def carried_files(path: Path) -> list[Path]:
    """Files of a model directory besides config and weights that belong to the model: tokenizer, templates, licence."""
    found = [p for p in sorted(path.iterdir()) if p.is_file() and _CARRIED.fullmatch(p.name)]
    for templates in (path / "chat_templates", path / "additional_chat_templates"):
        if templates.is_dir():
            found += sorted(p for p in templates.iterdir() if p.suffix == ".jinja" and p.is_file())
    return found


def refuse_quantised(config: Mapping[str, Any], file: Path) -> None:
    """Raises CheckpointError if a config speaks of quantised weights."""
    for field in ("quantization_config", "compression_config"):
        if (how := config.get(field)) is not None:
            raise CheckpointError(
                "quantised checkpoints cannot be grown: their integers are not the weights",
                file=file,
                field=field,
                found=how.get("quant_method", "a method without a name") if isinstance(how, dict) else how,
                cure="grow the original bf16 / fp16 / fp32 checkpoint, then quantise the result",
            )
