"""The sources of a study: found on record, trained, or trained again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperclone.errors import StudyError
from hyperclone.io import hub
from hyperclone.study import collect, paths, record_tables, trainings
from hyperclone.study.commands import Interrupted, Processes
from hyperclone.study.config import SourceModel
from hyperclone.study.identity import Identity
from hyperclone.study.progress import Began, OnEvent, Progress, SourceRemade
from hyperclone.study.records import SourceRecord
from hyperclone.training import checkpoints


class Sources:
    """The sources of one study."""

    def __init__(self, progress: Progress, identity: Identity, processes: Processes, on_event: OnEvent) -> None:
        """Those of `progress.study`; what is recorded of them goes into `progress`."""
        self._progress, self._identity, self._processes = progress, identity, processes
        self._on_event = on_event

    def recorded(self, source: SourceModel) -> SourceRecord | None:
        """What is known of a source that was trained before, here or in its own study."""
        key = self._identity.source(source)
        known = self._progress.records.sources
        if key not in known and (record := self._records(source).get(key)) is not None:
            known[key] = record
        if key in known:
            self._progress.sources[source.name] = key
        return known.get(key)

    def _records(self, source: SourceModel) -> Mapping[str, SourceRecord]:
        """The records of the study that trains a source."""
        if source.study is None:
            return self._progress.records.sources
        return record_tables.sources(paths.runs_of(source.study))

    def record_of_weights(self, source: SourceModel, directory: Path) -> SourceRecord:
        """The record that the weights of a recorded source belong to: its first, or that of a later training."""
        first = self.recorded(source)
        assert first is not None
        key = first.remade_key(trainings.final_loss(directory))
        if key == first.key:
            return first
        record = self._records(source).get(key) or collect.source(directory, key=key, name=source.name)
        return self._progress.records.sources.setdefault(key, record)

    async def directory(self, source: SourceModel) -> Path:
        """The directory of a source, trained if it has never been.

        Raises:
            StudyError: it was trained but its weights were deleted, it is another study's and was not trained there, or
                its training failed.
            Interrupted: the study is being stopped.
        """
        if source.train is None:
            directory, known = hub.resolve(source.model), self._progress.records.sources
            if self.recorded(source) is None:
                key = self._identity.source(source)
                known[key] = collect.source(directory, key=key, name=source.name)
                self._progress.sources[source.name] = key
            return directory
        directory = self._identity.source_directory(source)
        recorded = self.recorded(source) is not None
        if (recorded or source.study is not None) and not trainings.has_weights(directory):
            raise self.deleted("the weights of this source are not kept here", source, directory)
        if not recorded:
            if source.study is not None:
                raise self.deleted("this source has not been recorded by its study", source, directory)
            await self._train(source, directory)
        return directory

    def deleted(self, problem: str, source: SourceModel, directory: Path) -> StudyError:
        """The error for a part of a trained source that is missing."""
        return StudyError(problem, file=self._progress.study.file, field=f"sources.{source.name}", expected=directory,
                          cure=f"make them again: {source.remake}")  # fmt: skip

    async def remake(self, source: SourceModel) -> SourceRecord:
        """Train a source, or train it again if its weights or its checkpoint were deleted; the record of its weights.

        Raises:
            StudyError: this study does not train it, or its training failed.
            Interrupted: the study is being stopped.
        """
        if source.train is None or source.study is not None:
            cure = f"run: {source.remake}" if source.study is not None else "give it `train`, or use it as it is"
            raise StudyError("this study does not train this source", file=self._progress.study.file,
                             field=f"sources.{source.name}", cure=cure)  # fmt: skip
        directory = self._identity.source_directory(source)
        whole = trainings.has_weights(directory) and checkpoints.every(directory)
        if self.recorded(source) is None or not whole:
            await self._train(source, directory)
        return self.record_of_weights(source, directory)

    def _trunk(self, source: SourceModel) -> dict[str, Any]:
        """The option of a source that begins from another: that one's directory, if it has its checkpoint still."""
        if source.branch_of is None:
            return {}
        directory = self._identity.source_directory(self._progress.study.sources[source.branch_of])
        return {"branch_from": str(directory)} if checkpoints.every(directory) else {}

    async def _train(self, source: SourceModel, directory: Path) -> None:
        """Train a source, or train it again: then what is there stays there until there is more.

        records.SourceRecord says what is recorded of a source that is trained again.
        """
        if self._processes.stopped:
            raise Interrupted
        first = self.recorded(source)
        again = first is not None and directory.is_dir() and not checkpoints.every(directory)
        target = directory.with_name(f"{directory.name}.again") if again else directory
        options = {"keep": 1, **self._identity.source_options(source), **self._trunk(source)}
        await trainings.train(
            self._processes, hub.resolve(source.model), options, seed=0, scratch=True,
            began=Began(f"source {source.name}", target), on_event=self._on_event,
        )  # fmt: skip
        if again:
            shutil.rmtree(directory)
            target.replace(directory)
        made = collect.source(directory, key=self._identity.source(source), name=source.name)
        key = made.key if first is None else first.remade_key(made.loss)
        before = self._progress.records.sources.get(key, first)
        self._progress.records.sources.setdefault(key, replace(made, key=key))
        self._progress.sources[source.name] = made.key
        if before is not None and before.loss is not None and made.loss is not None:
            self._on_event(SourceRemade(source, before.loss, made.loss))
