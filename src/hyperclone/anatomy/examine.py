"""The anatomy of a grown model: how far its copies have diverged, and how much of the added width is in use.

For every matrix, by layer and kind: symmetry between copies (arXiv 2409.12903, section 3.2), singular values and ranks
(section 3.3; both defined in weights.py), and, from a run on a text, the share of the added width in use
(activations.py). For the whole model: the axes along which it is locked (locked.py). Which rows and columns are copies
of which follows from the receipt, or from the sizes of the source; the model may have been trained since.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hyperclone.anatomy.locked import grown_axes, locked_axes
from hyperclone.anatomy.matrices import matrices, place
from hyperclone.anatomy.weights import CopyComparison, Spectrum, compare_copies, mean, spectrum
from hyperclone.architectures import family_file
from hyperclone.architectures.family import indices
from hyperclone.conversion import receipt
from hyperclone.conversion.provenance import open_source, plan_of_directory
from hyperclone.errors import CheckpointError, GrowthError, OptionError
from hyperclone.expansion import grown_tensors
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Meter, Progress
from hyperclone.planning.notes import dropout
from hyperclone.planning.plan import Plan, TensorPlan

if TYPE_CHECKING:
    import torch

SPECTRA = ("some", "all", "none")
_SHOWN = 8  # layers, by default
_COST = 2e11  # largest cost of a spectrum (longer side x shorter side squared): a dozen seconds on two cores
_IN_USE = 1e-4  # share of squares: activations of copies that differ by a hundredth of their size


@dataclass(frozen=True)
class TensorAnatomy:
    """The anatomy of one matrix.

    Attributes:
        name: on disk; of an expert in a tensor of many, with its number: down_proj[3].
        layer: its number; None outside of layers.
        kind: the name without its layer.
        shape: as stored.
        read, write: comparison of the copies of its inputs and of its outputs; None where that axis did not grow.
        spectrum, source_spectrum: the matrix's and its source's; None where not computed.
        active: comparison of the copies in the activations that it reads; None where not measured.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    read: CopyComparison | None
    write: CopyComparison | None
    spectrum: Spectrum | None = None
    source_spectrum: Spectrum | None = None
    active: CopyComparison | None = None

    @property
    def input_symmetry(self) -> float | None:
        """Cosine between copies of its inputs."""
        return None if self.read is None else self.read.symmetry

    @property
    def output_symmetry(self) -> float | None:
        """Cosine between copies of its outputs."""
        return None if self.write is None else self.write.symmetry

    @property
    def effective_rank(self) -> float | None:
        """The spectrum's effective rank."""
        return None if self.spectrum is None else self.spectrum.effective_rank

    @property
    def stable_rank(self) -> float | None:
        """The spectrum's stable rank."""
        return None if self.spectrum is None else self.spectrum.stable_rank

    @property
    def rank_gain(self) -> float | None:
        """Effective rank over the source's."""
        if self.spectrum is None or self.source_spectrum is None:
            return None
        return self.spectrum.effective_rank / self.source_spectrum.effective_rank

    @property
    def in_use(self) -> float | None:
        """Share of the added width in use, in the activations that it reads."""
        return None if self.active is None else self.active.divergence


@dataclass
class Anatomy:
    """The anatomy of a model.

    Attributes:
        sizes: (old, new) of the axes that grew.
        locked: those of them whose copies are equal in every tensor.
        depth: number of layers.
        tensors: the matrices measured.
        activations: the text that activations were measured on, or the reason why they were not.
        dropout: whether the config has dropout in training.
        notes: on what was not measured.
    """

    sizes: dict[str, tuple[int, int]]
    locked: tuple[str, ...]
    depth: int
    tensors: list[TensorAnatomy]
    activations: str
    dropout: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def in_use(self) -> float | None:
        """Mean share of the added width in use over all measured activations; None if there are none."""
        return mean([tensor.in_use for tensor in self.tensors])

    @property
    def verdict(self) -> str:
        """The result in a sentence or two."""
        if self.locked:
            which = "" if set(self.locked) == set(self.sizes) else f" along {', '.join(self.locked)}"
            outlook = "only dropout could change that" if self.dropout else "and never will be without dropout"
            return (
                f"LOCKED{which}: all copies are equal to the last bit, so the added width is not used, {outlook}. "
                "Grow the source again with noise (the default, --noise split) and train that."
            )
        if all(tensor.read is None and tensor.write is None for tensor in self.tensors):
            return "Nothing here has copies: the new channels are padding, and the weights that read them are random."
        if self.in_use is None:
            return "The weights of the copies differ, so training can use the added width."
        if self.in_use < _IN_USE:
            return (
                "The weights of the copies differ, but what they compute is still equal: the added width is not in use "
                "yet, as in a grown model that has not been trained. Training makes the copies diverge."
            )
        return f"The copies have diverged: {self.in_use:.0%} of the added width is in use."

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return {
            "verdict": self.verdict, "locked": list(self.locked), "in_use": self.in_use,
            "sizes": {axis: list(pair) for axis, pair in self.sizes.items()}, "layers": self.depth,
            "activations": self.activations, "notes": self.notes, "tensors": [asdict(t) for t in self.tensors],
        }  # fmt: skip


def examine(
    directory: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    layers: str | None = None,
    tensors: str = "*",
    spectra: str = "some",
    activations: bool = True,
    revision: str | None = None,
    family: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Anatomy:
    """Measure a grown model, trained since or not, with one tensor in memory at a time.

    Args:
        directory: of the grown model, with its receipt; without one, `against` is needed.
        against: the source, to compare spectra with.
        layers: "all", or numbers ("0,5,-1"); by default eight, evenly spread.
        tensors: only names that match this pattern (`*down_proj*`).
        spectra: "some" (of the first, middle and last of those layers, unless they take long), "all", "none".
        activations: also run the model on a text, if memory allows.
        revision: of a source on the Hub.
        family: a family file of your own.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the directory cannot be read, or it is unknown how it was grown.
    """
    if spectra not in SPECTRA:
        raise OptionError("unknown choice of spectra", field="spectra", found=spectra, expected=", ".join(SPECTRA))
    path = hub.resolve(directory)
    record = receipt.read(path)
    user_family = family_file.read(family) if family is not None else record.family if record is not None else None
    output = Checkpoint.open(path, family=user_family)
    resolved = None if against is None else hub.resolve(against, revision=revision)
    source = None if resolved is None else open_source(resolved, record, output.config, family=user_family)
    plan = plan_of_directory(path, record, output=output, source=source, family=user_family)
    _check_shapes(plan, output, source)
    depth = len(plan.layers)
    chosen = choose_layers(depth, layers)
    picked = [
        matrix for t in plan.tensors
        if fnmatchcase(t.name, tensors) and (position(t, plan)[0] in (None, *chosen)) for matrix in matrices(t)
    ]  # fmt: skip
    if not picked:
        raise GrowthError("no tensor of the chosen layers matches", field="tensors", found=tensors)
    meter = Meter("anatomy", sum(t.nbytes for t in picked), progress)
    with_spectra, skipped = _with_spectra(picked, plan, chosen, spectra)
    measured = []
    for tensor in picked:
        name, expert = place(tensor.name)
        anatomy = measure(_read(output, name, expert), tensor, plan, ranks=tensor.name in with_spectra)
        if tensor.name in with_spectra and source is not None and not tensor.init_std:
            anatomy = replace(anatomy, source_spectrum=spectrum(_read(source, tensor.source, expert)))
        measured.append(anatomy)
        meter.add(tensor.nbytes)
    active: dict[str, CopyComparison] = {}
    text = "not measured: --no-activations"
    if activations:
        from hyperclone.anatomy.activations import measure_activations

        active, text = measure_activations(path, plan)
    notes = [f"{len(chosen)} of {depth} layers; --layers all shows every one."] if len(chosen) < depth else []
    if skipped:
        notes.append(f"No spectra of {', '.join(skipped)}, which take long; --spectra all computes them.")
    return Anatomy(
        sizes=grown_axes(plan),
        locked=locked_axes(plan, output),
        depth=depth,
        tensors=[replace(anatomy, active=active.get(anatomy.name)) for anatomy in measured],
        activations=text,
        dropout=bool(dropout(plan.family, output.config)),
        notes=notes,
    )


def _read(model: Checkpoint, name: str, expert: int | None) -> torch.Tensor:
    """A stored matrix, or that of one expert in a tensor of many."""
    return model.read(name) if expert is None else model.read(name, expert, expert + 1)[0]


def _check_shapes(plan: Plan, output: Checkpoint, source: Checkpoint | None) -> None:
    """Raise unless output and source have the tensors of the plan."""
    for model, shapes in (
        (output, {t.name: t.shape for t in plan.tensors}),
        (source, {t.source: t.source_shape for t in plan.tensors if not t.init_std}),
    ):
        for name, shape in shapes.items() if model is not None else ():
            entry = model.entries.get(name) if model is not None else None
            if entry is None or entry.shape != shape:
                raise CheckpointError(
                    "a tensor does not fit the plan of the growth", file=model and model.path, tensor=name,
                    found=list(entry.shape) if entry else "missing", expected=list(shape),
                )  # fmt: skip


def measure(stored: torch.Tensor, tensor: TensorPlan, plan: Plan, *, ranks: bool = True) -> TensorAnatomy:
    """The anatomy of one matrix.

    Args:
        stored: its value, as on disk.
        tensor, plan: how it was grown.
        ranks: compute its spectrum.
    """
    grown = grown_tensors.map_of(tensor, plan)
    matrix = grown.as_matrix(stored)
    layer, kind = position(tensor, plan)
    columns, rows = compare_copies(matrix, grown.columns), compare_copies(matrix.T, grown.rows)
    read, write = (columns, rows) if grown.splits else (None, columns or rows)
    return TensorAnatomy(
        tensor.name, layer, kind, tuple(stored.shape), read, write, spectrum(matrix) if ranks else None
    )


def position(tensor: TensorPlan, plan: Plan) -> tuple[int | None, str]:
    """(layer, kind) of a tensor: model.layers.3.mlp.up_proj.weight is (3, mlp.up_proj)."""
    name, _ = place(tensor.name)
    for line in plan.family.lines:
        if (numbers := indices(line.pattern, name)) is not None:
            kind = line.pattern.rpartition("{i}.")[2] if "i" in numbers else line.pattern.removeprefix("model.")
            return int(numbers["i"]) if "i" in numbers else None, re.sub(r"\.weight$", "", kind).replace("{e}", "*")
    return None, name.removesuffix(".weight")  # an untied head


def choose_layers(depth: int, wanted: str | None) -> tuple[int, ...]:
    """The numbers of the chosen layers, ascending.

    Args:
        depth: number of layers.
        wanted: "all", or numbers as in "0,5,-1"; None for eight of them, evenly spread.

    Raises:
        GrowthError: there are no such layers.
    """
    if wanted == "all":
        return tuple(range(depth))
    if wanted is None:
        return spread(range(depth), _SHOWN)
    try:
        numbers = [int(number) for number in wanted.split(",")]
        return tuple(sorted({range(depth)[number] for number in numbers}))
    except (ValueError, IndexError):
        raise GrowthError("no such layers", field="layers", found=wanted,
                          expected=f"all, or numbers from 0 to {depth - 1}, as in 0,1,-1") from None  # fmt: skip


def spread(layers: Iterable[int], count: int) -> tuple[int, ...]:
    """At most `count` of the layers, evenly spread, with the first and the last."""
    numbers = list(layers)
    last, steps = len(numbers) - 1, max(1, min(count, len(numbers)) - 1)
    return tuple(dict.fromkeys(numbers[round(i * last / steps)] for i in range(steps + 1)))


def _with_spectra(
    picked: list[TensorPlan], plan: Plan, layers: tuple[int, ...], spectra: str
) -> tuple[set[str], list[str]]:
    """(tensors whose spectra are computed, kinds that are left out because they take long)."""
    if spectra == "none":
        return set(), []
    if spectra == "all":
        return {t.name for t in picked}, []
    some = [t for t in picked if position(t, plan)[0] in (None, *spread(layers, 3))]
    quick = [t for t in some if max(t.shape) * min(t.shape) ** 2 < _COST]
    names = {t.name for t in quick}
    return names, sorted({position(t, plan)[1] for t in some if t.name not in names})
