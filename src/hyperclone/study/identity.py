"""What the sources, tuning runs and runs of one study are on this machine: their keys, options and directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperclone.conversion import receipt
from hyperclone.io import hub
from hyperclone.planning.growth import Growth
from hyperclone.study import paths, run_keys, tables
from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.records import RunRecord
from hyperclone.training.known_matrices import matrices_known
from hyperclone.training.optimizer_names import usual_optimizer


class Identity:
    """Keys of one study, taken from the files that it names; see run_keys.py.

    Every method raises HypercloneError or OSError if a text or a model is not on this machine.
    """

    def __init__(self, study: Study, output: Path) -> None:
        """The study, and its directory."""
        self._study, self._output = study, output

    def source(self, source: SourceModel) -> str:
        """The key of a source's recipe, or of its files if it is not trained by a study."""
        key = run_keys.model(hub.resolve(source.model))
        if source.train is None:
            return key
        settings = run_keys.training(self.source_options(source))
        if settings["optimizer"] == "adamw":  # what keys from before there was another default mean
            del settings["optimizer"]
        return run_keys.of("source", key, settings)

    def source_options(self, source: SourceModel) -> dict[str, Any]:
        """Options of a source's own training. The optimizer is always named."""
        assert source.train is not None
        known = matrices_known(hub.resolve(source.model))
        usual = usual_optimizer(matrices_known=known, first_copy_moments=False, lr_rule=source.train.get("lr_rule"))
        return {"optimizer": usual, **source.train}

    def source_directory(self, source: SourceModel) -> Path:
        """Where a trained source lies: in the directory of the study that trains it."""
        home = self._output if source.study is None else paths.runs_of(source.study)
        return paths.find(home / "sources", source.name, self.source(source))

    def model(self, arm: Arm, seed: int) -> str:
        """The key of what an arm starts from; nothing is made for it."""
        if arm.model is not None:
            return run_keys.model(hub.resolve(arm.model))
        assert arm.source is not None
        key = self.source(arm.source)
        return run_keys.clone(key, growth(arm, seed), arm.moments) if arm.growth else key

    def options(self, arm: Arm) -> dict[str, Any]:
        """Options of an arm's training. The optimizer is always named, so that keys and logs say which one it was."""
        if arm.kind in ("source", "model"):
            directory = hub.resolve(arm.source.model if arm.source else str(arm.model))
            grown_by = receipt.read(directory)
            first_copy = grown_by is not None and grown_by.first_copy_moments
            known = grown_by is not None or matrices_known(directory)
        else:
            known, first_copy = True, arm.moments == "first-copy"  # what can be grown is known
        usual = usual_optimizer(matrices_known=known, first_copy_moments=first_copy, lr_rule=arm.train.get("lr_rule"))
        return {"optimizer": usual, **arm.train, **({} if arm.grow_at is None else {"grow_at": arm.grow_at})}

    def run_options(self, arm: Arm, lr: float | None) -> dict[str, Any]:
        """Options of a run; `lr` is the rate that was chosen for its arm, None if none had to be."""
        return {**self.options(arm), **({} if lr is None else {"lr": lr})}

    def run(self, arm: Arm, seed: int, lr: float | None) -> str:
        """The key of a run."""
        settings = run_keys.training(self.run_options(arm, lr))
        return run_keys.of("run", self.model(arm, seed), arm.kind == "random", settings, seed)

    def tuning_options(self, arm: Arm, lr: float) -> dict[str, Any]:
        """Options of a tuning run: on the short horizon and its own text, for a last loss only."""
        assert arm.tuning is not None
        options = {**self.options(arm), **arm.tuning.train, "lr": lr, "eval_every": 10**9, "keep": 1}
        return {name: value for name, value in options.items() if name not in ("eval_early", "tasks", "anatomy")}

    def tuning_run(self, arm: Arm, lr: float) -> str:
        """The key of a tuning run."""
        assert arm.tuning is not None
        seed, settings = arm.tuning.seed, run_keys.training(self.tuning_options(arm, lr))
        return run_keys.of("tune", self.model(arm, seed), arm.kind == "random", settings, seed)

    def recorded_run(self, arm: Arm, seed: int, record: RunRecord | None) -> str:
        """The key of a run, at the learning rate on record if its own has to be chosen first."""
        tuned = self._study.arms[arm.like] if arm.like is not None else arm
        if tuned.tuning is None:
            return self.run(arm, seed, None)
        return self.run(arm, seed, tried_rate(tuned, tuned.tuning.lr[0] if record is None else record.lr))


def growth(arm: Arm, seed: int) -> Growth:
    """How an arm's model is grown; of random weights only the sizes matter, so they have one whatever the seed."""
    return arm.grown(0 if arm.kind == "random" and arm.grow_at is None else seed)


def tried_rate(arm: Arm, lr: float) -> float:
    """The learning rate of an arm's grid that a table shows as `lr`; `lr` itself where the grid was extended."""
    assert arm.tuning is not None
    return next((rate for rate in arm.tuning.lr if tables.rounded(rate) == lr), lr)
