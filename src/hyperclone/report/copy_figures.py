"""Figures of what became of the added width: symmetry between copies, singular values (anatomy.py measures them)."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hyperclone.report.canvas import COLOURS, Axes, Canvas
from hyperclone.report.load import Results
from hyperclone.report.styles import colour, stroke

_SHOWN = ("q_proj", "up_proj", "down_proj", "query", "fc", "mlp")


def symmetry(results: Results) -> Canvas | None:
    """Mean cosine between copies, by layer, before training and after."""
    rows = [row for row in results.anatomy if row["cosine"] is not None and row["layer"] is not None]
    if not rows:
        return None
    canvas = Canvas(
        "symmetry", "Symmetry between copies, by layer",
        "Mean cosine between the copies of the columns that read a grown axis (paper, section 3.2), over the "
        "matrices of a layer and over seeds: thin and dotted before training, solid after. At 1, copies are equal and "
        "the added width is not used.",
    )  # fmt: skip
    axes, told = canvas.axes[0], []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for end in (False, True):
            own = [row for row in rows if row["arm"] == arm and (row["tokens"] > 0) == end]
            layers = sorted({int(row["layer"]) for row in own})
            y = [statistics.mean(row["cosine"] for row in own if row["layer"] == at) for at in layers]
            if end and y:
                axes.line(
                    arm, colour(results, arm), layers, y, linestyle=stroke(results, arm), marker="o", markersize=4
                )
            elif y:
                axes.plot.plot(layers, y, color=colour(results, arm), linewidth=1, linestyle=":")
            told += [[arm, "after" if end else "before", str(at), f"{v:.4f}"] for at, v in zip(layers, y, strict=True)]
    axes.plot.set_xticks(sorted({int(row["layer"]) for row in rows}))
    canvas.label(axes, "layer", "cosine between copies")
    canvas.table = (["arm", "training", "layer", "cosine"], told)
    return canvas


def parting(results: Results) -> Canvas | None:
    """Cosine between copies along training: the mean of each arm, and every layer of the headline arm."""
    rows = [row for row in results.symmetry if _layer(row["name"]) is not None]
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    shown = next((arm for arm in arms if arm == results.headline), arms[0])
    canvas = Canvas(
        "parting", "Symmetry between copies against tokens",
        "Mean cosine between the copies of the columns that read a grown axis (paper, section 3.2 and figure 5). Left: "
        f"mean over matrices, by arm. Right: the layers of “{results.arms[shown]['label']}”.",
        columns=2,
    )  # fmt: skip
    told: list[list[str]] = []

    def draw(axes: Axes, label: str, tone: str, line: Any, own: Sequence[Mapping[str, Any]]) -> None:
        x = sorted({row["tokens"] for row in own})
        y = [statistics.mean(row["cosine"] for row in own if row["tokens"] == at) for at in x]
        axes.line(label, tone, x, y, linestyle=line)
        told.extend([label, f"{at:.6g}", f"{value:.4f}"] for at, value in zip(x, y, strict=True))

    for arm in arms:
        draw(canvas.axes[0], arm, colour(results, arm), stroke(results, arm), [r for r in rows if r["arm"] == arm])
    own = [row for row in rows if row["arm"] == shown]
    layers = sorted({_layer(row["name"]) or 0 for row in own})
    for place, layer in enumerate(layers):
        tone = COLOURS[place % len(COLOURS)]
        draw(canvas.axes[1], f"layer {layer}", tone, "-", [row for row in own if _layer(row["name"]) == layer])
    canvas.label(canvas.axes[0], "tokens", "cosine between copies")
    canvas.label(canvas.axes[1], "tokens", "")
    canvas.table = (["arm or layer", "tokens", "cosine"], told)
    return canvas


def _layer(name: str) -> int | None:
    """The layer in a tensor's name: its first number."""
    found = re.search(r"\.(\d+)\.", name)
    return None if found is None else int(found[1])


def spectra(results: Results) -> Canvas | None:
    """Singular values of two matrices of a middle layer, before training and after; the first seed's."""
    shown = _middle([one for one in results.spectra if one["layer"] is not None])
    if not shown:
        return None
    canvas = Canvas("spectra", "Singular values before and after training",
                    "Over the largest, by rank: thin and dotted before training, solid after (paper, section 3.3).",
                    columns=len(shown))  # fmt: skip
    told = []
    for axes, name in zip(canvas.axes, shown, strict=True):
        short = ".".join(part for part in name.split(".") if part not in ("model", "weight"))
        first: dict[str, Any] = {}
        for one in results.spectra:
            arm, values = one["arm"], one["values"]
            if one["name"] != name or not values or first.setdefault(arm, one["seed"]) != one["seed"]:
                continue
            ranks = [i / max(1, len(values) - 1) for i in range(len(values))]
            if one["tokens"]:
                axes.line(arm, colour(results, arm), ranks, values, linestyle=stroke(results, arm))
            else:
                axes.plot.plot(ranks, values, color=colour(results, arm), linewidth=1, linestyle=":")
            tenths = sorted({round(share * (len(values) - 1) / 10) for share in range(11)})
            told += [[arm, short, "after" if one["tokens"] else "before", f"{ranks[i]:.2f}", f"{values[i]:.4g}"]
                     for i in tenths]  # fmt: skip
        if axes is not canvas.axes[-1]:
            axes.labels.clear()
        canvas.label(axes, "rank (share of all)", "over the largest" if axes is canvas.axes[0] else "", short)
    canvas.table = (["arm", "matrix", "training", "rank", "singular value"], told)
    return canvas


def _middle(spectra: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two matrices of a middle layer: what a block reads into, and what it writes with."""
    layers = sorted({one["layer"] for one in spectra})
    if not layers:
        return []
    at = sorted({one["name"] for one in spectra if one["layer"] == layers[len(layers) // 2]})
    return [name for kind in _SHOWN for name in at if kind in name][:2] or at[:2]
