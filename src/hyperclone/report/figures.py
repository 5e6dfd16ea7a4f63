"""The figures of a report: the paper's (arXiv 2409.12903), from a study's runs, each if its data is there."""

from __future__ import annotations

from hyperclone.report import answer_figure, comparison_figures, copy_figures, curve_figures, headline, worth_figures
from hyperclone.report.canvas import Canvas
from hyperclone.report.load import Results

COSTS = (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds of training"))


def every(results: Results) -> list[Canvas]:
    """All figures that the results allow, in the order of the page."""
    first = answer_figure.draw(results, headline.answer(results))
    canvases: list[Canvas | None] = [first, worth_figures.worth(results)]
    if results.runs:
        canvases += [
            curve_figures.loss(results, name, title, log=log) for name, title in COSTS for log in (False, True)
        ]
        canvases.append(curve_figures.early(results, curve_figures.principal(results)))
    canvases += [comparison_figures.speedups(results), comparison_figures.efficiencies(results)]
    if results.tasks:
        canvases += [curve_figures.accuracy(results), comparison_figures.tasks(results)]
    canvases += comparison_figures.groups(results)
    canvases += comparison_figures.sources(results)
    canvases += [
        copy_figures.divergence(results),
        copy_figures.symmetry(results),
        copy_figures.spectra(results),
        curve_figures.tuning(results),
    ]
    return [canvas for canvas in canvases if canvas is not None]
