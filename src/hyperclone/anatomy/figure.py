"""An anatomy as a figure."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperclone.anatomy.examine import Anatomy, TensorAnatomy
from hyperclone.anatomy.weights import mean
from hyperclone.errors import DestinationError, HypercloneError

_Value = Callable[[TensorAnatomy], float | None]
_OUTSIDE = "outside of layers"


def sizes_text(found: Anatomy) -> str:
    """The axes that grew, in words."""
    return "grown: " + ", ".join(f"{axis} {old} to {new}" for axis, (old, new) in found.sizes.items())


def joined(kinds: list[str]) -> str:
    """self_attn.q_proj, self_attn.k_proj -> self_attn.q_proj, k_proj."""
    named: list[str] = []
    before = ""
    for kind in kinds:
        block, _, last = kind.rpartition(".")
        named.append(last if named and block == before else kind)
        before = block
    return ", ".join(named)


def check_file(file: str | os.PathLike[str]) -> Path:
    """The figure's file, before any work is done for it; raises as `draw`."""
    path = Path(file)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise DestinationError("a figure of this kind cannot be written", file=path, expected=".png, .svg or .pdf")
    if not path.resolve().parent.is_dir():
        raise DestinationError("no such directory to write the figure to", file=path)
    if importlib.util.find_spec("matplotlib") is None:
        raise HypercloneError("figures need matplotlib", cure="pip install 'hyperclone[report]'")
    return path


def draw(found: Anatomy, file: str | os.PathLike[str]) -> None:
    """Write the figure: symmetry by layer, spectra, ranks, and the use of the added width.

    Args:
        found: what `anatomy.examine` returned.
        file: its name ends with .png, .svg or .pdf.

    Raises:
        HypercloneError: matplotlib is not installed.
        DestinationError: no such format, or the file cannot be written.
    """
    path = check_file(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    _lines(axes[0, 0], found, lambda t: t.input_symmetry, "cosine between copies of inputs (weights)")
    _lines(axes[0, 1], found, lambda t: t.output_symmetry, "cosine between copies of outputs (weights)")
    _spectra(axes[1, 0], found)
    _lines(axes[1, 1], found, lambda t: t.in_use, "share of the added width in use (activations)")
    locked = "LOCKED, " if found.locked else ""
    figure.suptitle(f"{locked}{sizes_text(found)}", fontsize=13)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DestinationError("the figure cannot be written", file=path, found=error.strerror or error) from None


def _lines(ax: Any, found: Anatomy, value: _Value, title: str) -> None:
    """One line for each kind over the layers; kinds with the same values share one."""
    series: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for kind in dict.fromkeys(t.kind for t in found.tensors if t.layer is not None):
        by_layer: dict[int, list[float | None]] = {}
        for t in found.tensors:
            if t.kind == kind and t.layer is not None:
                by_layer.setdefault(t.layer, []).append(value(t))
        points = tuple((layer, m) for layer, values in sorted(by_layer.items()) if (m := mean(values)) is not None)
        if points:
            series.setdefault(points, []).append(kind)
    for points, kinds in series.items():
        ax.plot(*zip(*points, strict=True), marker="o", markersize=4, label=joined(kinds))
    _finish(ax, title, "layer", empty=not series)
    ax.set_ylim(min(-0.05, *(y for points in series for _, y in points)) if series else -0.05,
                max(1.05, *(1.1 * y for points in series for _, y in points)) if series else 1.05)  # fmt: skip


def _spectra(ax: Any, found: Anatomy) -> None:
    """Singular values of the matrices of a middle layer, with their sources dashed."""
    layers = sorted({t.layer for t in found.tensors if t.spectrum and t.layer is not None})
    layer = layers[len(layers) // 2] if layers else None
    shown = [t for t in found.tensors if t.spectrum and t.layer == layer][:8]
    for i, t in enumerate(shown):
        for spectrum, style, label in ((t.spectrum, "-", t.kind), (t.source_spectrum, "--", None)):
            if spectrum is not None:
                steps = max(1, len(spectrum.values) - 1)
                index = [1 + j * (spectrum.size - 1) / steps for j in range(len(spectrum.values))]
                values = [max(value, 1e-8) for value in spectrum.values]
                ax.plot(index, values, style, color=f"C{i}", label=label, linewidth=1.3)
    if shown:
        ax.set_yscale("log")
        ax.set_ylim(max(1e-8, min(v for t in shown if t.spectrum for v in t.spectrum.values) / 2), 2)
    dashed = ", dashed: source" if any(t.source_spectrum for t in shown) else ""
    place = _OUTSIDE if layer is None else f"layer {layer}"
    _finish(ax, f"singular values over the largest, {place}{dashed}", "index", empty=not shown)


def _finish(ax: Any, title: str, x: str, *, empty: bool) -> None:
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(x)
    ax.grid(alpha=0.3)
    if empty:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", transform=ax.transAxes, color="gray")
    else:
        ax.legend(fontsize=8)
    if x == "layer":
        ax.xaxis.get_major_locator().set_params(integer=True)
