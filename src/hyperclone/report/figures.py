"""The figures of a report: the paper's (arXiv 2409.12903), from a study's runs, each if its data is there."""

from __future__ import annotations

from hyperclone.report import comparison_figures, copy_figures, curve_figures, worth_figures
from hyperclone.report.canvas import Canvas
from hyperclone.report.load import Results

COSTS = (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds of training"))


def every(results: Results) -> list[Canvas]:
    """All figures that the results allow, in the order of the page."""
    canvases: list[Canvas | None] = []
    if results.runs:
        canvases += [
            curve_figures.loss(results, name, title, log=log) for name, title in COSTS for log in (False, True)
        ]
        canvases.append(curve_figures.early(results, curve_figures.principal(results)))
    if results.tasks:
        canvases += [curve_figures.accuracy(results), comparison_figures.tasks(results)]
    others = [row for arm, rows in results.speedups.items() if arm != results.control for row in rows]
    if any(row.speedup_tokens is not None for row in others):
        canvases.append(comparison_figures.speedups(results))
    canvases.append(worth_figures.worth(results))
    canvases += comparison_figures.groups(results)
    canvases += comparison_figures.sources(results)
    canvases += [
        copy_figures.divergence(results),
        copy_figures.symmetry(results),
        copy_figures.spectra(results),
        curve_figures.tuning(results),
    ]
    return [canvas for canvas in canvases if canvas is not None]
