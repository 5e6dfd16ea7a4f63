"""What is on record of a study, compared with the study as it is on this machine; nothing runs for it.

A recorded run belongs to a row of arm and seed. It stays there as it is until its key is known and is another one: then
its text, its model or its settings have changed, and it becomes a former run.
"""

from __future__ import annotations

from hyperclone.errors import HypercloneError
from hyperclone.study.config import Arm
from hyperclone.study.identity import Identity, tried_rate
from hyperclone.study.progress import Compared, Progress


def compare(progress: Progress, identity: Identity) -> None:
    """Set what is kept of the recorded runs, tuning runs and sources: all that are not known to be others."""
    progress.compared = _runs(progress, identity)
    for arm in progress.study.arms.values():
        if arm.tuning is not None:
            _tuning(progress, identity, arm)
    request = progress.recorded.request or {"sources": {}}
    for source in progress.study.sources.values():
        try:
            identity.source(source)
        except (HypercloneError, OSError):
            key = request["sources"].get(source.name, {}).get("key")
            if key is not None:
                progress.kept_sources[source.name] = key


def _runs(progress: Progress, identity: Identity) -> Compared:
    recorded = {(row.arm, row.seed): record for row, record in progress.recorded.finished()}
    reused = kept = former = missing = 0
    for run in progress.runs:
        record = recorded.get((run.arm.name, run.seed))
        try:
            key = identity.recorded_run(run.arm, run.seed, record)
        except (HypercloneError, OSError):  # the run itself will fail with it
            run.kept = record
            kept += record is not None
            continue
        run.identified = True
        if record is not None and record.key == key:
            run.kept = record
        elif record is not None:
            former += 1
        known = key in progress.records.runs
        reused += known
        missing += not known
    return Compared(reused, kept, former, missing)


def _tuning(progress: Progress, identity: Identity, arm: Arm) -> None:
    """Rates that were tried for an arm, and the one that was chosen, unless the text or the model is another now."""
    rows = [row for row in progress.recorded.tuning_rows if row.arm == arm.name]
    for row in rows:
        rate = tried_rate(arm, row.lr)
        try:
            same = identity.tuning_run(arm, rate) == row.key
        except (HypercloneError, OSError):
            same = True
        if same:
            progress.tuning.setdefault(arm.name, {})[rate] = row
    request = progress.recorded.request
    about = None if request is None else request["arms"].get(arm.name)
    if about is not None and about["tuned"] is not None and len(progress.tuning.get(arm.name, {})) == len(rows) > 0:
        progress.chosen[arm.name] = float(about["tuned"]["lr"])
