"""What is committed of the studies is small, whole, and what their files ask for."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from hyperclone.report import load
from hyperclone.study import config_file, paths, run
from tests.helpers.command import call
from tests.helpers.studies import save_model

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.toml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_finished_run_has_its_evaluations_and_every_source_its_cost(file: Path) -> None:
    study, directory = config_file.read(file), paths.runs_of(file)
    results = load.read(directory)
    assert list(results.arms) == list(study.arms)
    asked = {(arm, seed) for arm in study.arms for seed in study.seeds}
    assert {(row.arm, row.seed) for row in results.rows} == asked
    finished = [row for row in results.rows if row.status == "finished"]
    assert len(finished) == sum(len(runs) for runs in results.runs.values())
    if not finished:  # committed before it has run, so that what it will show is said before
        assert {row.status for row in results.rows} <= {"waiting", "interrupted"}
        return
    for arm, runs in results.runs.items():
        assert all(run.curve.tokens[-1] == run.tokens for run in runs)
        source = study.arms[arm].source
        assert source is not None
        key = "" if study.arms[arm].kind == "random" else results.study["sources"][source.name]["key"]
        assert {run.source for run in runs} == {key}
    begun = {arm.source.name for arm in study.arms.values() if arm.source is not None and arm.kind != "random"}
    for name, about in results.study["sources"].items():
        assert name not in begun or results.sources[about["key"]].flops
    for one in study.arms.values():
        if one.tuning is not None:
            losses = dict(results.tuning[one.name])
            assert results.arms[one.name]["tuned"]["lr"] == min(losses, key=lambda rate: losses[rate])


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_that_cannot_start_leaves_its_results_as_they_are(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the studies, on a machine without their text and models."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(ROOT / "studies", tmp_path / "studies", ignore=shutil.ignore_patterns("sources"))
    before = committed(tmp_path)
    progress = run.run(tmp_path / "studies" / file.name, jobs=1)
    assert {one.status for one in progress.runs} == {"failed"}
    assert all("no such file or directory" in str(one.error) for one in progress.runs)
    assert committed(tmp_path) == before


@pytest.mark.parametrize(("name", "blank", "finished"), [("gpu", "512x7x64", 12), ("longer", "192", 6)])
def test_a_study_whose_text_cannot_be_fetched_any_more_says_so_before_it_begins(
    name: str, blank: str, finished: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another text in the place of the recorded one: nothing is run here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache/hyperclone"
    for corpus in ("mixed", "whole"):
        (cache / "corpora" / corpus).mkdir(parents=True)
        for part in ("pretrain", "train", "validation", "held_out"):
            with gzip.open(cache / "corpora" / corpus / f"{part}.jsonl.gz", "wt") as stream:
                stream.write('{"text": "another"}\n')
    save_model(cache / "studies")
    (cache / "studies/blank").rename(cache / f"studies/blank-{blank}")
    done = call("study", ROOT / f"studies/{name}.toml", "--dry-run")
    assert f"{finished} recorded runs are of another text, model or setting" in done.stderr
    assert "12 runs will be trained" in done.stderr
    comment = (ROOT / f"studies/{name}.toml").read_text().split("\n\n")[0]
    assert "cannot be repeated" in comment
    assert "trains all 12 runs" in comment


def committed(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (directory / "studies").rglob("*") if path.is_file()}


def test_a_study_that_cannot_start_fails_at_the_command_line_and_says_why(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "studies", tmp_path / "studies", ignore=shutil.ignore_patterns("sources"))
    before = committed(tmp_path)
    done = call("study", tmp_path / "studies/recipes.toml", HOME=str(tmp_path))
    assert done.returncode == 1
    assert "rotated, seed 1: failed; its recorded result is kept" in done.stderr
    assert "corpora/mixed/train.jsonl.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert "3.0654" in done.stdout  # what is recorded is shown
    assert committed(tmp_path) == before


def test_the_repository_stays_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert sum(sizes.values()) < 10e6, sorted(sizes, key=lambda name: -sizes[name])[:10]
    tables = sum(size for name, size in sizes.items() if name.startswith("studies/") and "/sources/" not in name)
    assert tables < 1e6
