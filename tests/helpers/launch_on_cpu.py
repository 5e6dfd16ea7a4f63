"""`python launch_on_cpu.py train ... [+ train ...]`: commands one after the other in a process of torchrun, with FSDP2
allowed on CPUs.

accelerate shards on accelerators only: of processes on CPUs it says MULTI_CPU and makes them DDP. FSDP2 itself,
torch's distributed checkpoint and gloo work on CPUs; so here accelerate takes these for devices like others,
and everything else is what users run.
"""

from __future__ import annotations

import faulthandler
import sys
from itertools import groupby
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType

_begin = state.PartialState.__init__


def _as_devices(self: Any, *arguments: Any, **options: Any) -> None:
    _begin(self, *arguments, **options)
    if state.PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def allow_shards() -> None:
    """Let accelerate shard models on CPUs in this process."""
    faulthandler.enable()  # a crash inside of torch or gloo names its place
    torch.set_num_threads(1)
    state.PartialState.__init__ = _as_devices


if __name__ == "__main__":
    allow_shards()

    from hyperclone.cli.main import main

    commands = [list(words) for between, words in groupby(sys.argv[1:], "+".__eq__) if not between]
    for command in commands:
        sys.argv[1:] = command
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
