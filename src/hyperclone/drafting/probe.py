"""What the fields of a config do to a model's tensors, found by building the model without weights many times.

Models are built by transformers on torch's meta device, from a config alone, with few layers. A *probed* tensor has the
name it has on disk (transformers 5 renames and fuses some in memory), its shape, and the kind of module that owns it.
Every integer field of the config is set to another value. How much dimensions change for each unit of the field says
what it counts:

    names appear and disappear      experts                    (layers, for the first index)
    matrices in one tensor          experts
    rows of a second embedding      positions
    by the number of heads          head_dim
    by head_dim                     key-value heads
    by one or two                   a feed-forward size
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hyperclone.architectures.family import canonical
from hyperclone.errors import CheckpointError, HypercloneError, reason_with_class
from hyperclone.hf import tiny_models
from hyperclone.hf.models import parse_config, quiet
from hyperclone.hf.parameter_names import tied_names, to_disk
from hyperclone.units import decode_floats

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ProbedTensor:
    """One tensor as it is on disk.

    Attributes:
        name, shape: on disk.
        kind: of the module that owns it: "linear", "conv1d", "embedding", "norm", or the name of its class.
        module: that module's name in the model.
        attention: whether it is inside an attention module.
    """

    name: str
    shape: Shape
    kind: str
    module: str
    attention: bool

    @property
    def stacked(self) -> bool:
        """Whether it is several matrices, as of experts; kernels of convolutions have a dimension of 1."""
        return len(self.shape) == 3 and 1 not in self.shape[1:]

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
    """A model without weights.

    Attributes:
        tensors: by name on disk.
        tied: tensors that are not saved -> the saved ones that they share.
        prefix: of the names of the base model's tensors, with the dot.
    """

    tensors: dict[str, ProbedTensor]
    tied: dict[str, str]
    prefix: str

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def build(config: Mapping[str, Any]) -> ProbedModel | None:
    """The model of a config, without weights; None if transformers refuses the config.

    Raises:
        FamilyError: transformers has no causal language model of this type.
    """
    try:
        with quiet(errors=True):  # which configs are refused is what we want to know
            model = tiny_models.build_model(config, device="meta")
    except HypercloneError:
        raise
    except Exception:  # a config class or a model may refuse these sizes in any way
        return None
    modules = dict(model.named_modules())
    tensors = {}
    for name, parameter in [*model.named_parameters(), *_persistent_buffers(model)]:
        module = name.rpartition(".")[0]
        parents = [module, *(module[: dot.start()] for dot in re.finditer(r"\.", module))]
        attention = any("attention" in type(modules[parent]).__name__.lower() for parent in parents)
        for disk_name, tensor in to_disk(model, name, parameter).items():
            kind = module_kind(modules[module])
            tensors[disk_name] = ProbedTensor(disk_name, tuple(tensor.shape), kind, module, attention)
    return ProbedModel(tensors, tied_names(model), f"{model.base_model_prefix}.")


def _persistent_buffers(model: Any) -> list[tuple[str, torch.Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def module_kind(module: torch.nn.Module) -> str:
    """One of "linear", "conv1d", "embedding" and "norm", or the name of its class."""
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
        layers, hidden, heads, vocab: names of their fields.
        head_dim, kv_heads, experts, positions: likewise; None where no field counts them.
        ffn: fields of feed-forward sizes.
        coupled: fields that the config class ties to hidden, although they change nothing in this model.
        others: further fields that change shapes or names; what they count is unknown.
        lists: fields with an entry for each layer.
        aliases: other names of fields -> their names.
        left_out: fields of the first line that the config leaves to the class.
        full: every field with its value, as transformers' config class fills them in.
        base: the model of `config`.
        effects: field -> (pattern, dimension) that it changes -> the change for each unit of the field.
    """

    config: dict[str, Any]
    layers: str
    hidden: str
    heads: str
    vocab: str
    full: dict[str, Any]
    base: ProbedModel
    aliases: dict[str, str]
    left_out: list[str]
    head_dim: str | None = None
    kv_heads: str | None = None
    experts: str | None = None
    positions: str | None = None
    ffn: list[str] = field(default_factory=list)
    coupled: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    effects: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """A field's value in the config, or the one that the config class fills in."""
        return self.config.get(name, self.full.get(name))


def probe_fields(config: Mapping[str, Any]) -> ConfigFields:
    """Find out which fields of a config hold which sizes.

    Raises:
        CheckpointError: transformers makes no model of the config, or its sizes are not fields at the top level.
        FamilyError: transformers has no causal language model of this type.
    """
    full, standard, aliases = _standard_fields(config)
    aliases |= _constructor_names(config, full, standard, aliases)
    config = canonical(config, aliases)
    depth = full[standard["num_hidden_layers"]]
    whole = build(config)
    if whole is None:
        raise CheckpointError("transformers makes no model of this config", file="config.json")
    patterns = {tensor.pattern for tensor in whole.tensors.values()}
    lists = [key for key, value in config.items() if isinstance(value, list) and len(value) == depth > 1]
    for layers in range(min(2, depth), depth + 1):
        cut = {key: value[:layers] if key in lists else value for key, value in config.items()}
        cut[standard["num_hidden_layers"]] = layers
        complete = all(str(entry) in map(str, cut[key]) for key in lists for entry in config[key])
        base = build(cut) if complete or layers == depth else None
        if base is not None and {tensor.pattern for tensor in base.tensors.values()} == patterns:
            break
    assert base is not None
    fields = ConfigFields(cut, standard["num_hidden_layers"], standard["hidden_size"], standard["num_attention_heads"],
                          standard["vocab_size"], full, base, aliases,
                          [name for name in standard.values() if config.get(name) is None])  # fmt: skip
    fields.lists = [
        key for key, value in {**full, **config}.items()
        if isinstance(value, list) and len(value) == depth > 1
        and not (depth == 2 and all(isinstance(entry, float) for entry in decode_floats(value)))  # a range
    ]  # fmt: skip
    # Many models read a head_dim that their config class does not list.
    for name in dict.fromkeys([*config, *full, "head_dim"]):
        if name not in standard.values() and not name.endswith("_token_id"):
            _probe_field(name, fields)
    fields.coupled = _coupled(fields)
    return fields


def _coupled(fields: ConfigFields) -> list[str]:
    """The field that has to double with hidden for transformers to accept the config: Granite 4 has one."""
    doubled = {**fields.config, fields.hidden: 2 * fields.full[fields.hidden]}
    if build(doubled) is not None:
        return []
    for name in fields.full:
        size = fields.value(name)
        if name in (fields.hidden, fields.heads) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            continue
        if build({**doubled, name: 2 * size}) is not None:
            return [] if name in fields.effects else [name]
    return []


def _constructor_names(
    config: Mapping[str, Any], full: Mapping[str, Any], standard: Mapping[str, str], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Fields that the class reads and does not keep, and the sizes that it takes from them (BLOOM's n_embed)."""
    names = {}
    for key in config.keys() - full.keys() - aliases.keys() - {"model_type"}:
        without = full_config({name: value for name, value in config.items() if name != key})
        sizes = [name for name in standard.values() if name not in config and without.get(name) != full[name]]
        if without and sizes:
            names[key] = sizes[0]
    return names


def _standard_fields(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """What the config class makes of a config.

    Returns:
        Every field as the class fills it in; its names of the fields that all language models have; and other names
        that it accepts for fields.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        try:
            with quiet():
                parsed = parse_config(config)
        except Exception as error:
            raise CheckpointError("transformers cannot read this config", file="config.json",
                                  found=reason_with_class(error)) from error  # fmt: skip
    else:
        tiny_models.build_model(config)  # raises the reason
        raise AssertionError(kind)
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    standard = {name: parsed.attribute_map.get(name, name) for name in names}
    full = parsed.to_dict()
    for name in standard.values():
        if isinstance(full.get(name), bool) or not isinstance(full.get(name), int):
            raise CheckpointError(
                "a family file can be drafted only for text models with their sizes at the top level of config.json",
                file="config.json", field=name, found=repr(full.get(name)), expected="a whole number",
            )  # fmt: skip
    return full, standard, {alias: name for alias, name in parsed.attribute_map.items() if name in full}


def full_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field as transformers' config class fills it in; empty if it refuses the config."""
    try:
        return _standard_fields(config)[0]
    except CheckpointError:
        return {}


def _probe_field(name: str, fields: ConfigFields) -> None:
    """Set one field to other values, see which dimensions change, and classify the field by that."""
    value = fields.value(name)
    heads, hidden = fields.full[fields.heads], fields.full[fields.hidden]
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        pairs = [(value, 2 * value), (value, 1)] if value > 1 else [(1, 2), (1, heads)]
    elif value is None:
        pairs = [(1, max(2, heads // 2)), (hidden, 2 * hidden)]
    else:
        return
    for first, second in pairs:
        before, after = (
            fields.base if size == value else build({**fields.config, name: size}) for size in (first, second)
        )
        if before is None or after is None or before.shapes == after.shapes:
            continue
        if value is None and before.shapes.keys() != fields.base.shapes.keys():
            return  # a switch: with it, the architecture has other tensors
        if before.shapes.keys() != after.shapes.keys():
            if any(tensor.count("{e}") for tensor in map(pattern, before.shapes)):
                fields.experts = name
            elif value is not None:  # else a switch
                fields.others.append(name)
            return
        fields.effects[name] = {
            (pattern(tensor), dim): (new - old) / (second - first)
            for tensor, shape in before.shapes.items()
            for dim, (old, new) in enumerate(zip(shape, after.shapes[tensor], strict=True))
            if old != new
        }
        _classify(name, value, fields)
        return


def _classify(name: str, value: int | None, fields: ConfigFields) -> None:
    heads, rates = fields.full[fields.heads], set(fields.effects[name].values())
    tensors = {tensor.pattern: tensor for tensor in fields.base.tensors.values()}
    changed = [(tensors[tensor], dim) for tensor, dim in fields.effects[name]]
    # What the heads give goes into one more linear layer. Keys and values do not, and where a head has as many
    # dimensions as there are heads, this alone tells the two fields apart.
    both = len({dim for tensor, dim in changed if tensor.kind in ("linear", "conv1d")}) == 2
    attention = all(tensor.attention for tensor, _ in changed)  # else shared experts are counted
    if all(tensor.kind == "embedding" and dim == 0 for tensor, dim in changed):
        fields.positions = name
    elif any(tensor.stacked and dim == 0 for tensor, dim in changed):
        fields.experts = name
    elif heads in rates and heads > 3 and both and fields.head_dim is None:
        fields.head_dim = name
    elif rates <= {1, 2, 3}:
        fields.ffn.append(name)
    elif (value is None or heads % value == 0) and attention and fields.kv_heads is None:
        fields.kv_heads = name
    else:
        fields.others.append(name)
