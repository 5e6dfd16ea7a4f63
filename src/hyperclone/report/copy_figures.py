"""Figures of what became of the added width: symmetry between copies, singular values (anatomy/ measures them)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hyperclone.report.axes import Axes
from hyperclone.report.canvas import Canvas
from hyperclone.report.load import Results
from hyperclone.report.styles import color, stroke
from hyperclone.study.layers import LayerAnatomy, LayerSymmetry


def symmetry(results: Results) -> Canvas | None:
    """Mean cosine between copies, by layer, before training and after."""
    measured = {
        arm: [layer for run in runs for layer in run.anatomy if layer.cosine is not None]
        for arm, runs in results.runs.items()
    }
    if not any(measured.values()):
        return None
    canvas = Canvas(
        "symmetry", "Symmetry between copies, by layer",
        "Mean cosine between the copies of the columns that read a grown axis (paper, section 3.2), over the "
        "matrices of a layer and over seeds: thin and dotted before training, solid after. At 1, copies are equal and "
        "the added width is not used.",
    )  # fmt: skip
    axes, numbers = canvas.axes[0], []
    for arm, rows in measured.items():
        for end in (False, True):
            half = [row for row in rows if (row.tokens > 0) == end]
            layers = sorted({row.layer for row in half})
            y = [_mean_cosine(row for row in half if row.layer == at) for at in layers]
            if end and y:
                axes.line(arm, color(results, arm), layers, y, linestyle=stroke(results, arm), marker="o", markersize=4)
            elif y:
                axes.quiet_line(arm, color(results, arm), layers, y)
            numbers += [
                [arm, "after" if end else "before", str(at), f"{v:.4f}"] for at, v in zip(layers, y, strict=True)
            ]
    axes.ticks_at(sorted({row.layer for rows in measured.values() for row in rows}))
    canvas.label(axes, "layer", "cosine between copies")
    canvas.table = (["arm", "training", "layer", "cosine"], numbers)
    return canvas


def divergence(results: Results) -> Canvas | None:
    """Cosine between copies along training: the mean of each arm, and every layer of the headline arm."""
    measured = {arm: [layer for run in runs for layer in run.symmetry] for arm, runs in results.runs.items()}
    measured = {arm: rows for arm, rows in measured.items() if rows}
    if not measured:
        return None
    shown = next((arm for arm in measured if arm == results.headline), next(iter(measured)))
    canvas = Canvas(
        "divergence", "Symmetry between copies against tokens",
        "Mean cosine between the copies of the columns that read a grown axis (paper, section 3.2 and figure 5). "
        f"First: mean over matrices, by arm. Second: the layers of “{results.arms[shown]['label']}”.",
        columns=2,
    )  # fmt: skip
    numbers: list[list[str]] = []

    def draw(axes: Axes, label: str, arm: str, rows: list[LayerSymmetry], **style: Any) -> None:
        x = sorted({row.tokens for row in rows})
        y = [_mean_cosine(row for row in rows if row.tokens == at) for at in x]
        axes.line(label, color(results, arm), x, y, arm=arm, **style)
        numbers.extend([label, f"{at:.6g}", f"{value:.4f}"] for at, value in zip(x, y, strict=True))

    for arm, rows in measured.items():
        draw(canvas.axes[0], arm, arm, rows, linestyle=stroke(results, arm))
    layers = sorted({row.layer for row in measured[shown]})
    for number, layer in enumerate(layers):  # in the arm's color, the deeper the stronger
        draw(canvas.axes[1], f"layer {layer}", shown, [row for row in measured[shown] if row.layer == layer],
             opacity=round(0.35 + 0.65 * (number + 1) / len(layers), 2))  # fmt: skip
    canvas.label(canvas.axes[0], "tokens", "cosine between copies")
    canvas.label(canvas.axes[1], "tokens", "")
    canvas.table = (["arm or layer", "tokens", "cosine"], numbers)
    return canvas


def _mean_cosine(rows: Iterable[LayerAnatomy | LayerSymmetry]) -> float:
    """Mean over matrices, from means over the matrices of layers."""
    known = [(row.cosine, row.matrices) for row in rows if row.cosine is not None]
    return sum(cosine * matrices for cosine, matrices in known) / sum(matrices for _, matrices in known)


def spectra(results: Results) -> Canvas | None:
    """Singular values of two matrices of a middle layer, before training and after; the first seed's."""
    examined = {arm: run.spectra for arm, runs in results.runs.items() for run in reversed(runs) if run.spectra}
    layers = sorted({one.layer for spectra in examined.values() for one in spectra})
    if not layers:
        return None
    middle = layers[len(layers) // 2]
    shown = list(dict.fromkeys(one.name for rows in examined.values() for one in rows if one.layer == middle))[:2]
    canvas = Canvas("spectra", "Singular values before and after training",
                    "Over the largest, by rank: thin and dotted before training, solid after (paper, section 3.3).",
                    columns=len(shown))  # fmt: skip
    numbers = []
    for axes, name in zip(canvas.axes, shown, strict=True):
        short = ".".join(part for part in name.split(".") if part not in ("model", "weight"))
        for arm, one in ((arm, one) for arm, rows in examined.items() for one in rows if one.name == name):
            last = len(one.values) - 1
            ranks = [i / max(1, last) for i in range(last + 1)]
            if one.tokens:
                axes.line(arm, color(results, arm), ranks, one.values, linestyle=stroke(results, arm))
            else:
                axes.quiet_line(arm, color(results, arm), ranks, one.values)
            tenths = sorted({round(share * last / 10) for share in range(11)})
            numbers += [
                [arm, short, "after" if one.tokens else "before", f"{ranks[i]:.2f}", f"{one.values[i]:.4g}"]
                for i in tenths
            ]
        if axes is not canvas.axes[-1]:
            axes.labels.clear()
        canvas.label(axes, "rank (share of all)", "over the largest" if axes is canvas.axes[0] else "", short)
    canvas.table = (["arm", "matrix", "training", "rank", "singular value"], numbers)
    return canvas
