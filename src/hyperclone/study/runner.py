"""Running a study: sources, then each arm's learning rate, then every arm with every seed.

Each of these is a task of its own that waits for what it needs (a clone for its source, a run for its clone and its
learning rate) and for a free place; a failure ends the tasks that need it and no other. What is finished is found again
by its key and not repeated; what was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hyperclone.conversion import receipt
from hyperclone.errors import HypercloneError, StudyError
from hyperclone.io import hub
from hyperclone.io.files import to_json
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.study import commands, paths, run_keys
from hyperclone.study.commands import Interrupted, Processes
from hyperclone.study.config import Arm, Source, Study
from hyperclone.study.costs import costs, where
from hyperclone.study.speedup import Speedup
from hyperclone.training import checkpoints, metrics, run_record
from hyperclone.training.config import usual_optimizer
from hyperclone.training.export import carry

Watch = Callable[[str, dict[str, Any]], None]


@dataclass
class Run:
    """One arm with one seed.

    Attributes:
        arm, seed: which.
        status: "waiting", "running", "finished", "failed" or "interrupted".
        path: its directory, once its key is known.
        error: why it failed.
    """

    arm: Arm
    seed: int
    status: str = "waiting"
    path: Path | None = None
    error: str | None = None


@dataclass
class Progress:
    """How a study stands.

    Attributes:
        study: the request.
        output: its directory.
        runs: every arm with every seed.
        sources: directories of the sources that are ready, by name.
        rates: (learning rate, validation loss) that were tried, by arm.
        chosen: the learning rate of each tuned arm.
        speedups: of the finished runs.
    """

    study: Study
    output: Path
    runs: list[Run]
    sources: dict[str, Path] = field(default_factory=dict)
    rates: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    speedups: list[tuple[Run, Speedup]] = field(default_factory=list)


class Runner:
    """Runs one study."""

    def __init__(
        self, study: Study, output: Path, processes: Processes, watch: Watch, changed: Callable[[], None]
    ) -> None:
        """Nothing runs yet.

        Args:
            study: the request.
            output: its directory.
            processes: runs the commands.
            watch: told of what begins ("begin": what, path), which learning rate was chosen ("tuned": arm, lr, tried),
                how a run ended ("end": run), and of a source that was trained again and came out otherwise, as another
                GPU makes it ("other source": source, before, now): runs that were begun are of the one before.
            changed: called whenever there are new results.
        """
        self.progress = Progress(study, output, [Run(arm, seed) for seed in study.seeds for arm in study.arms.values()])
        self._study, self._output, self._processes = study, output, processes
        self._watch, self._changed = watch, changed
        self._once: dict[Any, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Everything, as far as it goes; failures and interruptions are in `progress`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._processes.stop)
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

    def _begin(self, source: Source) -> None:
        """Train a source unless that is done: then its weights are wanted only by a run that is still to begin."""
        if source.train is not None:
            with suppress(HypercloneError):  # that it cannot be found is for the task to say
                if paths.ended(target := self._source_place(source)) is not None:
                    self.progress.sources[source.name] = target
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
            run.path = await self._trained(run, rate)
            run.status = "finished"
        except Interrupted:
            run.status = "interrupted"
        except (HypercloneError, OSError) as error:
            run.status, run.error = "failed", str(error)
        self._watch("end", {"run": run})
        self._changed()

    def _source_key(self, source: Source) -> str:
        key = run_keys.model(hub.resolve(source.model))
        return key if source.train is None else run_keys.of("source", key, run_keys.training(source.train))

    def _source_place(self, source: Source) -> Path:
        return paths.find(self._output / "sources", source.name, self._source_key(source))

    def _key(self, arm: Arm, seed: int) -> str:
        """The key of what an arm starts from; nothing is made for it."""
        if arm.model is not None:
            return run_keys.model(hub.resolve(arm.model))
        assert arm.source is not None
        key = self._source_key(arm.source)
        return run_keys.of("clone", key, str(self._growth(arm, seed)), arm.state) if arm.growth else key

    def _growth(self, arm: Arm, seed: int) -> Growth:
        return arm.grown(0 if arm.kind == "random" else seed)  # of a random arm, only the sizes matter

    def _options(self, arm: Arm) -> dict[str, Any]:
        """Options of an arm's training. The optimizer is always told, so that keys and logs say which one it was."""
        if arm.kind in ("source", "model"):
            place = hub.resolve(arm.source.model if arm.source else str(arm.model))
            told = receipt.read(place)
            grown = told is not None and told.growth.wider
            asymmetric = told is not None and told.first_copy_moments
        else:
            grown = arm.kind == "clone" and Growth(**arm.growth).wider
            asymmetric = arm.state == "asymmetric"
        usual = usual_optimizer(grown=grown, first_copy_moments=asymmetric, lr_rule=arm.train.get("lr_rule"))
        return {"optimizer": usual, **arm.train}

    async def _source(self, source: Source) -> Path:
        """The directory of a source, trained if it has to be."""
        place = hub.resolve(source.model)
        if source.train is not None:
            target = self._source_place(source)
            if paths.ended(target) is None or not any(target.glob("*.safetensors")):
                await self._train_source(source, place, target)
            place = target
        self.progress.sources[source.name] = place
        self._changed()
        return place

    async def _train_source(self, source: Source, place: Path, target: Path) -> None:
        """Train a source, or train it again: then what is known of it stays where it is until there is more."""
        ended = paths.ended(target) is not None
        before = metrics.last_loss(target) if ended else None
        made = target.with_name(f"{target.name}.again") if ended and not checkpoints.every(target) else target
        assert source.train is not None
        await self._train(
            place, made, {"keep": 1, **source.train}, 0, scratch=True, told={"what": f"source {source.name}"}
        )
        paths.write(made / paths.RUN, {"key": self._source_key(source), "source": source.name, **where(made)})
        if made != target:
            shutil.rmtree(target)
            made.replace(target)
        if before is not None and (now := metrics.last_loss(target)) != before:
            for arm in self._study.arms.values():
                if arm.source is source and arm.kind == "clone":
                    for seed in (*self._study.seeds, *([arm.tuning.seed] if arm.tuning else [])):
                        shutil.rmtree(self._output / "clones" / self._key(arm, seed), ignore_errors=True)
            self._watch("other source", {"source": source, "before": before, "now": now})

    async def _model(self, arm: Arm, seed: int) -> tuple[Path, Path | None]:
        """(directory, its source's) of what an arm starts from, made if it has to be."""
        if arm.model is not None:
            return hub.resolve(arm.model), None
        source = arm.source
        assert source is not None
        if arm.kind == "random":  # waits for no source: of that, only the sizes matter
            return self._shape(hub.resolve(source.model), arm, seed), None
        place: Path = await self._shared(("source", source.name), partial(self._source, source))
        if not arm.growth:
            return place, None
        key = self._key(arm, seed)
        target = self._output / "clones" / key
        await self._shared(("clone", key), lambda: self._grow(place, target, self._growth(arm, seed), arm.state))
        return target, place

    def _shape(self, source: Path, arm: Arm, seed: int) -> Path:
        """Config and tokenizer of a grown model: all that weights drawn anew need of it."""
        if not arm.growth:
            return source
        target = self._output / "shapes" / self._key(arm, seed)
        if not target.is_dir():
            sizes = replace(self._growth(arm, seed), noise="none", allow_rounding=True)  # no weight is made from it
            config = planner.make_plan(hub.Headers.imagined(hub.config(source)), sizes).config
            made = target.with_name(f".{target.name}")
            made.mkdir(parents=True, exist_ok=True)
            carry(source, made, config=False, grown=False)
            (made / "config.json").write_text(to_json(config))
            made.replace(target)
        return target

    async def _grow(self, source: Path, target: Path, growth: Growth, mode: str | None) -> None:
        if target.is_dir():
            return
        state = checkpoints.last(source) if mode is not None else None
        if mode is not None and state is None:
            raise StudyError("this source has no checkpoint whose optimizer state could be grown", file=source)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = commands.grow(source, target, growth, state=state, mode=mode)
        await self._processes.run(command, target.with_name(f"{target.name}.log"))

    async def _rate(self, arm: Arm) -> float | None:
        """The learning rate that was chosen for an arm, if one has to be."""
        if arm.like is not None:
            return await self._rate(self._study.arms[arm.like])
        if arm.tuning is None:
            return None
        found: float = await self._shared(("rate", arm.name), lambda: self._tune(arm))
        return found

    async def _tune(self, arm: Arm) -> float:
        """The rate with the lowest validation loss; the grid goes on past an end that wins."""
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
        self._watch("tuned", {"arm": arm, "lr": best, "tried": self.progress.rates[arm.name]})
        self._changed()
        return best

    async def _try(self, arm: Arm, rate: float) -> float:
        """Validation loss of one rate on the short horizon; infinite where training failed."""
        tuning = arm.tuning
        assert tuning is not None
        given = {**self._options(arm), **tuning.train, "lr": rate, "eval_every": 10**9, "keep": 1}
        for unused in ("eval_early", "tasks", "anatomy"):
            given.pop(unused, None)
        key = run_keys.of(
            "tune", self._key(arm, tuning.seed), arm.kind == "random", run_keys.training(given), tuning.seed
        )
        place = paths.find(self._output / "tuning", f"{arm.name}-lr{rate:g}", key)
        return float(await self._shared(("tune", key), partial(self._tried, arm, rate, given, key, place)))

    async def _tried(self, arm: Arm, rate: float, given: dict[str, Any], key: str, place: Path) -> float:
        tuning = arm.tuning
        assert tuning is not None
        if (told := paths.ended(place)) is None:
            model, _ = await self._model(arm, tuning.seed)
            told = {"what": f"{arm.name}, learning rate {rate:g}"}
            try:
                await self._train(model, place, given, tuning.seed, scratch=arm.kind == "random", told=told)
                loss = metrics.last_loss(place)
            except HypercloneError as error:
                if "no longer a number" not in str(error):
                    raise
                loss = None  # it diverged: that is a result
            told = {"key": key, "arm": arm.name, "lr": rate, "seed": tuning.seed, "loss": loss, **where(place)}
            _forget(place)
            paths.write(place / paths.RUN, told)
        return float("inf") if told["loss"] is None else float(told["loss"])

    async def _trained(self, run: Run, rate: float | None) -> Path:
        """The finished directory of a run."""
        arm = run.arm
        given = {**self._options(arm), **({} if rate is None else {"lr": rate})}
        key = run_keys.of("run", self._key(arm, run.seed), arm.kind == "random", run_keys.training(given), run.seed)
        place = run.path = paths.find(self._output / "runs", f"{arm.name}-s{run.seed}", key)
        if paths.ended(place) is None:
            await self._shared(("run", key), partial(self._finish, run, given, key, place))
        return place

    async def _finish(self, run: Run, given: dict[str, Any], key: str, place: Path) -> None:
        arm = run.arm
        model, source = await self._model(arm, run.seed)
        what = {"what": f"{arm.name}, seed {run.seed}", "run": run}
        examined = self._study.anatomy and arm.kind == "clone" and run.seed == self._study.seeds[0]
        usual = {"keep": 1, **({"anatomy": True} if examined else {})}
        await self._train(model, place, {**usual, **given}, run.seed, scratch=arm.kind == "random", told=what)
        if examined:
            assert source is not None
            await self._examine(model, place, source)
        _forget(place)
        paths.write(place / paths.RUN, {"key": key, "arm": arm.name, "seed": run.seed, **costs(place, given)})

    async def _train(
        self, model: Path, place: Path, given: dict[str, Any], seed: int, *, scratch: bool, told: dict[str, Any]
    ) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not (place / run_record.FILE).exists():
            shutil.rmtree(place)  # what version control kept of a run that did not end: it cannot go on
        command = commands.train(model, place, given, seed=seed, scratch=scratch)

        def begin() -> None:
            self._watch("begin", {**told, "path": place})

        await self._processes.run(command, place.with_name(f"{place.name}.log"), begin=begin)

    async def _examine(self, clone: Path, trained: Path, source: Path) -> None:
        """Anatomy before and after."""
        told = {}
        for when, place in (("start", clone), ("end", trained)):
            command = ["anatomy", str(place), "--against", str(source), "--no-activations", "--json"]
            told[when] = json.loads(await self._processes.run(command, trained.with_name(f"{trained.name}.log")))
        paths.write(trained / paths.ANATOMY, told)


def _forget(place: Path) -> None:
    """Checkpoints of a finished run are of no more use."""
    for _, checkpoint in checkpoints.every(place):
        shutil.rmtree(checkpoint, ignore_errors=True)


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
