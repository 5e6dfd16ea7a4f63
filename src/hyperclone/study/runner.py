"""Running a study: sources, then each arm's learning rate, then every arm with every seed.

Each of these is a task of its own that waits for what it needs (a clone for its source, a run for its clone and its
learning rate) and for a free slot; a failure ends the tasks that need it and no other. What has finished is found by
its key in the records and not repeated; what was interrupted resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hyperclone.conversion import receipt
from hyperclone.errors import HypercloneError, StudyError
from hyperclone.io import hub
from hyperclone.io.files import to_json, write_text
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.study import collect, commands, paths, records, run_keys, tables
from hyperclone.study.commands import Diverged, Interrupted, Processes
from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.progress import Began, Progress, RateChosen, Run, RunEnded, SourceRemade, Watch
from hyperclone.study.records import RunRecord, SourceRecord, Trial
from hyperclone.training import checkpoints, metrics, resume
from hyperclone.training.config import usual_optimizer
from hyperclone.training.export import carry


class Runner:
    """Runs one study."""

    def __init__(
        self, study: Study, output: Path, processes: Processes, watch: Watch, changed: Callable[[], None]
    ) -> None:
        """Nothing runs yet.

        Args:
            study: the request.
            output: its directory.
            processes: runs the commands; if they are stopped already, only what has finished before is found.
            watch: told of what happens.
            changed: called whenever there are new results.

        Raises:
            StudyError: a table in the directory is corrupt or truncated.
        """
        runs = [Run(arm, seed) for seed in study.seeds for arm in study.arms.values()]
        self.progress = Progress(study, output, runs, records.load(output))
        self._study, self._output, self._processes = study, output, processes
        self._watch, self._changed = watch, changed
        self._once: dict[Any, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Everything, as far as possible; failures and interruptions are in `progress`."""
        self._stop_on_signals()
        needed = {arm.source.name for arm in self._study.arms.values() if arm.source and arm.kind != "random"}
        for source in self._study.sources.values():  # first in the queue
            if source.train is None or source.name in needed:
                self._begin(source)
        try:
            await asyncio.gather(*(self._run(run) for run in self.progress.runs))
        except BaseException:
            self._processes.stop()  # or they would outlive the study
            raise
        await asyncio.gather(*self._once.values(), return_exceptions=True)  # errors are with the runs that waited

    async def remake(self, source: SourceModel) -> SourceRecord:
        """Train a source, or train it again if its weights or its checkpoint were deleted; its record.

        Raises:
            StudyError: this study does not train it, or its training failed.
            Interrupted: the study is being stopped.
        """
        self._stop_on_signals()
        if source.train is None or source.study is not None:
            cure = f"run: {source.remake}" if source.study is not None else "give it `train`, or use it as it is"
            raise StudyError("this study does not train this source", file=self._study.file,
                             field=f"sources.{source.name}", cure=cure)  # fmt: skip
        key, directory = self._source_key(source), self._source_directory(source)
        if key not in self.progress.records.sources or not (_has_weights(directory) and checkpoints.every(directory)):
            await self._train_source(source, directory)
            self._changed()
        self.progress.sources[source.name] = key
        return self.progress.records.sources[key]

    def _stop_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._processes.stop)

    def _begin(self, source: SourceModel) -> None:
        """Train a source unless that is done: then its weights are needed only by a run that is still to begin."""
        if source.train is not None:
            with suppress(HypercloneError):  # that it cannot be found is for the task to say
                if self._recorded(source) is not None:
                    return
        self._task(("source", source.name), partial(self._source, source))

    def _task(self, key: Any, make: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        if key not in self._once:
            self._once[key] = asyncio.create_task(make())
        return self._once[key]

    async def _shared(self, key: Any, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What several tasks need, made once."""
        return await asyncio.shield(self._task(key, make))

    async def _run(self, run: Run) -> None:
        try:
            rate = await self._rate(run.arm)
            record = await self._trained(run, rate)
            run.record = replace(record, arm=run.arm.name, seed=run.seed)
            run.status = "finished"
        except Interrupted:
            run.status = "interrupted"
        except (HypercloneError, OSError) as error:
            run.status, run.error = "failed", str(error)
        self._watch(RunEnded(run))
        self._changed()

    def _source_key(self, source: SourceModel) -> str:
        key = run_keys.model(hub.resolve(source.model))
        return key if source.train is None else run_keys.of("source", key, run_keys.training(source.train))

    def _source_directory(self, source: SourceModel) -> Path:
        """Where a trained source lies: in the directory of the study that trains it."""
        home = self._output if source.study is None else paths.runs_of(source.study)
        return paths.find(home / "sources", source.name, self._source_key(source))

    def _recorded(self, source: SourceModel) -> SourceRecord | None:
        """What is known of a source that was trained before, here or in its own study."""
        key = self._source_key(source)
        known = self.progress.records.sources
        if source.study is not None and (record := records.sources(paths.runs_of(source.study)).get(key)) is not None:
            known[key] = record
        if key in known:
            self.progress.sources[source.name] = key
        return known.get(key)

    def _key(self, arm: Arm, seed: int) -> str:
        """The key of what an arm starts from; nothing is made for it."""
        if arm.model is not None:
            return run_keys.model(hub.resolve(arm.model))
        assert arm.source is not None
        key = self._source_key(arm.source)
        return run_keys.clone(key, self._growth(arm, seed), arm.moments) if arm.growth else key

    def _growth(self, arm: Arm, seed: int) -> Growth:
        return arm.grown(0 if arm.kind == "random" else seed)  # of a random arm, only the sizes matter

    def _options(self, arm: Arm) -> dict[str, Any]:
        """Options of an arm's training. The optimizer is always named, so that keys and logs say which one it was."""
        if arm.kind in ("source", "model"):
            directory = hub.resolve(arm.source.model if arm.source else str(arm.model))
            grown_by = receipt.read(directory)
            grown = grown_by is not None and grown_by.growth.wider
            first_copy = grown_by is not None and grown_by.first_copy_moments
        else:
            grown = arm.kind == "clone" and Growth(**arm.growth).wider
            first_copy = arm.moments == "first-copy"
        usual = usual_optimizer(grown=grown, first_copy_moments=first_copy, lr_rule=arm.train.get("lr_rule"))
        return {"optimizer": usual, **arm.train}

    async def _source(self, source: SourceModel) -> Path:
        """The directory of a source, trained if it has never been."""
        directory = hub.resolve(source.model)
        if source.train is None:
            key = self._source_key(source)
            self.progress.records.sources[key] = collect.source(directory, key=key, name=source.name)
            self.progress.sources[source.name] = key
        else:
            directory = self._source_directory(source)
            recorded = self._recorded(source) is not None
            if (recorded or source.study is not None) and not _has_weights(directory):
                raise self._deleted("the weights of this source are not kept here", source, directory)
            if not recorded:
                if source.study is not None:
                    raise self._deleted("this source has not been recorded by its study", source, directory)
                await self._train_source(source, directory)
        self._changed()
        return directory

    def _deleted(self, problem: str, source: SourceModel, directory: Path) -> StudyError:
        return StudyError(problem, file=self._study.file, field=f"sources.{source.name}", expected=directory,
                          cure=f"make them again: {source.remake}")  # fmt: skip

    async def _train_source(self, source: SourceModel, directory: Path) -> None:
        """Train a source, or train it again: then what is there stays there until there is more."""
        if self._processes.stopped:
            raise Interrupted
        assert source.train is not None
        key, before = self._source_key(source), self._recorded(source)
        again = before is not None and directory.is_dir() and not checkpoints.every(directory)
        target = directory.with_name(f"{directory.name}.again") if again else directory
        options = {"keep": 1, **source.train}
        began = Began(f"source {source.name}", target)
        await self._train(hub.resolve(source.model), target, options, 0, scratch=True, began=began)
        if again:
            shutil.rmtree(directory)
            target.replace(directory)
        record = collect.source(directory, key=key, name=source.name)
        self.progress.records.sources[key] = record
        self.progress.sources[source.name] = key
        if before is not None and before.loss is not None and record.loss is not None:
            if record.loss != before.loss:
                self._forget_clones(source)
            self._watch(SourceRemade(source, before.loss, record.loss))

    def _forget_clones(self, source: SourceModel) -> None:
        """Clones of a source that is another now: those that are still to be trained have to be grown from this one."""
        for arm in self._study.arms.values():
            if arm.source is source and arm.kind == "clone":
                for seed in (*self._study.seeds, *([arm.tuning.seed] if arm.tuning else [])):
                    shutil.rmtree(self._output / "clones" / self._key(arm, seed), ignore_errors=True)

    async def _model(self, arm: Arm, seed: int) -> tuple[Path, Path | None]:
        """(directory, its source's) of what an arm starts from, made if it has to be."""
        if arm.model is not None:
            return hub.resolve(arm.model), None
        source = arm.source
        assert source is not None
        if arm.kind == "random":  # waits for no source: of that, only the sizes matter
            return self._shape(hub.resolve(source.model), arm, seed), None
        directory: Path = await self._shared(("source", source.name), partial(self._source, source))
        if not arm.growth:
            return directory, None
        key = self._key(arm, seed)
        target = self._output / "clones" / key
        await self._shared(("clone", key), partial(self._grow, arm, seed, directory, target))
        return target, directory

    def _shape(self, source: Path, arm: Arm, seed: int) -> Path:
        """Config and tokenizer of a grown model: all that randomly initialized weights need of it."""
        if not arm.growth:
            return source
        target = self._output / "shapes" / self._key(arm, seed)
        if not target.is_dir():
            sizes = replace(self._growth(arm, seed), noise="none", allow_rounding=True)  # no weight is made from it
            config = planner.make_plan(hub.Headers.from_config(hub.config(source)), sizes).config
            partial_target = target.with_name(f".{target.name}")
            partial_target.mkdir(parents=True, exist_ok=True)
            carry(source, partial_target, config=False, grown=False)
            (partial_target / "config.json").write_text(to_json(config))
            partial_target.replace(target)
        return target

    async def _grow(self, arm: Arm, seed: int, source: Path, target: Path) -> None:
        if target.is_dir():
            return
        state = None
        if arm.moments is not None:
            state = checkpoints.last(source)
            if state is None:
                assert arm.source is not None
                if arm.source.train is not None:
                    raise self._deleted("the optimizer state of this source is not kept here", arm.source, source)
                raise StudyError("this source has no checkpoint whose optimizer state could be grown", file=source)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = commands.grow(source, target, self._growth(arm, seed), optimizer_state=state, moments=arm.moments)
        await self._processes.run(command, target.with_name(f"{target.name}.log"))

    async def _rate(self, arm: Arm) -> float | None:
        """The learning rate that was chosen for an arm, if one has to be."""
        if arm.like is not None:
            return await self._rate(self._study.arms[arm.like])
        if arm.tuning is None:
            return None
        chosen: float = await self._shared(("rate", arm.name), lambda: self._tune(arm))
        return chosen

    async def _tune(self, arm: Arm) -> float:
        """The rate with the lowest validation loss; the grid is extended past an end that wins."""
        tuning = arm.tuning
        assert tuning is not None
        tried: dict[float, float] = {}
        wanted = list(tuning.lr)
        for _ in range(tuning.extend + 1):
            losses = await asyncio.gather(*(self._try(arm, rate) for rate in wanted))
            tried |= dict(zip(wanted, losses, strict=True))
            rates = sorted(tried)
            self.progress.rates[arm.name] = [(rate, tried[rate]) for rate in rates]
            best = min(rates, key=lambda rate: tried[rate])
            if best not in (rates[0], rates[-1]):
                break
            step = rates[1] / rates[0]
            wanted = [_round(best / step if best == rates[0] else best * step)]
        if tried[best] == float("inf"):
            raise StudyError("no learning rate that was tried gave a validation loss", field=f"arms.{arm.name}.tune.lr",
                             found=rates, cure="lower rates, or a validation text that is longer")  # fmt: skip
        self.progress.chosen[arm.name] = best
        self._watch(RateChosen(arm, best, tuple(self.progress.rates[arm.name])))
        self._changed()
        return best

    async def _try(self, arm: Arm, rate: float) -> float:
        """Validation loss of one rate on the short horizon; infinite where training diverged."""
        tuning = arm.tuning
        assert tuning is not None
        options = {**self._options(arm), **tuning.train, "lr": rate, "eval_every": 10**9, "keep": 1}
        for unused in ("eval_early", "tasks", "anatomy"):
            options.pop(unused, None)
        key = run_keys.of(
            "tune", self._key(arm, tuning.seed), arm.kind == "random", run_keys.training(options), tuning.seed
        )
        self.progress.trials[arm.name, rate] = key
        if key not in self.progress.records.trials:
            await self._shared(("tune", key), partial(self._tried, arm, rate, options, key))
        return self.progress.records.trials[key].loss

    async def _tried(self, arm: Arm, rate: float, options: dict[str, Any], key: str) -> None:
        tuning = arm.tuning
        assert tuning is not None
        if self._processes.stopped:
            raise Interrupted
        model, _ = await self._model(arm, tuning.seed)
        directory = paths.find(self._output / "tuning", f"{arm.name}-lr{rate:g}", key)
        began = Began(f"{arm.name}, learning rate {rate:g}", directory)
        try:
            await self._train(model, directory, options, tuning.seed, scratch=arm.kind == "random", began=began)
            loss = metrics.last_loss(directory)
        except Diverged:
            loss = None  # that is a result
        known = float("inf") if loss is None else tables.rounded(loss)
        self.progress.records.trials[key] = Trial(
            key=key,
            arm=arm.name,
            lr=rate,
            seed=tuning.seed,
            loss=known,
        )
        self._changed()
        _forget_checkpoints(directory)

    async def _trained(self, run: Run, rate: float | None) -> RunRecord:
        """The record of a finished run, which is begun or resumed if it has not finished yet."""
        arm = run.arm
        options = {**self._options(arm), **({} if rate is None else {"lr": rate})}
        key = run_keys.of("run", self._key(arm, run.seed), arm.kind == "random", run_keys.training(options), run.seed)
        run.path = paths.find(self._output / "runs", f"{arm.name}-s{run.seed}", key)
        if key not in self.progress.records.runs:
            await self._shared(("run", key), partial(self._finish, run, options, key, run.path))
        return self.progress.records.runs[key]

    async def _finish(self, run: Run, options: dict[str, Any], key: str, directory: Path) -> None:
        if self._processes.stopped:
            raise Interrupted
        arm = run.arm
        model, source = await self._model(arm, run.seed)
        examined = self._study.anatomy and arm.kind == "clone" and run.seed == self._study.seeds[0]
        usual = {"keep": 1, **({"anatomy": True} if examined else {})}
        began = Began(f"{arm.name}, seed {run.seed}", directory, run)
        await self._train(
            model, directory, {**usual, **options}, run.seed, scratch=arm.kind == "random", began=began
        )  # fmt: skip
        if examined:
            assert source is not None
            await self._examine(model, directory, source)
        self.progress.records.runs[key] = collect.run(directory, key=key, arm=arm.name, seed=run.seed, options=options)
        self._changed()  # recorded before anything of it is deleted
        _forget_checkpoints(directory)

    async def _train(
        self, model: Path, directory: Path, options: dict[str, Any], seed: int, *, scratch: bool, began: Began
    ) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.is_dir() and not (directory / resume.RECORD_FILE).exists():
            shutil.rmtree(directory)  # nothing of it can be resumed
        command = commands.train(model, directory, options, seed=seed, scratch=scratch)
        log = directory.with_name(f"{directory.name}.log")
        await self._processes.run(command, log, begin=lambda: self._watch(began))

    async def _examine(self, clone: Path, trained: Path, source: Path) -> None:
        """Anatomy before and after."""
        both = {}
        for when, model in (("start", clone), ("end", trained)):
            command = ["anatomy", str(model), "--against", str(source), "--no-activations", "--json"]
            both[when] = json.loads(await self._processes.run(command, trained.with_name(f"{trained.name}.log")))
        write_text(trained / paths.ANATOMY, json.dumps(both) + "\n")


def _has_weights(directory: Path) -> bool:
    return any(directory.glob("*.safetensors"))


def _forget_checkpoints(directory: Path) -> None:
    """Checkpoints of a finished run are of no more use."""
    for _, checkpoint in checkpoints.every(directory):
        shutil.rmtree(checkpoint, ignore_errors=True)


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
