"""How much memory is available, and whether what was freed is given back to the system or kept."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Parameters of glibc's mallopt(3), and the values that it raises them to once a program has freed large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL_TRIM, _USUAL_MMAP = 64 << 20, 32 << 20


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


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory for what is allocated next, and give it back in the end.

    A training step allocates what the step before it freed. glibc may give these pages to the system in between, which
    then hands them out again one by one, zeroed. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        give_back()


def _kilobytes(file: str) -> dict[str, int]:
    """The lines "Name: 123 kB" of a file; none where there is no such file."""
    try:
        lines = [line.split() for line in Path(file).read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) == 3 and line[2] == "kB"}
