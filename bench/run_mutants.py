"""Run mutmut's mutants in forks of one process that has collected every test: some thirty minutes on two cores.

    PYTHONPATH=mutants/src:mutants HYPOTHESIS_PROFILE=quick python bench/run_mutants.py planning --workers 2

mutmut makes the mutants, and finds which test reaches which function; its files keep the results, as after
`mutmut run`, which collects all tests again for each mutant and so takes hours. Here a mutant's tests run in a fork:
first those that have noticed other mutants of the function, then the fastest, until one fails or the CPU seconds are
over. A mutant that survived is one that no test noticed in these seconds; `--again` runs survivors once more, so that
it can only be fewer. Linux only. The first start may have to be repeated, as that of mutmut: it puts the tests where
they are imported from.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import re
import resource
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SURVIVED, NOTICED, NO_TEST, TIMEOUT = 0, 1, 33, 36  # exit codes as mutmut keeps them


class Mutant(NamedTuple):
    """A mutant, and the file that keeps its result."""

    name: str
    file: Path

    @property
    def function(self) -> str:
        """The function that it changes, by mutmut's name."""
        return self.name.rpartition("__mutmut_")[0]


def main() -> None:
    """Make or update the mutants, then run them inside of pytest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="Regular expression of mutants' names.")
    parser.add_argument("--workers", type=int, default=1, help="Mutants at a time.")
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU seconds for the tests of one mutant.")
    parser.add_argument("--again", action="store_true", help="Also mutants that survived or that no test reached.")
    args = parser.parse_args()
    prepare()
    os.chdir("mutants")
    settings = importlib.import_module("mutmut.configuration").config()
    selected = [*settings.pytest_add_cli_args, *settings.pytest_add_cli_args_test_selection]
    with tempfile.TemporaryDirectory() as place:
        plugin = Forks(args.pattern, workers=args.workers, seconds=args.seconds, again=args.again, place=Path(place))
        options = ["--rootdir=.", "-q", "-s", f"--basetemp={place}/tests"]
        raise SystemExit(pytest.main([*options, *selected], plugins=[plugin]))


def prepare() -> None:
    """Make the mutants, and collect which test reaches which function, of what has changed since the last time."""
    mutmut: Any = importlib.import_module("mutmut.__main__")
    mutmut.set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    for step in (mutmut.copy_src_dir, mutmut.copy_also_copy_files, mutmut.setup_source_paths,
                 mutmut.store_lines_covered_by_tests):  # fmt: skip
        step()
    mutmut.create_mutants(1)
    mutmut.collect_or_load_stats(mutmut.get_mutant_runner(1), apply_config_invalidation=True)
    mutmut.set_mutant_under_test("")


class Forks:
    """A pytest plugin that runs mutants instead of the collected tests."""

    def __init__(self, pattern: str, *, workers: int, seconds: float, again: bool, place: Path) -> None:
        """As the command line's arguments; `place` is for temporary files."""
        self.pattern, self.workers, self.seconds, self.place = pattern, workers, seconds, place
        self.codes = {None, SURVIVED, NO_TEST} if again else {None}
        self.failed = False
        self.noticed: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by which test, for function and module

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember that a test has failed."""
        self.failed = self.failed or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Every worker runs its share of the mutants."""
        stats = json.loads(Path("mutmut-stats.json").read_text())
        reached, self.durations = stats["tests_by_mangled_function_name"], stats["duration_by_test"]
        items = {item.nodeid: item for item in session.items}
        # A failure's report quotes the changed module, which takes longer than most tests, and nobody reads it.
        pytest.Function.repr_failure = lambda *_, **__: "failed"  # type: ignore[method-assign]
        gc.collect()
        gc.freeze()
        mutants = list(self._mutants())
        shares = [mutants[worker :: self.workers] for worker in range(1, self.workers)]
        others = [self._fork(session, items, reached, share) for share in shares]
        self._run_all(session, items, reached, mutants[:: self.workers])
        for pid in others:
            os.waitpid(pid, 0)
        return True

    def _fork(self, session: pytest.Session, items: Any, reached: Any, mutants: list[Mutant]) -> int:
        """Another worker; its process."""
        if pid := os.fork():
            return pid
        try:
            self._run_all(session, items, reached, mutants)
        finally:
            os._exit(0)

    def _mutants(self) -> Iterator[Mutant]:
        for file in sorted(Path("src").rglob("*.py.meta")):
            for name, code in json.loads(file.read_text())["exit_code_by_key"].items():
                if code in self.codes and re.search(self.pattern, name):
                    yield Mutant(name, file)

    def _run_all(self, session: pytest.Session, items: Any, reached: Any, mutants: list[Mutant]) -> None:
        results: Counter[int] = Counter()
        for number, mutant in enumerate(mutants):
            tests = [items[name] for name in reached.get(mutant.function, ()) if name in items]
            tests.sort(key=lambda test: self._turn(mutant, test.nodeid))
            code, by = self._run(session, tests, mutant) if tests else (NO_TEST, None)
            keep(mutant, code)
            results[code] += 1
            if by is not None:
                for name in (mutant.function, mutant.function.rpartition(".")[0]):
                    self.noticed[name][by] += 1
            if code != NOTICED or number % 50 == 0:
                print(f"{number + 1}/{len(mutants)} {dict(results)} {mutant.name}: {code}", flush=True)

    def _turn(self, mutant: Mutant, test: str) -> tuple[bool, float]:
        """Where a test stands: those that noticed mutants of the function or its module first, then the fastest."""
        seconds = self.durations.get(test, 0) + 0.01
        module = mutant.function.rpartition(".")[0]
        noticed = 20 * self.noticed[mutant.function][test] + self.noticed[module][test]
        home = test.startswith(f"tests/{module.split('.')[1]}/")
        return (False, -noticed / seconds) if noticed else (True, seconds if home else 30 * seconds)

    def _run(self, session: pytest.Session, tests: list[pytest.Item], mutant: Mutant) -> tuple[int, str | None]:
        """Exit code, and the test that noticed."""
        reader, writer = os.pipe()
        place = self.place / str(os.getpid())
        pid = os.fork()
        if not pid:
            try:
                place.mkdir()
                os.write(writer, self._tests(session, tests, mutant, place).encode())
            finally:
                os._exit(SURVIVED)
        os.close(writer)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(reader) as pipe:
            by = pipe.read()
        shutil.rmtree(place, ignore_errors=True)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (9, 24):
            return TIMEOUT, None
        return (NOTICED, by or None) if by or os.WIFSIGNALED(status) else (SURVIVED, None)

    def _tests(self, session: pytest.Session, tests: list[pytest.Item], mutant: Mutant, place: Path) -> str:
        """In the fork: the test that notices a mutant; "" if none does in time."""
        trampoline: Any = importlib.import_module("mutmut.mutation.trampoline")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        limit = int(self.seconds) + 60  # for a test that does not end
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        factory: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
        factory._basetemp = place
        trampoline.set_mutant_under_test(mutant.name)
        self.failed = False
        for test, following in zip(tests, [*tests[1:], None], strict=True):
            test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            if self.failed:
                return test.nodeid
            if sum(os.times()[:2]) > self.seconds:
                break
        return ""


def keep(mutant: Mutant, code: int) -> None:
    """Write a result into mutmut's file, which other workers write as well."""
    with mutant.file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = json.loads(mutant.file.read_text())
        content["exit_code_by_key"][mutant.name] = code
        mutant.file.write_text(json.dumps(content, indent=4))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
