"""Reading a family file: TOML into a Family, every key, line and expression checked; errors say where."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperclone.architectures import layout
from hyperclone.architectures.entries import Axis, Dense, Multiplied, Pattern, Residual, TensorLine, Tie, Upcycling
from hyperclone.architectures.expression import evaluate, names
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError, FamilyError


def read(path: str | os.PathLike[str]) -> Family:
    """Read a user's family file.

    Raises:
        FamilyError: it cannot be read, or is not a family file.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise FamilyError("this family file cannot be read", file=path, found=error) from None
    return from_text(text, file=str(path))


def from_text(text: str, *, file: str) -> Family:
    """A user's family; it keeps its text, which receipts hold.

    Raises:
        FamilyError: as `parse`.
    """
    return replace(parse(text, name=Path(file).stem, file=file), text=text)


def parse(text: str, *, name: str, file: str) -> Family:
    """Parse a family file.

    Raises:
        FamilyError: not TOML, an unknown key, a line that does not parse, or an undefined axis.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # besides its own: a number of too many digits, and nesting
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
           "residual": dict, "multiplied": dict, "gain_offset": int, "per_layer": list, "deeper": dict,
           "prefix": str, "aliases": dict, "patterns": dict, "models": list, "upcycled": dict})  # fmt: skip
    axes = {
        key: Axis(**_entry(spec, f"axes.{key}", "size", "grows_with", "alias", "when"))
        for key, spec in data["axes"].items()
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
    for part in ("write", "whole", "refuse", "aliases"):
        _keys(data.get(part, {}), part, {}, dict.fromkeys(data.get(part, {}), str))
    _keys(data.get("ignore", {}), "ignore", {}, {"tensors": list, "layers": str})
    counted = {key: spec for key, spec in data.get("deeper", {}).items() if isinstance(spec, dict)}
    for key, spec in counted.items():
        _keys(spec, f"deeper.{key}", {"count": str}, {})
    deeper = data.get("deeper", {}) | {key: spec["count"] for key, spec in counted.items()}
    _keys(deeper, "deeper", {}, dict.fromkeys(deeper, str))
    by_type = {key: value for key, value in data.get("defaults", {}).items() if isinstance(value, dict)}
    _keys(by_type, "defaults", {}, dict.fromkeys(data["model_types"], dict))
    family = Family(
        name=name,
        file=file,
        model_types=tuple(data["model_types"]),
        layers=data["layers"],
        defaults={key: value for key, value in data.get("defaults", {}).items() if key not in by_type},
        type_defaults=by_type,
        axes=axes,
        write=data.get("write", {}),
        lines=tuple(lines),
        tie=Tie(**{**data["tie"], "fold": tuple(data["tie"]["fold"])}) if "tie" in data else None,
        ignore=tuple(data.get("ignore", {}).get("tensors", ())),
        extra_layers=data.get("ignore", {}).get("layers"),
        whole=data.get("whole", {}),
        refuse=data.get("refuse", {}),
        residual={axis: _residual(spec, f"residual.{axis}") for axis, spec in data.get("residual", {}).items()},
        multiplied={
            tensor: Multiplied(**_entry(spec, f"multiplied.{tensor}", "axis", "when"))
            for tensor, spec in data.get("multiplied", {}).items()
        },
        gain_offset=data.get("gain_offset", 0),
        prefix=data.get("prefix", ""),
        aliases=data.get("aliases", {}),
        patterns={key: _pattern(spec, f"patterns.{key}") for key, spec in data.get("patterns", {}).items()},
        per_layer=tuple(data.get("per_layer", ())),
        models=tuple(data.get("models", ())),
        upcycled=_upcycling(data["upcycled"]) if "upcycled" in data else None,
        deeper=deeper,
        counted=frozenset(counted),
    )
    _check(family)
    return family


def _residual(spec: Any, where: str) -> Residual:
    _keys(spec, where, {"padding": str}, {"eps": str, "shared": str, "post_norms": list, "when": str})
    return Residual(**{**spec, "post_norms": tuple(spec.get("post_norms", ()))})


def _pattern(spec: Any, where: str) -> Pattern:
    _keys(spec, where, {"into": str, "letters": dict}, {})
    _keys(spec["letters"], f"{where}.letters", {}, dict.fromkeys(spec["letters"], str))
    return Pattern(**spec)


def _upcycling(table: dict[str, Any]) -> Upcycling:
    _keys(table, "upcycled", {"architecture": str, "write": dict, "router": str, "tensors": dict, "dense": dict}, {})
    for part in ("write", "tensors"):
        _keys(table[part], f"upcycled.{part}", {}, dict.fromkeys(table[part], str))
    dense = {}
    for model_type, spec in table["dense"].items():
        _keys(spec, f"upcycled.dense.{model_type}", {}, {"leave": list, "refuse": dict})
        _keys(spec.get("refuse", {}), f"upcycled.dense.{model_type}.refuse", {},
              dict.fromkeys(spec.get("refuse", {}), str))  # fmt: skip
        dense[model_type] = Dense(tuple(spec.get("leave", ())), spec.get("refuse", {}))
    return Upcycling(**{**table, "dense": dense})


_KINDS = {str: "a string", list: "a list of strings", dict: "a table", int: "a whole number"}


def _keys(table: Any, where: str, required: Mapping[str, type], optional: Mapping[str, type]) -> None:
    """Raise unless a table has all required keys, only known ones, and values of the right kinds."""
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
                expected=_KINDS[known[key]],
            )


def _entry(spec: Any, where: str, lead: str, *others: str) -> dict[str, str]:
    """A string, or a table that has that string under `lead`, as a table."""
    entry = {lead: spec} if isinstance(spec, str) else spec
    _keys(entry, where, {lead: str}, dict.fromkeys(others, str))
    return dict(entry)


def _check(family: Family) -> None:
    """Raise unless the parts of a file fit together and every expression parses."""
    axes, patterns = set(family.axes), {line.pattern for line in family.lines}
    if missing := sorted({"hidden", "ffn", "head_dim"} - axes):
        raise FamilyError("a family needs these axes", field="axes", expected=", ".join(missing))
    if "heads" not in axes and not {"kv_heads", "group"} <= axes:
        raise FamilyError("a family needs these axes", field="axes", expected="heads, or kv_heads and group")
    for key, axis in family.axes.items():
        lead = axis.grows_with or axis.alias
        if lead and (lead not in axes or (axis.grows_with and axis.alias)):
            raise FamilyError(
                "an axis grows with, or is an alias of, one that the file does not define",
                field=f"axes.{key}",
                found=lead,
                expected="one of " + ", ".join(sorted(axes)),
            )
    if "experts" not in axes and (numbered := sorted(pattern for pattern in patterns if "{e}" in pattern)):
        raise FamilyError(
            "a tensor for each expert needs the axis that counts them",
            field="axes",
            tensor=numbered[0],
            expected="experts",
        )
    for field, named in (
        ("residual", set(family.residual)),
        ("multiplied", {spec.axis for spec in family.multiplied.values()}),
    ):
        if missing := sorted(named - axes):
            raise FamilyError(
                "the file does not define this axis", field=field, found=", ".join(missing),
                expected="one of " + ", ".join(sorted(axes)),
            )  # fmt: skip
    norms = {line.pattern for line in family.lines if line.layout.norm}
    for stream, spec in family.residual.items():
        if unlisted := sorted(set(spec.post_norms) - norms):
            raise FamilyError("post_norms names tensors that [tensors] does not list as norms",
                              field=f"residual.{stream}", tensor=", ".join(unlisted))  # fmt: skip
        if spec.shared is not None and spec.eps is None:
            raise FamilyError("shared says when other norms have the same eps, but the file gives no eps",
                              field=f"residual.{stream}", expected="eps, or neither")  # fmt: skip
    means = {axis for axis, spec in family.residual.items() if spec.padding == "mean"}
    for line in family.lines:
        if len(line.layout.dims) > 2 and line.layout.reads is not None and means & line.layout.axes:
            raise FamilyError("several matrices in one tensor cannot have padding channels that hold a mean",
                              field="residual", tensor=line.pattern, expected='padding = "zero"')  # fmt: skip
    if family.tie:
        if unlisted := sorted({family.tie.head, family.tie.embedding, *family.tie.fold} - patterns):
            raise FamilyError(
                "[tie] names tensors that [tensors] does not list", field="tie", tensor=", ".join(unlisted)
            )
        if next(line for line in family.lines if line.pattern == family.tie.head).layout.reads is None:
            raise FamilyError("the head reads hidden: its line needs an arrow", field="tie", tensor=family.tie.head)
    if family.upcycled and (unknown := sorted({family.upcycled.router, *family.upcycled.tensors} - patterns)):
        raise FamilyError(
            "[upcycled] names tensors that [tensors] does not list", field="upcycled", tensor=", ".join(unknown)
        )
    for where, text in _expressions(family):
        try:
            evaluate(text, dict.fromkeys(names(text), 1))
        except FamilyError as error:
            raise FamilyError(error.problem, field=where, found=error.details.get("found")) from None
        except CheckpointError:
            pass  # it parses; that it has no value for these numbers does not matter
        layered = where.startswith("deeper.") or (where.startswith("tensors.") and "{i}" in where)
        if "i" in names(text) and not layered:
            raise FamilyError(
                "an expression reads a layer's number where there is no layer",
                field=where,
                found=text,
                expected="i only in [deeper], and in the `when` of tensors with {i}",
            )
        if where.startswith("write.") and (missing := sorted(set(names(text)) - axes)):
            raise FamilyError(
                "a config field is written from an axis that the file does not define",
                field=where,
                found=", ".join(missing),
                expected="one of " + ", ".join(sorted(axes)),
            )


def _expressions(family: Family) -> Iterator[tuple[str, str]]:
    """(field, text) of every expression in a file."""
    yield "layers", family.layers
    if family.extra_layers is not None:
        yield "ignore.layers", family.extra_layers
    for key, axis in family.axes.items():
        yield from ((f"axes.{key}", text) for text in (axis.size, axis.when) if text is not None)
    for line in family.lines:
        yield from ((f"tensors.{line.pattern}", text) for text in (line.when,) if text is not None)
    yield from ((f"write.{field}", text) for field, text in family.write.items())
    yield from (("whole", text) for pair in family.whole.items() for text in pair)
    yield from (("refuse", text) for text in family.refuse)
    for spec in family.residual.values():
        yield from (("residual", text) for text in (spec.when, spec.shared) if text is not None)
    yield from (("multiplied", spec.when) for spec in family.multiplied.values() if spec.when is not None)
    yield from ((f"deeper.{field}", text) for field, text in family.deeper.items())
    if family.tie:
        yield "tie.when", family.tie.when
    if family.upcycled:
        yield from ((f"upcycled.write.{field}", text) for field, text in family.upcycled.write.items())
        yield from (("upcycled.refuse", text) for dense in family.upcycled.dense.values() for text in dense.refuse)
