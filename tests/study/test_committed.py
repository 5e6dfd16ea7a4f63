"""What is committed of the studies is small, whole, and what their files ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hyperclone.report import load
from hyperclone.study import config_file, paths, records

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.toml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_finished_run_has_its_evaluations_and_every_source_its_cost(file: Path) -> None:
    study, directory = config_file.read(file), paths.runs_of(file)
    found, known = load.read(directory), records.load(directory)
    assert list(found.arms) == list(study.arms)
    asked = {(arm, seed) for arm in study.arms for seed in study.seeds}
    assert {(row["arm"], row["seed"]) for row in found.standings} == asked
    finished = [row for row in found.standings if row["status"] == "finished"]
    assert len(finished) == sum(len(runs) for runs in found.runs.values()) > 0
    for runs in found.runs.values():
        assert all(run.curve.tokens[-1] == run.tokens for run in runs)
    for source in found.study["sources"].values():
        assert known.sources[source["key"]].flops
    for arm in study.arms.values():
        if arm.tuning is not None:
            losses = dict(found.tuning[arm.name])
            assert found.arms[arm.name]["tuned"]["lr"] == min(losses, key=lambda rate: losses[rate])


def test_the_repository_stays_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert sum(sizes.values()) < 10e6, sorted(sizes, key=lambda name: -sizes[name])[:10]
    tables = sum(size for name, size in sizes.items() if name.startswith("studies/") and "/sources/" not in name)
    assert tables < 1e6
