"""The figure of an anatomy."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperclone.anatomy.examine import Anatomy, TensorAnatomy
from hyperclone.anatomy.weights import mean
from hyperclone.errors import DestinationError, HypercloneError
from hyperclone.io.files import user_path

_Value = Callable[[TensorAnatomy], float | None]
_OUTSIDE = "outside of layers"


def sizes_text(anatomy: Anatomy) -> str:
    """The axes that grew, with their sizes."""
    return "grown: " + ", ".join(f"{axis} {old} to {new}" for axis, (old, new) in anatomy.sizes.items())


def join_kinds(kinds: list[str]) -> str:
    """self_attn.q_proj, self_attn.k_proj -> self_attn.q_proj, k_proj."""
    named: list[str] = []
    before = ""
    for kind in kinds:
        block, _, last = kind.rpartition(".")
        named.append(last if named and block == before else kind)
        before = block
    return ", ".join(named)


def check_file(file: str | os.PathLike[str]) -> Path:
    """The path of a figure, checked before it is drawn; raises the errors of `draw`."""
    path = user_path(file)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise DestinationError("a figure in this format cannot be written", file=path, expected=".png, .svg or .pdf")
    if not path.resolve().parent.is_dir():
        raise DestinationError("no such directory to write the figure to", file=path)
    if importlib.util.find_spec("matplotlib") is None:
        raise HypercloneError("figures need matplotlib", cure="pip install 'hyperclone[report]'")
    return path


def draw(anatomy: Anatomy, file: str | os.PathLike[str]) -> None:
    """Draw symmetry by layer, spectra, and the share of the added width in use.

    Args:
        anatomy: from `examine`.
        file: a name that ends with .png, .svg or .pdf.

    Raises:
        HypercloneError: matplotlib is not installed.
        DestinationError: another format, or the file cannot be written.
    """
    path = check_file(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    _lines(axes[0, 0], anatomy, lambda t: t.input_symmetry, "cosine between copies of inputs (weights)")
    _lines(axes[0, 1], anatomy, lambda t: t.output_symmetry, "cosine between copies of outputs (weights)")
    _spectra(axes[1, 0], anatomy)
    _lines(axes[1, 1], anatomy, lambda t: t.in_use, "share of the added width in use (activations)")
    locked = "LOCKED, " if anatomy.locked else ""
    figure.suptitle(f"{locked}{sizes_text(anatomy)}", fontsize=13)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DestinationError("the figure cannot be written", file=path, found=error.strerror or error) from None


def _lines(ax: Any, anatomy: Anatomy, value: _Value, title: str) -> None:
    """One line for each kind across layers; kinds with equal values share a line."""
    series: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for kind in dict.fromkeys(t.kind for t in anatomy.tensors if t.layer is not None):
        by_layer: dict[int, list[float | None]] = {}
        for t in anatomy.tensors:
            if t.kind == kind and t.layer is not None:
                by_layer.setdefault(t.layer, []).append(value(t))
        points = tuple((layer, m) for layer, values in sorted(by_layer.items()) if (m := mean(values)) is not None)
        if points:
            series.setdefault(points, []).append(kind)
    for points, kinds in series.items():
        ax.plot(*zip(*points, strict=True), marker="o", markersize=4, label=join_kinds(kinds))
    _finish(ax, title, "layer", empty=not series)
    ax.set_ylim(min(-0.05, *(y for points in series for _, y in points)) if series else -0.05,
                max(1.05, *(1.1 * y for points in series for _, y in points)) if series else 1.05)  # fmt: skip


def _spectra(ax: Any, anatomy: Anatomy) -> None:
    """Singular values of the matrices in the middle layer, with the source's dashed."""
    layers = sorted({t.layer for t in anatomy.tensors if t.spectrum and t.layer is not None})
    layer = layers[len(layers) // 2] if layers else None
    shown = [t for t in anatomy.tensors if t.spectrum and t.layer == layer][:8]
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
    location = _OUTSIDE if layer is None else f"layer {layer}"
    _finish(ax, f"singular values over the largest, {location}{dashed}", "index", empty=not shown)


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
