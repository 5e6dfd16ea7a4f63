"""The model card of a trained directory: what was trained, on which text, its losses and settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperclone.conversion.model_card import CARRIED, code, source_metadata
from hyperclone.io.destination import RECEIPT
from hyperclone.io.files import read_json
from hyperclone.version import __version__

_FIGURES = {
    "eval_loss": "held-out loss, nats per token",
    "bits_per_byte": "bits per byte of held-out text",
    "loss": "training loss",
}


def trained_card(
    directory: Path,
    record: Mapping[str, Any],
    latest: Mapping[str, Any],
    *,
    tokens: int,
    on_hub: bool,
    from_scratch: bool,
) -> str:
    """README.md of a trained directory, with Hub metadata.

    Args:
        directory: the model that was trained; its own card gives license and language, its receipt what it grew from.
        record: training.json: what was run.
        latest: the latest figures (eval_loss, bits_per_byte, loss).
        tokens: how many it was trained on.
        on_hub: the model's name is a Hub id.
        from_scratch: its weights were randomly initialized.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metadata, model = source_metadata(directory), str(record["model"])
    grown = {} if from_scratch or not (directory / RECEIPT).is_file() else read_json(directory / RECEIPT)
    data = ModelCardData(
        base_model=None if from_scratch else model if on_hub else metadata.get("base_model"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hyperclone"],
        ignore_metadata_errors=True,
        **{key: metadata[key] for key in CARRIED if metadata.get(key)},
    )
    name = model.rsplit("/", 1)[-1]
    origin = f"The architecture of {code(model)}, randomly initialized and " if from_scratch else f"{code(model)}, "
    if grown:
        origin += f"grown from {code(str(grown.get('source', '?')))} (arXiv 2409.12903), "
    if small := record.get("small"):
        origin += f"as a model of {small['parameters']:,} parameters trained on {small['tokens']:,} tokens before, "
    text = ", ".join(code(str(data_source)) for data_source in record["data"])
    figures = [f"| {label} | {latest[key]:.4f} |" for key, label in _FIGURES.items() if latest.get(key) is not None]
    settings = {key: value for key, value in record["curve"].items() if key not in ("config", "texts")}
    settings["lr_rule"] = settings["lr_rule"] or ("scaled" if grown else "uniform")
    lines = [
        f"# {code(name)}, trained from random weights" if from_scratch else f"# {code(name)}, trained further",
        "",
        f"{origin}trained on {tokens:,} tokens of {text} by hyperclone {__version__}. "
        "metrics.jsonl has its losses, training.json its settings.",
        "",
        *(["| | |", "|---|---:|", *figures, ""] if figures else []),
        "| setting | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in settings.items() if value is not None),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n"))
