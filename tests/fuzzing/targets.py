"""What is fuzzed: a reader for each kind of file. It may refuse any bytes with an error of ours, and nothing else.

A target takes the bytes of one file, beside valid ones where it needs them. It must raise nothing but HypercloneError,
write nothing outside its own directory, and end in bounded time and memory (run.py limits both).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.architectures import expression, family_file, registry
from hyperclone.conversion import receipt
from hyperclone.hf.models import load_without_weights
from hyperclone.io import destination, files, hub, tensor_files
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.optimizer_state import distributed
from hyperclone.optimizer_state import reader as state_reader
from hyperclone.planning import planner
from hyperclone.study import config_file
from tests.fuzzing.place import PLACE, parent_directory
from tests.helpers.models import MODELS, build, save_optimizer_state, save_tokenizer

Target = Callable[[bytes], object]
NAME = "llama-grouped-tied"
TWICE = Growth(width=2)
TINY: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 16,
                        "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
ODD = Growth(hidden="1.5x", dtype="fp32")


@functools.cache
def place() -> Path:
    """A directory for the files of one process, in memory where there is such a place."""
    if PLACE in os.environ:
        return Path(tempfile.mkdtemp(dir=os.environ[PLACE]))  # libFuzzer starts itself again to merge
    directory = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=parent_directory()))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def model() -> Path:
    """A small valid source."""
    directory = place() / "model"
    build(NAME, num_hidden_layers=1).save_pretrained(directory, max_shard_size="40KB")
    save_tokenizer(directory)
    return directory


@functools.cache
def single() -> Path:
    """The same in one file."""
    directory = place() / "single"
    build(NAME, num_hidden_layers=1).save_pretrained(directory)
    return directory


@functools.cache
def grown() -> Path:
    """It, grown."""
    return hyperclone.grow(single(), place() / "grown", TWICE, proof="structural").path


@functools.cache
def optimizer() -> tuple[Path, Checkpoint]:
    """A Trainer checkpoint with its optimizer state, and its model."""
    trained, directory = build(NAME, **TINY), place() / "state"
    save_optimizer_state(trained, directory)
    trained.save_pretrained(directory)
    return directory, Checkpoint.open(directory)


@functools.cache
def sharded_state() -> Path:
    """A torch distributed checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings(action="ignore"):  # that there is no process group
        save({"model": {"a": torch.ones(4, 3)}, "optimizer": {"state": {"a": {"exp_avg": torch.ones(4, 3)}}}},
             checkpoint_id=place() / "sharded", no_dist=True)  # fmt: skip
    return place() / "sharded"


@functools.cache
def linked(valid: Path, name: str) -> Path:
    """A directory of hard links to a valid one's files but for one."""
    directory = place() / f"{valid.name}-{name}"
    directory.mkdir()
    for file in valid.iterdir():
        if file.is_file() and file.name != name:
            os.link(file, directory / file.name)
    return directory


def beside(valid: Path, name: str, data: bytes) -> Path:
    """A directory with the files of a valid one, and this content for one of them."""
    (linked(valid, name) / name).write_bytes(data)
    return linked(valid, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Nothing is written outside of the place, and nothing is run or connected to, while this is active.

    Raises:
        AssertionError: something would have been.
    """
    _watch()
    _watched.append(True)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of a module that is imported late
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        _watched.pop()


_watched: list[bool] = []
# Python's event -> the arguments that are paths that change, each with that of the directory that it is relative to.
_WRITES = {
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.truncate": ((0, None),),
}  # fmt: skip
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


@functools.cache
def _watch() -> None:
    """Python calls this at everything that it audits. A hook cannot be removed, so that it has a switch."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _watched:
            return
        if event in _NEVER:
            raise AssertionError(f"{event}: {arguments}")
        changed: tuple[tuple[int, int | None], ...] = _WRITES.get(event, ())
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            changed = ((0, None),)
        for path, directory in changed:
            if isinstance(arguments[path], int):
                continue  # a descriptor, which was opened before
            relative = -1 if directory is None else arguments[directory]
            if relative != -1 and not os.path.exists("/proc/self/fd"):
                continue  # macOS does not say which directory it is
            start = os.getcwd() if relative == -1 else os.readlink(f"/proc/self/fd/{relative}")
            if not os.path.normpath(os.path.join(start, os.fsdecode(arguments[path]))).startswith(f"{place()}/"):
                raise AssertionError(f"{event} outside of its directory: {arguments[path]!r}")

    sys.addaudithook(hook)


def header(data: bytes) -> None:
    """The header of a safetensors file, and every tensor that it names."""
    file = place() / "header.safetensors"
    file.write_bytes(data)
    entries = tensor_files.read_header(file)
    for name, entry in entries.items():
        if entry.dtype in tensor_files.DTYPES and entry.shape and entry.nbytes:
            tensor_files.TensorFiles(place(), entries).read(name)


def config(data: bytes) -> None:
    """config.json, planned at twice and at an odd size."""
    file = place() / "config.json"
    file.write_bytes(data)
    content = files.read_json(file)
    for growth in (TWICE, ODD):
        with contextlib.suppress(HypercloneError):
            planner.make_plan(hub.Headers.from_config(content), growth)


def index(data: bytes) -> None:
    """model.safetensors.index.json beside its shards."""
    hyperclone.plan(beside(model(), "model.safetensors.index.json", data), TWICE)


def family(data: bytes) -> None:
    """A family file, with a valid config of its first model type, or with one of Llama that says it is of that type."""
    file = place() / "family.toml"
    file.write_bytes(data)
    own = family_file.read(file)
    kind = next(iter(own.model_types), "")
    content = {**_config(kind if kind in _kinds() else "llama"), "model_type": kind}
    planner.make_plan(hub.Headers.from_config(content, user_family=own), TWICE)


def expressions(data: bytes) -> None:
    """An expression of a family file, over a config."""
    fields = {"a": 6, "b": 2.5, "c": None, "d": [1, 2, "x"], "e": {"f": 3, "g": None}, "s": "text", "t": True, "i": 0}
    expression.evaluate(data.decode("utf-8", "replace"), fields)


def receipts(data: bytes) -> None:
    """hyperclone.json of a grown directory, read, and planned with."""
    directory = beside(grown(), receipt.FILE, data)
    recorded = receipt.read(directory)
    if recorded is not None:
        planner.make_plan(Checkpoint.open(single(), family=recorded.family), recorded.growth)


def journal(data: bytes) -> None:
    """The journal of a directory that is being built."""
    target = place() / "out"
    partial, _ = destination.beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "journal.jsonl").write_bytes(data)
    (partial / "model-00001-of-00002.safetensors").write_bytes(b"12345678")
    Destination(target, source=single(), fingerprint="f", nbytes=10, overwrite=False).close()


def state(data: bytes) -> None:
    """optimizer.pt of a Trainer checkpoint."""
    directory, checkpoint = optimizer()
    with _cached_model():
        _read_all(state_reader.read_state(beside(directory, "optimizer.pt", data), checkpoint))


def _read_all(read: state_reader.SourceState) -> None:
    for name, kinds in read.moments.items():
        for kind in kinds:
            read.moment(name, kind)


@functools.cache
def _model_in_memory(path: Path) -> Any:
    """The source's model without its weights, made once: it does not depend on the input."""
    return load_without_weights(path)


def _cached_model() -> Any:
    return mock.patch.object(state_reader, "load_without_weights", _model_in_memory)


def optimizer_dict(data: bytes) -> None:
    """What torch.load returns, whatever plain objects and tensors are in it, as the state of the source.

    It is written as JSON, in which {"shape": [2, 3], "dtype": "float32"} is a tensor.
    """
    try:
        content = json.loads(data, object_hook=_tensor)
    except (ValueError, RecursionError):
        return
    directory, checkpoint = optimizer()
    with mock.patch.object(torch, "load", return_value=content), _cached_model():
        _read_all(state_reader.read_state(directory, checkpoint))


def _tensor(table: dict[str, Any]) -> Any:
    match table:
        case {"shape": list(shape), "dtype": str(name)} if all(type(n) is int and 0 <= n < 2**20 for n in shape):
            dtype = getattr(torch, name, None)
            with contextlib.suppress(RuntimeError, OverflowError):  # too large for torch
                return torch.zeros((), dtype=dtype if isinstance(dtype, torch.dtype) else None).expand(shape)
    return {int(key) if re.fullmatch("[0-9]{1,4}", key) else key: value for key, value in table.items()}


def metadata(data: bytes) -> None:
    """.metadata of a distributed checkpoint, and every tensor that it names."""
    tensors = distributed.DistributedTensors(beside(sharded_state(), ".metadata", data))
    for key in tensors.entries:
        tensors.read(key)


def study(data: bytes) -> None:
    """A study's TOML file."""
    file = place() / "study.toml"
    file.write_bytes(data)
    config_file.read(file)


TARGETS: dict[str, Target] = {
    "header": header, "config": config, "index": index, "family": family, "expression": expressions,
    "receipt": receipts, "journal": journal, "state": state, "optimizer_dict": optimizer_dict, "metadata": metadata,
    "study": study,
}  # fmt: skip


def run(name: str, data: bytes) -> None:
    """One input of one target.

    Raises:
        BaseException: an escape: something else than an error of ours.
    """
    _prepare(name)
    with guarded(), contextlib.suppress(HypercloneError):
        TARGETS[name](data)


@functools.cache
def _prepare(name: str) -> None:
    """Read the valid inputs, so that what is made and imported once is there."""
    for data in seeds(name):
        with contextlib.suppress(HypercloneError):
            TARGETS[name](data)


def seeds(name: str) -> list[bytes]:
    """Valid inputs of a target, from which others are made."""
    match name:
        case "header":
            return [(single() / "model.safetensors").read_bytes()[:4096], _tiny_safetensors()]
        case "config":
            return [json.dumps(_config(kind)).encode() for kind in _kinds()]
        case "index":
            return [(model() / "model.safetensors.index.json").read_bytes()]
        case "family":
            return [file.read_bytes() for file in sorted(Path(registry.__file__).parent.glob("families/*.toml"))]
        case "expression":
            return [b"a * b + c", b"a | b % 2", b"a in d and not t", b"e.f == 3 or s != 'x'", b"(a - 1) / b"]
        case "receipt":
            return [(grown() / receipt.FILE).read_bytes()]
        case "journal":
            return [b'{"fingerprint": "f"}\n{"shard": "model-00001-of-00002.safetensors", "bytes": 8}\n']
        case "state":
            return [(optimizer()[0] / "optimizer.pt").read_bytes()]
        case "optimizer_dict":
            return [_optimizer_json()]
        case "metadata":
            text = (sharded_state() / ".metadata").read_bytes()
            return [text, pickle.dumps(pickle.loads(text), protocol=2)]
        case _:
            return [file.read_bytes() for file in sorted(Path(__file__).parents[2].glob("studies/*.toml"))]


@functools.cache
def _kinds() -> dict[str, dict[str, Any]]:
    """Model types, each with the fields of a small model."""
    bloom, mpt = {"n_layer": 2, "n_head": 4, "hidden_size": 32}, {"n_layers": 2, "n_heads": 4, "d_model": 32}
    return {**dict(reversed(MODELS.values())), "bloom": bloom, "mpt": mpt}


@functools.cache
def _config(kind: str) -> dict[str, Any]:
    """A small config of a model type, as it is saved."""
    content: dict[str, Any] = AutoConfig.for_model(kind, **_kinds()[kind]).to_dict()
    return {**content, "dtype": "float32"}


def _optimizer_json() -> bytes:
    """The state of one matrix and one norm."""
    moment = {"shape": [16, 8], "dtype": "float32"}, {"shape": [8], "dtype": "float32"}
    return json.dumps({
        "state": {number: {"step": 1, "exp_avg": like, "exp_avg_sq": like} for number, like in enumerate(moment)},
        "param_groups": [{"lr": 1, "betas": [0.9, 0.99], "params": [0, 1],
                          "param_names": ["model.layers.0.mlp.gate_proj.weight", "model.norm.weight"]}],
    }).encode()  # fmt: skip


def _tiny_safetensors() -> bytes:
    text = b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"__metadata__":{"format":"pt"}}'
    return len(text).to_bytes(8, "little") + text + bytes(8)
