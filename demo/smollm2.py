"""The main job: SmolLM2-135M grown 2-fold and proved from disk; then the experiment in small (`hyperclone demo`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from get_model import CACHE, SMOLLM2, fetch

DESTINATION = Path(os.environ.get("HYPERCLONE_DEMO", CACHE / "SmolLM2-480M-grown"))
EXPERIMENT = CACHE / "demo"


def hyperclone(*command: str) -> None:
    """Show a command, run it, stop if it fails."""
    shown = [part.replace(str(Path.home()), "~") for part in command]
    print(f"\n$ hyperclone {' '.join(shown)}\n", flush=True)
    code = subprocess.call([str(Path(sys.executable).with_name("hyperclone")), *command])
    if code:
        raise SystemExit(code)


def main() -> None:
    """A real model, then an experiment."""
    hyperclone("grow", str(fetch(SMOLLM2)), str(DESTINATION), "--width", "2", "--overwrite")
    print(
        "\nIt is a plain Hugging Face directory. Use it as any other:\n\n"
        f"    AutoModelForCausalLM.from_pretrained({str(DESTINATION)!r})\n\n"
        "hyperclone.json in it is the receipt: how it was made, what was proved, how to train it.\n\n"
        "Next: does growing pay? A small model that ships with hyperclone, on this machine, in a few minutes."
    )
    hyperclone("demo", "--output", str(EXPERIMENT))


if __name__ == "__main__":
    main()
