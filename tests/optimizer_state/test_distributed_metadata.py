"""A distributed checkpoint's metadata means what torch takes it for, or it is refused; reading it changes nothing."""

from __future__ import annotations

import os
import pathlib
import pickle
import pickletools
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hyperclone.errors import CheckpointError
from hyperclone.optimizer_state import distributed, distributed_metadata

TENSORS = {
    "model.a": torch.arange(12.0).reshape(4, 3),
    "model.b": torch.arange(5).to(torch.bfloat16),
    "optimizer.state.a.step": torch.tensor(3.0),
    "model.empty": torch.zeros(0, 3),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distributed checkpoint that torch wrote."""
    directory = tmp_path_factory.mktemp("saved")
    with warnings.catch_warnings(action="ignore"):  # that there is no process group
        save({**TENSORS, "settings": [{"lr": 1e-3}]}, checkpoint_id=directory, no_dist=True)
    return directory


def metadata_of(directory: Path) -> Metadata:
    metadata: Metadata = pickle.loads((directory / ".metadata").read_bytes())
    return metadata


def copy_with(saved: Path, target: Path, text: bytes) -> Path:
    """The checkpoint with another `.metadata`."""
    target.mkdir(exist_ok=True)
    for file in saved.glob("*.distcp"):
        (target / file.name).unlink(missing_ok=True)
        (target / file.name).hardlink_to(file)
    (target / ".metadata").write_bytes(text)
    return target


def test_every_tensor_has_the_values_that_were_saved(saved: Path) -> None:
    read = distributed.DistributedTensors(saved)
    assert read.entries.keys() == TENSORS.keys()
    for key, expected in TENSORS.items():
        assert read.like(key).shape == expected.shape
        assert read.read(key).dtype == expected.dtype
        assert torch.equal(read.read(key), expected)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_any_protocol_of_pickle_that_torch_might_use_is_read(saved: Path, tmp_path: Path, protocol: int) -> None:
    text = pickle.dumps(metadata_of(saved), protocol=protocol)
    read = distributed.DistributedTensors(copy_with(saved, tmp_path / "copy", text))
    assert torch.equal(read.read("model.a"), TENSORS["model.a"])


def split_in_four(saved: Path, target: Path) -> Path:
    """The checkpoint with its matrix as four chunks, along both dimensions, each in a file of its own."""
    metadata = metadata_of(saved)
    entry = metadata.state_dict_metadata["model.a"]
    assert isinstance(entry, TensorStorageMetadata)
    assert metadata.storage_data is not None
    (info,) = (value for index, value in metadata.storage_data.items() if index.fqn == "model.a")
    metadata.storage_data = {index: v for index, v in metadata.storage_data.items() if index.fqn != "model.a"}
    entry.chunks, target = [], copy_with(saved, target, b"")
    for number, (rows, columns) in enumerate([(s, c) for s in ((0, 3), (3, 4)) for c in ((0, 1), (1, 3))]):
        part = TENSORS["model.a"][slice(*rows), slice(*columns)].clone()
        file = target / f"__{number}_9.distcp"
        torch.save(part, file)
        offsets = torch.Size((rows[0], columns[0]))
        entry.chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=part.shape))
        metadata.storage_data[MetadataIndex("model.a", offsets, number)] = type(info)(file.name, 0, file.stat().st_size)
    (target / ".metadata").write_bytes(pickle.dumps(metadata))
    return target


def test_chunks_along_two_dimensions_are_put_together_as_torch_does(saved: Path, tmp_path: Path) -> None:
    directory = split_in_four(saved, tmp_path / "four")
    by_torch = {"model.a": torch.zeros(4, 3)}
    with warnings.catch_warnings(action="ignore"):
        load(by_torch, checkpoint_id=directory, no_dist=True)
    assert torch.equal(by_torch["model.a"], TENSORS["model.a"])
    assert torch.equal(distributed.DistributedTensors(directory).read("model.a"), TENSORS["model.a"])


def broken(saved: Path, change: str) -> bytes:
    """Metadata that contradicts itself or its files in one place."""
    metadata: Any = metadata_of(saved)
    entry = metadata.state_dict_metadata["model.a"]
    (index,) = (index for index in metadata.storage_data if index.fqn == "model.a")
    info = metadata.storage_data[index]
    match change:
        case "larger than its part":
            entry.size, entry.chunks[0].sizes = torch.Size((4000, 3000)), torch.Size((4000, 3000))
        case "a gap":
            entry.chunks[0].sizes = torch.Size((3, 3))
        case "outside":
            entry.size = torch.Size((2, 6))
        case "an overlap":
            entry.chunks[0].sizes = torch.Size((2, 3))
            entry.chunks.append(ChunkStorageMetadata(offsets=torch.Size((1, 0)), sizes=torch.Size((2, 3))))
            metadata.storage_data[MetadataIndex("model.a", torch.Size((1, 0)), 1)] = info
        case "another file":
            info.relative_path = "../saved/__0_0.distcp"
        case "no file":
            info.relative_path = "__7_0.distcp"
        case "past the end":
            info.offset = 10**9
        case "negative":
            info.offset = -5
        case "compressed":
            info.transform_descriptors = ["zstd"]
        case "not stored":
            del metadata.storage_data[index]
        case "no type":
            entry.properties = TensorProperties(dtype=None)  # type: ignore[arg-type]
        case "another type":
            entry.properties = TensorProperties(dtype=torch.int32)
        case "a huge number":
            entry.size = torch.Size((2**62, 3))
    return pickle.dumps(metadata)


@pytest.mark.parametrize(
    "change",
    ["larger than its part", "a gap", "outside", "an overlap", "another file", "no file", "past the end", "negative",
     "compressed", "not stored", "no type", "another type", "a huge number"],
)  # fmt: skip
def test_metadata_that_contradicts_itself_or_its_files_is_refused(saved: Path, tmp_path: Path, change: str) -> None:
    directory = copy_with(saved, tmp_path / "copy", broken(saved, change))
    with pytest.raises(CheckpointError):
        distributed.DistributedTensors(directory).read("model.a")


def test_a_fifo_and_a_link_to_a_device_are_refused(saved: Path, tmp_path: Path) -> None:
    directory = copy_with(saved, tmp_path / "copy", b"")
    (directory / ".metadata").unlink()
    os.mkfifo(directory / ".metadata")
    with pytest.raises(CheckpointError, match="not the metadata"):
        distributed.DistributedTensors(directory)
    (directory / ".metadata").unlink()
    (directory / ".metadata").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not the metadata"):
        distributed.DistributedTensors(directory)


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


ATTACKS = {
    "a class is patched": name("pathlib", "PosixPath") + b"N}" + word("__truediv__") + name("pathlib", "PosixPath")
    + b"s\x86b0",
    "a class is patched by its state": name("torch.distributed.checkpoint.metadata", "Metadata") + b"}"
    + word("state_dict_metadata") + b"Nsb0",
    "torch.Size is patched": name("torch", "Size") + b"N}" + word("numel") + b"Ns\x86b0",
    "a function is called": name("os", "system") + word("touch ran") + b"\x85R0",
    "a function under a name that is allowed": name("torch.serialization", "os.system") + word("touch ran") + b"\x85R0",
    "a method of an allowed class": name("pathlib", "PosixPath.touch") + name("pathlib", "PosixPath") + word("ran")
    + b"\x85R\x85R0",
    "a bytearray of a terabyte": b"\x96" + struct.pack("<Q", 2**40) + b"0",
    "a memo of four billion": b"Nr" + struct.pack("<I", 2**32 - 1) + b"0",
    "an integer of two gigabytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"0",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_metadata_changes_nothing_outside(
    saved: Path, tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [dict(vars(kind)) for kind in (pathlib.PosixPath, pathlib.Path, Metadata, torch.Size)]
    text = b"\x80\x02" + ATTACKS[attack] + (saved / ".metadata").read_bytes()[2:]
    with pytest.raises(CheckpointError, match="not the metadata"):
        distributed.DistributedTensors(copy_with(saved, tmp_path / "copy", text))
    assert [dict(vars(kind)) for kind in (pathlib.PosixPath, pathlib.Path, Metadata, torch.Size)] == before
    assert not (tmp_path / "ran").exists()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_mean_other_plain_numbers(saved: Path, data: st.DataObject) -> None:
    text = bytearray((saved / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[position] = data.draw(st.integers(0, 255))
        else:
            text[position : position + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    directory = copy_with(saved, saved.parent / "changed", bytes(text))
    try:
        read = distributed.DistributedTensors(directory)
        for key in read.entries:
            read.read(key)
    except CheckpointError:
        pass


def test_no_opcode_beyond_those_that_torch_needs_is_carried_out() -> None:
    unneeded = {opcode.name for opcode in pickletools.opcodes} - distributed_metadata._OPCODES
    assert {
        "INST",
        "OBJ",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "BINPERSID",
        "NEWOBJ_EX",
        "BYTEARRAY8",
        "LONG4",
    } <= unneeded


@pytest.mark.parametrize("step", [torch.tensor([1.0, 2.0]), torch.tensor(float("nan")), torch.tensor(1.5)])
def test_a_number_of_steps_that_is_none_is_refused(step: torch.Tensor, tmp_path: Path) -> None:
    state = {"a": {"step": step, "exp_avg": torch.zeros(2)}}
    with warnings.catch_warnings(action="ignore"):
        save({"optimizer": {"state": state}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointError, match="number of steps is no whole number"):
        distributed.DistributedState(tmp_path)
