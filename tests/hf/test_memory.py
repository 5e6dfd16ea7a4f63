"""Memory that is freed and allocated again."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

# In a process of its own: whether a freed block can be used again depends on what else the process has allocated.
COUNT = """
import json, resource, torch
from hyperclone.hf.memory import kept

def faults_of_blocks(count=6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(64 << 20, dtype=torch.uint8)  # above any threshold that the C library sets by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults_of_blocks()
with kept():
    faults_of_blocks(20)  # until there is a place that small allocations in between leave alone (up to nine)
    inside = faults_of_blocks()
print(json.dumps([usual, inside, faults_of_blocks()]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library of GNU")
def test_freed_memory_is_used_again_without_asking_the_system_for_its_pages() -> None:
    usual, inside, after = json.loads(subprocess.check_output([sys.executable, "-c", COUNT]))
    assert inside < usual / 3
    assert after > usual / 6
