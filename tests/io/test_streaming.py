"""Promises 3 and 4: same input, growth and seed give the same bytes; memory is a constant for any size of model."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import hyperclone
from hyperclone import Growth
from hyperclone.errors import OptionError
from hyperclone.io import streaming
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning.recipe import NoiseName

ModelDir = Callable[..., Path]
NAMES = ["llama-grouped-tied", "neox-parallel", "opt-projected-post-norm"]
GROWTHS = {
    "split": Growth(width=2),
    "split-three-diagonal": Growth(width=3, expansion="diagonal"),
    "gaussian": Growth(width=2, noise="gaussian"),
    "gaussian-three-diagonal": Growth(width=3, noise="gaussian", expansion="diagonal"),
    "none": Growth(width=3, noise="none"),
}


def grow(source: Path, target: Path, growth: Growth, **options: Any) -> dict[str, tuple[Any, ...]]:
    """Grow without proof; every tensor's type, shape and bytes as the safetensors library reads them."""
    hyperclone.grow(source, target, growth, proof="none", **options)
    found = {}
    for file in sorted(target.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                stored = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                found[name] = (tensor.dtype, tuple(tensor.shape), stored)
    return found


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama-grouped-tied", kind) for kind in GROWTHS]
    + [(name, kind) for name in NAMES[1:] for kind in ("split", "gaussian-three-diagonal")],
)
def test_bytes_depend_on_neither_threads_nor_shards_nor_slices(
    name: str, kind: str, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = GROWTHS[kind]
    expected = grow(model_dir(name), tmp_path / "grown", growth, threads=1)
    for i, (threads, shard_size, slice_bytes, shard) in enumerate(
        [
            (2, "5GB", 16 << 20, "5GB"),
            (5, "100KB", 5000, "5GB"),
            (None, 1, 3777, "30KB"),  # a tensor a file
            (1, "30KB", 1 if growth.noise == "none" else 1000, "30KB"),  # once, a row a slice
        ]
    ):
        monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
        source, target = model_dir(name, shard=shard), tmp_path / str(i)
        found = grow(source, target, growth, threads=threads, shard_size=shard_size)
        assert found == expected
        assert len(list(target.glob("*.safetensors"))) == (len(expected) if shard_size == 1 else 1 if i == 0 else len(
            list(target.glob("model-*-of-*.safetensors"))
        ))  # fmt: skip


@pytest.mark.parametrize("noise", ["split", "gaussian"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    noise: NoiseName, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    one, again, other = (
        grow(source, tmp_path / name, Growth(width=2, noise=noise, seed=seed))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one == again
    for name in one:
        splits = name == "model.norm.weight" or ("norm" not in name and "embed" not in name)
        assert (one[name] != other[name]) == splits, name


def test_every_tensor_has_noise_of_its_own(model_dir: ModelDir, tmp_path: Path) -> None:
    """Two tensors with equal weights are not split alike."""
    from safetensors.torch import load_file

    source = tmp_path / "source"
    source.mkdir()
    tensors = load_file(model_dir("llama-grouped-tied") / "model.safetensors")
    for i in (0, 1):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.gate_proj.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_bytes((model_dir("llama-grouped-tied") / "config.json").read_bytes())
    grown = grow(source, tmp_path / "grown", Growth(width=2))
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)] + ["model.layers.0.mlp.gate_proj.weight"]
    assert len({grown[name] for name in names}) == 3


def made_of_integers(path: Path, dtype: torch.dtype) -> Path:
    """A Llama whose weights come from integer arithmetic: the same with every version of every library."""
    config = {
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 50,
        "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": True,
    }  # fmt: skip
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (50, 24),
        layer + "input_layernorm.weight": (24,),
        layer + "self_attn.q_proj.weight": (24, 24),
        layer + "self_attn.k_proj.weight": (12, 24),
        layer + "self_attn.v_proj.weight": (12, 24),
        layer + "self_attn.o_proj.weight": (24, 24),
        layer + "post_attention_layernorm.weight": (24,),
        layer + "mlp.gate_proj.weight": (40, 24),
        layer + "mlp.up_proj.weight": (40, 24),
        layer + "mlp.down_proj.weight": (24, 40),
        "model.norm.weight": (24,),
    }
    tensors, start = {}, 1
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        integers = (torch.arange(start, start + count) * 48271) % 2147483647 % 2001 - 1000
        tensors[name], start = (integers.double() / 4096).to(dtype).reshape(shape), start + count
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("dtype", "growth", "digest"),
    [
        (
            torch.bfloat16,
            Growth(width=2, order="tiled"),
            "cb7dbb375660f26eb21d5fdd4dd3cdbb51e6f31169c86ddfe1c8e21d8106c457",
        ),
        (
            torch.float32,
            Growth(width=3, expansion="diagonal", seed=7, order="tiled"),
            "330727c8173563632a42f33b2facd19714c8099757ed8e179e8de0f5c7c197d1",
        ),
        (
            torch.float16,
            Growth(width=2, noise="gaussian", order="tiled"),
            "2091dfa33250956151412cdd0486285817496e99a4a1e9b6e1f3f33908c8b482",
        ),
    ],
    ids=["bf16", "fp32", "fp16-gaussian"],
)
def test_the_bytes_are_those_of_earlier_versions(
    dtype: torch.dtype, growth: Growth, digest: str, tmp_path: Path
) -> None:
    """If this fails, old seeds no longer give old models: raise the version, say so, and only then change the hash."""
    grown = grow(made_of_integers(tmp_path / "source", dtype), tmp_path / "grown", growth)
    found = hashlib.sha256(b"".join(grown[name][2] for name in sorted(grown))).hexdigest()
    assert found == digest


# --- Memory

MEASURE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from hyperclone import Growth, grow

path, layers = Path(sys.argv[1]), int(sys.argv[2])
hidden, ffn, vocab = 512, 2048, 4096
config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
          "vocab_size": vocab, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
          "torch_dtype": "bfloat16"}
source = path / "source"
source.mkdir()
(source / "config.json").write_text(json.dumps(config))
weight_map = {}
def save(file, shapes):
    block = (torch.arange(hidden * vocab) % 4001 - 2000).div(8192).to(torch.bfloat16)
    save_file({n: block[: torch.Size(s).numel()].reshape(s).clone() for n, s in shapes.items()}, source / file)
    weight_map.update(dict.fromkeys(shapes, file))
for i in range(layers):
    at = f"model.layers.{i}."
    save(f"layer-{i}.safetensors", {
        at + "input_layernorm.weight": (hidden,), at + "post_attention_layernorm.weight": (hidden,),
        at + "self_attn.q_proj.weight": (hidden, hidden), at + "self_attn.k_proj.weight": (hidden // 2, hidden),
        at + "self_attn.v_proj.weight": (hidden // 2, hidden), at + "self_attn.o_proj.weight": (hidden, hidden),
        at + "mlp.gate_proj.weight": (ffn, hidden), at + "mlp.up_proj.weight": (ffn, hidden),
        at + "mlp.down_proj.weight": (hidden, ffn)})
save("ends.safetensors", {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden),
                          "model.norm.weight": (hidden,)})
(source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
done = grow(source, path / "grown", Growth(width=2), proof="structural", threads=2, shard_size="100MB")
assert done.proof.passed
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"bytes": done.plan.nbytes, "peak": peak * 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Not getrusage: its peak begins with the parent's, and this parent has built models."""

    def measure(layers: int) -> dict[str, int]:
        directory = tmp_path / str(layers)
        directory.mkdir()
        arguments = [sys.executable, "-c", MEASURE, str(directory), str(layers)]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        peaks: dict[str, int] = json.loads(result.stdout)
        return peaks

    small, large = measure(1), measure(9)
    more = large["bytes"] - small["bytes"]
    assert more > 250e6
    assert large["peak"] - small["peak"] < 0.6 * more  # of one and the same model, peaks are up to 100 MB apart


# --- Slices, hashes, progress, threads


@pytest.mark.parametrize("shape", [(1,), (7,), (300, 64), (5, 1), (1, 5000), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("slice_bytes", [1, 100, 1000, 1 << 20])
def test_slices_cover_every_row_once_and_are_no_larger_than_they_may_be(
    shape: tuple[int, ...], slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", slice_bytes)
    nbytes = torch.Size(shape).numel() * 2
    ranges = list(streaming.slices(shape, nbytes))
    assert [row for rows in ranges for row in rows] == list(range(shape[0]))
    assert all(len(rows) == 1 or len(rows) * nbytes // shape[0] <= slice_bytes for rows in ranges)


def test_rows_are_read_as_the_safetensors_library_reads_them(model_dir: ModelDir) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        path = model_dir("opt", dtype=dtype)
        checkpoint = Checkpoint.open(path)
        with safe_open(path / "model.safetensors", framework="pt") as tensors:
            assert set(checkpoint.entries) == set(tensors.keys())
            for name, entry in checkpoint.entries.items():
                whole = tensors.get_tensor(name)
                assert checkpoint.read(name).equal(whole)
                assert checkpoint.read(name).dtype == whole.dtype
                middle = entry.shape[0] // 2
                assert checkpoint.read(name, middle, middle + 3).equal(whole[middle : middle + 3])
                assert checkpoint.read(name, middle).equal(whole[middle:])
                assert checkpoint.read(name, 3, 3).shape == (0, *whole.shape[1:])
                expected = hashlib.sha256(whole.view(torch.uint8).numpy().tobytes()).hexdigest()
                assert streaming.digest(checkpoint, name) == expected


def test_progress_counts_every_byte_once_and_never_backwards(model_dir: ModelDir, tmp_path: Path) -> None:
    calls: dict[str, list[tuple[int, int]]] = {}
    done = hyperclone.grow(
        model_dir("opt"), tmp_path / "grown", Growth(width=2), proof="structural", threads=3, shard_size="50KB",
        progress=lambda stage, at, total: calls.setdefault(stage, []).append((at, total)),
    )  # fmt: skip
    assert list(calls) == ["grow", "prove"]
    for steps in calls.values():
        assert len({total for _, total in steps}) == 1
        assert [at for at, _ in steps] == sorted(at for at, _ in steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
    assert calls["grow"][-1][1] == done.plan.nbytes


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_that_is_none_is_refused(threads: int, model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="threads"):
        hyperclone.grow(model_dir("opt"), tmp_path / "grown", Growth(width=2), threads=threads, proof="none")
    assert list(tmp_path.iterdir()) == []


def test_torchs_own_setting_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), streaming.worker_pool(2):
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before


def test_the_first_error_stops_what_has_not_begun_and_waits_for_what_has() -> None:
    begun, ended, go = [], [], threading.Event()

    def job(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        go.wait(0.2)
        ended.append(item)

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="the first"):
        streaming.run_all(pool, job, range(100))
    assert begun[0] == 0
    assert len(begun) < 10
    assert sorted(ended) == sorted(begun)[1:]
