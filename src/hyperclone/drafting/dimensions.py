"""What each dimension of a tensor may mean: the axes of an unlisted architecture, and its shapes read in them.

The axes' sizes are set to several combinations, in which no two products of interest are equal unless the architecture
makes them equal, and the model is built at each. A dimension *may be* what has its size every time. What shapes cannot
tell remains as several readings: the order inside a fused dimension; and hidden against heads x head_dim, where one is
always the other, which the module's place decides (an attention module's last matrix writes hidden, what stands outside
of attention knows no heads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperclone.architectures import family_file, layout
from hyperclone.architectures.family import Family
from hyperclone.drafting import probe
from hyperclone.drafting.probe import ConfigFields, ProbedTensor
from hyperclone.errors import FamilyError, GrowthError
from hyperclone.hf import tiny_models

Layouts = tuple[str, ...]  # readings of one dimension, the likeliest first
_MULTIPLES = ("(2 hidden)", "(3 hidden)", "(4 hidden)")  # where nothing else has this size


@dataclass(frozen=True)
class DraftedAxes:
    """The [axes] of a family file, with what they rest on.

    Attributes:
        sizes: axis -> expression of its size.
        follows: axis -> axis that it grows with.
        guesses: axis -> why it is a guess.
        defaults: fields that the config leaves out, with the values of transformers' config class.
        write: [write].
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
    def keys(self) -> str:
        """The axis that counts key-value heads."""
        return "heads" if "heads" in self.sizes else "kv_heads"

    def skeleton(self, model_type: str, layers: str) -> Family:
        """A family with these axes and no tensors."""
        lines = [f"model_types = [{toml(model_type)}]", f"layers = {toml(layers)}", *self.text(), "[tensors]"]
        return family_file.load("\n".join(lines), name=model_type, file="draft")

    def text(self) -> list[str]:
        """The tables of a family file that speak of axes."""
        lines = []
        if self.defaults:
            lines += ["", "[defaults]    # for fields that config.json leaves out; as in the transformers config class"]
            lines += [f"{key} = {toml(value)}" for key, value in self.defaults.items()]
        lines += ["", "[axes]"]
        for name, size in self.sizes.items():
            lead = self.follows.get(name)
            value = f"{{ size = {toml(size)}, grows_with = {toml(lead)} }}" if lead else toml(size)
            lines.append(f"{name} = {value}" + (f"    # guess: {self.guesses[name]}" if name in self.guesses else ""))
        if self.write:
            lines += ["", "[write]", *(f"{key} = {toml(value)}" for key, value in self.write.items())]
        return lines


def toml(value: Any) -> str:
    """A string, number or truth value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def axes(found: ConfigFields) -> DraftedAxes:
    """The axes of an architecture, from what its fields do.

    Raises:
        FamilyError: no feed-forward size can be made out.
    """
    hidden, heads = found.hidden, found.heads
    sizes, follows, guesses = {"hidden": hidden}, {}, {}
    defaults = {}

    def size(key: str, implied: Sequence[str]) -> str:
        """A field, with the expression that holds where it is left out."""
        value = found.config.get(key)
        if value is None and (constant := _constant(key, found)) is not None:
            defaults[key] = constant
        elif value is None:
            (name, dim), rate = next(iter(found.moved[key].items()))
            shape = next(t.shape for t in found.base.tensors.values() if t.pattern == name)
            for text in implied:
                if family_value(text, found.full) == shape[dim] / rate:
                    return f"{key} | {text}"
        return key

    multiples = [f"{k} * {hidden}" for k in range(1, 17)]
    first, *more = sorted(found.ffn, key=lambda key: -len(found.moved[key])) or [""]
    if first:
        sizes["ffn"] = size(first, multiples)
    elif (k := _implied_ffn(found)) is not None:
        sizes["ffn"], follows["ffn"] = f"{k} * {hidden}", "hidden"
    else:
        raise FamilyError("no field of this config is a feed-forward size, and no matrix has a multiple of hidden",
                          file="config.json")  # fmt: skip
    for key in more:
        sizes[key], follows[key], guesses[key] = size(key, multiples), "ffn", "another feed-forward size"
    write = {}
    if found.kv_heads:
        keys = size(found.kv_heads, [heads])
        sizes["kv_heads"] = keys
        sizes["group"] = f"{heads} / ({keys})" if "|" in keys else f"{heads} / {keys}"
        write[heads] = "kv_heads * group"
    else:
        sizes["heads"] = heads
    implied = f"{hidden} / {heads}"
    sizes["head_dim"] = size(found.head_dim, [implied]) if found.head_dim else implied
    sizes["vocab"] = found.vocab
    if found.experts:
        sizes["experts"] = size(found.experts, [])
    if found.positions:
        rows = next(t.shape[0] for t in found.base.tensors.values() if (t.pattern, 0) in found.moved[found.positions])
        text = size(found.positions, [])
        extra = rows - found.full[found.positions]
        sizes["positions"] = f"{text} + {extra}" if extra else text
    for key in found.others:
        sizes[key] = size(key, [hidden])
        guesses[key] = "what it counts is not known, so it never grows"
        if found.full.get(key) == found.full[hidden]:
            follows[key], guesses[key] = "hidden", f"grows with hidden, since it equals {hidden}"
    return DraftedAxes(sizes, follows, guesses, defaults, write)


def family_value(text: str, config: Mapping[str, Any]) -> Any:
    """An expression's value; None where it has none."""
    from hyperclone.architectures.expression import evaluate
    from hyperclone.errors import CheckpointError

    try:
        return evaluate(text, config)
    except CheckpointError:
        return None


def _constant(key: str, found: ConfigFields) -> Any | None:
    """The value of a left-out field that the config class fills in, unless it computes it from other sizes."""
    value = found.full.get(key)
    for other, factor in ((found.heads, 2), (found.hidden, 2)):
        if value is None or probe.filled_in({**found.config, other: factor * found.full[other]}).get(key) != value:
            return None
    return value


def _implied_ffn(found: ConfigFields) -> int | None:
    hidden = found.full[found.hidden]
    ratios = [
        size // hidden
        for tensor in found.base.tensors.values()
        if not tensor.attention and tensor.kind in ("linear", "conv1d")
        for size in tensor.shape
        if size % hidden == 0 and size > hidden
    ]
    return max(set(ratios), key=ratios.count) if ratios else None


@dataclass(frozen=True)
class TensorLayouts:
    """One tensor pattern: readings of each dimension, in stored order; empty where there is none."""

    tensor: ProbedTensor
    dims: tuple[Layouts, ...]

    @property
    def complete(self) -> bool:
        """Every dimension has a reading, and there are not more than a layout line can hold."""
        return 1 <= len(self.dims) <= 2 and all(self.dims)


def read(found: ConfigFields, axes: DraftedAxes, last: frozenset[str]) -> dict[str, TensorLayouts]:
    """The readings of every tensor pattern.

    Args:
        found: the fields.
        axes: the axes.
        last: modules that are the last to run among the matrices of an attention module.

    Patterns that not every layer has are left out: what decides about them is not known.

    Raises:
        FamilyError: the model cannot be built at other sizes.
    """
    skeleton = axes.skeleton(found.config["model_type"], found.layers)
    points = list(_points(found, skeleton))
    patterns: dict[str, ProbedTensor] = {}
    layers: dict[str, set[str]] = {}
    for tensor in found.base.tensors.values():
        patterns.setdefault(tensor.pattern, tensor)
        layers.setdefault(tensor.pattern, set()).update(re.findall(r"\.(\d+)\.", tensor.name)[:1])
    depth = found.config.get(found.layers, found.full[found.layers])
    return {
        name: TensorLayouts(
            tensor,
            tuple(
                _options(found, axes, tensor, dim, [(sizes, shapes[name][dim]) for sizes, shapes in points], last)
                for dim in range(len(tensor.shape))
            ),
        )
        for name, tensor in patterns.items()
        if len(layers[name]) in (0, depth)
        and all(len(shapes.get(name, ())) == len(tensor.shape) for _, shapes in points)
    }


def _points(found: ConfigFields, skeleton: Family) -> Iterator[tuple[dict[str, int], dict[str, tuple[int, ...]]]]:
    """(axis sizes, shape of each pattern) at several sizes, and at the config's own."""
    old, config = skeleton.sizes(found.config), found.config
    yield old, _by_pattern(found.base)
    square = old["hidden"] == old["head_dim"] * (old["heads"] if "heads" in old else old["kv_heads"] * old["group"])
    built = 0
    # Free head sizes first: they tell more apart. Where the config binds them, or a model insists on its own, less do.
    for apart, free in ((True, True), (False, True), (True, False), (False, False)):
        if apart and not found.head_dim and square:
            continue
        for step, (keys, group, head_dim) in enumerate(((2, 3, 8), (3, 2, 12), (5, 4, 16))):
            new = {**old, "head_dim": head_dim if free else old["head_dim"]}
            new |= {"heads": keys * 2} if "heads" in old else {"kv_heads": keys, "group": group}
            count = keys * 2 if "heads" in old else keys * group
            new["hidden"] = count * (new["head_dim"] + (4 if apart else 0))
            new["ffn"] = 2 * new["hidden"] + 10 + 6 * step
            if not found.ffn:
                new["ffn"] = new["hidden"] * old["ffn"] // old["hidden"]
            new["vocab"] = 304 + 16 * step
            if "experts" in old:
                new["experts"] = 6 + step
            for axis in old:
                if (lead := skeleton.grows_with(axis, config)) != axis:
                    new[axis] = old[axis] * new[lead] // old[lead] or 1
            try:
                made = skeleton.grown_config(config, {axis: (old[axis], size) for axis, size in new.items()})
                sizes = skeleton.sizes(made)
            except GrowthError:
                continue
            if (model := probe.build(tiny_models.fit_token_ids(made, vocab=new["vocab"]))) is not None:
                built += 1
                yield sizes, _by_pattern(model)
        if built >= 2:
            return
    raise FamilyError("transformers makes no model of this config with other sizes, so its shapes cannot be compared",
                      file="config.json")  # fmt: skip


def _by_pattern(model: probe.ProbedModel) -> dict[str, tuple[int, ...]]:
    return {tensor.pattern: tensor.shape for tensor in model.tensors.values()}


def _options(
    found: ConfigFields,
    axes: DraftedAxes,
    tensor: ProbedTensor,
    dim: int,
    points: Sequence[tuple[Mapping[str, int], int]],
    last: frozenset[str],
) -> Layouts:
    """Everything that has this dimension's size at every point."""
    options = []
    for text in _candidates(found, axes, tensor, dim):
        (parsed,) = layout.parse(text).dims
        if all(layout.Layout(text, (parsed,), None).shape(sizes) == (size,) for sizes, size in points):
            options.append(text)
    size = points[0][1]
    if not options and all(other == size for _, other in points):
        options.append(str(size))
    heads = _product(axes.heads, "head_dim")
    if "hidden" in options and heads in options:
        writes = len(tensor.shape) == 1 or dim == (1 if tensor.kind == "conv1d" else 0)
        inner = tensor.attention and (tensor.module in last) != writes
        options.remove("hidden" if inner else heads)
    plain = [text for text in options if text not in _MULTIPLES]
    return tuple(plain or options)


def _candidates(found: ConfigFields, axes: DraftedAxes, tensor: ProbedTensor, dim: int) -> Iterator[str]:
    """What a dimension may be, the likeliest first."""
    h, k = axes.heads, axes.keys
    # Axes that no point changes are named only where their own field was seen to move this dimension.
    unmoved = {key: found.moved.get(key, {}) for key in found.others}
    if found.positions:
        unmoved["positions"] = found.moved[found.positions]
    for axis in axes.sizes:
        varied = axis in ("hidden", "ffn", "vocab", "experts") or axis in found.ffn
        if varied or (tensor.pattern, dim) in unmoved.get(axis, {}):
            yield axis
    single = list(dict.fromkeys((_product(h, "head_dim"), _product(k, "head_dim"), "head_dim", _product(h), k)))
    yield from single
    if "heads" in axes.sizes:
        yield from ("(3 heads head_dim)", "(heads 3 head_dim)", "(heads head_dim + 2 head_dim)")
    else:
        yield from ("(kv_heads group head_dim + 2 kv_heads head_dim)", "(kv_heads (group + 2) head_dim)")
        yield from ("(2 kv_heads head_dim)", "(kv_heads 2 head_dim)")
    yield from (f"(2 {h} head_dim)", f"({h} 2 head_dim)")
    for axis in ("ffn", *(key for key in found.ffn if key in axes.sizes)):
        yield from (f"(2 {axis})", f"({axis} 2)")
    yield from _MULTIPLES


def _product(*names: str) -> str:
    text = " ".join(names)
    return f"({text})" if " " in text else text
