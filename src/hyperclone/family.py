"""Families: what is known about an architecture, as data.

A family file (families/*.toml) gives the config expression of every axis, one layout line for each tensor pattern,
which tensors are tied, and what may be ignored. Adding an architecture is writing one file and one test row.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from hyperclone import layout
from hyperclone.errors import CheckpointError, FamilyError, GrowthError
from hyperclone.expression import Value, evaluate, lead_field, names
from hyperclone.layout import Layout

T = TypeVar("T")

# These limits keep a damaged config from filling the memory with the names of tensors.
_MOST_LAYERS = 10_000
_MOST_EXPERTS = 100_000  # in all layers together


@dataclass(frozen=True)
class Axis:
    """A named axis: the config expression of its size, and the axis it grows with, under a condition (OPT's embed)."""

    size: str
    grows_with: str | None = None
    when: str | None = None


@dataclass(frozen=True)
class TensorLine:
    """One line of [tensors]: a name with {i} for the layer and {e} for the expert, its layout, when it exists.

    Of several lines for one name, the first whose condition holds is meant.
    """

    pattern: str
    layout: Layout
    when: str | None = None


@dataclass(frozen=True)
class Tie:
    """The head that shares the embedding, and the last norm's tensors that carry its 1/n while it does."""

    when: str
    head: str
    embedding: str
    fold: tuple[str, ...]


@dataclass(frozen=True)
class Residual:
    """An axis that may grow to any size: what channels hold that copy nothing (fill.py), and the norms' eps field."""

    fill: str
    eps: str
    when: str | None = None


@dataclass(frozen=True)
class Family:
    """Everything known about one architecture."""

    name: str
    file: str
    model_types: tuple[str, ...]
    layers: str
    defaults: Mapping[str, Any]
    axes: Mapping[str, Axis]
    write: Mapping[str, str]
    lines: tuple[TensorLine, ...]
    tie: Tie | None
    ignore: tuple[str, ...]
    whole: Mapping[str, str]  # expression that transformers wants to be a whole number -> when
    refuse: Mapping[str, str]  # condition over config fields and grown sizes -> why such a model cannot be grown so
    residual: Mapping[str, Residual]
    multiplied: Mapping[str, str]  # tensor -> axis by the root of whose size the model multiplies it
    gain_offset: float  # what the model adds to the stored gain of a norm
    per_layer: tuple[str, ...]  # config lists with an entry for each layer
    prefix: str  # what the names of a checkpoint lack that was saved from the base model ("" if that is not done)

    def value(self, text: str, config: Mapping[str, Any]) -> Value:
        """An expression's value over the config, with the family's defaults for fields that it leaves out."""
        return evaluate(text, {**self.defaults, **config})

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Size of every axis.

        Raises:
            CheckpointError: a field is missing, not a positive whole number, or does not divide.
        """
        sizes = {}
        for name, axis in self.axes.items():
            size = self.value(axis.size, config)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise CheckpointError(
                    f"the config gives no usable size for axis {name!r}",
                    file="config.json",
                    field=lead_field(axis.size) or axis.size,
                    found=size,
                    expected="a positive whole number",
                )
            sizes[name] = size
        return sizes

    def grown_sizes(
        self, config: Mapping[str, Any], new: Mapping[str, int], *, identity: bool = False
    ) -> dict[str, tuple[int, int]]:
        """(old, new) size of every axis, given new sizes of the axes that a user grows; `identity`: layers are added.

        Raises:
            GrowthError: the family file refuses this growth, and says why.
        """
        old = self.sizes(config)
        leads = {axis: self.grows_with(axis, config) for axis in self.axes}
        sizes = {axis: (old[axis], old[axis] * new[lead] // old[lead]) for axis, lead in leads.items()}
        for condition, reason in self.refuse.items():
            if self.value(condition, {**config, **{axis: s for axis, (_, s) in sizes.items()}, "identity": identity}):
                raise GrowthError(f"this model cannot be grown so: {reason}", field=condition)
        return sizes

    def grown_config(self, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """The config of the grown model: fields are written, then read back, and must say what was meant.

        Raises:
            GrowthError: the config cannot express these sizes.
        """
        grown = dict(config)
        for field, text in self.write.items():
            grown[field] = evaluate(text, {axis: new for axis, (_, new) in sizes.items()})
        for axis, (_, new) in sizes.items():
            field = lead_field(self.axes[axis].size) or ""
            if field and config.get(field) is not None:
                grown[field] = new
        for axis, (old, new) in sizes.items():
            field = lead_field(self.axes[axis].size) or ""
            if (
                (found := self._value_or_none(self.axes[axis].size, grown)) != new
                and field
                and grown.get(field) is None
            ):
                grown[field] = new  # was implied by other fields, which now imply something else
                found = self._value_or_none(self.axes[axis].size, grown)
            if found != new:
                raise GrowthError(
                    f"this architecture's config cannot express these sizes: {axis} = {self.axes[axis].size}",
                    field=axis,
                    found="not a whole number" if found is None else found,
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
                found=f"{after[changed[0]]} in the grown model",
                expected=f"{before[changed[0]]}, as in the source",
                cure="choose another size",
            )
        return grown

    def _value_or_none(self, text: str, config: Mapping[str, Any]) -> Value:
        try:
            return self.value(text, config)
        except CheckpointError:
            return None

    def fills(self, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Axes of the residual stream that grow to a size that is no multiple, and what their fillers write."""
        found = {}
        for axis, (old, new) in sizes.items():
            spec = self.residual.get(self.grows_with(axis, config))
            if spec and new % old and (spec.when is None or self.value(spec.when, config)):
                found[axis] = spec.fill
        return found

    def rescaled(self, sizes: Mapping[str, tuple[int, int]], fills: Mapping[str, str]) -> dict[str, float]:
        """Config fields (eps of the norms) to be multiplied where an axis has fillers, and the factor."""
        return {spec.eps: fill_scale(*sizes[axis]) ** 2 for axis, spec in self.residual.items() if axis in fills}

    def factor(self, name: str, sizes: Mapping[str, tuple[int, int]]) -> float:
        """What a tensor must be multiplied by because the model multiplies it by the root of a size that grows."""
        axis = self.multiplied.get(name)
        return math.sqrt(sizes[axis][0] / sizes[axis][1]) if axis else 1.0

    def depth(self, config: Mapping[str, Any]) -> int:
        """Number of layers."""
        layers = self.value(self.layers, config)
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
        if spec.grows_with and (spec.when is None or self.value(spec.when, config)):
            return spec.grows_with
        return axis

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head shares the embedding."""
        return self.tie is not None and bool(self.value(self.tie.when, config))

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
        for line in self.lines:
            if line.when is None or self.value(line.when, config):
                for name in _names(line.pattern, counts):
                    expected.setdefault(name, line.layout)
        return expected

    def grown_names(self, config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, tuple[str, int | None]]:
        """Every tensor of a model whose layer j copies layer layers[j]: (the tensor it grows from, its layer)."""
        found: dict[str, tuple[str, int | None]] = {}
        experts = {"{e}": self.sizes(config).get("experts", 0)}
        for line in self.lines:
            if line.when is not None and not self.value(line.when, config):
                continue
            for name in _names(line.pattern, experts):
                if "{i}" not in name:
                    found.setdefault(name, (name, None))
                    continue
                for new, old in enumerate(layers):
                    found.setdefault(name.replace("{i}", str(new)), (name.replace("{i}", str(old)), new))
        return found

    def writes_hidden(self, layout: Layout, config: Mapping[str, Any]) -> bool:
        """Whether a tensor of a block is an output projection (or its bias): what it writes is the residual stream."""
        out = next((dim for dim in range(len(layout.dims)) if dim != layout.reads), None)
        if layout.norm or out is None:
            return False
        return any(self.grows_with(axis, config) == "hidden" for axis in layout.axes_of(out))

    def ignored(self, name: str) -> bool:
        """Whether a stored tensor is a buffer that no model loads."""
        return any(re.fullmatch(re.sub(r"\\\{[ie]\\\}", r"\\d+", re.escape(p)), name) for p in self.ignore)

    def conditions(self, config: Mapping[str, Any]) -> dict[str, bool]:
        """The value of every condition of the file; a growth may not change any (a tie excepted)."""
        texts = [line.when for line in self.lines] + [axis.when for axis in self.axes.values()]
        return {text: bool(self.value(text, config)) for text in texts if text is not None}


def fill_scale(old: int, new: int) -> float:
    """sqrt(k d / D), k = D // d: for the gains of norms over a hidden state with fillers (fill.py); 1 for multiples."""
    return math.sqrt(new // old * old / new)


def _names(pattern: str, counts: Mapping[str, int]) -> list[str]:
    """Every name of a pattern, given how far each index in it runs."""
    found = [pattern]
    for index, count in counts.items():
        if index in pattern:
            found = [name.replace(index, str(k)) for name in found for k in range(count)]
    return found


def load(text: str, *, name: str, file: str) -> Family:
    """Parse a family file.

    Raises:
        FamilyError: not TOML, a key that is not known, a line that does not parse, or an axis that is not defined.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FamilyError("family file is not valid TOML", file=file, found=error) from None
    try:
        family = _family(data, name=name, file=file)
    except FamilyError as error:
        where = {**error.details, "file": file}
        raise FamilyError(error.problem, **{key: where.get(key) for key in _DETAILS}) from None
    return family


_DETAILS = ("file", "tensor", "field", "found", "expected", "cure")


def _family(data: dict[str, Any], *, name: str, file: str) -> Family:
    _keys(data, "", {"model_types": list, "layers": str, "axes": dict, "tensors": dict},
          {"defaults": dict, "write": dict, "tie": dict, "ignore": dict, "whole": dict, "refuse": dict,
           "residual": dict, "multiplied": dict, "gain_offset": int, "per_layer": list,
           "prefix": str})  # fmt: skip
    axes = {
        key: Axis(**_entry(spec, f"axes.{key}", "size", "grows_with", "when")) for key, spec in data["axes"].items()
    }
    lines = []
    cases = [(pattern, case) for pattern, spec in data["tensors"].items()
             for case in (spec if isinstance(spec, list) else [spec])]  # fmt: skip
    for pattern, case in cases:
        entry = _entry(case, f"tensors.{pattern}", "line", "when")
        try:
            lines.append(TensorLine(pattern, layout.parse(entry["line"]), entry.get("when")))
        except FamilyError as error:
            raise FamilyError(
                error.problem,
                tensor=pattern,
                found=error.details.get("found"),
                expected=error.details.get("expected"),
            ) from None
        if missing := lines[-1].layout.axes - set(axes):
            raise FamilyError(
                "layout names an axis that the file does not define",
                tensor=pattern,
                found=", ".join(sorted(missing)),
                expected="one of " + ", ".join(sorted(axes)),
            )
    if "tie" in data:
        _keys(data["tie"], "tie", {"when": str, "head": str, "embedding": str, "fold": list}, {})
    _keys(data.get("ignore", {}), "ignore", {}, {"tensors": list})
    family = Family(
        name=name,
        file=file,
        model_types=tuple(data["model_types"]),
        layers=data["layers"],
        defaults=data.get("defaults", {}),
        axes=axes,
        write=data.get("write", {}),
        lines=tuple(lines),
        tie=Tie(**{**data["tie"], "fold": tuple(data["tie"]["fold"])}) if "tie" in data else None,
        ignore=tuple(data.get("ignore", {}).get("tensors", ())),
        whole=data.get("whole", {}),
        refuse=data.get("refuse", {}),
        residual={
            axis: Residual(**_entry(spec, f"residual.{axis}", "fill", "eps", "when"))
            for axis, spec in data.get("residual", {}).items()
        },
        multiplied=data.get("multiplied", {}),
        gain_offset=data.get("gain_offset", 0),
        prefix=data.get("prefix", ""),
        per_layer=tuple(data.get("per_layer", ())),
    )
    _check(family)
    return family


_KINDS = {str: "a string", list: "a list of strings", dict: "a table", int: "a whole number"}


def _keys(table: Any, where: str, required: Mapping[str, type], optional: Mapping[str, type]) -> None:
    """A table has the keys it must have, no others, and values of their kinds."""
    known = {**required, **optional}
    if not isinstance(table, dict):
        raise FamilyError("family file has a value where a table belongs", field=where, found=repr(table))
    if unknown := set(table) - set(known):
        raise FamilyError(
            "family file has unknown keys",
            field=where or None,
            found=", ".join(sorted(unknown)),
            expected=", ".join(known),
        )
    if missing := set(required) - set(table):
        raise FamilyError(
            "family file is incomplete", field=where or None, found="nothing", expected=", ".join(sorted(missing))
        )
    for key, value in table.items():
        if not isinstance(value, known[key]) or (
            isinstance(value, list) and not all(isinstance(v, str) for v in value)
        ):
            raise FamilyError(
                "family file has a value of the wrong kind",
                field=f"{where}.{key}".lstrip("."),
                found=repr(value),
                expected={"str": "a string", "list": "a list of strings", "dict": "a table", "int": "a whole number"}[
                    known[key].__name__
                ],
            )


def _entry(spec: Any, where: str, lead: str, *others: str) -> dict[str, str]:
    """A value that is a string, or a table with that string under `lead` and more beside it."""
    entry = {lead: spec} if isinstance(spec, str) else spec
    _keys(entry, where, {lead: str}, dict.fromkeys(others, str))
    return dict(entry)


def _check(family: Family) -> None:
    """The parts of a file fit together, and every expression is one."""
    axes, patterns = set(family.axes), {line.pattern for line in family.lines}
    if missing := sorted({"hidden", "ffn", "head_dim"} - axes):
        raise FamilyError("a family needs these axes", field="axes", expected=", ".join(missing))
    if "heads" not in axes and not {"kv_heads", "group"} <= axes:
        raise FamilyError("a family needs these axes", field="axes", expected="heads, or kv_heads and group")
    for key, axis in family.axes.items():
        if axis.grows_with and axis.grows_with not in axes:
            raise FamilyError(
                "an axis grows with one that the file does not define",
                field=f"axes.{key}",
                found=axis.grows_with,
                expected="one of " + ", ".join(sorted(axes)),
            )
    if "experts" not in axes and (numbered := sorted(pattern for pattern in patterns if "{e}" in pattern)):
        raise FamilyError(
            "a tensor for each expert needs the axis that counts them",
            field="axes",
            tensor=numbered[0],
            expected="experts",
        )
    if family.tie:
        if unlisted := sorted({family.tie.head, family.tie.embedding, *family.tie.fold} - patterns):
            raise FamilyError(
                "[tie] names tensors that [tensors] does not list", field="tie", tensor=", ".join(unlisted)
            )
        if next(line for line in family.lines if line.pattern == family.tie.head).layout.reads is None:
            raise FamilyError("a head reads: its line needs an arrow", field="tie", tensor=family.tie.head)
    for where, text in _expressions(family):
        try:
            evaluate(text, dict.fromkeys(names(text), 1))
        except FamilyError as error:
            raise FamilyError(error.problem, field=where, found=error.details.get("found")) from None
        except CheckpointError:
            pass  # it is an expression; that it has no value for these numbers says nothing
        if where.startswith("write.") and (missing := sorted(set(names(text)) - axes)):
            raise FamilyError(
                "a config field is written from an axis that the file does not define",
                field=where,
                found=", ".join(missing),
                expected="one of " + ", ".join(sorted(axes)),
            )


def _expressions(family: Family) -> Iterator[tuple[str, str]]:
    """(place, text) of every expression in a file."""
    yield "layers", family.layers
    for key, axis in family.axes.items():
        yield from ((f"axes.{key}", text) for text in (axis.size, axis.when) if text is not None)
    for line in family.lines:
        yield from ((f"tensors.{line.pattern}", text) for text in (line.when,) if text is not None)
    yield from ((f"write.{field}", text) for field, text in family.write.items())
    yield from (("whole", text) for pair in family.whole.items() for text in pair)
    yield from (("refuse", text) for text in family.refuse)
    if family.tie:
        yield "tie.when", family.tie.when


@cache
def known() -> dict[str, Family]:
    """Every family that ships with the package, by model type."""
    families = {}
    for entry in sorted(resources.files("hyperclone").joinpath("families").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            family = load(entry.read_text("utf-8"), name=Path(entry.name).stem, file=f"families/{entry.name}")
            families.update(dict.fromkeys(family.model_types, family))
    return families


def full_names(config: Mapping[str, Any], stored: Mapping[str, T]) -> dict[str, T]:
    """Stored tensors under the names they have in the whole model: a base model's own names lack its prefix (GPT-2)."""
    model_type = config.get("model_type")
    family = known().get(model_type) if isinstance(model_type, str) else None
    prefix = family.prefix if family else ""
    if family is None or any(name.startswith(prefix) for name in stored):
        return dict(stored)
    beside = {line.pattern for line in family.lines if not line.pattern.startswith(prefix)}
    return {name if name in beside else prefix + name: value for name, value in stored.items()}


def of_config(config: Mapping[str, Any]) -> Family:
    """The family of a model.

    Raises:
        FamilyError: the architecture is not known; the message lists what is.
    """
    model_type = config.get("model_type")
    family = known().get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise FamilyError(
            "this architecture is not known" if model_type else "config.json names no model_type",
            file="config.json",
            field="model_type",
            found=model_type,
            expected="one of " + ", ".join(sorted(known())),
            cure="describe its tensors in a family file (docs/architecture.md, 'Adding an architecture')",
        )
    return family
