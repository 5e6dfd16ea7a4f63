"""Memory that is freed and allocated again."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from hyperclone.hf.memory import kept

PAGE = resource.getpagesize()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library of GNU")
def test_freed_memory_is_used_again_without_asking_the_system_for_its_pages() -> None:
    nbytes = 128 << 20  # above any threshold that the C library sets by itself

    def faults_of_blocks() -> int:
        torch.ones(nbytes, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            torch.ones(nbytes, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # A page may be 2 MB large (transparent huge pages).
    least = 3 * nbytes // (2 << 20)
    assert faults_of_blocks() >= least
    with kept():
        assert faults_of_blocks() < least / 4
    assert faults_of_blocks() >= least
