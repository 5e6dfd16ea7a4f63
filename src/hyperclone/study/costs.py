"""What a training took: tokens, operations, and the time that its steps took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hyperclone.hf import models
from hyperclone.training import flops, metrics, run_record


def costs(place: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished training took: tokens, parameters, flops of a token, seconds of its steps, and where it ran."""
    told = json.loads((place / run_record.FILE).read_text())
    tokens = told["curve"]["steps"] * told["curve"]["batch_tokens"]
    parameters, per_token = sizes(place / "config.json", told["curve"]["seq_len"])
    return {
        "tokens": tokens, "parameters": parameters, "flops_per_token": per_token,
        "seconds": round(Timing(metrics.read(place)).at(tokens), 3), **where(place), "train": plain(given),
    }  # fmt: skip


def where(place: Path) -> dict[str, Any]:
    """Versions and hardware of a training; nothing if it did not get as far as to say so."""
    file = place / run_record.FILE
    told = json.loads(file.read_text()) if file.is_file() else {}
    return {name: told[name] for name in ("versions", "hardware") if name in told}


@cache
def sizes(config: Path, sequence: int) -> tuple[int, float]:
    """(parameters, flops of a token) of a model that is never loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with models.quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.parent, local_files_only=True))
    return sum(p.numel() for p in model.parameters()), flops.per_token(model, sequence)


class Timing:
    """Seconds of training steps until a number of tokens: evaluations, saving and start-up do not count."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._tokens, self._seconds = [0.0], [0.0]
        for line in lines:
            if line.get("tokens_per_second") and line["tokens"] > self._tokens[-1]:
                more = line["tokens"] - self._tokens[-1]
                self._tokens.append(line["tokens"])
                self._seconds.append(self._seconds[-1] + more / line["tokens_per_second"])

    def at(self, tokens: float) -> float:
        """Seconds; on the straight line between logs, and beyond the last at its speed."""
        places, seconds = self._tokens, self._seconds
        for i in range(1, len(places)):
            if tokens <= places[i] or i == len(places) - 1:
                share = (tokens - places[i - 1]) / (places[i] - places[i - 1])
                return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
        return 0.0


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON; files by their names, since places are a machine's own."""
    return {
        name: [Path(one).name for one in ([value] if isinstance(value, str) else value)]
        if name in ("data", "eval_data")
        else value
        for name, value in options.items()
        if name != "cache"
    }
