"""Tables of the page: the summary of one screen, all that is known of the arms, and numbers of figures."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from hyperclone.report import headline, styles
from hyperclone.report.load import Results
from hyperclone.report.palette import on_page
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
_BESIDE = {
    headline.SPEEDUP: "speed-up", headline.EFFICIENCY: "efficiency", headline.DIFFERENCE: "nats",
    headline.END_DIFFERENCE: "nats, at the end",
}  # fmt: skip


def summary(results: Results) -> str:
    """How each arm with results ended, against the control, at what cost, on which machine. Branches are left out."""
    shown = [arm for arm in results.runs if not results.arms[arm].get("branch_of")]
    machines = {arm: _machines(results, [arm]) for arm in shown}
    letters = {machine: chr(ord("A") + i) for i, machine in enumerate(dict.fromkeys(machines.values()))}
    seconds = {arm: statistics.median(run.curve.seconds[-1] for run in results.runs[arm]) for arm in shown}
    unit, size = ("hours", 3600) if max(seconds.values(), default=0) >= 3600 else ("minutes", 60)
    head = ["arm", "final loss", "against the control", "tokens", "FLOPs", unit, "on"]
    rows = []
    for arm in shown:
        curve = results.runs[arm][0].curve
        rows.append([
            _name(results, arm), f"{headline.final_losses(results)[arm]:.3f}", _against(results, arm),
            short_count(curve.tokens[-1]), short_count(curve.flops[-1]), f"{seconds[arm] / size:.3g}",
            letters[machines[arm]],
        ])  # fmt: skip
    dropped = [*([] if results.control else [2]), *([6] if len(letters) == 1 else [])]
    head, *rows = ([cell for i, cell in enumerate(row) if i not in dropped] for row in [head, *rows])
    seeds = sorted({len(results.runs[arm]) for arm in shown})
    said = [f"Medians over {' to '.join(map(str, seeds))} seeds." if seeds[-1] > 1 else "One seed each."]
    said.append(
        f"All on {machines[shown[0]]}." if len(letters) == 1
        else f"Machines: {'; '.join(f'{letter}: {machine}' for machine, letter in letters.items())}."
    )  # fmt: skip
    said += _sources(results)
    return table(head, rows, raw=True, name="summary", owners=shown) + f"<p class=note>{_text(' '.join(said))}</p>"


def _against(results: Results, arm: str) -> str:
    if arm == results.control:
        return "<span>control</span>"
    found = headline.measure(results.speedups.get(arm, []))
    return "" if found is None else f"{_text(found.shown)} <span>{_BESIDE[found.kind]}</span>"


def _machines(results: Results, arms: Iterable[str]) -> str:
    every = (machine for arm in arms for run in results.runs[arm] for machine in run.hardware.split("; ") if machine)
    return "; ".join(dict.fromkeys(every)) or "a machine that is not on record"


def _sources(results: Results) -> list[str]:
    """What the training of sources took: the summary's costs are without it."""
    known = []
    for name, source in results.study["sources"].items():
        parts = [f"{short_count(source[field])} {title}" for field, title in (("tokens", "tokens"), ("flops", "FLOPs"))
                 if source.get(field)]  # fmt: skip
        if parts:
            known.append(f"{name} took {' and '.join(parts)}")
    return [f"Costs are without the training of sources: {'; '.join(known)}."] if known else []


def arms(results: Results) -> str:
    """All that is known of each arm."""
    rows = []
    for name, arm in results.arms.items():
        curves = results.curves.get(name, [])
        column = partial(_column, results.speedups.get(name, []))
        rate = (arm.get("tuned") or {}).get("lr") or arm["train"].get("lr") or results.study["train"].get("lr")
        other, given = name != results.control, "<br><span>given</span>"
        mark = _name(results, name) + ("" if other else " <span>control</span>")
        rows.append({
            "arm": f"{mark}<br><span>{_text(arm['label'])}</span>",
            **{title: _factor(column(key)) if other else "" for title, key in _COLUMNS},
            "final loss": _range([curve.loss[-1] for curve in curves], ".3f"),
            **{title: _range(column(key), "+.3f") if other else "" for title, key in _ENDS},
            **{title: _range(column(key), ".2f") if other else "" for title, key in _EFFICIENCIES},
            "rise at the start": _range(column("forgetting"), ".3f"),
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
    cells = [[row[title] for title in head] for row in rows]
    return table(head, cells, raw=True, name="details", owners=list(results.arms))


def _name(results: Results, arm: str) -> str:
    """An arm with its color."""
    return f'<i style="background:{on_page(styles.color(results, arm))}"></i><b>{_text(arm)}</b>'


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


def settings(values: Mapping[str, str]) -> str:
    """Names and values."""
    return f"<div class=settings>{table(['', ''], [[name, value] for name, value in values.items()])}</div>"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False, name: str = "",
    owners: Sequence[str] = (),
) -> str:  # fmt: skip
    """A table that scrolls inside itself.

    Args:
        head, rows: the cells; `raw`: as HTML.
        name: an id, for one whose columns can be sorted.
        owners: the arm of each row, with which it is hidden; by default what its first cell says.
    """
    show: Any = str if raw else _text
    named = [f' data-arm="{_text(owner)}"' for owner in owners] or [""] * len(rows)
    return (
        f"<div class=wide><table{f' id={name} class=sortable' if name else ''}><thead><tr>"
        + "".join(f"<th scope=col>{_text(cell)}</th>" for cell in head) + "</tr></thead><tbody>"
        + "".join(f"<tr{owner}>" + "".join(f"<td>{show(cell)}</td>" for cell in row) + "</tr>"
                  for owner, row in zip(named, rows, strict=True))
        + "</tbody></table></div>"
    )  # fmt: skip


def _text(value: object) -> str:
    return html.escape(str(value))
