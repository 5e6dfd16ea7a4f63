"""Files of results that are damaged are refused with what is wrong; what is read is what was written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperclone.errors import StudyError
from hyperclone.report import headline
from hyperclone.report import load as report_load
from hyperclone.study import config_file, record_tables, results, tables
from hyperclone.study import run as studies
from hyperclone.study.record_tables import TABLES
from hyperclone.study.records import Recorded
from tests.helpers import studies as helper
from tests.helpers.command import call
from tests.helpers.examples import examples
from tests.helpers.studies import TUNED, Commands, run_study, write_study

STUDY_JSON = "study.json"
Cells = list[list[str]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with one row of every kind: former runs, a failed one, and a source that was trained again."""
    directory = tmp_path_factory.mktemp("study")
    helper.save_model(directory)
    for number, name in enumerate(("train", "held_out", "pretrain", "validation")):
        (directory / f"{name}.txt").write_text(f"text {number} " * 100)

    def loss(command: list[str]) -> float:
        if "/tuning/" in " ".join(command):
            return 3 + abs(float(helper.option(command, "lr")) / 2e-3 - 1)
        return 2.5 if "/clone-" in " ".join(command) else 3.0

    more = "\n[arms.own]\nrandom = true\ngrowth = { width = 3 }\ntrain = { lr = 1e-3 }\n"
    run_study(write_study(directory, TUNED + more), Commands(loss))
    for weights in (directory / "runs-of-study/sources").glob("*/*.safetensors"):
        weights.unlink()
    helper.remake(directory / "study.toml", Commands(lambda command: 2.875))
    wanted = TUNED.replace("seeds = [1, 2]", "seeds = [1, 3]")  # the second seed and one arm become former
    same = "\n[arms.same]\ngrowth = { width = 2 }\n"  # as `clone`, so they share runs
    run_study(write_study(directory, wanted + same), Commands(loss, fail="continued-s3"))
    return directory


@pytest.fixture(scope="module")
def recorded(study: Path) -> Recorded:
    """What they say."""
    return record_tables.load(study / "runs-of-study")


@pytest.fixture
def runs(study: Path, tmp_path: Path) -> Path:
    """A copy of its results."""
    return copied(study, tmp_path / "study.runs")


def copied(study: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for name, content in helper.tables(study / "runs-of-study").items():
        (target / name).write_bytes(content)
    return target


def cells(text: str) -> Cells:
    return list(csv.reader(io.StringIO(text)))


def text_of(table: Cells) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(table)
    return stream.getvalue()


def replace_cell(file: Path, column: str, text: str, *, row: int = 1) -> None:
    """Replace the cell of a column in a row (1 is the first below the header)."""
    table = cells(file.read_text())
    table[row][table[0].index(column)] = text
    file.write_text(text_of(table))


def test_what_was_written_is_what_is_read(recorded: Recorded) -> None:
    assert {row.status for row in recorded.rows} == {"finished", "failed"}
    assert len(recorded.records.runs) > len(recorded.rows) - 1  # former ones as well
    assert len(recorded.records.sources) == 2
    run = next(run for run in recorded.records.runs.values() if run.arm == "clone" and run.seed == 1)
    assert (run.curve.step, run.curve.loss) == ([0, 4, 8], [5, 3.75, 2.5])
    assert (run.tokens, run.source) == (4096, next(iter(recorded.records.sources)))
    assert [(layer.tokens, layer.layer, layer.cosine) for layer in run.symmetry] == [
        (0, 0, 1.0), (0, 1, 1.0), (2048, 0, 0.6), (2048, 1, 0.6), (4096, 0, 0.2), (4096, 1, 0.2)
    ]  # fmt: skip
    assert [(one.tokens, one.divergence, one.effective_rank) for one in run.anatomy] == [
        (0, 0.25, 2.5), (0, 0.25, 2.5), (4096, 0.25, 2.5), (4096, 0.25, 2.5)
    ]  # fmt: skip
    assert [one.values for one in run.spectra] == [(1.0, 0.5, 0.25)] * 2


WRONG = [  # table, column, text, what is expected there
    *[("evaluations.csv", "tokens", text, "a whole number") for text in ("nan", "inf", "", "1e3", "-1", "4096.0", "٣")],
    *[("evaluations.csv", "loss", text, "a number") for text in ("nan", "inf", "", "1e999", "0x10", "1_0", " 5", "5.")],
    *[("runs.csv", name, "", "as the run has finished") for name in ("lr", "parameters", "flops_per_token", "seconds")],
    *[("runs.csv", name, "nan", "a whole number") for name in ("tokens", "parameters", "flops", "seed")],
    ("runs.csv", "lr", "0", "a number above zero"),
    ("runs.csv", "status", "done", "one of finished"),
    ("runs.csv", "arm", "other", "a row for each arm and seed"),
    ("runs.csv", "optimizer", "", "as the run has finished"),
    ("runs.csv", "flops", "1", "tokens x"),
    ("runs.csv", "key", "0", "its curve, to 4096 tokens"),
    ("runs.csv", "source", "0", "with the key 0"),
    ("sources.csv", "flops", "7056474501021696.0", "a whole number, or nothing"),
    ("sources.csv", "key", "0", "with the key"),
    ("tuning.csv", "loss", "nan", "a number or inf"),
    ("tuning.csv", "loss", "2", "the lowest loss at 0.002"),
    ("tuning.csv", "lr", "", "a number above zero"),
    ("tuning.csv", "lr", "0.002", "it once"),
    ("tuning.csv", "seed", "7", "one loss"),
    ("runs.csv", "hardware", "another", "as in another row with its key"),
    ("spectra.csv", "values", "1 0.5 0.", "numbers with one space between them"),
    ("spectra.csv", "values", "1 0.5", "the same as before training"),
    ("spectra.csv", "values", "", "numbers"),
    ("spectra.csv", "tokens", "2048", "0, 4096"),
    ("anatomy.csv", "cosine", "high", "a number, or nothing"),
    ("symmetry.csv", "layer", "1", "each once"),
    ("symmetry.csv", "key", "0", "the key of a row of runs.csv"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "text", "expected"), WRONG)
def test_a_cell_that_holds_something_else_is_named(
    runs: Path, name: str, column: str, text: str, expected: str
) -> None:
    table = cells((runs / name).read_text())
    arm = "random" if (name, column) in (("tuning.csv", "loss"), ("tuning.csv", "lr")) else "clone"
    row = next((i for i, row in enumerate(table) if row[0] == arm), 1)
    replace_cell(runs / name, column, text, row=row)
    with pytest.raises(StudyError) as caught:
        record_tables.load(runs)
    assert expected in str(caught.value)
    assert "cure" in caught.value.details


@pytest.mark.parametrize(
    ("column", "row", "text", "field"),
    [("loss", 3, "2.6", "last loss"), ("loss", 1, "4.9", "first loss"), ("seconds", 3, "9", "last seconds"),
     ("tokens", 3, "4608", "last tokens"), ("tokens", 2, "2047", "tokens after step 4"), ("step", 2, "0", "step")],
)  # fmt: skip
def test_a_curve_ends_where_its_run_does(runs: Path, column: str, row: int, text: str, field: str) -> None:
    table = cells((runs / "evaluations.csv").read_text())
    first = next(i for i, one in enumerate(table) if one[:2] == ["clone", "1"])
    replace_cell(runs / "evaluations.csv", column, text, row=first + row - 1)
    with pytest.raises(StudyError) as caught:
        record_tables.load(runs)
    assert caught.value.details["field"] == f"{field} of clone, seed 1"
    assert "in runs.csv" in caught.value.details["cure"]


def test_a_finished_run_without_a_curve_is_refused_and_its_cure_works(study: Path, runs: Path) -> None:
    table = cells((runs / "evaluations.csv").read_text())
    kept = [row for row in table if row[:2] != ["clone", "1"]]
    (runs / "evaluations.csv").write_text(text_of(kept))
    content = json.loads((runs / STUDY_JSON).read_text())
    content["rows"]["evaluations.csv"] = len(kept) - 1
    (runs / STUDY_JSON).write_text(json.dumps(content))
    with pytest.raises(StudyError, match=r"set the run's status in runs\.csv to waiting") as caught:
        record_tables.load(runs)
    assert caught.value.details["found"] == "none"
    (runs / "runs.csv").write_text((runs / "runs.csv").read_text().replace(",1,finished", ",1,waiting"))
    assert len(list(record_tables.load(runs).finished())) == 3


def test_two_finished_rows_of_one_arm_and_seed_are_refused(runs: Path) -> None:
    """A former run may have been of an arm and seed that the study still asks for."""
    table = runs / "runs.csv"
    table.write_text(table.read_text().replace("clone,2,former", "clone,1,former"))
    record_tables.load(runs)
    table.write_text(table.read_text().replace("clone,1,former", "clone,1,finished"))
    with pytest.raises(StudyError, match="two rows of one arm and seed"):
        record_tables.load(runs)


def test_a_table_without_rows_is_refused_by_itself(tmp_path: Path) -> None:
    """Of a source that was trained before the study was first run there is nothing to compare it with."""
    assert record_tables.load(tmp_path) == Recorded(rows=[], tuning_rows=[])
    (tmp_path / "sources.csv").write_text(",".join(record_tables.SOURCES) + "\n")
    with pytest.raises(StudyError, match="no rows"):
        record_tables.load(tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_cut_at_a_line_or_missing_or_longer_is_refused(runs: Path, name: str) -> None:
    lines = (runs / name).read_bytes().splitlines(keepends=True)
    damaged = [b"".join(lines[:count]) for count in range(len(lines))]
    for content in (*damaged, b"".join([*lines, lines[-1]])):
        (runs / name).write_bytes(content)
        with pytest.raises(StudyError) as caught:
            record_tables.load(runs)
        assert caught.value.details["file"] == str(runs / name)
    (runs / name).unlink()
    with pytest.raises(StudyError):
        record_tables.load(runs)


def test_the_request_is_refused_where_it_is_not_what_was_written(runs: Path) -> None:
    whole = json.loads((runs / STUDY_JSON).read_text())
    changes: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("rows", lambda content: content.pop("rows")),
        ("seeds", lambda content: content.update(seeds=[1, 1])),
        ("arms.clone.kind", lambda content: content["arms"]["clone"].update(kind="dolly")),
        ("arms.clone.tuned", lambda content: content["arms"]["clone"].update(tuned={"lr": 0})),
        ("arms.clone.source", lambda content: content["arms"]["clone"].update(source="other")),
        ("arms.clone", lambda content: content["arms"].update(clone=[])),
        ("control", lambda content: content.update(control="other")),
        ("sources.small.key", lambda content: content["sources"]["small"].update(key=3)),
        ("name", lambda content: content.update(name=None)),
    ]
    for field, change in changes:
        content = json.loads(json.dumps(whole))
        change(content)
        (runs / STUDY_JSON).write_text(json.dumps(content))
        with pytest.raises(StudyError) as caught:
            record_tables.load(runs)
        assert caught.value.details["field"] == field
    for text in ("", "[]", "{", '{"name": NaN}', '"\\ud800"'):
        (runs / STUDY_JSON).write_text(text)
        with pytest.raises(StudyError, match="corrupt or truncated"):
            record_tables.load(runs)
    (runs / STUDY_JSON).unlink()
    with pytest.raises(StudyError, match="no such file"):
        record_tables.load(runs)


# Any damage at all: cells, lines, bytes.


NASTY = ["", "nan", "inf", "-inf", "1e999", "-1", "0", "1", "0.5", "1_0", "1 ", "true", "finished", "former", "waiting",
         "clone", "random", '"', "\n", ",", "\r", "\ud7ff", "٣", "0x1", "1e3", "9" * 40, "\x00", "own"]  # fmt: skip
WORDS = st.one_of(st.sampled_from(NASTY), st.text(max_size=6), st.integers().map(str), st.floats().map(str))
PICK = st.integers(0, 10**6)


@examples(200)
@given(name=st.sampled_from([*TABLES, STUDY_JSON]), how=st.sampled_from(["cut", "delete", "double"]), at=PICK)
def test_no_file_that_lost_or_doubled_something_is_read(study: Path, name: str, how: str, at: int) -> None:
    content = (study / "runs-of-study" / name).read_bytes()
    lines = content.splitlines(keepends=True)
    line = at % len(lines)
    damaged = {
        "cut": content[: at % len(content)],
        "delete": b"".join(lines[:line] + lines[line + 1 :]),
        "double": b"".join(lines[: line + 1] + lines[line:]),
    }[how]
    if name == STUDY_JSON and how != "cut":
        return  # a field less is another request: that it is checked, another test says
    if name == STUDY_JSON and damaged.strip() == content.strip():
        return
    runs = damaged_copy(study, name, damaged)
    for reading in (record_tables.load, report_load.read):
        with pytest.raises(StudyError):
            reading(runs)


@pytest.mark.slow
@examples(300)
@given(name=st.sampled_from([*TABLES]), row=PICK, column=PICK, text=WORDS)
@example(name="evaluations.csv", row=0, column=4, text="nan")
@example(name="spectra.csv", row=0, column=6, text="1 x")
@example(name="runs.csv", row=0, column=7, text="")
def test_a_replaced_cell_is_refused_or_changes_nothing_else(
    study: Path, recorded: Recorded, name: str, row: int, column: int, text: str
) -> None:
    table = cells((study / "runs-of-study" / name).read_text())
    row = 1 + row % (len(table) - 1)
    column %= len(table[0])
    before, table[row][column] = table[row][column], text
    keys = {table[row][table[0].index("key")], before if table[0][column] == "key" else ""}
    try:
        content = text_of(table).encode()
    except (UnicodeEncodeError, csv.Error):
        return
    runs = damaged_copy(study, name, content)
    try:
        found = record_tables.load(runs)
    except StudyError:
        with pytest.raises(StudyError):
            report_load.read(runs)
        return
    assert without(found, keys) == without(recorded, keys)
    headline.answer(report_load.read(runs))


def without(recorded: Recorded, keys: set[str]) -> list[Any]:
    """Everything on record but what has one of some keys."""
    known = recorded.records
    return [
        *({name: record for name, record in getattr(known, field.name).items() if name not in keys}
          for field in fields(known)),
        [row for row in recorded.rows if row.key not in {*keys, ""}],
        [row for row in recorded.tuning_rows if row.key not in keys],
        recorded.request,
    ]  # fmt: skip


@pytest.mark.slow
@examples(100)
@given(at=PICK, length=st.integers(0, 12), text=WORDS)
def test_a_damaged_request_is_refused_or_one_that_can_be_used(study: Path, at: int, length: int, text: str) -> None:
    content = (study / "runs-of-study" / STUDY_JSON).read_text()
    at %= len(content)
    damaged = (content[:at] + text + content[at + length :]).encode("utf-8", "surrogatepass")
    runs = damaged_copy(study, STUDY_JSON, damaged)
    with suppress(StudyError):
        headline.answer(report_load.read(runs))
        studies.finished(config_file.read(study / "study.toml"), output=runs)


def damaged_copy(study: Path, name: str, content: bytes) -> Path:
    """The results with one file replaced, in a directory beside the study that is used again and again."""
    runs = copied(study, study / "damaged.runs")
    (runs / name).write_bytes(content)
    return runs


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [("evaluations.csv", "tokens", "nan"), ("evaluations.csv", "step", "0"), ("spectra.csv", "values", "1 x"),
     ("runs.csv", "parameters", ""), ("runs.csv", "flops_per_token", ""), ("tuning.csv", "seed", "inf"),
     ("tuning.csv", "lr", "")],
)  # fmt: skip
def test_a_damaged_table_is_one_message_at_the_command_line(
    study: Path, runs: Path, name: str, column: str, text: str
) -> None:
    replace_cell(runs / name, column, text, row=2 if name == "evaluations.csv" else 1)
    for command in (("report", runs, "-o", runs.parent / "r.html"), ("study", study / "study.toml", "-o", runs),
                    ("study", study / "study.toml", "-o", runs, "--dry-run"),
                    ("study", study / "study.toml", "-o", runs, "--source", "small")):  # fmt: skip
        done = call(*command)
        assert done.returncode == 2, done.stderr
        assert "corrupt or truncated" in done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_tables_that_a_study_is_writing_are_read_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes between two of its files sees both of them as they are afterwards."""
    older, newer = (runs / "evaluations.csv").read_text(), text_of(cells((runs / "evaluations.csv").read_text()))
    (runs / "evaluations.csv").write_text(older.replace("clone,1,", "clone,1,x"))
    reads = iter(range(100))
    actual = tables.read

    def read(file: Path, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        if file.name == "runs.csv" and next(reads) == 0:
            (runs / "new").write_text(newer)
            (runs / "new").replace(runs / "evaluations.csv")
        return actual(file, *arguments, **options)

    monkeypatch.setattr(tables, "read", read)
    assert record_tables.load(runs).records.runs
    assert next(reads) == 2


def test_files_are_replaced_together_or_not_at_all(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = helper.tables(runs)
    written = iter(range(100))

    def full(_: int) -> None:
        if next(written) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        results._replace(runs, {"runs.csv": "a\n", "study.json": "b\n"})
    assert helper.tables(runs) == before
