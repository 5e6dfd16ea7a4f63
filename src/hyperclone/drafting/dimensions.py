"""Axes of an unknown architecture, and candidate layouts of each dimension of its tensors.

The model is built with several combinations of sizes, in which no two products of interest are equal unless the
architecture makes them equal. A layout is a *candidate* for a dimension if it has the dimension's size in every model.
Shapes leave some dimensions with several candidates. The order inside a fused dimension is decided by trying. Where
hidden always equals heads x head_dim, the module decides: the last matrix of an attention module writes hidden, and
outside of attention there are no heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperclone.architectures import family_file, layout
from hyperclone.architectures.expression import evaluate
from hyperclone.architectures.family import Family
from hyperclone.drafting import probe
from hyperclone.drafting.probe import ConfigFields, ProbedTensor
from hyperclone.errors import CheckpointError, FamilyError, GrowthError
from hyperclone.hf import tiny_models

Layouts = tuple[str, ...]  # candidates for one dimension, the likeliest first
_MULTIPLES = ("(2 hidden)", "(3 hidden)", "(4 hidden)")  # only where nothing else has this size


@dataclass(frozen=True)
class DraftedAxes:
    """The [axes] of a family file, and the sections that they need.

    Attributes:
        sizes: axis -> expression of its size.
        follows: axis -> axis that it grows with.
        guesses: axis -> the reason why it is a guess.
        defaults: [defaults]: fields that the config leaves out, with the values of transformers' config class.
        write: [write]: fields of a grown config that follow from axes.
    """

    sizes: dict[str, str]
    follows: dict[str, str]
    guesses: dict[str, str]
    defaults: dict[str, Any]
    write: dict[str, str]

    @property
    def heads(self) -> str:
        """The axes whose product is the number of query heads."""
        return "heads" if "heads" in self.sizes else "kv_heads group"

    @property
    def kv_heads(self) -> str:
        """The axis that counts key-value heads."""
        return "heads" if "heads" in self.sizes else "kv_heads"

    def skeleton(self, model_type: str, layers: str) -> Family:
        """A family with these axes and no tensors."""
        lines = [
            f"model_types = [{toml_value(model_type)}]",
            f"layers = {toml_value(layers)}",
            *self.text(),
            "[tensors]",
        ]
        return family_file.parse("\n".join(lines), name=model_type, file="draft")

    def text(self) -> list[str]:
        """The lines of [defaults], [axes] and [write]."""
        lines = []
        if self.defaults:
            lines += ["", "[defaults]    # for fields that config.json leaves out; as in the transformers config class"]
            lines += [f"{key} = {toml_value(value)}" for key, value in self.defaults.items()]
        lines += ["", "[axes]"]
        for name, size in self.sizes.items():
            lead = self.follows.get(name)
            value = f"{{ size = {toml_value(size)}, grows_with = {toml_value(lead)} }}" if lead else toml_value(size)
            lines.append(f"{name} = {value}" + (f"    # guess: {self.guesses[name]}" if name in self.guesses else ""))
        if self.write:
            lines += ["", "[write]", *(f"{key} = {toml_value(value)}" for key, value in self.write.items())]
        return lines


def toml_value(value: Any) -> str:
    """A string, number or boolean as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def draft_axes(fields: ConfigFields) -> DraftedAxes:
    """The axes of an architecture, from the effects of its fields.

    Raises:
        FamilyError: no feed-forward size can be found.
    """
    hidden, heads = fields.hidden, fields.heads
    sizes, follows, guesses = {"hidden": hidden}, {}, {}
    defaults = {name: fields.full[name] for name in fields.left_out}

    def size(key: str, implied: Sequence[str]) -> str:
        """A field, with the expression that gives its value where a config leaves it out."""
        value = fields.config.get(key)
        if value is None and (constant := _constant(key, fields)) is not None:
            defaults[key] = constant
        elif value is None:
            (name, dim), rate = next(iter(fields.effects[key].items()))
            shape = next(tensor.shape for tensor in fields.base.tensors.values() if tensor.pattern == name)
            for text in implied:
                if _value(text, fields.full) == shape[dim] / rate:
                    return f"{key} | {text}"
        return key

    multiples = [f"{k} * {hidden}" for k in range(1, 17)]
    first, *more = sorted(fields.ffn, key=lambda key: -len(fields.effects[key])) or [""]
    if first:
        sizes["ffn"] = size(first, multiples)
    elif (k := _implied_ffn(fields)) is not None:
        sizes["ffn"], follows["ffn"] = f"{k} * {hidden}", "hidden"
    else:
        raise FamilyError(
            "no field of this config is a feed-forward size, and no matrix has a multiple of hidden as a dimension",
            file="config.json",
        )
    for key in more:
        sizes[key], follows[key], guesses[key] = size(key, multiples), "ffn", "another feed-forward size"
    write = {}
    if fields.kv_heads:
        keys = size(fields.kv_heads, [heads])
        sizes["kv_heads"] = keys
        sizes["group"] = f"{heads} / ({keys})" if "|" in keys else f"{heads} / {keys}"
        write[heads] = "kv_heads * group"
    else:
        sizes["heads"] = heads
    implied = f"{hidden} / {heads}"
    sizes["head_dim"] = size(fields.head_dim, [implied]) if fields.head_dim else implied
    sizes["vocab"] = fields.vocab
    if fields.experts:
        sizes["experts"] = size(fields.experts, [])
    if fields.positions:
        effects = fields.effects[fields.positions]
        rows = next(tensor.shape[0] for tensor in fields.base.tensors.values() if (tensor.pattern, 0) in effects)
        text = size(fields.positions, [])
        extra = rows - fields.full[fields.positions]
        sizes["positions"] = f"{text} + {extra}" if extra else text
    for key in fields.others:
        sizes[key] = size(key, [hidden])
        guesses[key] = "it is unknown what it counts, so it never grows"
        if fields.full.get(key) == fields.full[hidden]:
            follows[key], guesses[key] = "hidden", f"grows with hidden because it equals {hidden}"
    for key in fields.coupled:
        sizes[key], follows[key], guesses[key] = key, "hidden", "the config class ties it to hidden"
        if fields.config.get(key) is None:
            defaults[key] = fields.full[key]
    return DraftedAxes(sizes, follows, guesses, defaults, write)


def _value(text: str, config: Mapping[str, Any]) -> Any:
    """An expression's value; None where it has none."""
    try:
        return evaluate(text, config)
    except CheckpointError:
        return None


def _constant(key: str, fields: ConfigFields) -> Any | None:
    """The value of a left-out field that the config class fills in, unless it computes it from other sizes."""
    value = fields.full.get(key)
    for other, factor in ((fields.heads, 2), (fields.hidden, 2)):
        if value is None or probe.full_config({**fields.config, other: factor * fields.full[other]}).get(key) != value:
            return None
    return value


def _implied_ffn(fields: ConfigFields) -> int | None:
    """The multiple of hidden that most matrices outside of attention have; None if there is none."""
    hidden = fields.full[fields.hidden]
    ratios = [
        size // hidden
        for tensor in fields.base.tensors.values()
        if not tensor.attention and tensor.kind in ("linear", "conv1d")
        for size in tensor.shape
        if size % hidden == 0 and size > hidden
    ]
    return max(set(ratios), key=ratios.count) if ratios else None


@dataclass(frozen=True)
class TensorLayouts:
    """One tensor pattern: candidate layouts of each dimension, in stored order; empty where there is none."""

    tensor: ProbedTensor
    dims: tuple[Layouts, ...]

    @property
    def complete(self) -> bool:
        """Whether a layout line can describe it: one or two dimensions, each with a candidate; or experts' matrices."""
        stacked = self.tensor.stacked and "experts" in self.dims[0]
        return (1 <= len(self.dims) <= 2 or stacked) and all(self.dims)

    @property
    def of_biases(self) -> bool:
        """Whether it is the biases of all experts."""
        return len(self.dims) == 2 and self.tensor.name.endswith("bias")


def candidate_layouts(fields: ConfigFields, axes: DraftedAxes, last: frozenset[str]) -> dict[str, TensorLayouts]:
    """The candidate layouts of every tensor pattern, but for patterns that only some layers have.

    Args:
        fields: the config's.
        axes: drafted from them.
        last: the module whose matrix runs last in each attention module.

    Raises:
        FamilyError: the model cannot be built at other sizes.
    """
    skeleton = axes.skeleton(fields.config["model_type"], fields.layers)
    points = list(_points(fields, skeleton))
    patterns: dict[str, ProbedTensor] = {}
    layers: dict[str, set[str]] = {}
    for tensor in fields.base.tensors.values():
        patterns.setdefault(tensor.pattern, tensor)
        layers.setdefault(tensor.pattern, set()).update(re.findall(r"\.(\d+)\.", tensor.name)[:1])
    depth = fields.config.get(fields.layers, fields.full[fields.layers])
    return {
        name: TensorLayouts(
            tensor,
            tuple(
                _fitting(fields, axes, tensor, dim, [(sizes, shapes[name][dim]) for sizes, shapes in points], last)
                for dim in range(len(tensor.shape))
            ),
        )
        for name, tensor in patterns.items()
        if len(layers[name]) in (0, depth)
        and all(len(shapes.get(name, ())) == len(tensor.shape) for _, shapes in points)
    }


def _points(fields: ConfigFields, skeleton: Family) -> Iterator[tuple[dict[str, int], dict[str, tuple[int, ...]]]]:
    """(axis sizes, shape of each pattern) of the config, and of several other sizes."""
    old, config = skeleton.sizes(fields.config), fields.config
    yield old, _by_pattern(fields.base)
    square = old["hidden"] == old["head_dim"] * (old["heads"] if "heads" in old else old["kv_heads"] * old["group"])
    built = 0
    # A free head_dim distinguishes more layouts, so it comes first. Some configs or models allow fewer combinations.
    for separate, free in ((True, True), (False, True), (True, False), (False, False)):
        if separate and not fields.head_dim and square:
            continue
        for step, (keys, group, head_dim) in enumerate(((2, 3, 8), (3, 2, 12), (5, 4, 16))):
            new = {**old, "head_dim": head_dim if free else old["head_dim"]}
            new |= {"heads": keys * 2} if "heads" in old else {"kv_heads": keys, "group": group}
            count = keys * 2 if "heads" in old else keys * group
            new["hidden"] = count * (new["head_dim"] + (4 if separate else 0))
            new["ffn"] = 2 * new["hidden"] + 10 + 6 * step
            if not fields.ffn:
                new["ffn"] = new["hidden"] * old["ffn"] // old["hidden"]
            new["vocab"] = 304 + 16 * step
            if "experts" in old:
                new["experts"] = 6 + step
            for axis in old:
                if (lead := skeleton.grows_with(axis, config)) != axis:
                    new[axis] = old[axis] * new[lead] // old[lead] or 1
            try:
                varied = skeleton.grown_config(config, {axis: (old[axis], size) for axis, size in new.items()})
                sizes = skeleton.sizes(varied)
            except GrowthError:
                continue
            if (model := probe.build(tiny_models.fit_token_ids(varied, vocab=new["vocab"]))) is not None:
                built += 1
                yield sizes, _by_pattern(model)
        if built >= 2:
            return
    raise FamilyError("transformers makes no model of this config with other sizes, so that shapes cannot be compared",
                      file="config.json")  # fmt: skip


def _by_pattern(model: probe.ProbedModel) -> dict[str, tuple[int, ...]]:
    return {tensor.pattern: tensor.shape for tensor in model.tensors.values()}


def _fitting(
    fields: ConfigFields,
    axes: DraftedAxes,
    tensor: ProbedTensor,
    dim: int,
    points: Sequence[tuple[Mapping[str, int], int]],
    last: frozenset[str],
) -> Layouts:
    """The layouts that have this dimension's size at every point."""
    fitting = []
    for text in _candidates(fields, axes, tensor, dim):
        (parsed,) = layout.parse(text).dims
        if all(layout.Layout(text, (parsed,), None).shape(sizes) == (size,) for sizes, size in points):
            fitting.append(text)
    size = points[0][1]
    if not fitting and all(other == size for _, other in points):
        fitting.append(str(size))
    heads = _product(axes.heads, "head_dim")
    if "hidden" in fitting and heads in fitting:
        writes = len(tensor.shape) == 1 or dim == (1 if tensor.kind == "conv1d" else 0)
        inner = tensor.attention and (tensor.module in last) != writes
        fitting.remove("hidden" if inner else heads)
    plain = [text for text in fitting if text not in _MULTIPLES]
    return tuple(plain or fitting)


def _candidates(fields: ConfigFields, axes: DraftedAxes, tensor: ProbedTensor, dim: int) -> Iterator[str]:
    """Layouts that a dimension may have, the likeliest first."""
    heads, kv_heads = axes.heads, axes.kv_heads
    # Axes that have the same size at every point are candidates only where their field changes this dimension.
    constant = {key: fields.effects.get(key, {}) for key in fields.others}
    if fields.positions:
        constant["positions"] = fields.effects[fields.positions]
    for axis in axes.sizes:
        varied = axis in ("hidden", "ffn", "vocab", "experts") or axis in fields.ffn
        if varied or (tensor.pattern, dim) in constant.get(axis, {}):
            yield axis
    head_products = (_product(heads, "head_dim"), _product(kv_heads, "head_dim"), "head_dim", _product(heads), kv_heads)
    yield from dict.fromkeys(head_products)
    if "heads" in axes.sizes:
        yield from ("(3 heads head_dim)", "(heads 3 head_dim)", "(heads head_dim + 2 head_dim)")
    else:
        yield from ("(kv_heads group head_dim + 2 kv_heads head_dim)", "(kv_heads (group + 2) head_dim)")
        yield from ("(2 kv_heads head_dim)", "(kv_heads 2 head_dim)")
    yield from (f"(2 {heads} head_dim)", f"({heads} 2 head_dim)")
    for axis in ("ffn", *(key for key in fields.ffn if key in axes.sizes)):
        yield from (f"(2 {axis})", f"({axis} 2)")
    yield from _MULTIPLES


def _product(*names: str) -> str:
    text = " ".join(names)
    return f"({text})" if " " in text else text
