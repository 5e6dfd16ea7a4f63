"""Unmodified transformers, quietly: load a model or tokenizer from a directory as any user would.

Nothing here knows about growth. Remote code is never run and pickle is never read.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError, HypercloneError


@contextmanager
def quiet(*, errors: bool = False) -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings; put its settings back afterwards.

    Args:
        errors: silence what transformers logs as an error too, for trying configs of which some must fail.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL if errors else logging.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_model(path: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A causal language model in evaluation mode, and what was wrong with its weights (nothing, when all is well).

    Raises:
        CheckpointError: transformers cannot load it at all.
    """
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                experts_implementation="eager",  # the grouped kernels of mixtures of experts know no fp64
            )
        except Exception as error:  # whatever a config can provoke in there, it is the directory that cannot be loaded
            raise CheckpointError("transformers cannot load this model", file=path, found=_first_line(error)) from error
    wrong = [f"{name}: {kind.replace('_', ' ')}" for kind, names in info.items() for name in sorted(map(str, names))]
    return model.eval(), wrong


def load_without_weights(path: Path) -> Any:
    """A directory's causal language model on device meta: its parameters in their order, and how they are saved.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # whatever a config can provoke in there
            raise CheckpointError("transformers cannot build this model", file=path, found=error) from error


def build_like(model: Any, *, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A model of the same class, attention and name with another config and other weights.

    Args:
        model: the model to be like, in memory.
        config: the new model's, as config.json has it.
        tensors: the new weights by the names they have on disk.
        dtype: of the new weights.
    """
    with quiet():
        new_config = type(model.config).from_dict(dict(config))
        new = type(model).from_pretrained(
            None, config=new_config, state_dict=tensors, dtype=dtype, attn_implementation=attention(model)
        )
    new.name_or_path = new_config._name_or_path = model.config._name_or_path
    new.generation_config = copy.deepcopy(model.generation_config)
    return new


def attention(model: Any) -> str:
    """The attention that a model computes with: "sdpa", "eager", "flash_attention_2", ..."""
    return str(model.config._attn_implementation)


def load_tokenizer(path: Path) -> Any | None:
    """The directory's tokenizer; None when it has none that can be used without remote code."""
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer

    with quiet():
        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception:  # a tokenizer of any kind of brokenness is no reason not to prove the weights
            return None


def positions(config: Any) -> int | None:
    """The longest sequence of a model, by a config of transformers or a config.json; None if it says nothing."""
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if size := config.get(field) if isinstance(config, Mapping) else getattr(config, field, None):
            return int(size)
    return None


@contextmanager
def running(path: Path) -> Iterator[None]:
    """What a model raises while it runs becomes an error of ours.

    Raises:
        CheckpointError: transformers cannot run this model.
    """
    try:
        with quiet():
            yield
    except HypercloneError:
        raise
    except Exception as error:
        raise CheckpointError(
            "transformers cannot run this model",
            file=path,
            found=_first_line(error),
            cure="--proof structural proves the weights without running it",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
