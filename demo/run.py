"""The main job on a real model: SmolLM2-135M, grown 2-fold in every width, proved from disk, and shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from get_model import CACHE, SMOLLM2, fetch

DESTINATION = Path(os.environ.get("HYPERCLONE_DEMO", CACHE / "SmolLM2-480M-grown"))


def main() -> None:
    source = fetch(SMOLLM2)
    command = ["grow", str(source), str(DESTINATION), "--width", "2", "--overwrite"]
    shown = [part.replace(str(Path.home()), "~") for part in command]
    print(f"\n$ hyperclone {' '.join(shown)}\n", flush=True)
    code = subprocess.call([str(Path(sys.executable).with_name("hyperclone")), *command])
    if code == 0:
        print(
            "\nIt is a plain Hugging Face directory. Use it as any other:\n\n"
            f"    AutoModelForCausalLM.from_pretrained({str(DESTINATION)!r})\n\n"
            "hyperclone.json in it is the receipt: how it was made, what was proved, how to train it."
        )
    raise SystemExit(code)


if __name__ == "__main__":
    main()
