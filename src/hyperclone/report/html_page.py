"""One page: the answer, the table of arms, the figures, and exactly what was run. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any

from hyperclone.report import figures, headline, styles, worth_figures
from hyperclone.report.canvas import Canvas, on_page
from hyperclone.report.load import Results
from hyperclone.study.records import FAILED
from hyperclone.study.speedup import Speedup, Spread
from hyperclone.units import short_count

_COLUMNS = (
    ("speed-up, tokens", "speedup_tokens"),
    ("FLOPs", "speedup_flops"),
    ("seconds", "speedup_seconds"),
    ("FLOPs, source charged", "charged_flops"),
)
_EFFICIENCIES = (
    ("token efficiency", "token_efficiency"),
    ("FLOP efficiency, source charged", "charged_flop_efficiency"),
)
_ENDS = (
    ("loss minus control, at the end", "difference_to_target"),
    ("loss minus control, equal tokens", "difference_at_equal_tokens"),
)
_DEFINITIONS = (
    "Speed-up: tokens (FLOPs, seconds) of the control arm's whole training over those that an arm needs until its "
    "held-out loss, smoothed by a median of three, first is at the control's last; medians over seeds, with the range. "
    "Token and FLOP efficiency, relative to the control: what the control needs to an arm's last loss, over what the "
    "arm took; undefined where the arm ends lower. "
    "Source charged: with the FLOPs of its own training, the control's likewise if it began from one. "
    "Rise at the start: the highest held-out loss after the start above the source's own. The HyperCloning paper "
    "(arXiv 2409.12903) reports 2.2x to 4x in tokens to equal task accuracy, one run each, the source not charged."
)


def render(results: Results, canvases: Sequence[Canvas]) -> str:
    """The page as HTML."""
    number, sentences = headline.answer(results)
    study = results.study
    costs = [canvas for canvas in canvases if canvas.name.startswith("loss-")]
    parts = [
        f"<header><p class=kind>hyperclone study</p><h1>{_text(study['name'])}</h1></header>",
        f"<section class=answer><p class=number>{_text(number)}"
        + ("<span>speed-up in tokens</span>" if number.endswith("x") else "")
        + "</p><div>"
        + "".join(f"<p>{_text(one)}</p>" for one in sentences)
        + "</div></section>",
        *(
            f"<p class=note>{_text(' '.join(part.split()))}</p>"
            for part in (study.get("note") or "").split("\n\n")
            if part.strip()
        ),
        f"<section id=arms><h2>Arms</h2>{arms(results)}</section>",
        _switch(costs) if costs else "",
        *(
            _figure(canvas) + (_equal_distance(results) if canvas.name == "worth" else "")
            for canvas in canvases
            if canvas not in costs
        ),
        f"<section><h2>What was run</h2>{_configuration(results)}</section>",
        f"<footer>hyperclone {_text(study.get('hyperclone', ''))}, {_text(_last_date(results))}. "
        f"{_DEFINITIONS}</footer>",
    ]
    data = json.dumps({canvas.name: canvas.numbers() for canvas in canvases}, allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f'<link rel=icon href="data:,"><title>{_text(study["name"])}</title><style>{_file("page.css")}</style></head>'
        '<body><button id=theme type=button aria-label="light or dark">◐</button><main>'
        + "\n".join(part for part in parts if part)
        + f"</main><div id=tip role=status hidden></div><script id=data type=application/json>{data}</script>"
        f"<script>{_file('page.js')}</script></body></html>\n"
    )


def _last_date(results: Results) -> str:
    return max((run.date for runs in results.runs.values() for run in runs), default="")


def arms(results: Results) -> str:
    """The table of arms."""
    rows = []
    for name, arm in results.arms.items():
        curves = results.curves.get(name, [])
        column = partial(_column, results.speedups.get(name, []))
        rate = (arm.get("tuned") or {}).get("lr") or arm["train"].get("lr") or results.study["train"].get("lr")
        other, given = name != results.control, "<br><span>given</span>"
        mark = f'<i style="background:{on_page(styles.color(results, name))}"></i><b>{_text(name)}</b>'
        mark += "" if other else " <span>control</span>"
        rows.append({
            "arm": f"{mark}<br><span>{_text(arm['label'])}</span>",
            **{title: _factor(column(key)) if other else "" for title, key in _COLUMNS},
            "final loss": _range([curve.loss[-1] for curve in curves], ".3f"),
            **{title: _range(column(key), "+.3f") if other else "" for title, key in _ENDS},
            **{title: _range(column(key), ".2f") if other else "" for title, key in _EFFICIENCIES},
            "forgetting": _range(column("forgetting"), ".3f"),
            "parameters": short_count(arm["parameters"]) if arm.get("parameters") else "",
            "tokens": short_count(curves[0].tokens[-1]) if curves else "",
            "learning rate": "" if rate is None else _text(rate) + ("" if arm.get("tuned") else given),
            "seeds": str(len(curves)),
        })  # fmt: skip
    skipped = set()
    if len({row["seeds"] for row in rows}) < 2:
        skipped.add("seeds")  # what was run says how many
    end, equal = (title for title, _ in _ENDS)
    if all(row[end] == row[equal] for row in rows):
        skipped.add(end)
    head = [title for title in (rows[0] if rows else {}) if title not in skipped and any(row[title] for row in rows)]
    return _table(head, [[row[title] for title in head] for row in rows], raw=True)


def _column(compared: Sequence[Speedup], name: str) -> list[float | None]:
    return [getattr(row, name) for row in compared]


def _range(values: Iterable[float | None], form: str) -> str:
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    if not known:
        return ""
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    if f"{known[0]:{form}}" == f"{known[-1]:{form}}":
        return f"{middle:{form}}"
    return f"{middle:{form}}<br><span>{known[0]:{form}} to {known[-1]:{form}}</span>"


def _factor(values: Sequence[float | None]) -> str:
    """A speed-up over seeds; nothing where there is none, or where the source's cost is not known."""
    if not values or (len(values) > 1 and all(value is None for value in values)):
        return "not reached" if values else ""
    over = Spread.over(values)
    if over.low == over.high:
        return _text(headline.factor(over.median))
    return f"{_text(headline.factor(over.median))}<br><span>{_bound(over.low)} to {_bound(over.high)}</span>"


def _bound(value: float) -> str:
    """An end of a range of speed-ups."""
    return "never" if value == 0 else "start" if value == math.inf else f"{value:.2f}"


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
    head, rows = canvas.table
    numbers = f"<details><summary>numbers</summary>{_table(head, rows)}</details>" if rows else ""
    return (
        f'<figure id="{canvas.name}"{" hidden" if hidden else ""}><h2>{_text(canvas.title)}</h2>'
        f'<div class=plot tabindex=0 role=img aria-label="{_text(canvas.title)}; arrow keys show values">'
        f"{canvas.svg()}</div>"
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
        f"empty where an arm or the control did not come so far.</p>{_table(head, rows)}</section>"
    )


def _configuration(results: Results) -> str:
    study = results.study
    runs = [run for done in results.runs.values() for run in done]
    machines = dict.fromkeys(machine for run in runs for machine in run.hardware.split("; ") if machine)
    versions = dict.fromkeys(run.versions for run in runs if run.versions)
    seeds = f"seeds {', '.join(map(str, study.get('seeds', [])))}"
    parts = [f"<p>{_text('; '.join((*machines, *versions, seeds)))}.</p>"]
    rows = [[row.arm, str(row.seed), row.error] for row in results.rows if row.status == FAILED]
    if rows:
        parts.append(f"<h3>Runs that failed</h3><div class=words>{_table(['arm', 'seed', 'error'], rows)}</div>")
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
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in settings.items()]
    return f"<div class=settings>{_table(['', ''], rows)}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    show = str if raw else _text
    return (
        "<div class=wide><table><thead><tr>"
        + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr></thead><tbody>"
        + "".join("<tr>" + "".join(f"<td>{show(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        + "</tbody></table></div>"
    )  # fmt: skip


def _text(value: object) -> str:
    return html.escape(str(value))


def _file(name: str) -> str:
    return (resources.files("hyperclone.report") / "static" / name).read_text("utf-8")
