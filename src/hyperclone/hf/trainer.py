"""Two things that transformers' Trainer keeps to itself."""

from __future__ import annotations

from typing import Any

from hyperclone.hf.parameter_names import unwrapped_name


def decayed_names(model: Any) -> set[str]:
    """Names of the parameters that Trainer applies weight decay to: neither biases nor norms."""
    from transformers import Trainer

    return {unwrapped_name(name) for name in Trainer.get_decay_parameter_names(None, model)}  # which does not use self


def use_one_device(arguments: Any) -> None:
    """Let each process train on one GPU at most.

    Trainer would spread a batch over all the GPUs that a process sees, which multiplies it.

    Args:
        arguments: a TrainingArguments, changed in place.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)  # reading n_gpu sets the devices up
