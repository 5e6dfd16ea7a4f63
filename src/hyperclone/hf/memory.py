"""How much memory is available."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> float:
    """Bytes available without swapping; all of them where the system does not say."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:  # a container's limit
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            total = min(total, float(limit) - float(used))
    except (OSError, ValueError):
        pass
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(total, float(line.split()[1]) * 1024)
    except OSError:
        pass
    return total
