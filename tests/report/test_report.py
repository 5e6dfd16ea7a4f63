"""A report says what its study found, nothing else, and works as one file in a browser."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.errors import DestinationError, StudyError
from hyperclone.report import canvas, copy_figures, curve_figures, figures, headline, html_tables, load, worth_figures
from hyperclone.report.write import report
from hyperclone.study import record_tables
from tests.report.made import ARMS, FIGURES, counted, edited, results, study, write

EVALUATIONS = "arm,seed,key,step,tokens,seconds,loss,bits_per_byte\n"


@pytest.mark.slow
def test_a_study_that_still_runs_is_reported_as_far_as_it_is(runs: Path) -> None:
    edited(runs / "runs.csv", "status", lambda row: "waiting" if row["key"] == "random-1" else row["status"])
    report(runs, runs.parent / "r.html")
    assert "1 of 15 runs is not finished" in "".join(headline.answer(load.read(runs)).caveats)
    for name in ("tuning.csv", "anatomy.csv", "symmetry.csv", "spectra.csv", "evaluations.csv", "sources.csv"):
        (runs / name).unlink()
    write(runs / "runs.csv", [*record_tables.RUNS],
          [[arm, seed, "waiting", *[""] * 15] for arm in (*ARMS, "bad") for seed in (1, 2, 3)])  # fmt: skip
    content = json.loads((runs / "study.json").read_text())
    content["sources"] = {name: {"key": None, "train": None} for name in content["sources"]}
    content["arms"] = {name: {**arm, "tuned": None} for name, arm in content["arms"].items()}
    (runs / "study.json").write_text(json.dumps(content))
    report(counted(runs), runs.parent / "r.html")
    assert "15 of 15 runs are not finished" in headline.answer(load.read(runs)).sentence


@pytest.mark.slow
def test_every_figure_of_the_paper_is_drawn_from_the_runs(runs: Path) -> None:
    assert [canvas.name for canvas in figures.every(load.read(runs))] == FIGURES


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(reported: Path, runs: Path) -> None:
    again = report(runs, runs.parent / "r.html")[0]
    assert again.read_bytes() == (reported / "r.html").read_bytes()


@pytest.mark.slow
def test_a_figure_shows_the_numbers_that_it_was_given(runs: Path) -> None:
    """Back from the dots on the page to the loss: the axes that hovering uses are those of the picture."""
    drawn = curve_figures.loss(load.read(runs), "tokens", "tokens")
    axes = drawn.axes[0].numbers()
    box, size = drawn.axes[0].plot.get_position(), drawn.figure.get_size_inches() * 72
    left, top, width, height = box.x0 * size[0], (1 - box.y1) * size[1], box.width * size[0], box.height * size[1]
    low, high, _ = axes["y"]
    series = next(one for one in axes["series"] if one["label"] == "clone")
    path = re.findall(r'<path d="M ([\d.]+) ([\d.]+)[^"]*"[^>]*style="fill: none; stroke: var\(--c0\)', drawn.svg())
    assert path, "the clone's line is in the picture"
    x, y = float(path[0][0]), float(path[0][1])
    scale = axes["x"]
    assert scale[0] + (x - left) / width * (scale[1] - scale[0]) == pytest.approx(series["x"][0], abs=200)
    assert high - (y - top) / height * (high - low) == pytest.approx(series["y"][0], abs=0.01)


@pytest.mark.slow
def test_text_of_a_study_is_text(reported: Path) -> None:
    text = (reported / "r.html").read_text()
    assert "<script>alert(1)" not in text
    assert "made &lt;up&gt;" in text
    assert "<b>the law" not in text


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(reported: Path) -> None:
    text = (reported / "r.html").read_text()
    loaded = re.findall(r'(?:src|href|\burl)\s*[=(]\s*["\']?([^"\'\s>)]+)', text)
    assert [one for one in loaded if not one.startswith(("#", "data:,", "URL.createObjectURL"))] == []
    assert set(re.findall(r"link.href = ([^;]+);", text)) == {
        'URL.createObjectURL(new Blob([this.file()], {type: "image/svg+xml"}))'
    }, "a download is made in the page"
    assert "@import" not in text
    assert len(text) < 1_000_000


@pytest.mark.slow
def test_images_are_written_for_papers(reported: Path) -> None:
    assert {file.suffix for file in (reported / "images").iterdir()} == {".svg", ".png"}
    svg = (reported / "images/loss-tokens.svg").read_text()
    assert "var(" not in svg
    assert (reported / "images/loss-tokens.png").stat().st_size > 10_000


def test_what_is_no_study_is_named(runs: Path) -> None:
    with pytest.raises(StudyError, match="no results"):
        report(runs.parent, runs.parent / "r.html")
    with pytest.raises(DestinationError):
        report(runs, runs.parent)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("evaluations.csv", "key,step\nclone-1,1\n", "no column"),
        ("evaluations.csv", EVALUATIONS + "clone,1,clone-1,1,0,0\n", "line 2"),
        ("evaluations.csv", EVALUATIONS + "clone,1,clone-1,0,0,0,3.,x\n", "'3.'"),
        ("tuning.csv", "arm,lr,loss,seed,key\nclone,,3,0,k\n", "''"),
        ("runs.csv", 'arm,seed\n"clone\n', "unexpected end of data"),
        ("runs.csv", "arm,seed", "an incomplete last line"),
        ("study.json", "{", "Expecting"),
        ("study.json", '{"name": "a", "train": {}, "arms": {"clone": {"kind": "clone"}}}', "note"),
        ("spectra.csv", "key,name\nclone-1,l.1.up_proj\n", "no column"),
    ],
)
def test_a_corrupt_file_is_named_with_what_is_wrong(runs: Path, name: str, text: str, said: str) -> None:
    (runs / name).write_text(text)
    with pytest.raises(StudyError) as caught:
        report(runs, runs.parent / "r.html")
    assert caught.value.details["file"].endswith(name)
    assert said in str(caught.value)


@pytest.mark.slow
def test_rows_of_runs_that_the_study_no_longer_asks_for_are_left_out(runs: Path) -> None:
    edited(
        runs / "runs.csv",
        "status",
        lambda row: "former" if row["key"] == "clone-1" or row["arm"] == "plain" else row["status"],
    )
    with (runs / "runs.csv").open("a") as stream:
        stream.write("clone,1,waiting" + "," * 15 + "\n")
    edited(runs / "tuning.csv", "arm", lambda row: "" if row["lr"] == "0.001" else row["arm"])
    content = json.loads((runs / "study.json").read_text())
    del content["arms"]["plain"]
    (runs / "study.json").write_text(json.dumps(content))
    found = load.read(counted(runs))
    assert [run.key for run in found.runs["clone"]] == ["clone-2", "clone-3"]
    assert found.tuning == {"clone": [(0.002, 3.4), (0.004, math.inf)]}
    assert "plain" not in report(runs, runs.parent / "r.html")[0].read_text()


def test_the_table_of_arms_says_what_speedup_says(runs: Path) -> None:
    found = results(runs)
    rows = re.findall(r"<tr.*?>(.*?)</tr>", html_tables.arms(found))
    head = re.findall(r"<th scope=col>(.*?)</th>", rows[0])
    cells = dict(zip(head, re.findall(r"<td>(.*?)</td>", rows[1 + list(found.arms).index("plain")]), strict=True))
    assert cells["speed-up, tokens"] == "2.00x<br><span>never to 2.20</span>"
    assert cells["rise at the start"] == "0.020"
    assert cells["loss minus control, equal tokens"] == "-0.100"
    assert cells["learning rate"] == "0.002"
    assert cells["parameters"] == "1M"


@pytest.mark.slow
def test_another_control_is_compared_as_the_study_compared_its_own(tmp_path: Path) -> None:
    """The study that is committed: its own control gives its own table; the published recipe as control, another."""
    runs = Path(__file__).parents[2] / "studies/recipes.runs"
    found = load.read(runs)
    with (runs / "speedup.csv").open() as stream:
        rows = {(row.pop("arm"), int(row.pop("seed"))): row for row in csv.DictReader(stream)}
    for arm, speedups in found.speedups.items():
        for run, one in zip(found.runs[arm], speedups, strict=True):
            shown = {name: float(cell) for name, cell in rows[arm, run.seed].items() if cell}
            known = {name: value for name, value in asdict(one).items() if value is not None}
            assert known == pytest.approx(shown, rel=1e-6, abs=1e-7)
    report(runs, tmp_path / "report.html", control="published")
    assert "2.18x" in (tmp_path / "report.html").read_text()
    ours = load.against(found, "published").speedups["rotated"]
    # Source and control are charged with the same 12M tokens of the source, so what is charged is nearer to 1.
    assert all(1 < row.charged_flops < row.speedup_flops for row in ours)  # type: ignore[operator]
    with pytest.raises(StudyError, match="published"):
        report(runs, tmp_path / "report.html", control="publish")
    answer = headline.answer(load.against(found, "rotated"))  # the study's headline itself
    assert answer.number != "1.00x"
    assert "split noise, scaling rule, AdamW”" in answer.sentence


@pytest.mark.slow
def test_of_many_arms_the_first_figures_show_those_that_others_are_compared_with(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> dict[str, set[str]]:
        every = figures.every(load.read(runs))
        return {one.name: {str(row[0]) for row in one.table[1]} for one in every}

    all_arms = drawn()
    assert all_arms["loss-tokens"] == {"random", "clone", "plain", "source"}
    assert all_arms["early"] == {"clone", "plain", "source"}
    assert "early-0" not in all_arms
    monkeypatch.setattr("hyperclone.report.curve_figures._MOST", 3)
    few = drawn()  # the control, the headline, the source; "plain" is in a group
    assert few["loss-tokens"] == {"random", "clone", "source"}
    assert few["early"] == {"clone", "source"}
    assert "plain" in few["early-0"]


def branched(runs: Path) -> Path:
    """The same study, with a control of half the length that begins from the stable phase of its control."""
    file = runs / "study.json"
    content = json.loads(file.read_text())
    content["arms"]["random-20k"] = {**content["arms"]["random"], "label": "20k tokens", "branch_of": "random"}
    file.write_text(json.dumps(content))
    for name in ("runs.csv", "evaluations.csv"):
        with (runs / name).open() as stream:
            rows = list(csv.DictReader(stream))
        short = [
            {**row, "arm": "random-20k", "key": row["key"].replace("random", "short")}
            for row in rows
            if row["arm"] == "random" and int(row.get("step", 0)) <= 20
        ]
        for row in short:
            if "final_loss" in row:
                row |= {"tokens": "20000", "flops": str(20_000 * 6_000_000), "seconds": "20"}
        if name == "runs.csv":
            for row in short:
                ends = [float(one["loss"]) for one in _losses(runs) if one["arm"] == "random"
                        and one["seed"] == row["seed"] and one["step"] == "20"]  # fmt: skip
                row["final_loss"] = str(ends[0])
        write(runs / name, list(rows[0]), [[*row.values()] for row in (*rows, *short)])
    return counted(runs)


def _losses(runs: Path) -> list[dict[str, str]]:
    with (runs / "evaluations.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_worth_of_a_token_is_measured_against_the_ends_of_the_control(runs: Path) -> None:
    canvas = worth_figures.worth(load.read(branched(runs)))
    assert canvas is not None
    assert "ends of its runs" in canvas.caption
    speedups, worths = (one.series for one in canvas.axes)
    assert [one.label for one in speedups] == ["clone", "plain", "source"]
    # Seed 2's control ends at 3.4 + 3.6 exp(-2) + 0.02 after 20k and 3.4 + 3.6 exp(-4) + 0.02 after 40k.
    high, low = 3.42 + 3.6 * math.exp(-2), 3.42 + 3.6 * math.exp(-4)
    clone = {tokens: 3.12 + 0.5 * math.exp(-tokens / 10_000) for tokens in (1000, 2000, 4000)}
    for tokens, speedup in zip(speedups[0].x, speedups[0].y, strict=True):
        assert speedup is not None
        matched = 20_000 * 2 ** ((high - clone[int(tokens)]) / (high - low))
        assert speedup == pytest.approx(matched / tokens, rel=0.03)  # the median of three may smooth the clone
    assert worths[0].y  # 3.6, where the source begins, lies between the ends as well


def test_without_ends_of_several_runs_the_page_says_whom_that_favors(runs: Path) -> None:
    canvas = worth_figures.worth(load.read(runs))
    assert canvas is not None
    assert "favor the arms" in canvas.caption


def test_branches_are_points_of_their_arm(runs: Path) -> None:
    results = load.read(branched(runs))
    canvas = curve_figures.loss(results, "tokens", "tokens")
    drawn = {one.label: (one.color, one.kind, len(one.x)) for one in canvas.axes[0].series}
    assert drawn["random-20k"] == (drawn["random"][0], "points", 1)
    head, rows = worth_figures.at_equal_distance(results)
    assert head[:2] == ["arm", "T / D0 = 1.1"]
    assert {row[0] for row in rows} <= {"clone", "plain", "source"}


@pytest.mark.slow
def test_copies_diverge_by_arm_and_by_layer(runs: Path) -> None:
    canvas = copy_figures.divergence(load.read(runs))
    assert canvas is not None
    shown: list[Any] = [{one.label: (one.x, one.y) for one in axes.series} for axes in canvas.axes]
    tokens = [0, 20000, 40000]
    assert shown[0] == {"clone": (tokens, pytest.approx([0.8, 0.7, 0.6]))}  # the mean of two layers
    assert shown[1] == {
        "layer 0": (tokens, pytest.approx([0.8, 0.8, 0.8])),
        "layer 1": (tokens, pytest.approx([0.8, 0.6, 0.4])),
    }


@pytest.mark.slow
def test_a_run_is_charged_with_the_training_of_the_source_that_it_began_from(runs: Path) -> None:
    with (runs / "sources.csv").open("a") as stream:
        stream.write("source-a2,a,500000,1000000,5000000000000,300,3.4,another\n")
    edited(runs / "runs.csv", "source", lambda row: "source-a2" if row["key"] == "clone-2" else row["source"])
    found = load.read(counted(runs))
    one, two, _ = found.speedups["clone"]
    assert one.flops is not None
    assert two.flops is not None
    control = 40_000 * 6_000_000
    assert one.charged_flops == pytest.approx(control / (one.flops + 1e12))
    assert two.charged_flops == pytest.approx(control / (two.flops + 5e12))
    page = report(runs, runs.parent / "r.html")[0].read_text()
    assert "Source a, trained again, of clone seed 2" in page
    assert "<td>5000000000000</td>" in page
    assert "<td>1000000000000</td>" in page


@pytest.mark.slow
def test_names_of_arms_are_no_formulas(runs: Path) -> None:
    for file in runs.iterdir():
        text = re.sub(r"(?<!kind\": \")(?<=[\"\n])clone(?=[\",])", "2$x$", file.read_text())
        file.write_text(text)
    drawn = {one.name: one.svg() for one in figures.every(load.read(runs))}
    for name in ("loss-tokens", "speedup", "group-0"):
        assert "2$x$</text>" in drawn[name]


@pytest.mark.slow
def test_a_fall_from_a_bad_start_does_not_flatten_the_early_figure(runs: Path) -> None:
    shift = {"0": 9.0, "1": 6.0, "2": 4.0}
    edited(
        runs / "runs.csv",
        "start_loss",
        lambda row: float(row["start_loss"]) + shift["0"] if row["arm"] == "plain" else row["start_loss"],
    )
    edited(
        runs / "evaluations.csv",
        "loss",
        lambda row: float(row["loss"]) + shift.get(row["step"], 0.0) * (row["arm"] == "plain"),
    )
    drawn = next(one for one in figures.every(load.read(runs)) if one.name == "early")
    assert "outside of the figure" in drawn.caption
    assert drawn.axes[0].numbers()["y"][0] > -2


@pytest.mark.slow
def test_the_early_figure_shows_the_first_tenth(tmp_path: Path) -> None:
    drawn = next(one for one in figures.every(load.read(study(tmp_path / "r"))) if one.name == "early")
    for one in drawn.axes[0].numbers()["series"]:
        assert one["x"] == [1, 2, 4, 10], "at least four evaluations, else up to 4 of 40 steps"
    assert "random" not in {one["label"] for one in drawn.axes[0].numbers()["series"]}


@given(st.lists(st.floats(0, 200), max_size=12))
def test_names_beside_lines_never_overlap(heights: list[float]) -> None:
    moved = canvas._apart(sorted(heights), 0, 200, 12)
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(moved))
    assert all(height <= 200 for height in moved)
    if all(b - a >= 12 for a, b in pairwise(sorted(heights))):
        assert moved == sorted(heights)
