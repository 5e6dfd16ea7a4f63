"""Running a study: sources, then each arm's learning rate, then every arm with every seed.

Each of these is a separate task that waits for what it needs (a clone for its source, a run for its clone and its
learning rate) and for a free slot; a failure ends the tasks that need it and no other. What has finished is found by
its key in the records and not repeated; what was interrupted resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hyperclone.errors import HypercloneError, StudyError
from hyperclone.io import hub
from hyperclone.io.files import to_json, write_text
from hyperclone.planning import planner
from hyperclone.study import collect, commands, comparison, paths, record_tables, run_keys, tables, trainings
from hyperclone.study.commands import Diverged, Interrupted, Processes
from hyperclone.study.config import Arm, SourceModel, Study
from hyperclone.study.identity import Identity, growth
from hyperclone.study.progress import Began, OnEvent, Progress, RateChosen, Run, RunEnded
from hyperclone.study.records import FAILED, FINISHED, INTERRUPTED, RunRecord, SourceRecord, TuningRun
from hyperclone.study.sources import Sources
from hyperclone.training import checkpoints, metrics


@dataclass(frozen=True)
class _Start:
    """What a run starts from.

    Attributes:
        model: directory that training reads.
        source: directory of the source that it was grown from; None if it was not grown here.
        record: key of the source's record; empty for random weights and models made elsewhere.
    """

    model: Path
    source: Path | None = None
    record: str = ""


class Runner:
    """Runs one study.

    Attributes:
        progress: how it stands.
    """

    def __init__(
        self, study: Study, output: Path, processes: Processes, on_event: OnEvent, changed: Callable[[], None]
    ) -> None:
        """Read what is on record; `run` and `remake` start processes.

        Args:
            study: the request.
            output: its directory.
            processes: runs the commands; if they are stopped already, only what has finished before is found.
            on_event: called with every event.
            changed: called whenever there are new results.

        Raises:
            StudyError: a table in the directory is corrupt or truncated.
        """
        runs = [Run(arm, seed) for seed in study.seeds for arm in study.arms.values()]
        self.progress = Progress(study, output, runs, record_tables.load(output))
        self._study, self._output, self._processes = study, output, processes
        self._on_event, self._changed = on_event, changed
        self._identity = Identity(study, output)
        self._sources = Sources(self.progress, self._identity, processes, on_event)
        self._once: dict[Any, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Everything, as far as possible; failures and interruptions are in `progress`."""
        self._stop_on_signals()
        comparison.compare(self.progress, self._identity)
        self._on_event(self.progress.compared)
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
        """Train a source, or train it again if its weights or its checkpoint were deleted; the record of its weights.

        Raises:
            StudyError: this study does not train it, or its training failed.
            Interrupted: the study is being stopped.
        """
        self._stop_on_signals()
        record = await self._sources.remake(source)
        self._changed()
        return record

    def _stop_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._processes.stop)

    def _begin(self, source: SourceModel) -> None:
        """Train a source unless that is done: then its weights are needed only by a run that is still to begin."""
        if source.train is not None:
            with suppress(HypercloneError):  # that it cannot be found is for the task to say
                if self._sources.recorded(source) is not None:
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
            run.status = FINISHED
        except Interrupted:
            run.status = INTERRUPTED
        except (HypercloneError, OSError) as error:
            run.status, run.error = FAILED, str(error)
        self._on_event(RunEnded(run))
        self._changed()

    async def _source(self, source: SourceModel) -> Path:
        """The directory of a source, trained if it has never been; after the one that it begins from."""
        if source.branch_of is not None and self._sources.recorded(source) is None:
            trunk = self._study.sources[source.branch_of]
            await self._shared(("source", trunk.name), partial(self._source, trunk))
        directory = await self._sources.directory(source)
        self._changed()
        return directory

    async def _model(self, arm: Arm, seed: int) -> _Start:
        """What an arm starts from, made if it has to be."""
        if arm.model is not None:
            return _Start(hub.resolve(arm.model))
        source = arm.source
        assert source is not None
        if arm.grow_at is not None:  # its small model is trained with it
            return _Start(hub.resolve(source.model))
        if arm.kind == "random":  # waits for no source: of that, only the sizes matter
            return _Start(self._shape(hub.resolve(source.model), arm, seed))
        directory: Path = await self._shared(("source", source.name), partial(self._source, source))
        record = self._sources.record_of_weights(source, directory).key
        if not arm.growth:
            return _Start(directory, record=record)
        key = self._identity.model(arm, seed)
        target = self._output / "clones" / self._of_weights(key, source, record)
        await self._shared(("clone", target), partial(self._grow, arm, seed, directory, target))
        return _Start(target, directory, record)

    def _of_weights(self, key: str, source: SourceModel | None, record: str) -> str:
        """The key in the name of a directory: another one if its source is not the first that its recipe gave."""
        first = None if source is None else self.progress.sources.get(source.name)
        return key if record in ("", first) else run_keys.of(key, record)

    def _shape(self, source: Path, arm: Arm, seed: int) -> Path:
        """Config and tokenizer of a grown model: all that randomly initialized weights need of it."""
        if not arm.growth:
            return source
        target = self._output / "shapes" / self._identity.model(arm, seed)
        if not target.is_dir():
            sizes = replace(growth(arm, seed), noise="none", allow_rounding=True)  # no weight is made from it
            config = planner.make_plan(hub.Headers.from_config(hub.config(source)), sizes).config
            partial_target = target.with_name(f".{target.name}")
            partial_target.mkdir(parents=True, exist_ok=True)
            from hyperclone.training.export import carry  # loads torch

            carry(source, partial_target, config=False, grown=None)
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
                    problem = "the optimizer state of this source is not kept here"
                    raise self._sources.deleted(problem, arm.source, source)
                raise StudyError("this source has no checkpoint whose optimizer state could be grown", file=source)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = commands.grow(source, target, growth(arm, seed), optimizer_state=state, moments=arm.moments)
        await self._processes.run(command, trainings.log_of(target))

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
        tried: dict[float, TuningRun] = {}
        wanted = list(tuning.lr)
        for _ in range(tuning.extend + 1):
            runs = await asyncio.gather(*(self._try(arm, rate) for rate in wanted))
            tried |= dict(zip(wanted, runs, strict=True))
            rates = sorted(tried)
            best = min(rates, key=lambda rate: tried[rate].loss)
            if best not in (rates[0], rates[-1]):
                break
            step = rates[1] / rates[0]
            wanted = [_round(best / step if best == rates[0] else best * step)]
        self.progress.tuning[arm.name] = {rate: tried[rate] for rate in rates}
        if tried[best].loss == float("inf"):
            raise StudyError("no learning rate that was tried gave a validation loss", field=f"arms.{arm.name}.tune.lr",
                             found=rates, cure="lower rates, or a validation text that is longer")  # fmt: skip
        self.progress.chosen[arm.name] = best
        self._on_event(RateChosen(arm, best, tuple((rate, tried[rate].loss) for rate in rates)))
        self._changed()
        return best

    async def _try(self, arm: Arm, rate: float) -> TuningRun:
        """A tuning run of one rate; its loss is infinite where training diverged."""
        key = self._identity.tuning_run(arm, rate)
        known = self.progress.records.tuning_runs
        if key not in known:
            await self._shared(("tune", key), partial(self._tried, arm, rate, key))
        run = replace(known[key], arm=arm.name, lr=rate)
        self.progress.tuning.setdefault(arm.name, {})[rate] = run
        return run

    async def _tried(self, arm: Arm, rate: float, key: str) -> None:
        tuning = arm.tuning
        assert tuning is not None
        if self._processes.stopped:
            raise Interrupted
        start = await self._model(arm, tuning.seed)
        options = self._identity.tuning_options(arm, rate)
        name = f"{arm.name}-lr{rate:g}"
        directory = paths.find(self._output / "tuning", name, self._of_weights(key, arm.source, start.record))
        began = Began(f"{arm.name}, learning rate {rate:g}", directory)
        try:
            await self._train(start.model, options, arm, tuning.seed, began)
            loss = metrics.last_loss(directory)
        except Diverged:
            loss = None  # that is a result
        known = float("inf") if loss is None else tables.rounded(loss)
        run = TuningRun(key=key, arm=arm.name, lr=rate, seed=tuning.seed, loss=known)
        self.progress.records.tuning_runs[key] = run
        self.progress.tuning.setdefault(arm.name, {})[rate] = run
        self._changed()
        trainings.forget_checkpoints(directory)

    async def _trained(self, run: Run, rate: float | None) -> RunRecord:
        """The record of a finished run, which is begun or resumed if it has not finished yet."""
        arm, known = run.arm, self.progress.records.runs
        options, key = self._identity.run_options(arm, rate), self._identity.run(arm, run.seed, rate)
        if run.kept is not None and run.kept.key != key:
            run.kept = None
        if key not in known:
            await self._shared(("run", key), partial(self._finish, run, options, key))
        run.path = self._directory(run, known[key].source, key)
        return known[key]

    def _directory(self, run: Run, record: str, key: str) -> Path:
        """The directory of a run that began from the source with this record."""
        return paths.find(
            self._output / "runs", f"{run.arm.name}-s{run.seed}", self._of_weights(key, run.arm.source, record)
        )

    async def _finish(self, run: Run, options: dict[str, Any], key: str) -> None:
        if self._processes.stopped:
            raise Interrupted
        arm = run.arm
        start = await self._model(arm, run.seed)
        run.path = directory = self._directory(run, start.record, key)
        examined = self._study.anatomy and arm.kind == "clone" and run.seed == self._study.seeds[0]
        usual = {"keep": 1, **({"anatomy": True} if examined else {})}
        given = {**usual, **options, **({"keep": 0} if self._branches(run) else {}), **await self._trunk(run)}
        began = Began(f"{arm.name}, seed {run.seed}", directory, run)
        await self._train(start.model, given, arm, run.seed, began)
        if examined:
            assert start.source is not None
            await self._examine(start.model, directory, start.source)
        self.progress.records.runs[key] = collect.run(
            directory, key=key, arm=arm.name, seed=run.seed, source=start.record, options=options
        )
        self._changed()  # recorded before anything of it is deleted
        self._forget_checkpoints(run)

    def _branches(self, run: Run) -> list[Run]:
        """The runs that begin from the stable phase of a run, and have not finished yet."""
        branches = [one for one in self.progress.runs if (one.arm.branch_of, one.seed) == (run.arm.name, run.seed)]
        finished = self.progress.records.runs
        return [one for one in branches if self._identity.run(one.arm, one.seed, self._chosen(one.arm)) not in finished]

    def _chosen(self, arm: Arm) -> float | None:
        """The rate that was chosen for an arm by now, if one has to be."""
        return self.progress.chosen.get(arm.like or arm.name)

    async def _trunk(self, run: Run) -> dict[str, Any]:
        """The option of a branch: the finished run that it begins from, if that has its checkpoints still."""
        trunk = self._trunk_of(run)
        if trunk is None:
            return {}
        await self._trained(trunk, await self._rate(trunk.arm))
        return {"branch_from": str(trunk.path)} if trunk.path is not None and checkpoints.every(trunk.path) else {}

    def _trunk_of(self, run: Run) -> Run | None:
        wanted = run.arm.branch_of, run.seed
        return next((one for one in self.progress.runs if (one.arm.name, one.seed) == wanted), None)

    def _forget_checkpoints(self, run: Run) -> None:
        """Those of a finished run, and of its trunk, that no branch needs any more."""
        for one in (run, self._trunk_of(run)):
            if one is not None and one.path is not None and not self._branches(one):
                trainings.forget_checkpoints(one.path)

    async def _train(self, model: Path, options: Mapping[str, Any], arm: Arm, seed: int, began: Began) -> None:
        await trainings.train(
            self._processes, model, options, seed=seed, scratch=arm.kind == "random", began=began,
            on_event=self._on_event, growth=None if arm.grow_at is None else growth(arm, seed),
        )  # fmt: skip

    async def _examine(self, clone: Path, trained: Path, source: Path) -> None:
        """Anatomy before and after."""
        both = {}
        for when, model in (("start", clone), ("end", trained)):
            command = ["anatomy", str(model), "--against", str(source), "--no-activations", "--json"]
            both[when] = json.loads(await self._processes.run(command, trainings.log_of(trained)))
        write_text(trained / paths.ANATOMY, json.dumps(both) + "\n")


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
