"""Reading a study's TOML file (config.py shows one): every complaint names the file and the field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError, StudyError
from hyperclone.io.option_files import OptionFile
from hyperclone.planning.growth import Growth
from hyperclone.study.config import MOMENTS, Arm, SourceModel, Study, Tuning
from hyperclone.training.config import Training
from hyperclone.training.optimizer_names import OF_COPIES, usual_optimizer
from hyperclone.training.run_file import PATHS, PLACEHOLDERS
from hyperclone.units import is_finite

_OURS = (
    "model",
    "output",
    "seed",
    "from_scratch",
    "resume",
    "grown_moments",
    "branch_from",
    "push_to_hub",
    "grow_at",
    "grow_width",
    "grow",
)  # a study sets these itself
_EXTEND = 4  # times that a grid of learning rates may be extended
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def read(file: Path) -> Study:
    """A study from its file.

    Raises:
        StudyError: it cannot be read, or does not describe a study.
    """
    reader = _Reader(file)
    return reader.study(reader.toml())


class _Reader(OptionFile):
    """Checks one file; every complaint names it."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, error=StudyError, what="study")

    def study(self, table: dict[str, Any]) -> Study:
        self.check_keys(
            table, "", ("name", "note", "seeds", "control", "headline", "train", "tune", "sources", "arms", "anatomy")
        )
        seeds = table.get("seeds", [1, 2, 3])
        if not isinstance(seeds, list) or not seeds or not all(_whole(seed) for seed in seeds) or _twice(seeds):
            raise self.wrong("not a list of different seeds", "seeds", found=seeds, expected="[1, 2, 3]")
        if not isinstance(anatomy := table.get("anatomy", True), bool):
            raise self.wrong("neither true nor false", "anatomy", found=anatomy)
        train = self._options(table.get("train"), "train")
        for needed in ("data", "tokens"):
            if needed not in train:
                raise self.wrong("all arms must be trained on the same", f"train.{needed}", cure=f"give {needed}")
        sources = {name: self._source(name, table, train) for name, table in self._tables(table, "sources")}
        before: list[str] = []  # so that no source waits for itself
        for source in sources.values():
            if source.branch_of is not None and (source.branch_of not in before or source.train is None):
                raise self.wrong("a source begins from one before it, and both are trained by this study",
                                 f"sources.{source.name}.branch_of", found=source.branch_of,
                                 expected=", ".join(before))  # fmt: skip
            before += [source.name] if source.train is not None else []
        shared = table.get("tune")
        tuning = None if shared is None else self._tuning(shared, "tune", train, seeds)
        arms: dict[str, Arm] = {}
        for name, one in self._tables(table, "arms"):
            arm = self._arm(name, one, train, sources, shared, seeds)
            for each in (arm, *self._branches(arm, one.get("branches", []))):
                if each.name in arms:
                    raise self.wrong("two arms of one name", f"arms.{name}.branches", found=each.name)
                arms[each.name] = each
        if not arms:
            raise self.wrong("a study without arms", "arms", expected="[arms.NAME], one or more")
        for arm in arms.values():
            if arm.like is not None and (arm.like not in arms or arms[arm.like].tuning is None):
                tuned = ", ".join(name for name, other in arms.items() if other.tuning) or "no arm is tuned"
                raise self.wrong("no learning rate is chosen for this arm", f"arms.{arm.name}.like",
                                 found=arm.like, expected=tuned)  # fmt: skip
        control = self._text(table, "control")
        if control is None:
            control = next((a.name for a in arms.values() if a.kind == "random" and a.grow_at is None), None)
        if control is not None and control not in arms:
            raise self.wrong("no such arm", "control", found=control, expected=", ".join(arms))
        if (headline := self._text(table, "headline")) is not None and headline not in arms:
            raise self.wrong("no such arm", "headline", found=headline, expected=", ".join(arms))
        return Study(
            file=self._file, name=str(table.get("name", self._file.stem)), note=str(table.get("note", "")).strip(),
            seeds=tuple(seeds), control=control, train=train, tuning=tuning, sources=sources, arms=arms,
            anatomy=anatomy, headline=headline,
        )  # fmt: skip

    def _tables(self, table: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
        found = table.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong("not a table of tables", key, expected=f"[{key}.NAME]")
        for name, one in found.items():
            if not isinstance(one, dict):
                raise self.wrong("not a table", f"{key}.{name}", found=one, expected=f"[{key}.{name}]")
            if not _NAME.fullmatch(name):
                raise self.wrong("this name cannot be that of a directory", f"{key}.{name}",
                                 expected="letters, digits, and . _ + - in between")  # fmt: skip
        return list(found.items())

    def _text(self, table: Mapping[str, Any], key: str, path: str = "") -> str | None:
        value = table.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong("not a text", f"{path}.{key}".lstrip("."), found=value, expected="a name in quotes")
        return value

    def _group(self, value: Any, path: str) -> str | list[str] | None:
        if (
            value is None
            or isinstance(value, str)
            or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        ):
            return value
        raise self.wrong("not a group", path, found=value, expected="a name in quotes, or a list of them")

    def _options(self, table: Any, path: str) -> dict[str, Any]:
        """Options of `hyperclone train`, checked one by one; paths made absolute."""
        if table is None:
            return {}
        known = [one.name for one in fields(Training) if one.name not in _OURS]
        return self.options(Training, table, path, known=known, placeholders=PLACEHOLDERS, paths=PATHS)

    def source(self, name: str) -> SourceModel:
        """One source of the file, which must be its own, whatever else is in it."""
        table = self.toml()
        tables = dict(self._tables(table, "sources"))
        if name not in tables:
            raise self.wrong("no such source", f"sources.{name}", expected=", ".join(tables) or "[sources.NAME]")
        if "study" in tables[name]:  # which could go in a circle
            raise self.wrong("this study does not train this source itself", f"sources.{name}.study",
                             found=tables[name]["study"], cure="name the study that does, or give the model itself",
                             )  # fmt: skip
        return self._source(name, tables[name], self._options(table.get("train"), "train"))

    def _source(self, name: str, table: dict[str, Any], train: Mapping[str, Any]) -> SourceModel:
        path = f"sources.{name}"
        if "study" in table:
            return self._source_of_another_study(name, table)
        self.check_keys(table, path, ("model", "train", "remake", "study", "branch_of"))
        if not isinstance(model := table.get("model"), str):
            raise self.wrong("a source is a model directory or Hub id", f"{path}.model", found=model)
        remake = table.get("remake", f"hyperclone study {self._file} --source {name}")
        if not isinstance(remake, str):
            raise self.wrong("not a command", f"{path}.remake", found=remake)
        options = self._options(table["train"], f"{path}.train") if "train" in table else None
        return SourceModel(
            name=name, model=self.path(model, f"{path}.model"), remake=remake,
            train=None if options is None else _merged(train, options, None),
            branch_of=self._text(table, "branch_of", path),
        )  # fmt: skip

    def _source_of_another_study(self, name: str, table: dict[str, Any]) -> SourceModel:
        self.check_keys(table, f"sources.{name}", ("study",))
        if not isinstance(table["study"], str):
            raise self.wrong("not a study file", f"sources.{name}.study", found=table["study"])
        file = self._file.parent / table["study"]
        source = _Reader(file).source(name)
        if source.train is None:
            raise self.wrong("that study does not train this source", f"sources.{name}.study", found=file,
                             cure="name the study that does, or give the model itself")  # fmt: skip
        return replace(source, study=file)

    def _tuning(self, table: Any, path: str, train: Mapping[str, Any], seeds: Sequence[int]) -> Tuning:
        if not isinstance(table, dict):
            raise self.wrong("not a table", path, found=table, expected="[tune]")
        rates, seed = table.get("lr"), table.get("seed", 0)
        if not isinstance(rates, list) or len(rates) < 2 or not all(_positive(rate) for rate in rates) or _twice(rates):
            raise self.wrong(
                "learning rates to try", f"{path}.lr", found=rates, expected="two or more, as [1e-3, 2e-3]"
            )
        if not _whole(seed) or seed in seeds:
            raise self.wrong("tuning needs a separate seed", f"{path}.seed", found=seed,
                             expected=f"none of {', '.join(map(str, seeds))}")  # fmt: skip
        if not _whole(extend := table.get("extend", _EXTEND)):
            raise self.wrong("how often the grid may be extended", f"{path}.extend", found=extend,
                             expected="a whole number, 0 for never")  # fmt: skip
        options = self._options(
            {key: value for key, value in table.items() if key not in ("lr", "seed", "extend")}, path
        )
        if options.get("eval_data", train.get("eval_data")) == train.get("eval_data"):
            raise self.wrong("the final held-out text must not choose the learning rate", f"{path}.eval_data",
                             cure="give another text")  # fmt: skip
        return Tuning(lr=tuple(sorted(float(rate) for rate in rates)), seed=seed, extend=extend, train=options)

    def _arm(
        self, name: str, table: dict[str, Any], train: Mapping[str, Any], sources: Mapping[str, SourceModel],
        shared: Any, seeds: Sequence[int],
    ) -> Arm:  # fmt: skip
        path = f"arms.{name}"
        self.check_keys(
            table,
            path,
            (
                "label",
                "group",
                "random",
                "source",
                "model",
                "growth",
                "grow_at",
                "moments",
                "train",
                "tune",
                "like",
                "branches",
            ),
        )
        different, growth, model = (
            self._options(table.get("train"), f"{path}.train"),
            table.get("growth", {}),
            self._text(table, "model", path),
        )
        if not isinstance(growth, dict):
            raise self.wrong("not a table of options", f"{path}.growth", found=growth)
        self.check_keys(growth, f"{path}.growth", [one.name for one in fields(Growth)])
        random = table.get("random", False)
        if not isinstance(random, bool):
            raise self.wrong("neither true nor false", f"{path}.random", found=random)
        if model is not None and (growth or random or "source" in table or "moments" in table):
            raise self.wrong("a model made elsewhere is trained as it is", path, found=", ".join(table),
                             expected="model without source, growth, random or moments")  # fmt: skip
        source = None if model is not None else self._source_of(name, table, sources)
        kind = "model" if model is not None else "random" if random else "clone" if growth else "source"
        if growth:
            try:
                Growth(**growth)
            except HypercloneError as error:
                raise self.wrong_option(error, f"{path}.growth") from None
        grow_at = self._grow_at(table, kind, path)
        moments = self._text(table, "moments", path)
        if moments is not None and (moments not in MOMENTS or kind != "clone"):
            raise self.wrong("no such moments for this arm", f"{path}.moments", found=moments,
                             expected=", ".join(MOMENTS) + ", of a clone")  # fmt: skip
        like, tuning = self._text(table, "like", path), None
        if shared is not None and like is None and "lr" not in different:
            if not isinstance(differing := table.get("tune", {}), dict):
                raise self.wrong("not a table", f"{path}.tune", found=differing, expected="what differs from [tune]")
            tuning = self._tuning({**shared, **differing}, f"{path}.tune" if differing else "tune", train, seeds)
        elif "tune" in table:
            raise self.wrong("this arm's learning rate is not to be chosen", f"{path}.tune",
                             cure="leave lr and like out, and give [tune]")  # fmt: skip
        merged = self._options(
            _merged(train, different, "clone" if grow_at is not None else kind, moments), f"{path}.train"
        )
        if moments == "first-copy" and merged.get("optimizer") in OF_COPIES:
            raise self.wrong("moments of the first copy only make copies diverge under AdamW, not under this optimizer",
                             f"{path}.moments", found=moments, expected="copy, reset")  # fmt: skip
        return Arm(
            name=name, label=str(table.get("label", name)), kind=kind, source=source,
            group=self._group(table.get("group"), f"{path}.group"),
            model=None if model is None else self.path(model, f"{path}.model"), growth=growth, moments=moments,
            train=merged, like=like, tuning=tuning, grow_at=grow_at,
        )  # fmt: skip

    def _grow_at(self, table: Mapping[str, Any], kind: str, path: str) -> float | None:
        """The share of its tokens after which an arm is grown; None for an arm that is not grown on the way."""
        if (share := table.get("grow_at")) is None:
            return None
        if not is_finite(share) or not 0 < share < 1:
            raise self.wrong("no share of the tokens", f"{path}.grow_at", found=share,
                             expected="a number between 0 and 1")  # fmt: skip
        if kind != "random" or not table.get("growth") or "branches" in table:
            raise self.wrong("what is grown on the way starts from random weights, and has no branches",
                             f"{path}.grow_at", found=kind, expected="random = true and growth = { width = 2 }",
                             cure="give these, and no branches; or leave grow_at out")  # fmt: skip
        return float(share)

    def _branches(self, arm: Arm, lengths: Any) -> Iterator[Arm]:
        """The arm with other numbers of tokens, as arms named after both."""
        path = f"arms.{arm.name}.branches"
        if not isinstance(lengths, list) or not all(isinstance(length, str | int) for length in lengths):
            raise self.wrong("not a list of numbers of tokens", path, found=lengths, expected='["2M", "4M"]')
        if lengths and arm.train.get("schedule") not in ("wsd", "constant"):
            raise self.wrong("branches begin from the stable phase of a schedule, which this one has not", path,
                             found=arm.train.get("schedule", "cosine"), expected='schedule = "wsd"')  # fmt: skip
        if lengths and not (isinstance(warmup := arm.train.get("warmup", 0.01), int) or warmup >= 1):
            raise self.wrong("the warm-up of branches must not depend on their length", f"arms.{arm.name}.train.warmup",
                             found=warmup, expected="a number of steps")  # fmt: skip
        for length in lengths:
            tokens = self._options({"tokens": length}, path)
            yield replace(
                arm, name=f"{arm.name}-{length}", label=f"{arm.label}, {length} tokens", group=None,
                train={**arm.train, **tokens}, like=arm.name if arm.tuning is not None else arm.like, tuning=None,
                branch_of=arm.name,
            )  # fmt: skip

    def _source_of(self, name: str, table: Mapping[str, Any], sources: Mapping[str, SourceModel]) -> SourceModel:
        wanted = self._text(table, "source", f"arms.{name}")
        if wanted is None and len(sources) == 1:
            wanted = next(iter(sources))
        if wanted is None or wanted not in sources:
            raise self.wrong("which source does this arm start from?", f"arms.{name}.source", found=wanted,
                             expected=", ".join(sources) or "a table [sources.NAME]")  # fmt: skip
        return sources[wanted]


def _merged(
    shared: Mapping[str, Any], different: Mapping[str, Any], kind: str | None, moments: str | None = None
) -> dict[str, Any]:
    """All options of a training. Shared ones about copies are for arms that have copies."""
    merged = {**shared, **different}
    if kind in ("clone", "model"):
        usual = usual_optimizer(
            matrices_known=True, first_copy_moments=moments == "first-copy", lr_rule=merged.get("lr_rule")
        )
        unused = set() if (merged.get("optimizer") or usual) in OF_COPIES else {"difference_lr", "source_lr"}
    else:
        unused = {"difference_lr", "source_lr"}
        if merged.get("optimizer") == "rotated" and "optimizer" not in different:
            merged["optimizer"] = "adamw"  # which it is where there are no copies
    return {name: value for name, value in merged.items() if name in different or name not in unused}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return is_finite(value) and value > 0


def _twice(values: Sequence[Any]) -> bool:
    return len(set(values)) < len(values)
