"""How much memory is available, and giving back what was freed."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path


def available_memory() -> float:
    """Bytes that this process can still take without swapping; all of them where the system does not say."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    try:  # a container's limit
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            limits.append(float(limit) - float(used))
    except (OSError, ValueError):
        pass
    machine, process = _kilobytes("/proc/meminfo"), _kilobytes("/proc/self/status")
    if "MemAvailable" in machine:
        limits.append(1024.0 * machine["MemAvailable"])
    used_by = {resource.RLIMIT_RSS: "VmRSS", resource.RLIMIT_DATA: "VmData", resource.RLIMIT_AS: "VmSize"}
    for kind, field in used_by.items():  # ulimit -m (Linux does not enforce it), -d, -v
        if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            limits.append(soft - 1024.0 * process.get(field, 0))
    return min(limits)


def give_back() -> None:
    """Return freed memory to the system; the C library would keep much of it for the thread that freed it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _kilobytes(file: str) -> dict[str, int]:
    """The lines "Name: 123 kB" of a file; none where there is no such file."""
    try:
        lines = [line.split() for line in Path(file).read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) == 3 and line[2] == "kB"}
