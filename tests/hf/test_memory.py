"""Memory that is freed and allocated again."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from hyperclone.hf.memory import kept


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library of GNU")
def test_freed_memory_is_used_again_without_asking_the_system_for_its_pages() -> None:
    nbytes = 64 << 20  # above any threshold that the C library sets by itself

    def faults_of_blocks(count: int = 6) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            torch.ones(nbytes, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    usual = faults_of_blocks()
    with kept():
        faults_of_blocks(3)  # until there is a place that small allocations in between leave alone
        assert faults_of_blocks() < usual / 3
    assert faults_of_blocks() > usual / 6
