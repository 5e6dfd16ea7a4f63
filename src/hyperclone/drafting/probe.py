"""What the fields of a config do to the tensors of a model: seen by building it, with no weights, again and again.

Models are built on torch's meta device by transformers, from a config alone, with few layers. A *stored* tensor
carries the name it has on disk (transformers 5 renames and fuses some in memory), its shape, and the kind of module
that owns it. Every integer field of the config is set to another value; by how much the dimensions then move, for each
unit of the field, says what it counts:

    names come and go               experts                    (layers, where the first index runs)
    rows of a second embedding      positions
    heads units for each            head dimension
    head_dim units for each         key-value heads
    one or two units for each       a feed-forward size
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hyperclone.errors import CheckpointError, HypercloneError
from hyperclone.hf import tiny_models
from hyperclone.hf.models import quiet
from hyperclone.hf.parameter_names import tied_names, to_disk

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ProbedTensor:
    """One tensor as it is on disk.

    Attributes:
        name, shape: on disk.
        kind: of the module that owns it: "linear", "conv1d", "embedding", "norm", or the class's own name.
        module: that module's name in the model.
        attention: it stands in an attention module.
    """

    name: str
    shape: Shape
    kind: str
    module: str
    attention: bool

    @property
    def pattern(self) -> str:
        """The name with {i} for the layer and {e} for the expert."""
        return pattern(self.name)


def pattern(name: str) -> str:
    """A tensor's name with {i} for the first number in it, and {e} for a second."""
    for index in ("{i}", "{e}"):
        name = re.sub(r"(?<=\.)\d+(?=\.)", index, name, count=1)
    return name


@dataclass(frozen=True)
class ProbedModel:
    """A model without weights: its stored tensors by name, and which tensors of it are tied to which (on disk)."""

    tensors: dict[str, ProbedTensor]
    tied: dict[str, str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def build(config: Mapping[str, Any]) -> ProbedModel | None:
    """The model of a config, on the meta device; None where transformers finds fault with the config."""
    try:
        with quiet(errors=True):  # what a config refuses is what we want to find out
            model = tiny_models.build_model(config, device="meta")
    except HypercloneError:
        raise
    except Exception:  # whatever a config class or a model finds wrong with these sizes
        return None
    modules = dict(model.named_modules())
    tensors = {}
    for name, parameter in [*model.named_parameters(), *_persistent_buffers(model)]:
        module = name.rpartition(".")[0]
        parents = [module, *(module[: dot.start()] for dot in re.finditer(r"\.", module))]
        attention = any("attention" in type(modules[parent]).__name__.lower() for parent in parents)
        for stored, tensor in to_disk(model, name, parameter).items():
            tensors[stored] = ProbedTensor(stored, tuple(tensor.shape), kind(modules[module]), module, attention)
    return ProbedModel(tensors, tied_names(model))


def _persistent_buffers(model: Any) -> list[tuple[str, torch.Tensor]]:
    stored = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in stored]


def kind(module: torch.nn.Module) -> str:
    """ "linear", "conv1d", "embedding", "norm", or the name of its class."""
    for kind, name in ((torch.nn.Linear, "linear"), (torch.nn.Embedding, "embedding")):
        if isinstance(module, kind):
            return name
    name = type(module).__name__
    return "norm" if "norm" in name.lower() else "conv1d" if name == "Conv1D" else name


@dataclass
class ConfigFields:
    """Which fields of a config hold which sizes.

    Attributes:
        config: the config, with few layers.
        layers, hidden, heads, vocab: their fields.
        head_dim, kv_heads, experts, positions: likewise; None where no field counts them.
        ffn: fields of feed-forward sizes.
        others: further fields that change the tensors; what they count is not known.
        lists: fields with an entry for each layer.
        full: every field with its value, as transformers fills them in.
        base: the model.
        moved: field -> (pattern, dimension) that it moves -> by how much for each unit of it.
    """

    config: dict[str, Any]
    layers: str
    hidden: str
    heads: str
    vocab: str
    full: dict[str, Any]
    base: ProbedModel
    head_dim: str | None = None
    kv_heads: str | None = None
    experts: str | None = None
    positions: str | None = None
    ffn: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    moved: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)


def probe(config: Mapping[str, Any]) -> ConfigFields:
    """Find out which fields hold which sizes.

    Raises:
        CheckpointError: the config gives no model, or none whose sizes stand in fields of its own.
        FamilyError: transformers has no causal language model of this type.
    """
    full, standard, aliased = _read(config)
    depth = full[standard["num_hidden_layers"]]
    whole = build(config)
    if whole is None:
        raise CheckpointError("transformers makes no model of this config", file="config.json")
    kinds = {tensor.pattern for tensor in whole.tensors.values()}
    lists = [key for key, value in config.items() if isinstance(value, list) and len(value) == depth > 1]
    for few in range(min(2, depth), depth + 1):
        cut = {k: v[:few] if k in lists else v for k, v in config.items()} | {standard["num_hidden_layers"]: few}
        every = all(str(one) in map(str, cut[key]) for key in lists for one in config[key])
        base = build(cut) if every or few == depth else None
        if base is not None and {tensor.pattern for tensor in base.tensors.values()} == kinds:
            break
    assert base is not None
    found = ConfigFields(cut, standard["num_hidden_layers"], standard["hidden_size"], standard["num_attention_heads"],
                   standard["vocab_size"], full, base)  # fmt: skip
    found.lists = [
        key for key, value in {**full, **config}.items() if isinstance(value, list) and len(value) == depth > 1
    ]
    # Many models read a head_dim that their config class does not list. An alias stands for its field.
    for key in dict.fromkeys([*config, *full, "head_dim"]):
        if key not in standard.values() and key not in aliased and not key.endswith("_token_id"):
            _place(key, found)
    return found


def _read(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Every field as transformers fills it in, the names of those that all language models have, and fields that the
    config calls by another name."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind in CONFIG_MAPPING:
        try:
            with quiet():
                read = CONFIG_MAPPING[kind].from_dict(dict(config))
        except Exception as error:
            raise CheckpointError("transformers cannot read this config", file="config.json",
                                  found=f"{type(error).__name__}: {error}".splitlines()[0]) from error  # fmt: skip
    else:
        tiny_models.build_model(config)  # says why not
        raise AssertionError(kind)
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    standard = {name: read.attribute_map.get(name, name) for name in names}
    full = read.to_dict()
    for name in standard.values():
        if isinstance(full.get(name), bool) or not isinstance(full.get(name), int):
            raise CheckpointError(
                "only text models whose sizes stand at the top of config.json can be drafted", file="config.json",
                field=name, found=repr(full.get(name)), expected="a whole number",
            )  # fmt: skip
    return full, standard, {name for alias, name in read.attribute_map.items() if alias in config}


def filled_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field as transformers fills it in; nothing where it finds fault with the config."""
    try:
        return _read(config)[0]
    except CheckpointError:
        return {}


def _place(key: str, found: ConfigFields) -> None:
    """Set one field to other values, see what moves, and note what the field counts."""
    value = found.config.get(key, found.full.get(key))
    heads, hidden = found.full[found.heads], found.full[found.hidden]
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        trials = [(value, 2 * value), (value, 1)] if value > 1 else [(1, 2), (1, heads)]
    elif value is None:
        trials = [(1, max(2, heads // 2)), (hidden, 2 * hidden)]
    else:
        return
    for one, two in trials:
        before, after = (
            found.base if n == found.config.get(key, found.full.get(key)) else build({**found.config, key: n})
            for n in (one, two)
        )
        if before is None or after is None or before.shapes == after.shapes:
            continue
        if before.shapes.keys() != after.shapes.keys():
            if any(name.count("{e}") for name in map(pattern, before.shapes)):
                found.experts = key
            elif value is not None:  # else a switch
                found.others.append(key)
            return
        found.moved[key] = {
            (pattern(name), dim): (new - old) / (two - one)
            for name, shape in before.shapes.items()
            for dim, (old, new) in enumerate(zip(shape, after.shapes[name], strict=True))
            if old != new
        }
        _note(key, value, found)
        return


def _note(key: str, value: int | None, found: ConfigFields) -> None:
    heads, rates = found.full[found.heads], set(found.moved[key].values())
    kinds = {tensor.pattern: tensor.kind for tensor in found.base.tensors.values()}
    if all(kinds[name] == "embedding" and dim == 0 for name, dim in found.moved[key]):
        found.positions = key
    elif heads in rates and heads > 3 and found.head_dim is None:
        found.head_dim = key
    elif rates <= {1, 2, 3}:
        found.ffn.append(key)
    elif (value is None or heads % value == 0) and found.kv_heads is None:
        found.kv_heads = key
    else:
        found.others.append(key)
