"""What is fuzzed: a reader for each kind of file. It may refuse any bytes with an error of ours, and nothing else.

A target takes the bytes of one file, beside valid ones where it needs them. It must raise nothing but HypercloneError,
write nothing outside its own directory, and end in bounded time and memory (run.py limits both).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.architectures import expression, family_file, registry
from hyperclone.conversion import receipt
from hyperclone.io import destination, files, hub, tensor_files
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.optimizer_state import distributed, torch_files
from hyperclone.optimizer_state import reader as state_reader
from hyperclone.planning import planner
from hyperclone.study import config_file
from tests.helpers.models import build, save_tokenizer

Target = Callable[[bytes], object]
NAME = "llama-grouped-tied"
TWICE = Growth(width=2)
ODD = Growth(hidden="1.5x", dtype="fp32")


@functools.cache
def place() -> Path:
    """A directory for the files of one process, in memory where there is such a place."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="fuzzing-", dir=parent))


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
    trained, directory = build(NAME, num_hidden_layers=1), place() / "state"
    steps = torch.optim.AdamW(
        [{"params": list(trained.parameters()), "param_names": [n for n, _ in trained.named_parameters()]}]
    )
    trained(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    steps.step()
    directory.mkdir()
    torch.save(steps.state_dict(), directory / "optimizer.pt")
    return directory, Checkpoint.open(single())


@functools.cache
def sharded_state() -> Path:
    """A torch distributed checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings(action="ignore"):  # that there is no process group
        save({"model": {"a": torch.ones(4, 3)}, "optimizer": {"state": {"a": {"exp_avg": torch.ones(4, 3)}}}},
             checkpoint_id=place() / "sharded", no_dist=True)  # fmt: skip
    return place() / "sharded"


def beside(valid: Path, name: str, data: bytes) -> Path:
    """A directory of hard links to a valid one's files, with this content for one of them."""
    directory = place() / "input"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in valid.iterdir():
        if file.is_file() and file.name != name:
            os.link(file, directory / file.name)
    (directory / name).write_bytes(data)
    return directory


def header(data: bytes) -> None:
    """The header of a safetensors file, and every tensor that it names."""
    file = place() / "header.safetensors"
    file.write_bytes(data)
    entries = tensor_files.read_header(file)
    for name, entry in entries.items():
        if entry.dtype in tensor_files.DTYPES and entry.shape and entry.nbytes:
            tensor_files.TensorFiles(place(), entries).read(name)


def config(data: bytes) -> None:
    """config.json, planned with at two and at an odd size."""
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
    """A family file, used on a valid config."""
    file = place() / "family.toml"
    file.write_bytes(data)
    own = family_file.read(file)
    content = json.loads((single() / "config.json").read_text())
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
    read = state_reader.read_state(beside(directory, "optimizer.pt", data), checkpoint)
    for name, kinds in list(read.moments.items())[:3]:
        for kind in kinds:
            read.moment(name, kind)


def optimizer_dict(data: bytes) -> None:
    """The state dict of an optimizer, whatever plain objects are in it."""
    with contextlib.suppress(ValueError, RecursionError):
        torch_files.check_optimizer(json.loads(data), Path("optimizer.pt"))


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
    with contextlib.suppress(HypercloneError):
        TARGETS[name](data)


def seeds(name: str) -> list[bytes]:
    """Valid inputs of a target, from which others are made."""
    match name:
        case "header":
            return [(single() / "model.safetensors").read_bytes()[:4096], _tiny_safetensors()]
        case "config":
            return [
                json.dumps(_config(kind)).encode() for kind in ("llama", "gpt2", "phi3", "mixtral", "opt", "falcon")
            ]
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
            return [b'{"state": {"0": {"step": 1}}, "param_groups": [{"lr": 1, "params": [0], "param_names": ["a"]}]}']
        case "metadata":
            text = (sharded_state() / ".metadata").read_bytes()
            return [text, pickle.dumps(pickle.loads(text), protocol=2)]
        case _:
            return [file.read_bytes() for file in sorted(Path(__file__).parents[2].glob("studies/*.toml"))]


def _config(kind: str) -> dict[str, Any]:
    """A small config of a model type."""
    from tests.helpers.models import MODELS

    name = next(row for row, (model_type, _) in MODELS.items() if model_type == kind)
    content: dict[str, Any] = build(name).config.to_dict()
    return content


def _tiny_safetensors() -> bytes:
    text = b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"__metadata__":{"format":"pt"}}'
    return len(text).to_bytes(8, "little") + text + bytes(8)
