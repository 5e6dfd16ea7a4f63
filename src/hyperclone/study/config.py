"""A study as it is asked for: a TOML file, read and checked before anything runs.

name = "what is compared"
seeds = [1, 2, 3]                  # every arm with every seed; a seed gives the data order, the noise, random weights
control = "random"                 # the arm that speed-ups are measured against

[train]                            # options of `hyperclone train`, the same for all arms
data = ["train.jsonl.gz"]          # paths are relative to this file
eval_data = ["held_out.jsonl.gz"]
tokens = "6M"

[tune]                             # optional: choose each arm's learning rate
lr = [2e-3, 4e-3, 8e-3]            # goes on past an end that wins, up to `extend` times (4)
tokens = "500k"                    # on a short horizon,
seed = 0                           # a seed of its own,
eval_data = ["validation.jsonl.gz"]  # and a text that decides nothing else

[sources.small]                    # models that clones are grown from
model = "small"                    # a directory or Hub id; with `train`, trained from random weights first
train = { data = ["pretrain.jsonl.gz"], tokens = "20M", lr = 6e-3 }

[arms.random]
random = true                      # the clone's architecture, weights drawn anew
growth = { width = 2 }

[arms.continued]                   # the source itself, trained further

[arms.clone]
growth = { width = 2 }             # options of `hyperclone grow`
state = "grow"                     # also the optimizer's moments: grow, asymmetric or reset
train = { lr_rule = "scaled" }     # what differs from [train]
tune = { lr = [1e-3, 2e-3] }       # what differs from [tune]
like = "other"                     # take the learning rate that was chosen for another arm
label = "2x, the law"              # for figures and tables
group = "recipes"                  # arms of a group are drawn together

[arms.own]
model = "my-clone"                 # a model made elsewhere, trained as it is
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError, StudyError
from hyperclone.planning.growth import Growth
from hyperclone.training.config import Training, usual_optimizer

STATES = ("grow", "asymmetric", "reset")
_PATHS = ("data", "eval_data", "cache")
_OURS = ("model", "output", "seed", "from_scratch", "resume", "optimizer_state")  # a study sets these itself
_EXTEND = 4  # times that a grid of learning rates may go on past its end
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to grow. `train`: options of its own training from random weights; None if it is ready."""

    name: str
    model: str
    train: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How learning rates are chosen: rates to try, how often the grid may go on past an end that wins, and options that
    differ from the study's.
    """

    lr: tuple[float, ...]
    seed: int
    extend: int
    train: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name, label, group: for people.
        kind: "random", "source", "clone" or "model" (made elsewhere).
        source: what it starts from; None for a model made elsewhere.
        model: its directory, if it was made elsewhere.
        growth: options of Growth; empty for the source itself.
        state: how the optimizer's moments are grown; None for a fresh optimizer.
        train: all options of its training, shared ones included.
        like: whose tuned learning rate it takes.
        tuning: how its own learning rate is to be chosen; None if it is given, or another arm's.
    """

    name: str
    label: str
    group: str | None
    kind: str
    source: Source | None
    model: str | None
    growth: Mapping[str, Any]
    state: str | None
    train: Mapping[str, Any]
    like: str | None
    tuning: Tuning | None

    def grown(self, seed: int) -> Growth:
        """The growth with a seed, if it names none."""
        return Growth(**{"seed": seed, **self.growth})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A request.

    Attributes:
        file: where it was read from.
        name, note: for people.
        seeds: every arm is run with each.
        control: name of the arm that speed-ups are measured against; None if there is none.
        train: options of `hyperclone train` that all arms share.
        tuning: None if learning rates are given.
        sources, arms: by name, in the file's order.
        headline: the arm that a report opens with; None for the first clone.
        anatomy: whether grown arms are examined before and after (the first seed's).
    """

    file: Path
    name: str
    note: str
    seeds: tuple[int, ...]
    control: str | None
    train: Mapping[str, Any]
    tuning: Tuning | None
    sources: Mapping[str, Source]
    arms: Mapping[str, Arm]
    anatomy: bool = True
    headline: str | None = None


def read(file: Path) -> Study:
    """A study from its file.

    Raises:
        StudyError: it cannot be read, or asks for what there is not.
    """
    try:
        told = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise StudyError("the study cannot be read", file=file, found=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError("this is not TOML", file=file, found=error) from None
    return _Reader(file).study(told)


class _Reader:
    """Checks one file; every complaint names it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def wrong(self, problem: str, field: str, **details: Any) -> StudyError:
        return StudyError(problem, file=self._file, field=field, **details)

    def study(self, told: dict[str, Any]) -> Study:
        self._keys(
            told, "", ("name", "note", "seeds", "control", "headline", "train", "tune", "sources", "arms", "anatomy")
        )
        seeds = told.get("seeds", [1, 2, 3])
        if not isinstance(seeds, list) or not seeds or not all(_whole(seed) for seed in seeds) or _twice(seeds):
            raise self.wrong("not a list of different seeds", "seeds", found=seeds, expected="[1, 2, 3]")
        if not isinstance(anatomy := told.get("anatomy", True), bool):
            raise self.wrong("neither true nor false", "anatomy", found=anatomy)
        train = self._options(told.get("train"), "train")
        for needed in ("data", "tokens"):
            if needed not in train:
                raise self.wrong("all arms must be trained on the same", f"train.{needed}", cure=f"give {needed}")
        sources = {name: self._source(name, one, train) for name, one in self._tables(told, "sources")}
        shared = told.get("tune")
        tuning = None if shared is None else self._tuning(shared, "tune", train, seeds)
        arms = {name: self._arm(name, one, train, sources, shared, seeds) for name, one in self._tables(told, "arms")}
        if not arms:
            raise self.wrong("a study without arms", "arms", expected="[arms.NAME], one or more")
        for arm in arms.values():
            if arm.like is not None and (arm.like not in arms or arms[arm.like].tuning is None):
                tuned = ", ".join(name for name, other in arms.items() if other.tuning) or "no arm is tuned"
                raise self.wrong("no learning rate is chosen for this arm", f"arms.{arm.name}.like",
                                 found=arm.like, expected=tuned)  # fmt: skip
        control = told.get("control", next((arm.name for arm in arms.values() if arm.kind == "random"), None))
        if control is not None and control not in arms:
            raise self.wrong("no such arm", "control", found=control, expected=", ".join(arms))
        if (headline := told.get("headline")) is not None and headline not in arms:
            raise self.wrong("no such arm", "headline", found=headline, expected=", ".join(arms))
        return Study(
            file=self._file, name=str(told.get("name", self._file.stem)), note=str(told.get("note", "")).strip(),
            seeds=tuple(seeds), control=control, train=train, tuning=tuning, sources=sources, arms=arms,
            anatomy=anatomy, headline=headline,
        )  # fmt: skip

    def _tables(self, told: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
        found = told.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong("not a table of tables", key, expected=f"[{key}.NAME]")
        for name, one in found.items():
            if not isinstance(one, dict):
                raise self.wrong("not a table", f"{key}.{name}", found=one, expected=f"[{key}.{name}]")
            if not _NAME.fullmatch(name):
                raise self.wrong("this name cannot be that of a directory", f"{key}.{name}",
                                 expected="letters, digits, and . _ + - in between")  # fmt: skip
        return list(found.items())

    def _keys(self, table: Mapping[str, Any], place: str, known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                raise self.wrong("unknown field", f"{place}.{key}".lstrip("."), expected=", ".join(known))

    def _options(self, told: Any, place: str) -> dict[str, Any]:
        """Options of `hyperclone train`, checked one by one; paths made absolute."""
        if told is None:
            return {}
        if not isinstance(told, dict):
            raise self.wrong("not a table of options", place, found=told)
        known = [one.name for one in fields(Training) if one.name not in _OURS]
        self._keys(told, place, known)
        options = {key: self._path(value) if key in _PATHS else value for key, value in told.items()}
        try:
            Training(**{"model": "-", "data": ("-",), "output": "-", **options})
        except HypercloneError as error:
            at = error.details.get("field")
            raise self.wrong(error.problem, f"{place}.{at}" if at else place, found=error.details.get("found"),
                             expected=error.details.get("expected"),
                             cure=error.details.get("cure")) from None  # fmt: skip
        except TypeError as error:
            raise self.wrong("a value of the wrong kind", place, found=error) from None
        return options

    def _path(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self._path(one) for one in value)
        if not isinstance(value, str):
            return value
        spelled = os.path.expandvars(os.path.expanduser(value))
        near = self._file.parent / spelled
        local = near.exists() or any(letter in spelled for letter in "*?[") or spelled.startswith((".", "/"))
        return os.path.abspath(near) if local else spelled  # what is not there may be a Hub dataset

    def _source(self, name: str, told: dict[str, Any], train: Mapping[str, Any]) -> Source:
        place = f"sources.{name}"
        self._keys(told, place, ("model", "train"))
        if not isinstance(model := told.get("model"), str):
            raise self.wrong("a source is a model directory or Hub id", f"{place}.model", found=model)
        own = self._options(told["train"], f"{place}.train") if "train" in told else None
        return Source(name=name, model=self._path(model), train=None if own is None else _merged(train, own, None))

    def _tuning(self, told: Any, place: str, train: Mapping[str, Any], seeds: Sequence[int]) -> Tuning:
        if not isinstance(told, dict):
            raise self.wrong("not a table", place, found=told, expected="[tune]")
        rates, seed = told.get("lr"), told.get("seed", 0)
        if not isinstance(rates, list) or len(rates) < 2 or not all(_positive(rate) for rate in rates) or _twice(rates):
            raise self.wrong(
                "learning rates to try", f"{place}.lr", found=rates, expected="two or more, as [1e-3, 2e-3]"
            )
        if not _whole(seed) or seed in seeds:
            raise self.wrong("tuning wants a seed of its own", f"{place}.seed", found=seed,
                             expected=f"none of {', '.join(map(str, seeds))}")  # fmt: skip
        if not _whole(extend := told.get("extend", _EXTEND)):
            raise self.wrong("how often the grid may go on past its end", f"{place}.extend", found=extend,
                             expected="a whole number, 0 for never")  # fmt: skip
        own = self._options({key: value for key, value in told.items() if key not in ("lr", "seed", "extend")}, place)
        if own.get("eval_data", train.get("eval_data")) == train.get("eval_data"):
            raise self.wrong("the final held-out text must not choose the learning rate", f"{place}.eval_data",
                             cure="give another text")  # fmt: skip
        return Tuning(lr=tuple(sorted(float(rate) for rate in rates)), seed=seed, extend=extend, train=own)

    def _arm(
        self, name: str, told: dict[str, Any], train: Mapping[str, Any], sources: Mapping[str, Source],
        shared: Any, seeds: Sequence[int],
    ) -> Arm:  # fmt: skip
        place = f"arms.{name}"
        self._keys(
            told, place, ("label", "group", "random", "source", "model", "growth", "state", "train", "tune", "like")
        )
        own, growth, model = (
            self._options(told.get("train"), f"{place}.train"),
            told.get("growth", {}),
            told.get("model"),
        )
        if not isinstance(growth, dict):
            raise self.wrong("not a table of options", f"{place}.growth", found=growth)
        self._keys(growth, f"{place}.growth", [one.name for one in fields(Growth)])
        random = told.get("random", False)
        if not isinstance(random, bool):
            raise self.wrong("neither true nor false", f"{place}.random", found=random)
        if model is not None and (growth or random or "source" in told or "state" in told):
            raise self.wrong("a model made elsewhere is trained as it is", place, found=", ".join(told),
                             expected="model without source, growth, random or state")  # fmt: skip
        source = None if model is not None else self._source_of(name, told, sources)
        kind = "model" if model is not None else "random" if random else "clone" if growth else "source"
        if growth:
            try:
                Growth(**growth)
            except HypercloneError as error:
                at = error.details.get("field")
                raise self.wrong(error.problem, f"{place}.growth" + (f".{at}" if at else ""),
                                 found=error.details.get("found"), expected=error.details.get("expected"),
                                 cure=error.details.get("cure")) from None  # fmt: skip
        state = told.get("state")
        if state is not None and (state not in STATES or kind != "clone"):
            raise self.wrong("no such state for this arm", f"{place}.state", found=state,
                             expected=", ".join(STATES) + ", of a clone")  # fmt: skip
        like, tuning = told.get("like"), None
        if shared is not None and like is None and "lr" not in own:
            if not isinstance(differing := told.get("tune", {}), dict):
                raise self.wrong("not a table", f"{place}.tune", found=differing, expected="what differs from [tune]")
            tuning = self._tuning({**shared, **differing}, f"{place}.tune" if differing else "tune", train, seeds)
        elif "tune" in told:
            raise self.wrong("this arm's learning rate is not to be chosen", f"{place}.tune",
                             cure="leave lr and like out, and give [tune]")  # fmt: skip
        merged = self._options(_merged(train, own, kind, state), f"{place}.train")
        if state == "asymmetric" and merged.get("optimizer") == "rotated":
            raise self.wrong("asymmetric moments part copies under AdamW, not under the rotated optimizer",
                             f"{place}.state", found=state, expected="grow, reset")  # fmt: skip
        return Arm(
            name=name, label=str(told.get("label", name)), group=told.get("group"), kind=kind, source=source,
            model=None if model is None else self._path(model), growth=growth, state=state,
            train=merged,
            like=like, tuning=tuning,
        )  # fmt: skip

    def _source_of(self, name: str, told: Mapping[str, Any], sources: Mapping[str, Source]) -> Source:
        wanted = told.get("source", next(iter(sources)) if len(sources) == 1 else None)
        if wanted not in sources:
            raise self.wrong("which source does this arm start from?", f"arms.{name}.source", found=wanted,
                             expected=", ".join(sources) or "a table [sources.NAME]")  # fmt: skip
        return sources[wanted]


def _merged(
    shared: Mapping[str, Any], own: Mapping[str, Any], kind: str | None, state: str | None = None
) -> dict[str, Any]:
    """All options of a training. Shared ones that speak of copies are for arms that can compare them."""
    merged = {**shared, **own}
    if kind in ("clone", "model"):
        usual = usual_optimizer(grown=True, first_copy_moments=state == "asymmetric", lr_rule=merged.get("lr_rule"))
        strange = {"difference_lr"} if (merged.get("optimizer") or usual) == "adamw" else set()
    else:
        strange = {"difference_lr", "optimizer"}
    return {name: value for name, value in merged.items() if name in own or name not in strange}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _twice(values: Sequence[Any]) -> bool:
    return len(set(values)) < len(values)
