"""Families: what is known about an architecture, as data.

A family file (families/*.toml) gives the config expression of every axis, one layout line for each tensor pattern,
which tensors are tied, and what may be ignored. Adding an architecture is writing one file and one test row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from hyperclone.architectures.entries import Axis, Multiplied, Pattern, Residual, TensorLine, Tie, Upcycling
from hyperclone.architectures.expression import Value, evaluate, lead_field, names
from hyperclone.architectures.layout import Layout
from hyperclone.errors import CheckpointError, GrowthError

# These limits keep a damaged config from filling the memory with the names of tensors.
_LARGEST_SIZE = 2**40  # of an axis; products of a few of them are still numbers that can be computed with
_MOST_LAYERS = 10_000
_MOST_EXPERTS = 40_000  # in all layers together; the largest released models have 24,000
_ALWAYS = ("hidden", "ffn", "heads", "kv_heads", "group", "head_dim", "vocab")  # axes that every model has


def canonical(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The config with every field under its own name; of two names, transformers reads the alias.

    Args:
        config: config.json's content.
        aliases: other names of fields -> their names.
    """
    renamed = {aliases[name]: value for name, value in config.items() if name in aliases and value is not None}
    return {**{name: value for name, value in config.items() if name not in aliases}, **renamed}


@dataclass(frozen=True)
class Family:
    """One architecture."""

    name: str
    file: str
    model_types: tuple[str, ...]
    layers: str
    defaults: Mapping[str, Any]
    type_defaults: Mapping[str, Mapping[str, Any]]  # model type -> its defaults that differ from the others'
    axes: Mapping[str, Axis]
    write: Mapping[str, str]
    lines: tuple[TensorLine, ...]
    tie: Tie | None
    ignore: tuple[str, ...]
    extra_layers: str | None  # how many layers are stored behind the last one that no model loads (to predict more)
    whole: Mapping[str, str]  # expression that must be a whole number for transformers -> when
    refuse: Mapping[str, str]  # condition over config fields and grown sizes -> why such a model cannot be grown so
    residual: Mapping[str, Residual]
    multiplied: Mapping[str, Multiplied]  # by tensor
    gain_offset: float  # what the model adds to the stored gain of a norm
    per_layer: tuple[str, ...]  # config lists with an entry for each layer
    deeper: Mapping[str, str]  # fields written when layers are added: a value, or of i: the layers for which it holds
    counted: frozenset[str]  # of these fields, those that hold the number of such layers instead
    prefix: str  # which the names in a saved base model lack ("" if base models are not saved)
    aliases: Mapping[str, str]  # another name of a config field -> its name here; where both are given, that one counts
    patterns: Mapping[str, Pattern]  # config fields that spell a list by letters
    models: tuple[str, ...] = ()  # well-known names
    upcycled: Upcycling | None = None
    head: str = ""  # in place of the causal language model's (heads.py)
    text: str = ""  # the file itself if it is a user's, for receipts; "" for those that ship with the package

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config by the family's names of fields, with the family's defaults for those that it leaves out."""
        types = self.type_defaults.get(str(config.get("model_type")), {})
        return {**self.defaults, **types, **self.canonical(config)}

    def canonical(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with every field under the family's name."""
        named = canonical(config, self.aliases)
        for field, pattern in self.patterns.items():
            if isinstance(text := named.pop(field, None), str) and named.get(pattern.into) is None:
                named[pattern.into] = [pattern.letters.get(letter, letter) for letter in text]
        return named

    def spelled_as(self, fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields by the family's names, under the name or both names that a config has for each of them."""
        names = {key: self.aliases.get(key, key) for key, value in config.items()
                 if key not in self.aliases or value is not None}  # fmt: skip
        spelled = {key: fields[name] for key, name in names.items() if name in fields}
        return spelled | {name: value for name, value in fields.items() if name not in names.values()}

    def value(self, text: str, config: Mapping[str, Any], *, layer: int | None = None) -> Value:
        """An expression's value over the config, with defaults for fields that it leaves out; i is the layer."""
        return evaluate(text, self.fields(config if layer is None else {**config, "i": layer}))

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Size of every axis, but those of size 0 that no tensor of this config has (experts of a dense model).

        Raises:
            CheckpointError: a field is missing, not a positive whole number, or does not divide.
        """
        sizes = {}
        for name, axis in self.axes.items():
            size = self.value(axis.size, config)
            if size == 0 and type(size) is int and name not in _ALWAYS and not self._occurs(name, config):
                continue
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST_SIZE:
                raise CheckpointError(
                    f"the config gives no usable size for axis {name!r}",
                    file="config.json",
                    field=lead_field(axis.size) or axis.size,
                    found=size,
                    expected=f"a whole number from 1 to {_LARGEST_SIZE}",
                )
            sizes[name] = size
        return sizes

    def _occurs(self, axis: str, config: Mapping[str, Any]) -> bool:
        """Whether a tensor of this config has an axis."""
        return any(
            line.when is None or bool(self.value(line.when, config, layer=i))
            for line in self.lines
            if axis in line.layout.axes
            for i in (range(self.depth(config)) if "{i}" in line.pattern else [None])
        )

    def grown_sizes(
        self, config: Mapping[str, Any], new: Mapping[str, int], *, deeper: bool = False, identity: bool = False
    ) -> dict[str, tuple[int, int]]:
        """(old, new) size of every axis, given new sizes of the axes that a user grows.

        Args:
            config: the source's.
            new: new sizes.
            deeper: layers are added.
            identity: they are added by identity.

        Raises:
            GrowthError: the family file refuses this growth, and says why.
        """
        old = self.sizes(config)
        leads = {axis: self.grows_with(axis, config) for axis in old}
        sizes = {axis: (old[axis], old[axis] * new[lead] // old[lead]) for axis, lead in leads.items()}
        for axis, lead in leads.items():
            if new.get(axis, old[axis]) not in (old[axis], sizes[axis][1]):
                raise GrowthError(
                    f"{axis} of this model grows with {lead}",
                    field=axis,
                    found=new[axis],
                    expected=sizes[axis][1],
                    cure=f"grow {lead} by the same factor, or leave {axis} out",
                )
        for condition, reason in self.refuse.items():
            added = {
                "deeper": deeper,
                "identity": identity,
                "larger_heads": sizes["head_dim"][0] != sizes["head_dim"][1],
            }
            if self.value(condition, {**config, **{axis: s for axis, (_, s) in sizes.items()}, **added}):
                raise GrowthError(f"this model cannot be grown like this: {reason}", field=condition)
        return sizes

    def grown_config(self, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """The config of the grown model: fields are written, then read back and compared.

        Every field has the names that it has in the source's config.

        Raises:
            GrowthError: the config cannot express these sizes.
        """
        source, config = config, self.canonical(config)
        grown = dict(config)
        for field, text in self.write.items():
            value = evaluate(text, {axis: new for axis, (_, new) in sizes.items()})
            grown[field] = [value] * self.depth(config) if field in self.per_layer else value
        for axis, (_, new) in sizes.items():
            field = lead_field(self.axes[axis].size) or ""
            if field and config.get(field) is not None:
                grown[field] = new
        for axis, (old, new) in sizes.items():
            field = lead_field(self.axes[axis].size) or ""
            if (
                (value := self._value_or_none(self.axes[axis].size, grown)) != new
                and field
                and grown.get(field) is None
            ):
                grown[field] = new  # was derived from other fields, which now give another value
                value = self._value_or_none(self.axes[axis].size, grown)
            if value != new:
                raise GrowthError(
                    f"this architecture's config cannot express these sizes: {axis} = {self.axes[axis].size}",
                    field=axis,
                    found="not a whole number" if value is None else value,
                    expected=f"{new}" + (" (unchanged)" if new == old else ""),
                    cure="grow hidden and heads by the same factor" if axis == "head_dim" else None,
                )
        for text, when in self.whole.items():
            if self.value(when, grown) and self._value_or_none(text, grown) is None:
                raise GrowthError(
                    "transformers does not accept a config with these sizes",
                    field=text,
                    found=" / ".join(str(self.value(name, grown)) for name in names(text)),
                    expected="a whole number",
                    cure="grow hidden and heads by the same factor",
                )
        before, after = self.conditions(config), self.conditions(grown)
        if changed := [text for text in before if before[text] != after[text]]:
            raise GrowthError(
                "at these sizes the architecture would gain or lose tensors",
                field=changed[0],
                found=", ".join(map(str, after[changed[0]])) + " in the grown model",
                expected=", ".join(map(str, before[changed[0]])) + ", as in the source",
                cure="choose another size",
            )
        return self.spelled_as(grown, source)

    def _value_or_none(self, text: str, config: Mapping[str, Any]) -> Value:
        try:
            return self.value(text, config)
        except CheckpointError:
            return None

    def padding(self, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Axes of the residual stream that grow to a size that is no multiple, and what their padding channels hold."""
        padding = {}
        for axis, (old, new) in sizes.items():
            spec = self.residual.get(self.stream(axis, config))
            if spec and new % old and (spec.when is None or self.value(spec.when, config)):
                padding[axis] = spec.padding
        return padding

    def own_eps(self, axis: str, config: Mapping[str, Any]) -> str | None:
        """The config field of the eps that the norms over this axis of the residual stream have for themselves."""
        spec = self.residual[self.stream(axis, config)]
        return None if spec.shared is not None and self.value(spec.shared, config) else spec.eps

    def is_post_norm(self, name: str, axis: str, config: Mapping[str, Any]) -> bool:
        """Whether a norm over this axis of the residual stream stands behind a block."""
        patterns = self.residual[self.stream(axis, config)].post_norms
        return any(indices(pattern, name) is not None for pattern in patterns)

    def squared_factor(self, name: str, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> Fraction:
        """The square of the factor for a tensor that the model multiplies by the root of a size that grows."""
        spec = self.multiplied.get(name)
        if spec is None or (spec.when is not None and not self.value(spec.when, config)):
            return Fraction(1)
        return Fraction(*sizes[spec.axis])

    def depth(self, config: Mapping[str, Any]) -> int:
        """Number of layers."""
        layers = self.value(self.layers, config)
        layers = len(layers) if isinstance(layers, list) else layers
        if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= _MOST_LAYERS:
            raise CheckpointError(
                "the config gives no usable number of layers",
                file="config.json",
                field=self.layers,
                found=layers,
                expected=f"a whole number from 1 to {_MOST_LAYERS:,}",
            )
        return layers

    def grows_with(self, axis: str, config: Mapping[str, Any]) -> str:
        """The axis whose growth this one follows in this config: itself, or another by the same factor."""
        spec = self.axes[axis]
        lead = spec.grows_with or spec.alias
        return lead if lead and (spec.when is None or self.value(spec.when, config)) else axis

    def stream(self, axis: str, config: Mapping[str, Any]) -> str:
        """The axis whose units these are in this config: itself, or the one of which it is an alias."""
        return self.grows_with(axis, config) if self.axes[axis].alias else axis

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head shares the embedding."""
        return self.tie is not None and bool(self.value(self.tie.when, config))

    @property
    def head_layout(self) -> Layout:
        """The line of the head that can be tied."""
        assert self.tie is not None
        return next(line.layout for line in self.lines if line.pattern == self.tie.head)

    def tensors(self, config: Mapping[str, Any]) -> dict[str, Layout]:
        """Every tensor that a checkpoint with this config must hold, with its layout."""
        expected: dict[str, Layout] = {}
        counts = {"{i}": self.depth(config), "{e}": self.sizes(config).get("experts", 0)}
        if math.prod(counts.values()) > _MOST_EXPERTS:
            raise CheckpointError(
                "the config gives no usable number of experts",
                file="config.json",
                field=lead_field(self.axes["experts"].size) or "experts",
                found=counts["{e}"],
                expected=f"at most {_MOST_EXPERTS // counts['{i}']:,} in each of {counts['{i}']:,} layers",
            )
        for name, _, _, layout in self._named(config, range(counts["{i}"])):
            expected.setdefault(name, layout)
        return expected

    def grown_names(self, config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, tuple[str, int | None]]:
        """Every tensor of a model whose layer j copies layer layers[j]: (the tensor it grows from, its layer)."""
        names: dict[str, tuple[str, int | None]] = {}
        for name, source, layer, _ in self._named(config, layers):
            names.setdefault(name, (source, layer))
        return names

    def _named(self, config: Mapping[str, Any], layers: Sequence[int]) -> Iterator[tuple[str, str, int | None, Layout]]:
        """(name, name in the source, layer, layout) of every line's tensors, where layer j copies layer layers[j]."""
        experts = range(self.sizes(config).get("experts", 0))
        for line in self.lines:
            pairs: Iterable[tuple[int | None, int | None]] = enumerate(layers)
            for new, old in pairs if "{i}" in line.pattern else [(None, None)]:
                if line.when is not None and not self.value(line.when, config, layer=old):
                    continue
                for expert in experts if "{e}" in line.pattern else [0]:
                    pattern = line.pattern.replace("{e}", str(expert))
                    yield pattern.replace("{i}", str(new)), pattern.replace("{i}", str(old)), new, line.layout

    def writes_hidden(self, layout: Layout, config: Mapping[str, Any]) -> bool:
        """Whether a tensor of a block is an output projection (or its bias): what it writes is the residual stream."""
        axes = {axis for dim in layout.written for axis in layout.axes_of(dim)}
        return not layout.norm and any(self.stream(axis, config) == "hidden" for axis in axes)

    def ignored(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a stored tensor is one that no model loads."""
        if any(indices(pattern, name) is not None for pattern in self.ignore):
            return True
        extra = self.extra_layers and self.value(self.extra_layers, config)
        if isinstance(extra, bool) or not isinstance(extra, int):
            return False
        starts = {line.pattern.split("{i}")[0] for line in self.lines if "{i}" in line.pattern}
        numbers = {name.removeprefix(start).split(".")[0] for start in starts if name.startswith(start)}
        behind = range(self.depth(config), self.depth(config) + extra)
        return any(number.isdecimal() and int(number) in behind for number in numbers)

    def of_expert(self, name: str) -> bool:
        """Whether a tensor belongs to one of several experts."""
        return any("{e}" in line.pattern and indices(line.pattern, name) is not None for line in self.lines)

    def in_layer(self, name: str) -> bool:
        """Whether a tensor belongs to a layer."""
        return any("{i}" in line.pattern and indices(line.pattern, name) is not None for line in self.lines)

    def conditions(self, config: Mapping[str, Any]) -> dict[str, tuple[bool, ...]]:
        """The values of every condition of the file: one, or one for each layer where it reads i.

        A growth may not change any (a tie excepted).
        """
        texts = [line.when for line in self.lines] + [axis.when for axis in self.axes.values()]
        layers = range(self.depth(config))
        return {
            text: tuple(bool(self.value(text, config, layer=i)) for i in (layers if "i" in names(text) else [None]))
            for text in texts
            if text is not None
        }


def indices(pattern: str, name: str) -> dict[str, str] | None:
    """The numbers in a name where the pattern has {i} and {e}; None if the name does not match."""
    match = _regex(pattern).fullmatch(name)
    return match.groupdict() if match else None


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{([ie])\\\}", r"(?P<\1>\\d+)", re.escape(pattern)))
