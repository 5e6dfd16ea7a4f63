"""What transformers makes of a grown model when it loads and saves it: the same tensors, or the files have a fault.

transformers loads some tensors in fp32 whatever a checkpoint has (routers of DeepSeek), and saves them so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hyperclone.hf.models import model_errors, quiet
from hyperclone.hf.streamed_model import StreamedModel
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.scratch import scratch_directory
from hyperclone.io.streaming import slices, worker_pool

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotSaved(Exception):
    """The model could not be saved again; the message says why."""


def check_space(directory: Path, nbytes: int) -> None:
    """Raise NotSaved unless there is disk for a second copy of a model of so many bytes."""
    if shutil.disk_usage(_scratch_in(directory)).free < 1.1 * nbytes:
        raise NotSaved("not enough disk for a second copy")


def changed_by_saving(model: Any, directory: Path) -> list[str]:
    """What differs between a directory and what `save_pretrained` writes of the model that was loaded from it.

    Raises:
        NotSaved: the second copy could not be written.
    """
    with scratch_directory(_scratch_in(directory)) as scratch:
        try:
            with quiet():
                model.save_pretrained(scratch)
        except (OSError, SafetensorError) as error:  # the disk may fill meanwhile
            raise NotSaved(f"the second copy cannot be written ({error})") from error
        output, saved = Checkpoint.open(directory), Checkpoint.open(scratch)

        def one(name: str) -> str:
            entry = output.entries[name]
            if entry.shape != saved.entries[name].shape:
                return _changed(name)
            rows = slices(entry.shape, entry.nbytes)
            pairs = ((output.read(name, r.start, r.stop), saved.read(name, r.start, r.stop)) for r in rows)
            return "" if all(_same(*pair) for pair in pairs) else _changed(name)

        with worker_pool(None) as pool:
            both = sorted(output.entries.keys() & saved.entries.keys())
            return [*_gained_or_lost(output, saved.entries), *filter(None, pool.map(one, both))]


def changed_part_by_part(directory: Path, dtype: torch.dtype) -> list[str]:
    """The same without a second copy on disk, of a model that is read part by part."""
    output = Checkpoint.open(directory)
    model = StreamedModel(output, dtype)
    names, changed = set(), set()
    with model_errors(directory):
        for name, saved in model.tensors_to_save():
            names.add(name)
            if name in output.entries and not _same(output.read(name), saved):
                changed.add(_changed(name))  # a tied weight is in two parts
    return [*_gained_or_lost(output, names), *sorted(changed)]


def _scratch_in(directory: Path) -> Path:
    # Inside a directory that is being built, so that an interruption leaves nothing; not inside a finished one.
    return directory if directory.name.endswith(".partial") else Path(tempfile.gettempdir())


def _gained_or_lost(output: Checkpoint, saved: Iterable[str]) -> Iterator[str]:
    for name in sorted(output.entries.keys() ^ set(saved)):
        yield f"{name}: gained or lost when transformers saves the model again"


def _changed(name: str) -> str:
    return f"{name}: changed when transformers loads and saves the model"


def _same(stored: Tensor, saved: Tensor) -> bool:
    """The same values to the bit, in the stored type or in fp32."""
    widened = saved.dtype == torch.float32 and stored.dtype in (torch.bfloat16, torch.float16)
    if stored.shape != saved.shape or not (widened or saved.dtype == stored.dtype):
        return False
    a, b = (x.float().contiguous() if widened else x.contiguous() for x in (stored, saved))
    return a.view(_BITS[a.element_size()]).equal(b.view(_BITS[b.element_size()]))
