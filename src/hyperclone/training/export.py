"""The trained model as a plain Hugging Face directory: weights in the type that the model came in, its own config,
tokenizer, licence, receipt, and a model card. Files are written aside and moved into place one by one, the weights'
index last but for config.json, without which nothing loads.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from hyperclone import card, receipt
from hyperclone.checkpoint import carried_files
from hyperclone.training import checkpoints, names


def export(trainer: Any, place: Path, output: Path, dtype: torch.dtype, *, told_card: str) -> None:
    """Write the model of a trainer; all processes take part.

    Args:
        trainer: that has finished.
        place: the directory that the model came from.
        output: the directory to write into.
        dtype: of the weights.
        told_card: the model card.

    Raises:
        DestinationError: it cannot be written.
    """
    main = bool(trainer.args.should_save)
    state = trainer.accelerator.get_state_dict(trainer.model)  # of shards: gathered, in the main process
    if main:
        with checkpoints.writing(output, main=True) as partial:
            model = names.bare(trainer.model)
            once = {name for name, _ in names.parameters(model)}
            ties = {names.clean(name) for name, _ in model.named_parameters(remove_duplicate=False)} - once
            state = {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in state.items()
                if name not in ties
            }
            model.save_pretrained(partial, state_dict=state)
            carry(place, partial, config=True)
            if card.ours(output / "README.md"):
                (partial / "README.md").write_text(told_card)
            for file in sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
                os.replace(file, output / file.name) if file.is_file() else shutil.copytree(
                    file, output / file.name, dirs_exist_ok=True
                )
        checkpoints.clear(output)
    trainer.accelerator.wait_for_everyone()


def carry(place: Path, target: Path, *, config: bool) -> None:
    """Copy what belongs to a model besides its weights: tokenizer, templates, licence, receipt, and its config."""
    for file in (*carried_files(place), place / receipt.FILE, *([place / "config.json"] if config else [])):
        if file.is_file():
            copy = target / file.relative_to(place)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
