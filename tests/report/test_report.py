"""A report says what its study found, nothing else, and works as one file in a browser."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperclone.errors import DestinationError, StudyError
from hyperclone.report import canvas, figures, headline, html_page, load
from hyperclone.report.write import report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
ARMS = {
    "random": {"kind": "random", "label": "random weights", "group": None},
    "clone": {"kind": "clone", "label": "2x, <b>the law</b>", "group": ["noise", "source quality"]},
    "plain": {"kind": "clone", "label": "2x, no noise", "group": ["noise", "source quality"]},
    "source": {"kind": "source", "label": "the source", "group": None},
}
STEPS = (0, 1, 2, 4, 10, 20, 30, 40)


def study(place: Path, *, speedups: dict[str, list[float | None]] | None = None, seeds: int = 3) -> Path:
    """The directory of a study that was never run."""
    place.mkdir(exist_ok=True)
    told: dict[str, Any] = {
        "name": "made <up>", "note": "For tests.", "date": "2026-11-25", "hyperclone": "0.1.0",
        "versions": {"torch": "2.13.0"}, "hardware": [{"cpu": "one", "gpu": None, "cores": 2, "threads": 1}],
        "reference": "random", "seeds": list(range(1, seeds + 1)), "train": {"tokens": "40k", "lr": 1e-3}, "tune": None,
        "sources": {name: {"parameters": 5e5 * k, "tokens": 1e6 * k, "flops": 1e12, "seconds": 60.0, "loss": 3.5,
                           "trained": True} for k, name in enumerate(("a", "b"), 1)},
        "arms": {name: {**arm, "source": "b" if name == "plain" else "a", "growth": {"width": 2}, "state": None,
                        "train": {}, "tuned": {"lr": 2e-3}, "parameters": 1_000_000, "flops_per_token": 6e6}
                 for name, arm in ARMS.items()},
        "runs": [{"arm": arm, "seed": seed, "status": "finished", "error": None}
                 for arm in ARMS for seed in range(1, seeds + 1)]
        + [{"arm": "bad", "seed": 1, "status": "failed", "error": "exploded <script>alert(1)</script>"}],
    }  # fmt: skip
    (place / "study.json").write_text(json.dumps(told))
    fall = {"random": (7.0, 3.4), "clone": (3.6, 3.1), "plain": (3.6, 3.3), "source": (3.6, 3.35)}
    with (place / "results.csv").open("w", newline="") as stream:
        out = csv.writer(stream)
        columns = ["arm", "seed", "step", "tokens", "flops", "seconds", "loss", "bits_per_byte"]
        out.writerow([*columns, "task:sciq", "task:piqa"])
        for arm, (start, end) in fall.items():
            for seed in range(1, seeds + 1):
                for step in STEPS:
                    loss = end + (start - end) * math.exp(-step / 10) + 0.01 * seed * (step > 0)
                    tokens = step * 1000
                    out.writerow([arm, seed, step, tokens, tokens * 6e6, step, loss, loss / 2, 0.3, 0.5])
    rows = speedups or {"random": [1.0] * seeds, "clone": [4.0, 5.0, 6.0][:seeds], "plain": [2.0, None, 2.2][:seeds]}
    with (place / "speedup.csv").open("w", newline="") as stream:
        names = ["speedup_tokens", "speedup_flops", "speedup_seconds", "charged_flops", "charged_seconds"]
        names += ["difference_at_equal_tokens", "difference_to_target", "worth_tokens", "worth_charged", "forgetting"]
        out = csv.writer(stream)
        out.writerow(["arm", "seed", *names])
        for arm, values in rows.items():
            for seed, value in enumerate(values, 1):
                shown = "" if value is None else value
                charged = "" if value is None else 0.5 * min(value, 2.0)
                out.writerow([arm, seed, shown, shown, shown, charged, charged, -0.1, -0.1, 1.5, 0.5, 0.02])
    (place / "tuning.csv").write_text("arm,lr,loss\nclone,0.001,3.5\nclone,0.002,3.4\nclone,0.004,inf\n")
    (place / "anatomy.csv").write_text(
        "arm,seed,tokens,layer,kind,name,cosine,apart,effective_rank,source_effective_rank\n"
        + "".join(f"clone,1,{t},{i},up,l.{i}.up_proj,{0.8 - t / 1e5},0.1,9,8\n" for t in (0, 40000) for i in range(2))
    )
    (place / "symmetry.csv").write_text(
        "arm,seed,step,tokens,name,cosine\n"
        + "".join(
            f"clone,1,{t // 1000},{t},model.layers.{i}.up_proj.weight,{0.8 - i * t / 1e5}\n"
            for t in (0, 20000, 40000)
            for i in range(2)
        )
    )
    spectra = [{"arm": "clone", "seed": 1, "tokens": t, "layer": 1, "kind": "up", "name": "l.1.up_proj",
                "values": [1.0, 0.5, 0.2]} for t in (0, 40000)]  # fmt: skip
    (place / "spectra.json").write_text(json.dumps(spectra))
    return place


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return study(tmp_path / "study.runs")


def answered(runs: Path) -> tuple[str, str]:
    number, said = headline.answer(load.read(runs))
    return number, " ".join(said)


def test_the_answer_is_the_median_with_its_range_and_what_it_leaves_out(runs: Path) -> None:
    number, said = answered(runs)
    assert number == "5.00x"
    assert "5.00x (4.00x to 6.00x) fewer tokens (3 seeds)" in said
    assert "the final held-out loss of the control arm, “random weights”, with" in said
    assert "With the source's own training charged as well, the speed-up in FLOPs is 1.00x." in said
    assert "0.0200 nats above the source's" in said


@pytest.mark.parametrize(
    ("values", "number", "words"),
    [
        ([None, None], "not reached", "does not reach"),
        ([math.inf, math.inf], "at the start", "nothing left to speed up"),
        (
            [2.0, None],
            "1.00x",
            "in 1 of 2 seeds, and never in 1. Its speed-up in tokens is 1.00x (not reached to 2.00x)",
        ),
        ([None, None, 2.0], "not reached", "in 1 of 3 seeds, with 2.00x fewer tokens, and never in 2."),
        (
            [None, None, 2.0],
            "not reached",
            "the control arm takes 1.50x as many tokens. With the source's own training",
        ),
        ([0.7, 0.8, 0.9], "0.80x", "needs more tokens than the control arm"),
        ([math.inf, 5.0, 4.0], "5.00x", "5.00x (4.00x to at the start) fewer tokens"),
        ([2.0], "2.00x", "One seed is a demonstration"),
    ],
)
def test_other_endings_are_said_as_they_are(
    tmp_path: Path, values: list[float | None], number: str, words: str
) -> None:
    place = study(tmp_path / "r", seeds=len(values), speedups={"random": [1.0] * len(values), "clone": values})
    found, said = answered(place)
    assert found == number
    assert words in said


def test_a_study_that_still_runs_is_reported_as_far_as_it_is(runs: Path) -> None:
    for name in ("speedup.csv", "tuning.csv", "anatomy.csv", "symmetry.csv", "spectra.json", "results.csv"):
        (runs / name).unlink()
        report(runs, runs.parent / "r.html")
    told = json.loads((runs / "study.json").read_text())
    told["runs"][0]["status"] = "running"
    (runs / "study.json").write_text(json.dumps(told))
    assert "not finished" in answered(runs)[1]


def test_every_figure_of_the_paper_is_drawn_from_the_runs(runs: Path) -> None:
    names = [canvas.name for canvas in figures.every(load.read(runs))]
    assert names == [
        "loss-tokens", "loss-tokens-log", "loss-flops", "loss-flops-log", "loss-seconds", "loss-seconds-log", "early",
        "accuracy", "tasks", "speedup", "group-0",
        "source-quality", "parting", "symmetry", "spectra", "tuning",
    ]  # fmt: skip


def test_the_same_results_give_the_same_bytes(runs: Path) -> None:
    first, second = (report(runs, runs.parent / f"{n}.html")[0].read_bytes() for n in (1, 2))
    assert first == second


def test_a_figure_shows_the_numbers_that_it_was_given(runs: Path) -> None:
    """Back from the dots on the page to the loss: the axes that hovering uses are those of the picture."""
    drawn = next(one for one in figures.every(load.read(runs)) if one.name == "loss-tokens")
    axes = drawn.numbers()[0]
    left, top, width, height = axes["box"]
    low, high, _ = axes["y"]
    series = next(one for one in axes["series"] if one["label"] == "clone")
    path = re.findall(r'<path d="M ([\d.]+) ([\d.]+)[^"]*"[^>]*style="fill: none; stroke: var\(--c0\)', drawn.svg())
    assert path, "the clone's line is in the picture"
    x, y = float(path[0][0]), float(path[0][1])
    scale = axes["x"]
    assert scale[0] + (x - left) / width * (scale[1] - scale[0]) == pytest.approx(series["x"][0], abs=200)
    assert high - (y - top) / height * (high - low) == pytest.approx(series["y"][0], abs=0.01)


def test_text_of_a_study_is_text(runs: Path) -> None:
    text = report(runs, runs.parent / "r.html")[0].read_text()
    assert "<script>alert(1)" not in text
    assert "made &lt;up&gt;" in text
    assert "<b>the law" not in text


def test_nothing_is_loaded_from_elsewhere(runs: Path) -> None:
    text = report(runs, runs.parent / "r.html")[0].read_text()
    loaded = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', text)
    assert [one for one in loaded if not one.startswith(("#", "data:,"))] == []
    assert "@import" not in text
    assert len(text) < 1_000_000


def test_images_are_written_for_papers(runs: Path) -> None:
    files = report(runs, runs.parent / "r.html", images=runs.parent / "images")
    assert {file.suffix for file in files[1:]} == {".svg", ".png"}
    svg = (runs.parent / "images/loss-tokens.svg").read_text()
    assert "var(" not in svg
    assert (runs.parent / "images/loss-tokens.png").stat().st_size > 10_000


def test_what_is_no_study_and_what_is_torn_is_named(runs: Path) -> None:
    with pytest.raises(StudyError, match="no results"):
        report(runs.parent, runs.parent / "r.html")
    with pytest.raises(DestinationError):
        report(runs, runs.parent)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.csv", "arm,seed,step\nclone,1\n", "no column"),
        ("results.csv", "arm,seed,step,tokens,flops,seconds,loss,bits_per_byte\nclone,1,0,0\n", "line 2"),
        ("results.csv", "arm,seed,step,tokens,flops,seconds,loss,bits_per_byte\nclone,1,0,0,0,0,3.,x\n", "'x'"),
        ("tuning.csv", "arm,lr,loss\nclone,,3\n", "''"),
        ("speedup.csv", 'arm,seed\n"clone', "unexpected end of data"),
        ("study.json", "{", "Expecting"),
        ("study.json", '{"name": "a", "train": {}, "arms": {"clone": {"kind": "clone"}}}', "kind, label and train"),
        ("spectra.json", '[{"arm": "clone"}]', "spectra.json"),
    ],
)
def test_a_torn_file_is_named_with_what_is_wrong(runs: Path, name: str, text: str, said: str) -> None:
    (runs / name).write_text(text)
    with pytest.raises(StudyError) as caught:
        report(runs, runs.parent / "r.html")
    assert caught.value.details["file"].endswith(name)
    assert said in str(caught.value)


def test_rows_of_arms_that_the_study_no_longer_has_are_left_out(runs: Path) -> None:
    for name in ("results.csv", "speedup.csv", "tuning.csv", "anatomy.csv", "symmetry.csv"):
        (runs / name).write_text((runs / name).read_text().replace("plain", "gone"))
    spectra = json.loads((runs / "spectra.json").read_text())
    (runs / "spectra.json").write_text(json.dumps([{**one, "arm": "gone"} for one in spectra]))
    assert "gone" not in report(runs, runs.parent / "r.html")[0].read_text()


def test_runs_that_are_missing_are_counted_beside_the_answer(runs: Path) -> None:
    told = json.loads((runs / "study.json").read_text())
    told["runs"][0]["status"] = "interrupted"
    (runs / "study.json").write_text(json.dumps(told))
    number, said = answered(runs)
    assert number == "5.00x"
    assert "1 of 13 runs is not finished; 1 of 13 runs failed." in said


def test_the_table_of_arms_says_what_speedup_says(runs: Path) -> None:
    results = load.read(runs)
    rows = re.findall(r"<tr>(.*?)</tr>", html_page.arms(results))
    head = re.findall(r"<th>(.*?)</th>", rows[0])
    cells = dict(zip(head, re.findall(r"<td>(.*?)</td>", rows[1 + list(results.arms).index("plain")]), strict=True))
    assert cells["speed-up, tokens"] == "2.00x<br><span>never to 2.20</span>"
    assert cells["forgetting"] == "0.020"
    assert cells["loss less control, equal tokens"] == "-0.100"
    assert cells["learning rate"] == "0.002"
    assert cells["parameters"] == "1M"


def test_a_source_that_costs_more_than_it_saves_is_said(runs: Path) -> None:
    text = (runs / "speedup.csv").read_text().splitlines()
    rows = [line.split(",") for line in text]
    at = rows[0].index("charged_flops")
    (runs / "speedup.csv").write_text(
        "\n".join(",".join([*row[:at], "0.5" if n else row[at], *row[at + 1 :]]) for n, row in enumerate(rows)) + "\n"
    )
    assert "it takes, from nothing, more FLOPs than the control arm: a speed-up of 0.50x." in answered(runs)[1]


def test_another_control_is_compared_as_the_study_compared_its_own(tmp_path: Path) -> None:
    """The study that is committed: its own control gives its own table; the published recipe as control, another."""
    runs = Path(__file__).parents[2] / "studies/recipes.runs"
    results = load.read(runs)
    again = load.against(replace(results, study={**results.study, "reference": None}), "random")
    for arm, rows in results.speedups.items():
        for row, other in zip(rows, again.speedups[arm], strict=True):
            assert {name for name in row if row[name] is None} == {name for name in other if other[name] is None}
            told = {name: value for name, value in row.items() if value is not None}
            assert {name: other[name] for name in told} == pytest.approx(told, rel=1e-4, abs=1e-6)
    report(runs, tmp_path / "report.html", control="published")
    assert "2.18x" in (tmp_path / "report.html").read_text()
    ours = load.against(results, "published").speedups["rotated"]
    # Source and control are charged with the same 12M tokens of the source, so what is charged is nearer to 1.
    assert all(1 < row["charged_flops"] < row["speedup_flops"] for row in ours)
    with pytest.raises(StudyError, match="published"):
        report(runs, tmp_path / "report.html", control="publish")
    number, said = headline.answer(load.against(results, "rotated"))  # the study's headline itself
    assert number != "1.00x"
    assert "split noise, the law”" in said[0]


def test_of_many_arms_the_first_figures_show_those_that_others_are_compared_with(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> dict[str, set[str]]:
        every = figures.every(load.read(runs))
        return {one.name: {str(row[0]) for row in one.table[1]} for one in every}

    assert drawn()["loss-tokens"] == {"random", "clone", "plain", "source"}
    assert drawn()["early"] == {"clone", "plain", "source"}
    assert "early-0" not in drawn()
    monkeypatch.setattr("hyperclone.report.curve_figures._MOST", 3)
    few = drawn()  # the control, the headline, the source; "plain" is in a group
    assert few["loss-tokens"] == {"random", "clone", "source"}
    assert few["early"] == {"clone", "source"}
    assert "plain" in few["early-0"]


def test_copies_part_by_arm_and_by_layer(runs: Path) -> None:
    canvas = next(canvas for canvas in figures.every(load.read(runs)) if canvas.name == "parting")
    shown = [{one.label: (one.x, one.y) for one in axes.series} for axes in canvas.axes]
    tokens = [0, 20000, 40000]
    assert shown[0] == {"clone": (tokens, pytest.approx([0.8, 0.7, 0.6]))}  # the mean of two layers
    assert shown[1] == {
        "layer 0": (tokens, pytest.approx([0.8, 0.8, 0.8])),
        "layer 1": (tokens, pytest.approx([0.8, 0.6, 0.4])),
    }


def test_a_cost_that_is_not_known_is_said_to_be_left_out(runs: Path) -> None:
    head, *rows = [line.split(",") for line in (runs / "speedup.csv").read_text().splitlines()]
    costs = [at for at, name in enumerate(head) if "charged" in name]
    kept = [",".join("" if at in costs else cell for at, cell in enumerate(row)) for row in rows]
    (runs / "speedup.csv").write_text("\n".join([",".join(head), *kept]) + "\n")
    assert "What the source's own training took is not known, so it is not charged." in answered(runs)[1]


def test_names_of_arms_are_no_formulas(runs: Path) -> None:
    for name in (
        "study.json",
        "results.csv",
        "speedup.csv",
        "tuning.csv",
        "anatomy.csv",
        "symmetry.csv",
        "spectra.json",
    ):
        text = (runs / name).read_text()
        text = re.sub(r"(?<!kind\": \")(?<=[\"\n])clone(?=[\",])", "2$x$", text)
        (runs / name).write_text(text)
    drawn = {one.name: one.svg() for one in figures.every(load.read(runs))}
    for name in ("loss-tokens", "speedup", "group-0"):
        assert "2$x$</text>" in drawn[name]


def test_a_fall_from_a_bad_start_does_not_flatten_the_early_figure(runs: Path) -> None:
    lines = (runs / "results.csv").read_text().splitlines()
    shift = {"0": 9.0, "1": 6.0, "2": 4.0}
    rows = [line.split(",") for line in lines]
    at = rows[0].index("loss")
    for row in rows:
        if row[0] == "plain" and row[2] in shift:
            row[at] = str(float(row[at]) + shift[row[2]])
    (runs / "results.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    drawn = next(one for one in figures.every(load.read(runs)) if one.name == "early")
    assert "leaves the figure" in drawn.caption
    assert drawn.numbers()[0]["y"][0] > -2


def test_the_early_figure_shows_the_first_tenth(tmp_path: Path) -> None:
    drawn = next(one for one in figures.every(load.read(study(tmp_path / "r"))) if one.name == "early")
    for one in drawn.numbers()[0]["series"]:
        assert one["x"] == [1, 2, 4, 10], "at least four evaluations, else up to 4 of 40 steps"
    assert "random" not in {one["label"] for one in drawn.numbers()[0]["series"]}


@given(st.lists(st.floats(0, 200), max_size=12))
def test_names_beside_lines_never_overlap(heights: list[float]) -> None:
    moved = canvas._apart(sorted(heights), 0, 200, 12)
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(moved))
    assert all(height <= 200 for height in moved)
    if all(b - a >= 12 for a, b in pairwise(sorted(heights))):
        assert moved == sorted(heights)


PROBE = """<script>
const wrong = [];
addEventListener("error", event => wrong.push(event.message || "a resource did not load"), true);
console.error = (...told) => wrong.push(told.join(" "));
addEventListener("load", () => {
  const told = {figures: {}, wrong, loaded: performance.getEntriesByType("resource").map(one => one.name)};
  const rgb = name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number);
  told.paper = rgb("backgroundColor"); told.ink = rgb("color");
  for (const figure of document.querySelectorAll("figure")) {
    const hidden = figure.hidden;
    figure.hidden = false;
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const axes = data[figure.id][0], tip = document.getElementById("tip");
    let seen = "";
    for (let i = 1; i < 40 && !seen; i++) for (let j = 1; j < 40 && !seen; j++) {
      const at = new DOMPoint(axes.box[0] + axes.box[2] * i / 40, axes.box[1] + axes.box[3] * j / 40)
        .matrixTransform(svg.getScreenCTM());
      svg.dispatchEvent(new PointerEvent("pointermove", {clientX: at.x, clientY: at.y, bubbles: true}));
      if (!tip.hidden) seen = tip.textContent;
    }
    svg.dispatchEvent(new PointerEvent("pointerleave"));
    figure.querySelector(".plot").dispatchEvent(new PointerEvent("pointerleave"));
    const left = tip.hidden;
    figure.querySelector(".plot").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
    const keyed = tip.hidden ? "" : tip.textContent;
    figure.querySelector(".plot").dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
    const text = svg.querySelector("text");
    told.figures[figure.id] = {left, keyed, escaped: tip.hidden, width: box.width, height: box.height, tip: seen,
      ink: text ? getComputedStyle(text).fill : "", paths: svg.querySelectorAll("path").length};
    figure.hidden = hidden;
  }
  const heads = [...document.querySelectorAll("#arms th")];
  heads.find(one => one.textContent === "final loss").click();
  told.sorted = [...document.querySelectorAll("#arms tbody b")].map(one => one.textContent);
  document.querySelector("input[value=loss-flops]").click();
  told.switched = [document.getElementById("loss-tokens").hidden, document.getElementById("loss-flops").hidden];
  document.getElementById("log").click();
  told.log = [...document.querySelectorAll(".switched figure")].filter(one => !one.hidden).map(one => one.id);
  document.getElementById("theme").click();
  told.other = rgb("backgroundColor");
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = JSON.stringify(told);
  document.body.append(out);
});
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_works_in_a_browser(runs: Path, dark: bool, tmp_path: Path) -> None:
    file = report(runs, tmp_path / "r.html")[0]
    file.write_text(file.read_text().replace("<main>", PROBE + "<main>", 1))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=4000", "--dump-dom",
        file.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["wrong"] == []
    assert told["loaded"] == []
    drawn = {canvas.name for canvas in figures.every(load.read(runs))}
    assert set(told["figures"]) == drawn
    for name, figure in told["figures"].items():
        assert figure["width"] > 300, name
        assert figure["height"] > 60, name
        assert figure["paths"] > 3, name
        assert figure["tip"], f"no values are shown in {name}"
        assert figure["left"], f"values stay after the pointer has left {name}"
        assert figure["keyed"], f"no values are shown in {name} by the keyboard"
        assert figure["escaped"], name
    assert told["sorted"] == ["random", "source", "plain", "clone"]
    assert told["figures"]["loss-tokens"]["keyed"].startswith("40k")
    assert "plain3.3" in told["figures"]["loss-tokens"]["keyed"]
    assert told["figures"]["tasks"]["keyed"].startswith("sciq")
    dark_page, dark_ink = sum(told["paper"]) < 3 * 80, sum(told["ink"]) < 3 * 80
    assert (dark_page, dark_ink) == (dark, not dark)
    ink = [int(part) for part in re.findall(r"\d+", told["figures"]["loss-tokens"]["ink"])[:3]]
    assert (sum(ink) < 3 * 80) == (not dark), "the figure's text follows the page"
    assert told["switched"] == [True, False]
    assert told["log"] == ["loss-flops-log"]
    assert (sum(told["other"]) < 3 * 80) != dark
