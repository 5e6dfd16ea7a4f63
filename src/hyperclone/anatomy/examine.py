"""The anatomy of a clone: how far its copies have moved apart, and whether the added width is in use.

For every matrix, per layer and kind: symmetry between copies (arXiv 2409.12903, section 3.2), singular values and ranks
(section 3.3; both defined in anatomy_weights.py), and, from a run on a text, the share of the added width in use
(anatomy_activations.py). For the whole model: the axes along which it is locked (anatomy_locks.py). Which rows and
columns are copies of which follows from the receipt, or from the sizes of the source; the weights may have been trained
since.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hyperclone.anatomy import locked as anatomy_locks
from hyperclone.anatomy.weights import CopyComparison, Spectrum, compare_copies, mean, spectrum
from hyperclone.architectures import family_file
from hyperclone.architectures.family import indices
from hyperclone.conversion import receipt
from hyperclone.conversion.provenance import plan_of
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.expansion import grown_tensors
from hyperclone.io import hub
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.streaming import Meter, Progress
from hyperclone.planning.notes import dropout
from hyperclone.planning.plan import Plan, TensorPlan

if TYPE_CHECKING:
    import torch

SPECTRA = ("some", "all", "none")
_SHOWN = 8  # layers, unless all are asked for
_COST = 2e11  # longer side x shorter side squared, in multiplications: a dozen seconds on two cores
_IN_USE = 1e-4  # of the squares: activations of copies that differ by a hundredth of their size


@dataclass(frozen=True)
class TensorAnatomy:
    """One matrix.

    Attributes:
        name: on disk.
        layer, kind: where it stands: its layer (None outside of layers) and its name without it.
        shape: as stored.
        read, write: the copies of what it reads, and of what it writes; None where that axis did not grow.
        spectrum, source_spectrum: of it and of its source.
        active: the copies in the activations that it reads.
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
        """Cosine between copies of what it reads."""
        return None if self.read is None else self.read.symmetry

    @property
    def output_symmetry(self) -> float | None:
        """Cosine between copies of what it writes."""
        return None if self.write is None else self.write.symmetry

    @property
    def effective_rank(self) -> float | None:
        """Of its spectrum."""
        return None if self.spectrum is None else self.spectrum.effective_rank

    @property
    def stable_rank(self) -> float | None:
        """Of its spectrum."""
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
        return None if self.active is None else self.active.apart


@dataclass
class Anatomy:
    """What was found.

    Attributes:
        sizes: (old, new) of the axes that grew.
        locked: those whose copies are equal in every tensor.
        depth: the number of layers.
        tensors: the matrices that were measured.
        activations: on which text activations were measured, or why not.
        dropout: the config asks for dropout in training.
        notes: what was left out.
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
        """Mean share of the added width in use, of all activations that were measured."""
        return mean([t.in_use for t in self.tensors])

    @property
    def verdict(self) -> str:
        """What to make of it, in a sentence or two."""
        if self.locked:
            which = "" if set(self.locked) == set(self.sizes) else f" along {', '.join(self.locked)}"
            never = "dropout alone could end that" if self.dropout else "and never will be without dropout"
            return (
                f"LOCKED{which}: all copies are equal to the last bit, so the added width is not used, {never}. "
                "Grow the source again with noise (the default, --noise split) and train that."
            )
        if all(t.read is None and t.write is None for t in self.tensors):
            return "Nothing here has copies: what is new holds nothing yet, and the weights that read it are random."
        if self.in_use is None:
            return "The weights of the copies differ, so training can use the added width."
        if self.in_use < _IN_USE:
            return (
                "The weights of the copies differ, but what they compute is still equal: the added width is not in use "
                "yet, as in a clone that was not trained. Training will separate the copies."
            )
        return f"The copies have separated: {self.in_use:.0%} of the added width is in use."

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
    """Measure a grown directory, trained since or not; one tensor is in memory at a time.

    Args:
        directory: with its receipt; without one, `against` says how it was grown.
        against: the source, for its spectra.
        layers: "all", or numbers ("0,5,-1"); by default eight, evenly spread.
        tensors: only names that match this pattern (`*down_proj*`).
        spectra: "some" (first, middle and last of those layers, and what is quick), "all", "none".
        activations: run the model on a text, where memory allows.
        revision: of a source on the Hub.
        family: a family file of your own.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        HypercloneError: the directory cannot be read, or is not known to be grown.
    """
    if spectra not in SPECTRA:
        raise GrowthError("unknown choice of spectra", field="spectra", found=spectra, expected=", ".join(SPECTRA))
    place = hub.resolve(directory)
    told = receipt.read(place)
    own = family_file.read(family) if family is not None else told.family if told is not None else None
    output = Checkpoint.open(place, family=own)
    origin = None if against is None else Checkpoint.open(hub.resolve(against, revision=revision), family=own)
    made = plan_of(place, told, output, origin, own)
    _check_shapes(made, output, origin)
    depth = len(made.layers)
    chosen = choose_layers(depth, layers)
    picked = [
        t for t in made.tensors
        if len(t.shape) == 2 and fnmatchcase(t.name, tensors) and (position(t, made)[0] in (None, *chosen))
    ]  # fmt: skip
    if not picked:
        raise GrowthError("no tensor of the chosen layers matches", field="tensors", found=tensors)
    meter = Meter("anatomy", sum(output.entries[t.name].nbytes for t in picked), progress)
    wanted, skipped = _with_spectra(picked, made, chosen, spectra)
    measured = []
    for tensor in picked:
        one = measure(output.read(tensor.name), tensor, made, ranks=tensor.name in wanted)
        if tensor.name in wanted and origin is not None and not tensor.init_std:
            source = origin.read(tensor.source)
            one = replace(one, source_spectrum=spectrum(source))
        measured.append(one)
        meter.add(output.entries[tensor.name].nbytes)
    active: dict[str, CopyComparison] = {}
    text = "not asked for"
    if activations:
        from hyperclone.anatomy import activations as anatomy_activations

        active, text = anatomy_activations.of_directory(place, made)
    notes = [f"{len(chosen)} of {depth} layers; --layers all shows every one."] if len(chosen) < depth else []
    if skipped:
        notes.append(f"No spectra of {', '.join(skipped)}: they take long; --spectra all computes them.")
    return Anatomy(
        sizes=anatomy_locks.grown(made),
        locked=anatomy_locks.locked_axes(made, output),
        depth=depth,
        tensors=[replace(one, active=active.get(one.name)) for one in measured],
        activations=text,
        dropout=bool(dropout(made.family, output.config)),
        notes=notes,
    )


def _check_shapes(made: Plan, output: Checkpoint, origin: Checkpoint | None) -> None:
    for model, wanted in (
        (output, {t.name: t.shape for t in made.tensors}),
        (origin, {t.source: t.source_shape for t in made.tensors if not t.init_std}),
    ):
        for name, shape in wanted.items() if model is not None else ():
            entry = model.entries.get(name) if model is not None else None
            if entry is None or entry.shape != shape:
                raise CheckpointError(
                    "a tensor is not the one that the growth speaks of", file=model and model.path, tensor=name,
                    found=list(entry.shape) if entry else "missing", expected=list(shape),
                )  # fmt: skip


def measure(stored: torch.Tensor, tensor: TensorPlan, made: Plan, *, ranks: bool = True) -> TensorAnatomy:
    """One matrix, as it is stored; `ranks`: with its spectrum."""
    grown = grown_tensors.map_of(tensor, made)
    matrix = grown.as_matrix(stored)
    layer, kind = position(tensor, made)
    columns, rows = compare_copies(matrix, grown.columns), compare_copies(matrix.T, grown.rows)
    read, write = (columns, rows) if grown.splits else (None, columns or rows)
    return TensorAnatomy(
        tensor.name, layer, kind, tuple(stored.shape), read, write, spectrum(matrix) if ranks else None
    )


def position(tensor: TensorPlan, made: Plan) -> tuple[int | None, str]:
    """(layer, kind) of a tensor: model.layers.3.mlp.up_proj.weight is (3, mlp.up_proj)."""
    for line in made.family.lines:
        if (found := indices(line.pattern, tensor.name)) is not None:
            kind = line.pattern.rpartition("{i}.")[2] if "i" in found else line.pattern.removeprefix("model.")
            return int(found["i"]) if "i" in found else None, re.sub(r"\.weight$", "", kind).replace("{e}", "*")
    return None, tensor.name.removesuffix(".weight")  # a head that was untied


def choose_layers(depth: int, wanted: str | None) -> tuple[int, ...]:
    """Layers by their numbers; None: eight of them, evenly spread."""
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
    """At most so many of them, evenly spread, with the first and the last."""
    there = list(layers)
    last, steps = len(there) - 1, max(1, min(count, len(there)) - 1)
    return tuple(dict.fromkeys(there[round(i * last / steps)] for i in range(steps + 1)))


def _with_spectra(
    picked: list[TensorPlan], made: Plan, layers: tuple[int, ...], spectra: str
) -> tuple[set[str], list[str]]:
    """(the tensors whose spectra are computed, kinds that are left out because they take long)."""
    if spectra == "none":
        return set(), []
    if spectra == "all":
        return {t.name for t in picked}, []
    some = [t for t in picked if position(t, made)[0] in (None, *spread(layers, 3))]
    quick = [t for t in some if max(t.shape) * min(t.shape) ** 2 < _COST]
    names = {t.name for t in quick}
    return names, sorted({position(t, made)[1] for t in some if t.name not in names})
