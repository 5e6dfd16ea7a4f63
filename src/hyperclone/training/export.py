"""The trained model as a plain Hugging Face directory.

That is: weights in the type that the model came in, its own config, tokenizer, license, receipt, and a model card.
Files are written to a hidden directory and moved one by one, config.json last, without which nothing loads.

A sharded model is not gathered over processes: Trainer has saved a sharded checkpoint after the last step, and the
main process reads that, tensor by tensor, while the others wait. It never holds more than one output file.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from hyperclone.conversion import model_card, receipt
from hyperclone.hf import parameter_names
from hyperclone.io.checkpoint import carried_files
from hyperclone.io.files import read_json, to_json
from hyperclone.optimizer_state.distributed import DistributedTensors
from hyperclone.training import checkpoints, metrics, resume
from hyperclone.training.preparation import PreparedRun

SHARDS = "pytorch_model_fsdp_0"  # accelerate's name for the model in a sharded checkpoint
_PREFIX = "model."  # and for its tensors in there


def export(trainer: Any, prepared: PreparedRun, dtype: torch.dtype, *, card: str) -> None:
    """Write the model of a trainer; all processes take part.

    Args:
        trainer: that has finished.
        prepared: its run.
        dtype: of the weights.
        card: the model card. A card that the user wrote is left alone.

    Raises:
        DestinationError: it cannot be written.
    """
    output = prepared.output
    if bool(trainer.args.should_save):
        with checkpoints.writing(output, main=True) as partial:
            model = parameter_names.unwrap(trainer.model)
            if trainer.is_fsdp_enabled:
                saved = output / f"checkpoint-{trainer.state.global_step}" / SHARDS
                write_shards(model, DistributedTensors(saved), partial, dtype)
            else:
                ties = _ties(model)
                state = {name: _cast(value, dtype) for name, value in model.state_dict().items() if name not in ties}
                model.save_pretrained(partial, state_dict=state)
            carry(prepared.directory, partial, config=True, grown=prepared.receipt)
            if model_card.is_ours(output / "README.md"):
                (partial / "README.md").write_text(card)
            for file in sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
                os.replace(file, output / file.name) if file.is_file() else shutil.copytree(
                    file, output / file.name, dirs_exist_ok=True
                )
        checkpoints.clear(output)
    trainer.accelerator.wait_for_everyone()


def exported_files(prepared: PreparedRun) -> list[str]:
    """The files of a trained model in the output of its run, and the run's record and metrics."""
    output = prepared.output
    names = ["config.json", "generation_config.json", "README.md", receipt.FILE, resume.RECORD_FILE, metrics.FILE]
    weights = [file.name for file in output.glob("model*.safetensors*")]
    carried = [file.relative_to(prepared.directory).as_posix() for file in carried_files(prepared.directory)]
    return [name for name in sorted({*names, *weights, *carried}) if (output / name).is_file()]


def write_shards(
    model: Any, saved: DistributedTensors, target: Path, dtype: torch.dtype, *, file_size: str = "5GB"
) -> None:
    """Write the weights of a sharded checkpoint as transformers would, holding one file in memory.

    Args:
        model: the bare model: its names, ties and conversions; its weights are not used.
        saved: the checkpoint.
        target: directory to write into; created if it does not exist.
        dtype: of the weights.
        file_size: largest file.

    Raises:
        CheckpointError: a shard is damaged or missing.
    """
    keys = {
        name: key
        for key in saved.entries
        if (name := parameter_names.unwrapped_name(key.removeprefix(_PREFIX))) not in _ties(model)
    }
    holder: dict[str, str] = {}  # tensor on disk -> parameter in memory
    likes: dict[str, Tensor] = {}
    for name, key in keys.items():
        parts = parameter_names.to_disk(model, name, _cast(saved.like(key), dtype))
        holder |= dict.fromkeys(parts, name)
        likes |= parts

    @functools.lru_cache(maxsize=1)  # the experts of a fused parameter are written one after another
    def parts_of(name: str) -> dict[str, Tensor]:
        return parameter_names.to_disk(model, name, _cast(saved.read(keys[name]), dtype))

    plan = split_torch_state_dict_into_shards(
        likes, filename_pattern="model{suffix}.safetensors", max_shard_size=file_size
    )
    target.mkdir(parents=True, exist_ok=True)
    for file, tensors in plan.filename_to_tensors.items():
        content = {name: parts_of(holder[name])[name].contiguous() for name in tensors}
        save_file(content, target / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if model.can_generate():
        model.generation_config.save_pretrained(target)


def _ties(model: Any) -> set[str]:
    """Names of tied parameters, apart from the first of each."""
    every = {parameter_names.unwrapped_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in parameter_names.named_parameters(model)}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def carry(directory: Path, target: Path, *, config: bool, grown: Path | None) -> None:
    """Copy what belongs to a model besides its weights: tokenizer, templates, license; if wanted, config and receipt.

    Args:
        directory: the model's.
        target: directory to copy into.
        config: copy the config; without what it says of a growth, if the weights are not those that were grown.
        grown: directory with the receipt of the weights; None if they are not those that were grown.
    """
    copies = {file: file.relative_to(directory) for file in carried_files(directory)}
    if config:
        copies[directory / "config.json"] = Path("config.json")
    if grown is not None:
        copies[grown / receipt.FILE] = Path(receipt.FILE)
    for file, name in copies.items():
        if file.is_file():
            copy = target / name
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    if config and grown is None:
        content = read_json(target / "config.json")
        if content.pop(receipt.CONFIG_FIELD, None) is not None:
            (target / "config.json").write_text(to_json(content))
