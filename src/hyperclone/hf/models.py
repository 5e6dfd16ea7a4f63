"""Unmodified transformers, quietly: load a model or tokenizer from a directory as any user would.

Nothing here knows about growth. Remote code is never run and pickle is never read.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hyperclone.errors import CheckpointError, HypercloneError, reason_with_class
from hyperclone.units import decode_floats

T = TypeVar("T")
# Heads besides that of a causal language model, by the end of their classes' names, and how transformers finds these.
HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}
_ATTENTION = ("sdpa", "eager")  # kernels that are everywhere, in every type
_EXPERTS = "eager"  # the grouped kernels of mixtures of experts have no fp64
_VECTOR = 64  # bytes, to which torch aligns its own memory


@contextmanager
def quiet(*, errors: bool = False) -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings; restore its settings afterwards.

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


def parse_config(config: Mapping[str, Any]) -> Any:
    """What the config class of transformers makes of config.json's content.

    Raises:
        KeyError: transformers has no such model type.
        Exception: whatever the class raises for a config that it refuses.
    """
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(decode_floats(dict(config)))


class StoredTensor(Protocol):
    """What has to be known of a tensor on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


class StoredModel(Protocol):
    """A model directory, as io/checkpoint.py reads it.

    Attributes:
        path: the directory.
        config: of the model, as config.json has it.
        as_found: transformers loads this very model from the directory by itself, or the whole that it is a part of.
        left_out: bytes of the rest of that whole; None if this is no part of one.
    """

    path: Path
    config: dict[str, Any]
    as_found: bool
    left_out: int | None

    @property
    def entries(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its name in the whole model."""

    def read(self, name: str) -> Tensor:
        """A tensor as stored."""


def load_model(path: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Load a language model: of the class that its config names, where that has another head than a causal one.

    Returns:
        The model in evaluation mode, and what is wrong with its weights: "name: missing keys" and the like; empty if
        every tensor was found and used.

    Raises:
        CheckpointError: transformers cannot load it at all.
    """
    with quiet(), _loading("load", path):
        config = _read_config(path)
        return _loaded(model_class(config), config, dtype, path=path)


def load_whole(path: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The same of a model that also sees images, which is run on text alone.

    Raises:
        CheckpointError: transformers cannot load it at all.
    """
    import transformers

    with quiet(), _loading("load", path):
        config = _read_config(path)
        return _loaded(transformers.AutoModelForImageTextToText._model_mapping[type(config)], config, dtype, path=path)


def load_stored(stored: StoredModel, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The same of a directory that transformers does not load by itself: from the tensors as they are read here.

    Raises:
        CheckpointError: transformers cannot load it at all.
    """
    with quiet(), _loading("load", stored.path):
        config = parse_config(stored.config)
        tensors = {name: stored.read(name) for name in stored.entries}
        return _loaded(model_class(config), config, dtype, tensors=tensors)


def _loaded(
    cls: Any, config: Any, dtype: torch.dtype, *, path: Path | None = None, tensors: Mapping[str, Tensor] | None = None
) -> tuple[Any, list[str]]:
    """A model of a class of transformers from a directory, or from tensors by their names on disk."""
    model, info = cls.from_pretrained(
        path,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        experts_implementation=_EXPERTS,
        **_attention(config, cls),
        **_dequantized(config),
    )
    return model.eval(), problems_of(info)


_CURE = "correct what it names in config.json, or install a transformers that knows the model"


@contextmanager
def _loading(verb: str, path: Path) -> Iterator[None]:
    """Whatever transformers raises while it does that becomes a CheckpointError."""
    try:
        yield
    except HypercloneError:
        raise
    except Exception as error:  # a config can make transformers raise anything
        raise CheckpointError(
            f"transformers cannot {verb} this model", file=path, found=reason_with_class(error),
            cure=_CURE if verb == "load" else None,
        ) from error  # fmt: skip


def _read_config(path: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def model_class(config: Any) -> Any:
    """The class of unmodified transformers for a config: with the head that its `architectures` name.

    Raises:
        KeyError: transformers has no such class.
    """
    import transformers

    for named in config.architectures or []:
        for head, auto_class in HEADS.items():
            if named.endswith(head):
                return getattr(transformers, auto_class)._model_mapping[type(config)]
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def _attention(config: Any, cls: Any) -> dict[str, str]:
    """The attention kernels to load a model with, where those that its config asks for may not be here.

    Flash attention needs a package and a GPU, flex attention has no fp64; the weights do not depend on the kernels.
    """
    wanted = getattr(config, "_attn_implementation", None)
    if wanted is None or wanted in _ATTENTION:
        return {}
    return {"attn_implementation": _ATTENTION[0] if cls._supports_sdpa else _ATTENTION[1]}


def _dequantized(config: Any) -> dict[str, Any]:
    """Arguments that let transformers multiply FP8 and MXFP4 weights by their scales, whatever the device could do."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    method = getattr(config, "quantization_config", None)
    classes = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    chosen = classes.get(str(method.get("quant_method"))) if isinstance(method, dict) else None
    return {} if chosen is None else {"quantization_config": chosen(dequantize=True)}


def problems_of(info: Mapping[str, Iterable[object]]) -> list[str]:
    """What transformers' loading info says is wrong with a model's weights, one line for each tensor."""
    return [f"{name}: {kind.replace('_', ' ')}" for kind, names in info.items() for name in sorted(map(str, names))]


class LoadedModel:
    """A causal language model in memory.

    Its weights are where torch itself would put them. transformers leaves them in the mapped file if their type is
    kept, and kernels add in another order where a matrix starts between two of a processor's vectors.

    Attributes:
        module: transformers' model.
        problems: what is wrong with its weights, as `load_model` returns it.
    """

    def __init__(self, stored: Path | StoredModel, dtype: torch.dtype) -> None:
        """Load it.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        if not isinstance(stored, Path) and stored.as_found and stored.left_out is not None:
            self.module, self.problems = load_whole(stored.path, dtype)
        elif isinstance(stored, Path) or stored.as_found:
            path = stored if isinstance(stored, Path) else stored.path
            self.module, self.problems = load_model(path, dtype)
        else:
            self.module, self.problems = load_stored(stored, dtype)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.data_ptr() % _VECTOR:
                tensor.data = tensor.data.clone()

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """What calls of the module return."""
        return [call() for call in calls]

    def round_to(self, dtype: torch.dtype) -> None:
        """Round parameters to the values of another type; their own type remains."""
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(parameter.to(dtype))

    def to(self, dtype: torch.dtype) -> None:
        """Convert the module to another type."""
        self.module.to(dtype)


def load_without_weights(
    path: Path, *, dtype: torch.dtype | None = None, config: Mapping[str, Any] | None = None
) -> Any:
    """A directory's language model on device meta: it has the parameters and their order, but no weights.

    Args:
        path: the directory.
        dtype: of its parameters; by default the one that config.json names.
        config: by default that of the directory.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    with quiet(), _loading("build", path):
        parsed = _read_config(path) if config is None else parse_config(config)
        cls = model_class(parsed)
        with torch.device("meta"):
            return cls._from_config(
                parsed,
                experts_implementation=_EXPERTS,
                **_attention(parsed, cls),
                **({} if dtype is None else {"dtype": dtype}),
            )


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
            None,
            config=new_config,
            state_dict=tensors,
            dtype=dtype,
            attn_implementation=attention_implementation(model),
        )
    new.name_or_path = new_config._name_or_path = model.config._name_or_path
    if model.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    return new


def attention_implementation(model: Any) -> str:
    """The attention kernels that a model uses: "sdpa", "eager", "flash_attention_2", ..."""
    return str(model.config._attn_implementation)


def load_tokenizer(path: Path) -> Any | None:
    """The directory's tokenizer; None if it has none that works without remote code."""
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer

    with quiet():
        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception:  # the weights can be proved without it, whatever is wrong with it
            return None


def max_positions(config: Any) -> int | None:
    """The longest sequence a model takes, from its transformers config or config.json; None if neither says."""
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if size := config.get(field) if isinstance(config, Mapping) else getattr(config, field, None):
            return int(size)
    return None


@contextmanager
def model_errors(path: Path) -> Iterator[None]:
    """Run a model quietly; whatever it raises becomes a CheckpointError.

    Args:
        path: of the model, for the message.

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
            found=reason_with_class(error),
            cure="--proof structural proves the weights without running it",
        ) from error
