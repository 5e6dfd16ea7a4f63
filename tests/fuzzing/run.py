"""Fuzz what is read from a stranger's directory, guided by coverage (atheris; Linux):

    python -m tests.fuzzing.run all --runs 500000
    python -m tests.fuzzing.run header expression --seconds 60

Each target runs in a process of its own. An input that raises something else than an error of ours is kept in
tests/attacks/TARGET, one for each place in the code that raised, and the run goes on; an input that takes too long or
too much memory is kept there too, and ends the target. tests/fuzzing/test_attacks.py runs these files from then on.
Inputs that reach new code make the corpus, tests/fuzzing/corpus/TARGET: as few and as small as reach the same.

    --runs N     inputs of each target [500000]
    --seconds S  end each target after so many seconds, whatever was done by then
    --report     add to tests/fuzzing/results.json: inputs, seconds, size of the corpus, branches reached, memory

Exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.fuzzing.place import PLACE, parent_directory

HERE = Path(__file__).parent
ATTACKS, CORPUS, RESULTS = HERE.parent / "attacks", HERE / "corpus", HERE / "results.json"
MEMORY_MB, SECONDS = 4096, 20  # of one input; more of either is a finding
LONGEST = 1 << 16  # bytes of an input
CORPUS_BYTES = 10_000  # kept of each target, the smallest inputs first
_WORD = re.compile(rb'"[^"\n\\]{1,40}"|[A-Za-z_][A-Za-z_0-9]{1,40}')
_DONE = re.compile(r"cov: (\d+)")
_COUNT = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_PEAK = re.compile(r"stat::peak_rss_mb:\s*(\d+)")
_TIME = re.compile(r"Done \d+ runs in (\d+) second")


def main() -> int:
    """Fuzz the targets one after another; 1 if anything was found."""
    if sys.argv[1:2] == ["--child"]:
        return _child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", nargs="+", help="names of tests/fuzzing/targets.py, or all")
    parser.add_argument("--runs", type=int, default=500_000)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    from tests.fuzzing import targets

    if unknown := set(args.target) - {"all", *targets.TARGETS}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(targets.TARGETS)}")
    names = list(targets.TARGETS) if "all" in args.target else args.target
    found = 0
    for name in names:
        place = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=parent_directory()))
        try:
            found += _target(name, place, args)
        finally:
            shutil.rmtree(place)
    print(f"{found} findings")
    return 1 if found else 0


def _target(name: str, place: Path, args: argparse.Namespace) -> int:
    """Fuzz one target and make its corpus minimal; the number of findings."""
    from tests.fuzzing import targets

    new, seeds, words = place / "new", place / "seeds", place / "words"
    attacks, corpus = ATTACKS / name, CORPUS / name
    for directory in (new, seeds, attacks, corpus):
        directory.mkdir(parents=True, exist_ok=True)
    valid = targets.seeds(name)
    for number, data in enumerate(valid):
        (seeds / str(number)).write_bytes(data)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in _words(valid)))
    known = set(attacks.iterdir())
    options = [f"-runs={args.runs}", f"-seed={args.seed}", f"-max_total_time={args.seconds}", f"-dict={words}",
               "-print_final_stats=1", str(new), str(corpus), str(seeds)]  # fmt: skip
    log = _libfuzzer(name, place, [*options, *([str(attacks)] if known else [])])
    if not _COUNT.search(log):
        raise SystemExit(f"{name}: libFuzzer did not finish")  # an input that took too long prints its count
    findings = sorted(set(attacks.iterdir()) - known)
    for finding in findings:
        print(f"{name}: found {finding}")
    _minimize(name, place, corpus, [new, corpus], seeds)
    result = {"target": name, "seed": args.seed, **_result(log, corpus, len(findings))}
    print(json.dumps(result))
    if args.report:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.write_text(json.dumps([*results, result], indent=1) + "\n")
    return len(findings)


def _words(valid: list[bytes]) -> list[bytes]:
    """What the valid inputs consist of: keys, strings and names."""
    return sorted({word for data in valid for word in _WORD.findall(data)})[:1000]


def _escaped(word: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word)


def _libfuzzer(name: str, place: Path, options: list[str]) -> str:
    """What libFuzzer prints, which is shown as well."""
    lines: list[str] = []
    command = [sys.executable, "-m", "tests.fuzzing.run", "--child", name, *options]
    environment = {**os.environ, PLACE: str(place)}
    with subprocess.Popen(command, cwd=HERE.parents[1], env=environment, text=True, errors="replace",
                          stderr=subprocess.STDOUT, stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "NEW " not in line and "REDUCE" not in line and "DE: " not in line:
                print(line, end="", flush=True)
    return "".join(lines)


def _minimize(name: str, place: Path, corpus: Path, inputs: list[Path], seeds: Path) -> None:
    """Leave in the corpus what reaches code that the seeds do not, and no more than CORPUS_BYTES of it."""
    least = place / "least"
    shutil.copytree(seeds, least)
    log = _libfuzzer(name, place, ["-merge=1", str(least), *map(str, inputs)])
    assert "MERGE-OUTER: successful" in log or "zero new files" in log, log[-2000:]
    for file in corpus.iterdir():
        file.unlink()
    total = 0
    for file in sorted(least.iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        if (seeds / file.name).exists():
            continue
        total += file.stat().st_size
        if total <= CORPUS_BYTES:
            shutil.copyfile(file, corpus / file.name)


def _result(log: str, corpus: Path, found: int) -> dict[str, Any]:
    def number(pattern: re.Pattern[str]) -> int:
        return max((int(n) for n in pattern.findall(log)), default=0)

    packages = ("atheris", "torch", "safetensors")
    return {
        "inputs": number(_COUNT), "seconds": number(_TIME), "found": found,
        "corpus_files": len(list(corpus.iterdir())), "branches": number(_DONE), "peak_mb": number(_PEAK),
        "versions": {"python": platform.python_version(),
                     **{package: importlib.metadata.version(package) for package in packages}},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip


def _child(name: str, options: list[str]) -> int:
    """One process of libFuzzer, which ends it. The place is the parent's."""
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["hyperclone"]):
        from tests.fuzzing import targets

        targets.run(name, b"")  # reads the valid inputs, so that what is imported late is instrumented too
    attacks = ATTACKS / name
    places: set[str] = set()

    def one(data: bytes) -> None:
        try:
            targets.run(name, data)
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "hyperclone" in frame.filename]
            place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            if place not in places:
                places.add(place)
                (attacks / f"found-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
                print(f"ESCAPE {place}: {str(error)[:200]!r}", flush=True)

    # libFuzzer starts itself again to merge.
    again = Path(os.environ[PLACE]) / "again"
    again.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.fuzzing.run --child {name} "$@"\n')
    again.chmod(0o755)
    limits = [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS}", f"-max_len={LONGEST}",
              f"-artifact_prefix={attacks}/"]  # fmt: skip
    atheris.Setup([str(again), *limits, *options], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
