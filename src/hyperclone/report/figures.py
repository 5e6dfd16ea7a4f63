"""The figures of a report: the paper's (arXiv 2409.12903), drawn from a study's own runs, each if its data is there."""

from __future__ import annotations

from hyperclone.report import comparisons, curves, widths
from hyperclone.report.canvas import Canvas
from hyperclone.report.reading import Results

COSTS = (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds of training"))


def every(results: Results) -> list[Canvas]:
    """All figures that the results allow, in the order of the page."""
    made: list[Canvas | None] = []
    if results.curves:
        made += [curves.loss(results, name, title, log=log) for name, title in COSTS for log in (False, True)]
        made.append(curves.early(results, curves.principal(results)))
    if results.tasks:
        made += [curves.accuracy(results), comparisons.tasks(results)]
    others = [row for arm, rows in results.speedups.items() if arm != results.control for row in rows]
    if any(row["speedup_tokens"] is not None for row in others):
        made.append(comparisons.speedups(results))
    made += comparisons.groups(results)
    made += comparisons.sources(results)
    made += [widths.parting(results), widths.symmetry(results), widths.spectra(results), curves.tuning(results)]
    return [canvas for canvas in made if canvas is not None]
