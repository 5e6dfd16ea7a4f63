"""What machine this is, as training.json, studies and benchmarks record it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def this_machine() -> dict[str, Any]:
    """The machine, as far as results depend on it: processor, GPU, cores, and the threads of this process."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _processor(), "gpu": gpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def distinct(machines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Machines in order, each once: a run, or a study, may begin on one and end on another."""
    different: list[dict[str, Any]] = []
    for machine in machines:
        if machine not in different:
            different.append(machine)
    return different


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
