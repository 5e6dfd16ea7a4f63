"""Bad input is refused with one of our errors: where, what was found, what was expected, and the cure.

Never a bare traceback, never a silent success, and nothing of what is refused is ever executed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth, HypercloneError
from hyperclone.errors import CheckpointError, FamilyError
from hyperclone.io import streaming
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.tensor_files import read_header
from hyperclone.planning.recipe import NoiseName
from tests.helpers.edits import edit_json
from tests.helpers.examples import examples

ModelDir = Callable[..., Path]
TWICE = Growth(width=2)
NAME = "llama-grouped-tied"
MANY = examples(150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def sharded(model_dir: ModelDir, tmp_path: Path) -> Path:
    """A valid model in several files that a test may damage."""
    return shutil.copytree(model_dir(NAME, shard="40KB"), tmp_path / "sharded")


def refused(path: Path, *words: str, kind: type[HypercloneError] = CheckpointError, growth: Growth = TWICE) -> str:
    """The plan is refused with an error of this kind, whose message holds these words."""
    with pytest.raises(kind) as caught:
        hyperclone.plan(path, growth)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def write_header(file: Path, header: dict[str, Any] | bytes, *, size: int | None = None) -> None:
    """Replace the header of a safetensors file, keeping its data."""
    old = file.read_bytes()
    data = old[8 + int.from_bytes(old[:8], "little") :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)


def header_of(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


# --- Not a model directory


def test_a_path_that_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "nowhere", "no such directory", "nowhere", "config.json and *.safetensors")
    refused(tmp_path / "file", "not a model directory", "file")
    refused(tmp_path / "empty", "not a model directory", "config.json")
    refused(Path(f"{tmp_path}/{'x' * 300}"), "no such directory")
    refused(tmp_path / "file" / "below", "no such directory")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ('{"model_type": "llama"', "not readable as JSON"),
        ("[1, 2]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"llama"', "not a JSON object"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        ("{}", "names no model_type"),
        ('{"model_type": null}', "names no model_type"),
        ('{"model_type": ["llama"]}', "not known"),
        ('{"model_type": 3}', "not known"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_config_that_says_nothing_is_refused_by_file(text: str | bytes, words: str, victim: Path) -> None:
    (victim / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(victim, words, "config.json", kind=HypercloneError)


def test_a_config_that_is_a_directory_is_refused(victim: Path) -> None:
    (victim / "config.json").unlink()
    (victim / "config.json").mkdir()
    refused(victim, "config.json")


def test_an_unknown_architecture_says_where_the_known_ones_are_listed_and_how_to_add_one(victim: Path) -> None:
    edit_json(victim / "config.json", model_type="roberta")  # which transformers has
    words = (
        "model_type",
        "roberta",
        "types that `hyperclone families` lists",
        "family file",
        "hyperclone family draft",
    )
    refused(victim, *words, kind=FamilyError)


def test_a_local_directory_has_no_revision_to_ignore(victim: Path) -> None:
    with pytest.raises(CheckpointError, match="revision"):
        hyperclone.plan(victim, TWICE, revision="main")


# --- Weights that are not plain safetensors


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_refused_and_never_read(file: str, victim: Path, tmp_path: Path) -> None:
    (victim / "model.safetensors").unlink()
    (victim / file).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    refused(victim, "pickle", file, "expected:", "model.safetensors", "save_pretrained")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_under_another_name_is_refused_and_never_read(victim: Path, tmp_path: Path) -> None:
    (victim / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    refused(victim, "not a valid safetensors file", "model.safetensors")
    shutil.move(victim / "model.safetensors", victim / "pytorch_model.bin")
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (victim / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(victim, "not a valid safetensors file", "pytorch_model.bin")
    assert not (tmp_path / "marker").exists()


def test_pickles_beside_safetensors_are_neither_read_nor_copied(victim: Path, tmp_path: Path) -> None:
    (victim / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    (victim / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    hyperclone.grow(victim, tmp_path / "grown", TWICE)
    assert not (tmp_path / "marker").exists()
    assert not list((tmp_path / "grown").glob("*.bin"))


def test_gguf_is_refused_with_the_way_to_convert_it(victim: Path) -> None:
    (victim / "model.safetensors").rename(victim / "model-q8_0.gguf")
    refused(victim, "GGUF", "model-q8_0.gguf", "gguf_file")


def test_gguf_without_a_config_and_by_its_own_name_is_refused_alike(tmp_path: Path) -> None:
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "GGUF", "model-q8_0.gguf", "GgufConfig(dequantize=True)")
    refused(tmp_path / "model-q8_0.gguf", "GGUF", "model-q8_0.gguf", str(tmp_path), "GgufConfig(dequantize=True)")


def test_no_weights_at_all_and_incomplete_shards_without_an_index_are_refused(victim: Path) -> None:
    (victim / "model.safetensors").rename(victim / "model-00001-of-00002.safetensors")
    refused(victim, "a shard is missing", "1 of 2", "model-00002-of-00002.safetensors")
    shutil.copy(victim / "model-00001-of-00002.safetensors", victim / "other-00001-of-00001.safetensors")
    refused(victim, "a shard is missing", "model-00002-of-00002.safetensors")
    (victim / "model-00001-of-00002.safetensors").rename(victim / "more-00001-of-00001.safetensors")
    refused(victim, "several sets of shards", "more", "other")
    (victim / "other-00001-of-00001.safetensors").unlink()
    (victim / "more-00001-of-00001.safetensors").rename(victim / "consolidated.safetensors")
    refused(victim, "whose names it does not know", "consolidated.safetensors", "rename it to model.safetensors")
    (victim / "consolidated.safetensors").unlink()
    refused(victim, "no safetensors weights", "model.safetensors")
    os.symlink(victim / "gone", victim / "model.safetensors")
    refused(victim, "a link to a file that is not there", "model.safetensors", "gone", "download the model again")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_refused_with_the_way_to_fetch_it(file: str, victim: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456789\n"
    (victim / file).write_text(pointer)
    refused(victim, "Git LFS", file, "123.5 MB", "lfs pull")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"load_in_4bit": True}, "without a name"),
        ("quantization_config", {}, "without a name"),
        ("quantization_config", "int8", "int8"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
    ids=str,
)
def test_quantized_checkpoints_are_refused(field: str, value: Any, found: str, victim: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(victim, lambda tensors: tensors.update({name: tensors[name].to(torch.uint8)}))
    edit_json(victim / "config.json", **{field: value})
    refused(victim, "quantized", "config.json", field, found, "grow the original")


@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
def test_where_only_the_config_speaks_of_quantization_the_cure_is_to_remove_the_field(field: str, victim: Path) -> None:
    types = {entry.dtype for entry in Checkpoint.open(victim).entries.values()}
    edit_json(victim / "config.json", **{field: {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    refused(victim, f"stored as {' and '.join(types)}", "config.json", field, "bitsandbytes", f"remove {field} from")
    edit_json(victim / "config.json", **{field: None})
    hyperclone.plan(victim, TWICE)


def test_a_null_where_quantization_would_be_means_none(victim: Path) -> None:
    config = {**json.loads((victim / "config.json").read_text()), "quantization_config": None}
    (victim / "config.json").write_text(json.dumps(config))
    hyperclone.plan(victim, TWICE)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.bool, "BOOL"),
    ],
    ids=str,
)
def test_tensors_that_are_no_plain_floating_point_are_refused_by_name(
    dtype: torch.dtype, found: str, victim: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(victim, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(victim, name, "model.safetensors", found, "BF16, F16, F32, F64", "grow the original")


def test_the_scales_of_a_quantized_tensor_are_refused_as_well(victim: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight_scale_inv"
    edit_weights(victim, lambda tensors: tensors.update({name: torch.ones(1, 1)}))
    refused(victim, name, "the weights are quantized", "model.safetensors", "grow the original")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (4, 32), "merge_and_unload"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", (4,), "quantized"),
        ("model.layers.0.self_attn.q_proj.qweight", (4, 32), "quantized"),
        ("model.layers.7.input_layernorm.weight", (32,), "no such layer"),
        ("model.layers.0.self_attn.q_proj.bias", (32,), "correct config.json"),
        ("reward_head.weight", (1, 32), "store it as score.weight"),
    ],
)
def test_what_a_tensor_is_by_its_name_is_said(name: str, shape: tuple[int, ...], words: str, victim: Path) -> None:
    edit_weights(victim, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(victim, name, words, "cure")


def test_the_cure_of_a_reward_head_works(victim: Path, tmp_path: Path) -> None:
    edit_weights(victim, lambda tensors: tensors.update({"score.weight": torch.randn(1, 32)}))
    config = json.loads((victim / "config.json").read_text())
    named = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (victim / "config.json").write_text(json.dumps({**config, **named}))
    edit_weights(victim, lambda tensors: tensors.update({"score.bias": torch.ones(1)}))
    refused(victim, "the class that config.json names has no such tensor", "score.bias", "remove the tensor")
    edit_weights(victim, lambda tensors: tensors.pop("score.bias"))
    proof = hyperclone.grow(victim, tmp_path / "grown", TWICE).proof
    assert proof is not None
    assert proof.passed


@pytest.mark.parametrize("beside", ["nothing", "config"])
def test_adapters_are_refused_with_the_way_to_merge_them(beside: str, victim: Path) -> None:
    (victim / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if beside == "nothing":
        (victim / "config.json").unlink()
    (victim / "model.safetensors").rename(victim / "adapter_model.safetensors")
    refused(victim, "adapter", "adapter_config.json", "merge_and_unload")


# --- Files that lie


def test_a_truncated_file_is_refused_wherever_it_was_cut(victim: Path) -> None:
    file = victim / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) - 1, *range(0, len(content), 4999)}
    for cut in sorted(cuts):
        file.write_bytes(content[:cut])
        whole = len(content) if cut >= header else header if cut >= 8 else 8
        more = "" if cut >= header else " or more"
        refused(victim, "not a valid safetensors file: it is truncated", "model.safetensors", "download it again",
                f" {cut:,} bytes (", f" {whole:,} bytes{more}, by its header")  # fmt: skip
    file.write_bytes(content + b"\0")
    refused(victim, "not a valid safetensors file", f" {len(content) + 1:,} bytes (", f"{len(content):,} bytes, by")
    file.write_bytes(content)
    hyperclone.plan(victim, TWICE)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "lie",
    [
        {"data_offsets": [0, 128]},
        {"data_offsets": [10**12, 10**12 + 128]},
        {"data_offsets": [-128, 0]},
        {"data_offsets": [128, 0]},
        {"data_offsets": [2**64, 2**64 + 128]},
        {"data_offsets": [0.0, 128.0]},
        {"data_offsets": [0]},
        {"data_offsets": None},
        {"data_offsets": {"begin": 0, "end": 128}},
        {"shape": [31]},
        {"shape": [-32]},
        {"shape": [2**63, 2**63]},
        {"shape": ["32"]},
        {"shape": [32.0]},
        {"shape": None},
        {"dtype": "F64"},
        {"dtype": "F31"},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_header_that_is_wrong_about_one_tensor_is_refused(lie: dict[str, Any], victim: Path) -> None:
    file = victim / "model.safetensors"
    header = header_of(file)
    header[NORM].update(lie)
    write_header(file, header)
    refused(victim, "not a valid safetensors file", "model.safetensors")


@pytest.mark.parametrize("shape", [[], [0], [32, 0], [1, 32], [32, 1], [2**32, 2**32, 0]], ids=str)
def test_scalars_empty_tensors_and_reshaped_ones_are_refused(shape: list[int], victim: Path) -> None:
    """Their sizes may be true to the bytes; they are not what the config says."""
    tensors = load_file(victim / "model.safetensors")
    if 2**32 in shape:
        file = victim / "model.safetensors"
        write_header(file, {**header_of(file), NORM: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
        refused(victim, "not a valid safetensors file")
        return
    tensors[NORM] = torch.ones(shape)
    save_file(tensors, victim / "model.safetensors")
    words = "ZeRO-3" if shape == [0] else "disagrees with the config"
    refused(victim, NORM, words, str(shape), "[32]", *(["zero_to_fp32.py"] if shape == [0] else []))


@pytest.mark.parametrize("size", [0, 1, 7, 2**20, 10**9, 2**63, 2**64 - 1], ids=str)
def test_a_wrong_header_length_is_refused_without_reading_that_much(size: int, victim: Path) -> None:
    file = victim / "model.safetensors"
    write_header(file, header_of(file), size=size)
    refused(victim, "not a valid safetensors file", "model.safetensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"model.norm.weight"', b'"model.norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,128]},"%s"'),
        (b'"model.norm.weight"', b'"model.norm.weight":{"dtype":"F32","shape":[8],"data_offsets":[5,9]},"%s"'),
        (b'"__metadata__"', b'"__metadata__":{},"__metadata__"'),
    ],
    ids=["same twice", "two different", "metadata twice"],
)
def test_a_name_that_a_header_holds_twice_is_refused(old: bytes, new: bytes, victim: Path) -> None:
    """safetensors takes the last one without a word; another reader may take the first."""
    file = victim / "model.safetensors"
    text = json.dumps(header_of(file)).encode()
    assert text.count(old) == 1
    write_header(file, text.replace(old, new.replace(b"%s", old.strip(b'"'))))
    message = refused(victim, "not a valid safetensors file", "model.safetensors")
    assert "twice" in message or "duplicate" in message


def test_an_entry_that_is_a_list_is_refused_although_safetensors_takes_it(victim: Path) -> None:
    file = victim / "model.safetensors"
    header = header_of(file)
    header[NORM] = [header[NORM][key] for key in ("dtype", "shape", "data_offsets")]
    write_header(file, header)
    refused(victim, "not a valid safetensors file", "model.safetensors")


def test_headers_that_are_no_text_or_no_object_are_refused(victim: Path) -> None:
    file = victim / "model.safetensors"
    text = json.dumps(header_of(file)).encode()
    for header in (
        text.replace(b"model.norm", b"model.\xff\xfenorm"),
        text.replace(b"model.norm", b"model.\\ud800norm"),
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        b"[" + text + b"]",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"null",
        b"",
    ):
        write_header(file, header)
        refused(victim, "not a valid safetensors file", "model.safetensors")


def seen(path: Path) -> Any:
    """Everything that a reader takes from the headers."""
    return hyperclone.plan(path, TWICE).summary(), Checkpoint.open(path).entries


@MANY
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 8 + 2500), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3
    )
)
def test_whatever_bytes_a_header_holds_it_is_refused_or_means_the_same(
    edits: list[tuple[int, bytes, int]], model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes replaced, inserted and deleted anywhere in the length and the header."""
    source = model_dir(NAME)
    content = bytearray((source / "model.safetensors").read_bytes())
    for offset, new, length in edits:
        content[offset : offset + length] = new
    refused_or_the_same(source, bytes(content), tmp_path_factory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.integers(0, 4096) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@MANY
@given(
    which=st.integers(0, 19),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "extra", None]),
    value=JSON
    | st.lists(st.integers(0, 50_000), min_size=2, max_size=2)
    | st.sampled_from(["I32", "U32", "F32", "F16"]),
)
def test_whatever_a_header_says_of_a_tensor_it_is_refused_or_means_the_same(
    which: int, field: str | None, value: Any, model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = model_dir(NAME)
    content = (source / "model.safetensors").read_bytes()
    header = header_of(source / "model.safetensors")
    name = sorted(header)[1 + which]
    if field is None:
        header[name] = value
    else:
        header[name][field] = value
    text = json.dumps(header).encode()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    refused_or_the_same(source, len(text).to_bytes(8, "little") + text + data, tmp_path_factory, offsets=False)


def refused_or_the_same(
    source: Path, content: bytes, tmp_path_factory: pytest.TempPathFactory, *, offsets: bool = True
) -> None:
    victim = tmp_path_factory.getbasetemp() / "fuzzed"
    victim.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", victim)
    (victim / "model.safetensors").write_bytes(content)
    try:
        plan, entries = seen(victim)
    except HypercloneError:
        return
    intact_plan, intact = seen(source)
    assert plan == intact_plan
    start = int.from_bytes(content[:8], "little") - int.from_bytes(
        (source / "model.safetensors").read_bytes()[:8], "little"
    )
    for name, entry in intact.items():
        assert (entries[name].offset - start, entries[name].nbytes, entries[name].shape, entries[name].dtype) == (
            entry.offset,
            entry.nbytes,
            entry.shape,
            entry.dtype,
        )
    assert list(entries) == list(intact)


# --- Indexes that lie


def edit_index(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "sub/inside.safetensors", "/etc/passwd", "..", ".", "", "sub/../x.safetensors"]
)
def test_an_index_that_points_elsewhere_is_refused(path: str, sharded: Path, tmp_path: Path) -> None:
    (sharded / "sub").mkdir()
    first = sorted(sharded.glob("*.safetensors"))[0]
    for file in (tmp_path / "outside.safetensors", sharded / "sub/inside.safetensors", sharded / "x.safetensors"):
        shutil.copy(first, file)

    def escape(index: dict[str, Any]) -> None:
        index["weight_map"] = {n: path if f == first.name else f for n, f in index["weight_map"].items()}

    edit_index(sharded, escape)
    refused(sharded, "points outside", "model.safetensors.index.json", f"found:    {path}", "a bare file name")


def test_a_snapshot_of_the_hubs_cache_is_links_to_its_store(sharded: Path, tmp_path: Path) -> None:
    expected = hyperclone.plan(sharded, TWICE)
    snapshot, store = tmp_path / "models--a--b/snapshots/1234", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    store.mkdir()
    for file in sharded.iterdir():
        shutil.copy(file, store / f"hash of {file.name}")
        os.symlink(store / f"hash of {file.name}", snapshot / file.name)
    assert hyperclone.plan(snapshot, TWICE) == expected
    done = hyperclone.grow(snapshot, tmp_path / "grown", TWICE, proof="structural")
    assert done.proof is not None
    assert done.proof.passed


def test_an_index_that_names_an_absent_file_is_refused(sharded: Path) -> None:
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    refused(sharded, "missing", gone.name, "tensors in it", "download")


@pytest.mark.parametrize("weight_map", [None, {}, [], "all", {"model.norm.weight": 3}, {"model.norm.weight": None}])
def test_an_index_without_a_map_is_refused(weight_map: Any, sharded: Path) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    refused(sharded, "model.safetensors.index.json", "weight_map")


def test_an_index_that_names_what_no_file_holds_is_refused(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update(ghost=next(iter(index["weight_map"].values()))))
    refused(sharded, "ghost", "does not contain", "cure")


def test_an_index_that_leaves_a_tensor_out_is_refused(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop("model.norm.weight"))
    refused(sharded, "model.norm.weight", "does not name", "cure")


def test_an_index_that_names_the_wrong_file_is_refused(sharded: Path) -> None:
    def move(index: dict[str, Any]) -> None:
        here = index["weight_map"]["model.norm.weight"]
        index["weight_map"]["model.norm.weight"] = next(f for f in index["weight_map"].values() if f != here)

    edit_index(sharded, move)
    refused(sharded, "model.norm.weight", "disagree", "found", "expected")


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    tensors, name = load_file(second), next(iter(read_header(first)))
    save_file({**tensors, name: load_file(first)[name]}, second)
    refused(sharded, "stored twice", name, first.name, second.name)


# --- Weights and config that do not belong together


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 48},
        {"hidden_size": 16},
        {"intermediate_size": 64},
        {"vocab_size": 301},
        {"num_attention_heads": 8},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 4},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"mlp_bias": True},
    ],
    ids=str,
)
def test_sizes_that_disagree_with_the_config_are_refused_by_tensor(fields: dict[str, Any], victim: Path) -> None:
    edit_json(victim / "config.json", **fields)
    message = refused(victim, "tensor:", "expected:")
    assert "found:" in message or "missing" in message or "not stored" in message


def test_a_missing_tensor_is_refused_with_the_shape_it_should_have(victim: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_weights(victim, lambda tensors: tensors.pop(name))
    refused(victim, "missing", name, "[16, 32]", "(kv_heads head_dim) <- hidden", "cure")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_norm.weight", "pooler.weight", "model.layers.2.x", "x" * 99]
)
def test_a_tensor_that_the_architecture_does_not_have_is_refused(name: str, victim: Path) -> None:
    edit_weights(victim, lambda tensors: tensors.update({name: torch.zeros(3)}))
    refused(victim, "not part of this architecture", name, "[3]", "families/llama.toml", "cure")


def test_a_tied_head_that_is_stored_and_differs_is_refused_before_anything_is_written(
    victim: Path, tmp_path: Path
) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    edit_weights(victim, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    hyperclone.grow(victim, tmp_path / "equal", TWICE, proof="structural")
    edit_weights(victim, lambda tensors: tensors[head][299].add_(1e-3))
    with pytest.raises(CheckpointError) as caught:
        hyperclone.grow(victim, tmp_path / "grown", TWICE)
    for word in ("tie_word_embeddings", head, embedding, "cure"):
        assert word in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["equal", "victim"]


ABSURD: list[Any] = [
    0, -1, -4, 10**30, -(10**30), 2**31, 1.5, 4.0, 1e308, float("nan"), float("inf"), "4", "", True, False, [4], {}, [],
]  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "vocab_size",
    ],
)
@pytest.mark.parametrize("value", ABSURD, ids=repr)
def test_absurd_numbers_are_refused_at_once(field: str, value: Any, victim: Path) -> None:
    edit_json(victim / "config.json", **{field: value})
    start = time.monotonic()
    refused(victim, "expected")
    assert time.monotonic() - start < 5


@MANY
@given(field=st.integers(0, 40), value=JSON | st.sampled_from(ABSURD))
def test_whatever_a_config_says_it_is_refused_or_means_the_same_sizes(
    field: int, value: Any, model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in (NAME, "opt-projected-post-norm", "neox-parallel"):
        source = model_dir(name)
        victim = tmp_path_factory.getbasetemp() / f"fuzzed-{name}"
        victim.mkdir(exist_ok=True)
        shutil.copy(source / "model.safetensors", victim)
        config = json.loads((source / "config.json").read_text())
        config[sorted(config)[field % len(config)]] = value
        (victim / "config.json").write_text(json.dumps(config))
        try:
            sizes = hyperclone.plan(victim, TWICE).sizes
        except HypercloneError:
            continue
        intact = hyperclone.plan(source, TWICE).sizes
        assert {**sizes, "positions": None} == {**intact, "positions": None}


def test_heads_that_do_not_divide_are_refused_by_field(victim: Path) -> None:
    edit_json(victim / "config.json", num_attention_heads=5)
    refused(victim, "num_attention_heads", "5 / 2", "a whole number", "config.json")
    edit_json(victim / "config.json", num_attention_heads=6, num_key_value_heads=6, head_dim=None)
    refused(victim, "hidden_size / num_attention_heads", "32 / 6", "a whole number")


def test_missing_sizes_are_refused_by_field(victim: Path) -> None:
    config = json.loads((victim / "config.json").read_text())
    for field in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "num_hidden_layers"):
        (victim / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != field}))
        refused(victim, field, "config.json")


# --- Weights that are no numbers


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "tensor", "index", "value", "noise"),
    [
        (torch.bfloat16, "model.embed_tokens.weight", (297, 31), NAN, "split"),
        (torch.float16, "model.layers.1.mlp.down_proj.weight", (17, 40), -INF, "split"),
        (torch.float32, "model.layers.1.self_attn.q_proj.weight", (25, 0), INF, "none"),
        (torch.float64, "model.layers.0.self_attn.v_proj.weight", (15, 31), NAN, "split"),
        (torch.float64, "model.layers.0.self_attn.v_proj.weight", (15, 31), INF, "none"),
        (torch.bfloat16, "model.layers.0.self_attn.o_proj.weight", (0, 1), INF, "gaussian"),
        (torch.float32, "model.norm.weight", (7,), NAN, "gaussian"),
        (torch.bfloat16, "model.norm.weight", (31,), -INF, "split"),
        (torch.float16, "model.layers.1.input_layernorm.weight", (31,), NAN, "split"),
    ],
    ids=str,
)
def test_one_weight_that_is_no_number_is_found_by_tensor_and_index(
    dtype: torch.dtype,
    tensor: str,
    index: tuple[int, ...],
    value: float,
    noise: NoiseName,
    victim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", 2048)  # the index must count from the tensor's start

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors[tensor][index] = value

    edit_weights(victim, spoil)
    with pytest.raises(CheckpointError) as caught:
        hyperclone.grow(victim, tmp_path / "grown", Growth(width=2, noise=noise))
    where = f"{tensor}[{', '.join(map(str, index))}]"
    for word in ("not a finite number", "model.safetensors", where, str(value), "cure"):
        assert word in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["victim"]  # neither the destination nor leftovers


@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_the_asked_type_cannot_hold_is_refused(tensor: str, victim: Path, tmp_path: Path) -> None:
    edit_weights(victim, lambda tensors: tensors[tensor].view(-1)[-1].fill_(-70000.0))
    with pytest.raises(CheckpointError) as caught:
        hyperclone.grow(victim, tmp_path / "grown", Growth(width=2, dtype="fp16"))
    for word in ("does not fit into F16", tensor, "-70000", "--dtype"):
        assert word in str(caught.value)
    assert not (tmp_path / "grown").exists()
    hyperclone.grow(victim, tmp_path / "grown", Growth(width=2, dtype="bf16"), proof="structural")


# --- Code in the directory


def test_remote_code_is_never_imported_and_never_copied(victim: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for module in ("modeling_x", "configuration_x", "tokenization_x"):
        (victim / f"{module}.py").write_text(code + "class X:\n    pass\n")
    classes = {
        "AutoConfig": "configuration_x.X",
        "AutoModelForCausalLM": "modeling_x.X",
        "AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"],
    }
    edit_json(victim / "config.json", auto_map=classes)
    edit_json(victim / "tokenizer_config.json", auto_map={"AutoTokenizer": classes["AutoTokenizer"]})
    plan = hyperclone.plan(victim, TWICE)
    assert any("auto_map" in note for note in plan.notes)
    done = hyperclone.grow(victim, tmp_path / "grown", TWICE)
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert done.proof.passed
    hyperclone.verify(victim, tmp_path / "grown")
    assert not marker.exists()
    assert not list((tmp_path / "grown").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "grown/config.json").read_text())


def test_an_architecture_that_only_remote_code_knows_is_refused(victim: Path, tmp_path: Path) -> None:
    (victim / "modeling_x.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    edit_json(victim / "config.json", model_type="x", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    refused(victim, "not known", kind=FamilyError)
    assert not (tmp_path / "marker").exists()
