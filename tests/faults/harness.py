"""Break a command at every disk operation in turn, or at random times, and look at what is left.

Whatever happens to a run:
* it ends with success, with one of our messages (exit code 2), or by the signal; never with a traceback
* the destination is absent, or complete, or the old one that was to be replaced
* source, and files of others beside it, are untouched
* the same command afterwards ends with the same bytes as a run without a fault, and nothing else is left anywhere

A training or a study may leave what it goes on from; a model at its end is whole or absent, and the rerun ends with
the same weights, losses and names of files.

    python -m tests.faults.harness --kills 1000 -o bench/results/faults.json

A run is a forked child of a process that has imported everything, so that one takes some tenths of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hyperclone.conversion.collapse
import hyperclone.proof.proof
import hyperclone.study.run
import hyperclone.training.run  # noqa: F401 - imported before the forks
from hyperclone import Growth, grow
from hyperclone.cli import main as cli
from tests.helpers.models import build, save_optimizer_state, save_tokenizer
from tests.helpers.training_text import documents, jsonl

OPERATIONS = ("open", "pwrite", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "posix_fallocate", "preadv")
ERRORS = {"full disk": errno.ENOSPC, "input/output error": errno.EIO, "no more files": errno.EMFILE}
BYSTANDER = "somebody's thesis.txt"
Content = dict[str, bytes]


@dataclass(frozen=True)
class Scenario:
    """A command in a directory: `source`, `old` and `state` are there; it makes `out`.

    Attributes:
        command: its arguments.
        replaces: `out` exists before, as a copy of `old`.
        trains: it leaves checkpoints, from which the rerun goes on.
        resume: what the rerun has in addition.
        share: of the kills at random times, beside that of a conversion.
        codes: exit codes beyond success and an error of ours: a study ends with 1 where some runs failed.
    """

    command: tuple[str, ...]
    replaces: bool = False
    trains: bool = False
    resume: tuple[str, ...] = ()
    share: float = 1.0
    codes: tuple[int, ...] = ()


GROW = ("grow", "source", "out", "--width", "2", "--threads", "2", "--shard-size", "40KB")
TRAIN = ("train", "--seq-len", "32", "--batch-tokens", "64", "--tokens", "640", "--lr", "1e-3", "--save-every", "3",
         "--eval-every", "5", "--keep", "0", "--cache", "cache", "--optimizer", "adamw")  # fmt: skip
STUDY = """
name = "a study"
seeds = [1]
[train]
data = ["text.jsonl"]
eval_data = ["held_out.jsonl"]
tokens = "640"
seq_len = 32
batch_tokens = 64
lr = 1e-3
[sources.small]
model = "source"
[arms.continued]
[arms.clone]
growth = { width = 2 }
"""
SCENARIOS = {
    "grow": Scenario((*GROW, "--proof", "structural")),
    "grow, proved whole": Scenario((*GROW, "--proof", "full")),
    "grow one file": Scenario(("grow", "source", "out", "--width", "2", "--proof", "none")),
    "grow over an old output": Scenario((*GROW, "--proof", "structural", "--overwrite"), replaces=True),
    "grow with optimizer state": Scenario((*GROW, "--proof", "structural", "--optimizer-state", "state")),
    "collapse": Scenario(("collapse", "old", "out", "--threads", "2", "--shard-size", "40KB")),
    "train": Scenario(
        (*TRAIN, "source", "--data", "text.jsonl", "--output", "out"), trains=True, resume=("--resume",), share=0.5
    ),
    "study": Scenario(
        ("study", "study.toml", "--output", "out", "--jobs", "2", "--threads", "1"), trains=True, share=0.05, codes=(1,)
    ),
}


def prepare(place: Path) -> None:
    """A source with its optimizer state, an old output, and a file of somebody else."""
    model = build("llama-grouped-tied", num_hidden_layers=1)
    model.save_pretrained(place / "source")
    save_tokenizer(place / "source")
    save_optimizer_state(model, place / "state")
    grow(place / "source", place / "old", Growth(width=3), proof="structural", shard_size="40KB")
    (place / BYSTANDER).write_text("mine")
    (place / "tmp").mkdir()
    jsonl(place / "text.jsonl", documents(20))
    jsonl(place / "held_out.jsonl", documents(5, seed=1))
    (place / "study.toml").write_text(STUDY)


def content(path: Path) -> Content | None:
    """Files of a directory by their names; None if it is absent."""
    if not path.exists():
        return None
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def trained(path: Path) -> Content | None:
    """The same of a training or a study: names of files, weights, and what was measured, without times."""
    found = content(path)
    return None if found is None else {name: _lasting(name, data) for name, data in found.items()}


def _lasting(name: str, data: bytes) -> bytes:
    if name.endswith(".safetensors"):
        return data
    if not name.endswith("metrics.jsonl"):
        return b""
    figures = ("step", "loss", "eval_loss", "grad_norm", "lr")
    lines = [{key: line[key] for key in figures if key in line} for line in map(json.loads, data.splitlines())]
    return json.dumps([line for line in lines if len(line) > 1]).encode()


@contextlib.contextmanager
def at_operation(number: int, fault: str) -> Iterator[Callable[[], int]]:
    """Disk operation `number` of this process is hit; how many there were so far.

    Args:
        number: counted from 0; -1 for none.
        fault: "kill", "short write", or one of ERRORS.
    """
    count = itertools.count()
    seen = [0]

    def hit(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            seen[0] = (turn := next(count)) + 1
            if turn == number:
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "short write":
                    if name == "pwrite":
                        descriptor, data, position = arguments
                        return real(descriptor, data[: max(1, len(data) // 3)], position)
                else:
                    raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]))
            return real(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for name in OPERATIONS:
            if hasattr(os, name):
                stack.enter_context(mock.patch.object(os, name, hit(getattr(os, name), name)))
        stack.enter_context(mock.patch.object(shutil, "copyfileobj", hit(shutil.copyfileobj, "copyfileobj")))
        yield lambda: seen[0]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), what it printed, and its number of disk operations."""

    code: int
    text: str
    operations: int


def run(
    scenario: Scenario, place: Path, *, number: int = -1, fault: str = "kill", after: float | None = None,
    limits: dict[int, int] | None = None, more: tuple[str, ...] = (),
) -> Ended:  # fmt: skip
    """The command in a child process.

    Args:
        scenario: which.
        place: where.
        number, fault: as of `at_operation`.
        after: seconds until it and all processes that it has started are killed; None for never.
        limits: of the child, by their numbers in `resource`.
        more: arguments after those of the command.
    """
    report = place / "report"
    if not (child := os.fork()):
        code = 99
        with contextlib.suppress(BaseException):
            code = _child((*scenario.command, *more), place, number, fault, limits or {}, report)
        os._exit(code)
    if after is not None:
        time.sleep(after)
        for process in _family(child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text, operations = json.loads(report.read_text()) if report.exists() else ("", 0)
    for file in (report, report.with_suffix(".new")):
        file.unlink(missing_ok=True)
    return Ended(code, text, operations)


def _family(process: int) -> list[int]:
    """It, and all that it has started, and these."""
    started = Path(f"/proc/{process}/task/{process}/children")
    below = started.read_text().split() if started.exists() else []
    return [process, *(one for child in below for one in _family(int(child)))]


def _child(command: tuple[str, ...], place: Path, number: int, fault: str, limits: dict[int, int], report: Path) -> int:
    os.chdir(place)
    os.environ.update(TMPDIR=str(place / "tmp"), COLUMNS="100")
    tempfile.tempdir = None
    sys.argv = ["hyperclone", *command]
    printed = io.StringIO()
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        at_operation(number, fault) as operations,
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 98
    for which in limits:
        resource.setrlimit(which, (resource.getrlimit(which)[1],) * 2)
    written = report.with_suffix(".new")  # it may be killed here as well
    written.write_text(json.dumps([printed.getvalue(), operations()]))
    written.rename(report)
    return code


def _weights(files: Content | None) -> Content | None:
    """All files but the two that quote the proof."""
    return None if files is None else {k: v for k, v in files.items() if k not in ("hyperclone.json", "README.md")}


class Checker:
    """Runs one scenario with faults and says what did not hold."""

    def __init__(self, name: str, place: Path) -> None:
        """Prepare `place`, and make the reference output without a fault."""
        self.scenario, self.place = SCENARIOS[name], place
        prepare(place)
        self.untouched = {name: content(place / name) for name in ("source", "state", "old")}
        self.before = self.untouched["old"] if self.scenario.replaces else None
        began = time.monotonic()
        self._restore()
        plain = run(self.scenario, place)
        self.seconds = time.monotonic() - began
        assert plain.code == 0, plain.text
        self.operations, self.reference = plain.operations, self._output()
        self.codes: Counter[int] = Counter()

    def _restore(self) -> None:
        for name in ("out", "cache"):
            shutil.rmtree(self.place / name, ignore_errors=True)
        if self.scenario.replaces:
            shutil.copytree(self.place / "old", self.place / "out")

    def check(self, **fault: Any) -> list[str]:
        """One run with a fault, and one without; what did not hold."""
        self._restore()
        ended = run(self.scenario, self.place, **fault)
        self.codes[ended.code] += 1
        wrong = []
        if ended.code not in (0, 2, -signal.SIGKILL, *self.scenario.codes):
            wrong.append(f"exit code {ended.code}: {ended.text[-600:]}")
        found = self._output()
        if self.scenario.trains:
            found = self._of_training(found, wrong)
        if ended.code == 0 and _weights(found) == _weights(self.reference):
            found = self.reference  # receipt and card may say that a part of the proof could not be run
        if found not in (None, self.before, self.reference):
            wrong.append("the destination is neither absent nor complete")
        if ended.code == 0 and found != self.reference:
            wrong.append("it succeeded with another output")
        if self.before is not None and found is None and not self._old_is_kept():
            wrong.append("the old output is lost")
        wrong += self._touched()
        ended_late = self.scenario.replaces and (self.place / ".out.replaced").exists()  # while the old one was removed
        if found != self.reference or ended_late:
            again = run(self.scenario, self.place, more=self.scenario.resume if (self.place / "out").exists() else ())
            if again.code != 0:
                wrong.append(f"the rerun ended with {again.code}: {again.text[-600:]}")
            elif self._output() != self.reference:
                wrong.append("the rerun gave other bytes")
            wrong += self._touched()
        known = {
            "source",
            "old",
            "state",
            "out",
            "tmp",
            "cache",
            "text.jsonl",
            "held_out.jsonl",
            "study.toml",
            BYSTANDER,
        }
        if left := sorted({p.name for p in self.place.iterdir()} - known):
            wrong.append(f"left over: {', '.join(left)}")
        if left := sorted(p.name for p in (self.place / "tmp").iterdir() if not p.name.startswith(".hyperclone-")):
            wrong.append(f"left over in the directory for temporary files: {', '.join(left)}")
        if wrong:  # the next check starts clean
            for file in self.place.glob(".out*"):
                shutil.rmtree(file, ignore_errors=True)
        return wrong

    def _of_training(self, found: Content | None, wrong: list[str]) -> Content | None:
        """None where the run is not at its end: whatever is there is what it goes on from."""
        assert self.reference is not None
        ends = [name for name in self.reference if name.endswith("model.safetensors") and "checkpoint-" not in name]
        for name in ends:
            if found is not None and name in found and found[name] != self.reference[name]:
                wrong.append(f"{name} is no model of the run's end")
        return found if found == self.reference else None

    def _output(self) -> Content | None:
        if self.scenario.trains:
            return trained(self.place / "out")
        found = content(self.place / "out")
        if found is not None:  # a run that was killed after its rename leaves its journal, and the output is complete
            found = {
                name: data for name, data in found.items() if name not in ("journal.jsonl", ".hyperclone-replaced")
            }
        return found

    def _old_is_kept(self) -> bool:
        kept = content(self.place / ".out.replaced") or {}
        return {name: data for name, data in kept.items() if name != ".hyperclone-replaced"} == self.before

    def _touched(self) -> list[str]:
        touched = [name for name, before in self.untouched.items() if content(self.place / name) != before]
        if (self.place / BYSTANDER).read_text() != "mine":
            touched.append(BYSTANDER)
        return [f"touched: {name}" for name in touched]


def main() -> None:
    """Every fault at every operation of every scenario, then kills at random times; exit code 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="At random times, in all.")
    parser.add_argument("--every", type=int, default=1, help="Only each so many-th operation.")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="Only this; may be repeated.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance, rows = random.Random(args.seed), []
    chosen = args.scenario or list(SCENARIOS)
    for name in chosen:
        with tempfile.TemporaryDirectory() as place:
            checker = Checker(name, Path(place))
            kills = round(args.kills * SCENARIOS[name].share / sum(SCENARIOS[one].share for one in chosen))
            for fault, tries in _faults(checker, chance, every=args.every, kills=kills).items():
                wrong = {number: found for number, options in tries.items() if (found := checker.check(**options))}
                rows.append({"scenario": name, "fault": fault, "runs": len(tries), "wrong": wrong})
                _say(rows[-1])
    if args.output:
        args.output.write_text(json.dumps({"seed": args.seed, "rows": rows}, indent=1) + "\n")
    raise SystemExit(any(row["wrong"] for row in rows))


def _faults(
    checker: Checker, chance: random.Random, *, every: int, kills: int
) -> dict[str, dict[int, dict[str, Any]]]:  # fmt: skip
    """What is done to a scenario: options of `Checker.check` for each run, by the kind of fault."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    numbers, few = range(0, checker.operations, every), range(max(2, 12 // every))
    at_operations = ("kill", "short write", *ERRORS)
    return {
        **{fault: {n: {"number": n, "fault": fault} for n in numbers} for fault in at_operations},
        "killed at random times": {n: {"after": chance.uniform(0, 1.1 * checker.seconds)} for n in range(kills)},
        "few handles": {n: {"limits": {resource.RLIMIT_NOFILE: 6 + 2 * n}} for n in few},
        "little memory": {n: {"limits": {resource.RLIMIT_AS: used + n * (4 << 20)}} for n in few},
    }


def _say(row: dict[str, Any]) -> None:
    print(f"{row['scenario']:<28}{row['fault']:<24}{row['runs']:>5} runs, {len(row['wrong'])} wrong", flush=True)
    for number, found in list(row["wrong"].items())[:3]:
        print(f"    {number}: {found}", flush=True)


if __name__ == "__main__":
    main()
