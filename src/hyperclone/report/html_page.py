"""One page: the answer, a summary, the figures, and exactly what was run. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from hyperclone.report import figures, headline, html_tables, styles, worth_figures
from hyperclone.report.canvas import Canvas
from hyperclone.report.glossary import TERMS
from hyperclone.report.load import Results
from hyperclone.report.palette import on_page
from hyperclone.study.records import FAILED

_PAPER = (
    "The HyperCloning paper (arXiv 2409.12903) reports 2.2x to 4x in tokens to equal task accuracy, one run each, the "
    "source not charged."
)


def render(results: Results, canvases: Sequence[Canvas]) -> str:
    """The page as HTML."""
    study = results.study
    costs = [canvas for canvas in canvases if canvas.name.startswith("loss-")]
    shown = {canvas.name: _figure(canvas) for canvas in canvases if canvas not in costs}
    answer = headline.answer(results)
    parts = [
        f"<header><p class=kind>hyperclone study</p><h1>{_text(study['name'])}</h1></header>",
        _answer(answer),
        shown.pop("answer", ""),
        _list(answer.remarks),
        f"<section><h2>Summary</h2>{html_tables.summary(results)}</section>" if results.runs else "",
        _notes(study.get("note") or ""),
        _chips(results) if results.runs else "",
        shown.pop("worth", ""),
        _equal_distance(results),
        _switch(costs) if costs else "",
        *shown.values(),
        f"<section><h2>Arms in detail</h2>{html_tables.arms(results)}</section>",
        f"<section><h2>What was run</h2>{_configuration(results)}</section>",
        f"<section><h2>Glossary</h2><dl>{_glossary()}</dl></section>",
        f"<footer>hyperclone {_text(study.get('hyperclone', ''))}, {_text(_last_date(results))}. {_PAPER}</footer>",
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<link rel=icon href="data:,"><title>{_text(study["name"])}</title><style>{_file("page.css")}</style></head>'
        '<body><button id=theme type=button aria-label="light or dark">◐</button><main>'
        + "\n".join(part for part in parts if part)
        + "</main><div id=tip role=status hidden></div>"
        f"<script id=data type=application/json>{_data(results, canvases)}</script>"
        f"<script>{_file('plot.js')}\n{_file('page.js')}</script></body></html>\n"
    )


def _data(results: Results, canvases: Sequence[Canvas]) -> str:
    """Numbers of the figures, and which arm a branch belongs to, for the scripts."""
    trunks = {name: trunk for name, arm in results.arms.items() if (trunk := arm.get("branch_of"))}
    numbers = {canvas.name: canvas.numbers() for canvas in canvases}
    return json.dumps({"trunks": trunks, "figures": numbers}, allow_nan=False).replace("<", "\\u003c")


def _answer(answer: headline.Answer) -> str:
    caveats = "".join(f"<p class=caveat>{_text(one)}</p>" for one in answer.caveats)
    return (
        f"<section class=answer><p class=number>{_text(answer.number)}<span>{headline.UNITS[answer.kind]}</span></p>"
        f"<div><p>{_text(answer.sentence)}</p>{caveats}</div></section>"
    )


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(one)}</li>" for one in sentences)
    return f"<ul class=remarks>{items}</ul>" if items else ""


def _notes(note: str) -> str:
    parts = [f"<p class=note>{_text(' '.join(part.split()))}</p>" for part in note.split("\n\n") if part.strip()]
    return f"<section><h2>About this study</h2>{''.join(parts)}</section>" if parts else ""


def _chips(results: Results) -> str:
    """The arms with their colors; each can be hidden everywhere."""
    chips = "".join(
        f'<label title="{_text(arm["label"])}"><input type=checkbox checked value="{_text(name)}">'
        f'<i style="background:{on_page(styles.color(results, name))}"></i>{_text(name)}</label>'
        for name, arm in results.arms.items() if name in results.runs and not arm.get("branch_of")
    )  # fmt: skip
    return f'<div id=chips role=group aria-label="arms that are shown">{chips}<button type=button>all</button></div>'


def _last_date(results: Results) -> str:
    return max((run.date for runs in results.runs.values() for run in runs), default="")


def _switch(costs: Sequence[Canvas]) -> str:
    """The loss figure, against tokens, FLOPs or seconds, on a linear axis or a logarithmic one."""
    first = costs[0].name
    choices = "".join(
        f'<label><input type=radio name=cost value="loss-{name}"{" checked" if f"loss-{name}" == first else ""}>'
        f"{_text(title)}</label>"
        for name, title in figures.COSTS
    )
    shown = "".join(_figure(canvas, hidden=canvas.name != first) for canvas in costs)
    return (
        f"<section class=switched><div class=choices role=group aria-label=axis>{choices}"
        f"<label><input type=checkbox id=log>log axis</label></div>{shown}</section>"
    )


def _figure(canvas: Canvas, *, hidden: bool = False) -> str:
    """A place that the scripts draw into; without them, the figure as for papers."""
    head, rows = canvas.table
    numbers = f"<details><summary>numbers</summary>{html_tables.table(head, rows)}</details>" if rows else ""
    return (
        f'<figure id="{canvas.name}"{" hidden" if hidden else ""}><h2>{_text(canvas.title)}</h2>'
        f'<div class=plot tabindex=0 role=img aria-label="{_text(canvas.alternative())} Arrow keys show values.">'
        f"<noscript>{canvas.svg()}</noscript></div>"
        f"<figcaption>{_text(canvas.caption)}</figcaption>"
        f"{numbers}</figure>"
    )


def _equal_distance(results: Results) -> str:
    head, rows = worth_figures.at_equal_distance(results)
    if not rows:
        return ""
    return (
        "<section><h2>Speed-up at equal distance from the source</h2><p class=note>D0: tokens of the control to the "
        "loss of the arm's source; T: to the loss at which the speed-up is taken. Medians over seeds, with the range; "
        f"empty where an arm or the control did not come so far.</p>{html_tables.table(head, rows)}</section>"
    )


def _glossary() -> str:
    return "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in TERMS.items())


def _configuration(results: Results) -> str:
    study = results.study
    runs = [run for done in results.runs.values() for run in done]
    machines = dict.fromkeys(machine for run in runs for machine in run.hardware.split("; ") if machine)
    versions = dict.fromkeys(run.versions for run in runs if run.versions)
    seeds = f"seeds {', '.join(map(str, study.get('seeds', [])))}"
    parts = [f"<p>{_text('; '.join((*machines, *versions, seeds)))}.</p>"]
    rows = [[row.arm, str(row.seed), row.error] for row in results.rows if row.status == FAILED]
    if rows:
        failed = html_tables.table(["arm", "seed", "error"], rows)
        parts.append(f"<h3>Runs that failed</h3><div class=words>{failed}</div>")
    parts.append("<h3>Training, all arms</h3>" + _settings(study["train"]))
    if study.get("tune"):
        parts.append("<h3>Choosing learning rates</h3>" + _settings(study["tune"]))
    for name, source in study["sources"].items():
        parts.append(f"<h3>Source {_text(name)}</h3>" + _settings(_without_name(source)))
    first = {source["key"] for source in study["sources"].values()}
    for key in dict.fromkeys(run.source for run in runs if run.source and run.source not in first):
        which = ", ".join(f"{run.arm} seed {run.seed}" for run in runs if run.source == key)
        parts.append(f"<h3>Source {_text(results.sources[key].name)}, trained again, of {_text(which)}</h3>"
                     + _settings(_without_name(asdict(results.sources[key]))))  # fmt: skip
    for name, arm in results.arms.items():
        given = {key: value for key, value in arm.items() if value not in (None, {}, [])}
        parts.append(f"<details><summary>arm {_text(name)}</summary>{_settings(given)}</details>")
    return "".join(parts)


def _without_name(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != "name"}


def _settings(settings: Mapping[str, Any]) -> str:
    return html_tables.settings({
        name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()
    })  # fmt: skip


def _text(value: object) -> str:
    return html.escape(str(value))


def _file(name: str) -> str:
    return (resources.files("hyperclone.report") / "static" / name).read_text("utf-8")
