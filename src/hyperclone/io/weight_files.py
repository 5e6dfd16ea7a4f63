"""Which files of a directory are the model's weights: those that transformers would load, or shards without an index.

What else lies there (another format, a variant, an adapter) is left alone, and a note says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.errors import CheckpointError
from hyperclone.io.files import exists, read_json
from hyperclone.units import human_bytes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
NAMED_FIELD = "transformers_weights"  # of a config: the file or index that transformers loads instead
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,6})-of-(?P<count>\d{5,6})\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Of an adapter, an optimizer or a training run: no weights of a model, in whatever format.
_NO_MODEL = re.compile(r"(adapter_model|optimizer|scheduler|scaler|rng_state|training_args)[^/]*", re.IGNORECASE)
_MOST_NAMED = 4  # files in a note
# What training libraries leave where they do not save a model: (what it is, how a model is made of it).
_OF_TRAINERS = {
    "global_step*": (
        "this is a training checkpoint of DeepSpeed, in which every process has a part of the model",
        "python zero_to_fp32.py . OUT --safe_serialization in this directory; then copy config.json and the tokenizer",
    ),
    "pytorch_model_fsdp_*": (
        "this is a training checkpoint of FSDP, in which every process has a part of the model",
        "accelerate merge-weights SRC/pytorch_model_fsdp_0 OUT; then copy config.json and the tokenizer to OUT",
    ),
    "*.distcp": (
        "this is a training checkpoint of torch's distributed format, in which every process has a part of the model",
        "accelerate merge-weights SRC OUT; then copy config.json and the tokenizer to OUT",
    ),
}
_MERGE = (
    "merge it into its base model first (peft: "
    "AutoPeftModelForCausalLM.from_pretrained(SRC).merge_and_unload().save_pretrained(OUT))"
)


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a directory.

    Attributes:
        names: of the files, in order.
        weight_map: the index: the file of each tensor; None without an index.
        as_found: transformers finds the same weights by itself, and loads nothing with them.
        notes: what is left alone, in sentences.
    """

    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None
    as_found: bool
    notes: tuple[str, ...]


def find(directory: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The weights in a directory with a config.

    Raises:
        CheckpointError: there are none, or it is unclear which they are.
    """
    weight_map, names, index_used = None, [SINGLE], False
    as_found = True
    if (named := config.get(NAMED_FIELD)) is not None:
        names, weight_map = _named(directory, named)
        index_used = weight_map is not None
    elif (directory / SINGLE).is_file():
        weight_map = _index_of_one_file(directory)
        index_used = weight_map is not None
    elif (directory / INDEX).exists():
        weight_map = _read_index(directory / INDEX)
        names, index_used = sorted(set(weight_map.values())), True
    else:
        names, as_found = _shards_without_index(directory), False
    notes = []
    if not as_found:
        notes.append(f"The shards have no index: all {len(names)} of them are read.")
    if (directory / ADAPTER).exists():
        as_found = False  # with peft installed, transformers would load it too
        notes.append(
            f"An adapter lies beside the model ({ADAPTER}): it is left out, and the model alone is grown. "
            f"To grow both, {_MERGE}."
        )
    if ignored := _ignored(directory, {*names, *([INDEX] if index_used else [])}):
        notes.append(f"Left alone and not copied, since transformers does not load it with this model: {ignored}.")
    return WeightFiles(tuple(names), weight_map, as_found, tuple(notes))


def refuse_lone_adapter(directory: Path) -> None:
    """Raise CheckpointError if a directory holds an adapter and no model."""
    if not (directory / ADAPTER).exists() or any(map(_is_model, _files(directory))):
        return
    raise CheckpointError(
        "this is an adapter, not a model",
        file=directory / ADAPTER,
        found=", ".join(name for name in _files(directory) if name.startswith("adapter_model")) or None,
        expected=f"{SINGLE} or {INDEX}",
        cure=_MERGE,
    )


def _is_model(name: str) -> bool:
    """Whether a file holds weights of a model, by its name."""
    return name.endswith((".safetensors", ".gguf", *_PICKLED)) and not _NO_MODEL.fullmatch(name)


def _files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def _named(directory: Path, named: object) -> tuple[list[str], Mapping[str, str] | None]:
    """The files that the config names, and their index."""
    bare = isinstance(named, str) and Path(named).name == named and named not in ("", "..")
    if not bare or not str(named).endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            "the config names weights that are no safetensors in its directory", file=directory / "config.json",
            field=NAMED_FIELD, found=named, expected="the bare name of a *.safetensors file, or of an index of them",
            cure=f"remove {NAMED_FIELD} from config.json if {SINGLE} is the model",
        )  # fmt: skip
    file = directory / str(named)
    if not file.is_file():
        raise CheckpointError("the file that the config names is missing", file=file, field=NAMED_FIELD, found=named,
                              cure=f"download it, or remove {NAMED_FIELD} from config.json")  # fmt: skip
    if file.name.endswith(".json"):
        weight_map = _read_index(file)
        return sorted(set(weight_map.values())), weight_map
    return [file.name], None


def _index_of_one_file(directory: Path) -> Mapping[str, str] | None:
    """The index beside a single file, where it is of that file alone."""
    if not (directory / INDEX).exists():
        return None
    weight_map = read_json(directory / INDEX).get("weight_map")
    if isinstance(weight_map, dict) and weight_map and all(file == SINGLE for file in weight_map.values()):
        return weight_map
    return None


def _read_index(index: Path) -> Mapping[str, str]:
    """The index: the file of each tensor, every one of which exists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError("the index has no weight_map of names to files", file=index, field="weight_map",
                              cure="download it again; complete shards need none")  # fmt: skip
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or file in ("", ".."):
            raise CheckpointError(
                "the index points outside its directory", file=index, found=file, expected="a bare file name",
                cure="put the shards beside it, and their bare names in it",
            )  # fmt: skip
        if not exists(index.parent / file) or not (index.parent / file).is_file():
            raise CheckpointError(
                "a file named by the index is missing",
                file=index.parent / file,
                expected=f"{sum(v == file for v in weight_map.values())} tensors in it",
                cure="download the missing shard again",
            )
    return weight_map


def _shards_without_index(directory: Path) -> list[str]:
    """The complete numbered shards of a directory without an index."""
    models = [name for name in _files(directory) if _is_model(name)]
    # transformers would load the first of these, and shards without an index it does not see.
    if pickles := [n for n in models if n.startswith("pytorch_model") and n.endswith(".bin")]:
        raise _pickled(directory / pickles[0])
    sets: dict[tuple[str, str], list[str]] = {}
    for name in models:
        if match := _NUMBERED.fullmatch(name):
            sets.setdefault((match["stem"], match["count"]), []).append(name)
    if len(sets) > 1 and len(own := {key: names for key, names in sets.items() if key[0] == "model"}) == 1:
        sets = own
    if len(sets) > 1:
        raise CheckpointError(
            "several sets of shards without an index: it is unclear which of them is the model", file=directory,
            found="; ".join(f"{stem}-*-of-{count} ({len(names)})" for (stem, count), names in sets.items()),
            expected=f"one set, or {INDEX}", cure="move the others to a directory of their own",
        )  # fmt: skip
    for (stem, count), names in sets.items():
        numbers = {int(name[len(stem) + 1 :].partition("-")[0]) for name in names}
        if missing := sorted(set(range(1, int(count) + 1)) - numbers):
            width = len(count)
            raise CheckpointError(
                "a shard is missing, and there is no index", file=directory,
                found=f"{len(names)} of {int(count)}: {_some(names)}",
                expected=_some([f"{stem}-{number:0{width}}-of-{count}.safetensors" for number in missing]),
                cure="download the missing file again",
            )  # fmt: skip
        return names
    raise _no_weights(directory, models)


def _no_weights(directory: Path, models: list[str]) -> CheckpointError:
    if others := [n for n in models if n.endswith(".safetensors")]:
        names = (
            f"rename them to model-00001-of-{len(others):05}.safetensors and so on, if together they are"
            if len(others) > 1
            else f"rename it to {SINGLE}, if it is"
        )
        return CheckpointError(
            "transformers would load none of the weights in this directory, whose names it does not know",
            file=directory, found=_some(others), expected=f"{SINGLE} or {INDEX}",
            cure=f"{names} the model with the tensor names of transformers; else download the model in the format of "
            "transformers",
        )  # fmt: skip
    if pickles := [n for n in models if n.endswith(_PICKLED)]:
        return _pickled(directory / pickles[0])
    if ggufs := [n for n in models if n.endswith(".gguf")]:
        return gguf(directory / ggufs[0])
    if lost := sorted(p for p in directory.iterdir() if p.is_symlink() and not exists(p) and _is_model(p.name)):
        return CheckpointError("the weights are a link to a file that is not there", file=lost[0],
                               found=os.readlink(lost[0]), expected="a file",
                               cure="download the model again")  # fmt: skip
    for pattern, (problem, cure) in _OF_TRAINERS.items():
        for file in sorted(directory.glob(pattern)):
            return CheckpointError(problem, file=file, expected=f"{SINGLE} or {INDEX}", cure=cure)
    return CheckpointError(
        "no safetensors weights in this directory",
        file=directory,
        expected=f"{SINGLE} or {INDEX}",
        cure=_models_below(directory) or "download the model again, or save it there with save_pretrained",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model directory.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    file = directory / "config.json"
    if exists(file) or file.is_symlink() or not directory.is_dir():
        return read_json(file, missing="not a model directory: it has no config.json")
    if (directory / "params.json").is_file():
        cure = "this is the format of its makers: download the model in the format of transformers"
    elif (below := _models_below(directory)) is not None:
        cure = below
    elif any(map(_is_model, _files(directory))):
        cure = "copy config.json and the tokenizer of the model that these weights are of into it"
    else:
        cure = "check the path: SRC is a directory with config.json and *.safetensors, or a Hub id"
    raise CheckpointError("not a model directory: it has no config.json", file=file, cure=cure)


def _models_below(directory: Path) -> str | None:
    """A cure for a directory that holds model directories: to name one of them."""
    below = sorted(str(path.parent) for path in directory.glob("*/config.json"))
    return f"name the model's directory: {_some(below)}" if below else None


def _pickled(file: Path) -> CheckpointError:
    return CheckpointError(
        "the weights are pickled, and pickle can run code when it is read",
        file=file,
        expected=SINGLE,
        cure="convert once, in a sandbox if you do not trust it: AutoModelForCausalLM.from_pretrained(SRC)"
        ".save_pretrained(OUT) writes safetensors",
    )


def gguf(file: Path) -> CheckpointError:
    """The refusal of a GGUF file."""
    return CheckpointError(
        "the weights are in GGUF",
        file=file,
        expected=SINGLE,
        cure="grow the original model; or, with `pip install gguf accelerate`, dequantize once: "
        f"AutoModelForCausalLM.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}, quantization_config="
        "GgufConfig(dequantize=True)).save_pretrained(OUT) (a transformers without GgufConfig needs no such argument), "
        "AutoTokenizer likewise, and grow OUT",
    )


def _ignored(directory: Path, used: set[str]) -> str:
    """Other weights in a directory and in the folders in it, with their sizes; "" if there are none."""
    found = []
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            sizes = [path.stat().st_size for path in _regular(entry) if _is_model(path.name)]
            if sizes:
                found.append(f"{entry.name}/ ({human_bytes(sum(sizes))})")
        elif entry.name not in used and entry.is_file() and (_is_model(entry.name) or entry.name == INDEX):
            found.append(f"{entry.name} ({human_bytes(entry.stat().st_size)})")
    return _some(found)


def _regular(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_file()]
    except OSError:  # not accessible, and not of the model
        return []


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
