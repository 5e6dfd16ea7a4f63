"""The page's parts are in the order in which they are asked for, none is empty, and an arm is the same everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hyperclone.report import copy_figures, figures, html_page, html_tables, load, styles
from hyperclone.report.glossary import TERMS
from hyperclone.report.palette import on_page
from hyperclone.report.write import report
from tests.report.made import FIGURES, counted, edited, results, study

STUDY = Path(__file__).parents[2] / "docs/study.md"


@pytest.fixture(scope="module")
def page(reported: Path) -> str:
    return (reported / "r.html").read_text()


@pytest.fixture(scope="module")
def data(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r"<script id=data type=application/json>(.*?)</script>", page)
    assert found is not None
    numbers: dict[str, dict[str, object]] = json.loads(found[1])
    return numbers


@pytest.mark.slow
def test_the_page_begins_with_the_answer_and_ends_with_the_words(page: str) -> None:
    order = [
        "<p class=number>", '<figure id="answer"', "<h2>Summary</h2>", "<div id=chips", '<figure id="worth"',
        '<figure id="loss-tokens"', '<figure id="speedup"', "<h2>Arms in detail</h2>", "<h2>What was run</h2>",
        "<h2>Glossary</h2>",
    ]  # fmt: skip
    at = [page.index(part) for part in order]
    assert at == sorted(at)
    assert page.index("<p class=number>") == page.index("<p class=number>", 0, page.index("<figure"))


@pytest.mark.slow
def test_an_arm_has_one_color_everywhere(runs: Path, page: str, data: dict[str, dict[str, object]]) -> None:
    found = load.read(runs)
    own = {arm: on_page(styles.color(found, arm)) for arm in found.runs}
    drawn: dict[str, set[str]] = {arm: set() for arm in own}
    for figure in data["figures"].values():
        assert isinstance(figure, dict)
        for axes in figure["axes"]:
            for one in (*axes["series"], *(note for note in axes["notes"] if note.get("arm") in own)):
                drawn[one.get("arm") or one["label"]].add(one["color"])
    assert drawn == {arm: {color} for arm, color in own.items()}
    for arm, color in own.items():
        marks = re.findall(rf'<i style="background:([^"]*)"></i>(?:<b>)?{arm}<', page)
        assert marks == [color] * 3, "in the summary, the switches and the detailed table"


@pytest.mark.slow
def test_every_figure_is_told_in_words_and_can_be_seen_without_scripts(page: str) -> None:
    told = dict(re.findall(r'<figure id="([\w-]+)"[^>]*>.*?role=img aria-label="([^"]*)"', page))
    assert [*told] == FIGURES
    assert all("Arrow keys show values." in words for words in told.values())
    assert "clone 3.12 at 40k" in told["loss-tokens"].replace("3.129", "3.12")
    assert "clone sciq 0.3 piqa 0.5" in told["tasks"].replace("clone piqa 0.5 sciq 0.3", "clone sciq 0.3 piqa 0.5")
    assert page.count("<noscript><svg") == len(FIGURES)


def test_the_summary_has_cost_and_machine(runs: Path) -> None:
    rows = re.findall(r'<tr data-arm="(.*?)">(.*?)</tr>', html_tables.summary(load.read(runs)))
    cells = {arm: re.sub(r"<.*?>", "|", row).strip("|") for arm, row in rows}
    assert [*cells] == ["random", "clone", "plain", "source"], "arms with results"
    assert "control" in cells["random"]
    for part in ("3.129", "40k", "240G", "0.667"):  # tokens, 6M FLOPs for each of 40k tokens, 40 s of training
        assert part.replace("240G", "240B") in cells["clone"], part
    text = html_tables.summary(load.read(runs))
    assert "All on one, 2 cores, 1 thread a run." in text
    assert "a took 1M tokens and 1T FLOPs; b took 2M tokens" in text
    edited(runs / "runs.csv", "hardware", lambda row: "two" if row["arm"] == "plain" else row["hardware"])
    text = html_tables.summary(load.read(runs))
    assert "Machines: A: one, 2 cores, 1 thread a run; B: two." in text
    assert "<td>B</td>" in text


def test_the_summary_compares_each_arm_in_the_number_that_it_has(runs: Path) -> None:
    found = results(runs, {"random": [1.0] * 3, "clone": [None] * 3, "plain": [2.0] * 3})
    rows = dict(re.findall(r'<tr data-arm="(.*?)">(.*?)</tr>', html_tables.summary(found)))
    assert "2.00x <span>speed-up</span>" in rows["plain"]
    assert "1.50x <span>efficiency</span>" in rows["clone"]


@pytest.mark.slow
def test_a_clone_that_never_reaches_the_control_has_no_empty_figure(runs: Path) -> None:
    found = results(runs, {"random": [1.0] * 3, "clone": [None, None, 2.0], "plain": [None] * 3})
    drawn = {one.name: one for one in figures.every(found)}
    assert "speedup" not in drawn
    assert drawn["efficiency"].axes[0].rows == ["plain", "clone"]
    text = html_page.render(found, [*drawn.values()])
    assert re.findall(r"<p class=number>([^<]*)", text) == ["1.50x"]
    for one in drawn.values():
        assert any(axes.series for axes in one.axes), one.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "other", "start", "end"),
    [
        (2.0, {}, (20_000, 3.4), (40_000, 3.4)),  # from a half of the control's tokens to all of them, at its end
        (None, {}, (40_000, 3.1), (60_000, 3.1)),  # an efficiency of 1.5, at the loss of the clone
        (None, {"token_efficiency": None}, (40_000, 3.4), (40_000, 3.1)),  # from the control's end to the clone's
    ],
    ids=["speed-up", "efficiency", "difference"],
)
def test_the_first_figure_shows_the_number(
    runs: Path, factor: float | None, other: dict[str, None],
    start: tuple[float, float], end: tuple[float, float],
) -> None:  # fmt: skip
    found = results(runs, {"random": [1.0] * 3, "clone": [factor] * 3}, **other)
    drawn = figures.every(found)[0]
    assert drawn.name == "answer"
    (span,) = (note for note in drawn.axes[0].notes if note["kind"] == "span")
    assert span["x"] == pytest.approx([start[0], end[0]])
    assert span["y"] == pytest.approx([start[1], end[1]], abs=0.1)
    assert {one.label for one in drawn.axes[0].series} == {"random", "clone"}


def test_layers_are_in_the_color_of_their_arm(runs: Path) -> None:
    found = load.read(runs)
    canvas = copy_figures.divergence(found)
    assert canvas is not None
    layers = canvas.axes[1].series
    assert {(one.arm, one.color) for one in layers} == {("clone", styles.color(found, "clone"))}
    assert len({one.opacity for one in layers}) == 2


def test_a_study_without_runs_has_no_figures(runs: Path) -> None:
    edited(runs / "runs.csv", "status", lambda row: "waiting")
    (runs / "tuning.csv").unlink()
    text = report(counted(runs), runs.parent / "r.html")[0].read_text()
    assert "<figure" not in text
    assert "0/15" in text


def test_the_glossary_is_that_of_the_documents(page: str) -> None:
    written = STUDY.read_text("utf-8").split("\n## Glossary\n")[1]
    terms = re.findall(r"^\* \*\*(.+?)\*\*: (.+?)(?=\n\* |\Z)", written.strip(), re.S | re.M)
    assert {term: " ".join(meaning.split()) for term, meaning in terms} == TERMS
    assert re.findall(r"<dt>(.*?)</dt>", page) == [*TERMS]


@pytest.mark.slow
def test_a_branch_is_hidden_with_its_arm(tmp_path: Path) -> None:
    runs = study(tmp_path / "r")
    content = json.loads((runs / "study.json").read_text())
    content["arms"]["plain"]["branch_of"] = "clone"
    (runs / "study.json").write_text(json.dumps(content))
    text = report(runs, tmp_path / "r.html")[0].read_text()
    assert '{"trunks": {"plain": "clone"}' in text
    assert re.findall(r'<input type=checkbox checked value="(.*?)">', text) == ["random", "clone", "source"]
