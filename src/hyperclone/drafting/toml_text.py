"""The text of a drafted family file: what is known of an architecture, one way to read the rest, every guess marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperclone.drafting.dimensions import DraftedAxes, Layouts, TensorLayouts, toml
from hyperclone.drafting.probe import ConfigFields

_PLAIN = ("linear", "conv1d", "embedding", "norm")  # modules whose weights are stored as everybody stores them


@dataclass(frozen=True)
class Hypothesis:
    """One way to read what shapes do not tell.

    Attributes:
        chosen: readings of a dimension -> the one that is taken; where it is left out, the likeliest.
        multiplied: the model multiplies its embedding by the root of hidden.
        gain_offset: the model adds 1 to stored gains.
    """

    chosen: Mapping[Layouts, str] = field(default_factory=dict)
    multiplied: bool = False
    gain_offset: bool = False


@dataclass
class Architecture:
    """Everything about an architecture that candidates share.

    Attributes:
        found, axes, reads: its fields, axes and tensors.
        head, embedding: on disk, where tie_word_embeddings decides whether they are one; "" where it does not.
        fold: tensors of the norm in front of the head.
        rms: that norm is an RMSNorm.
        residual: the line of [residual], once it has been tried.
    """

    found: ConfigFields
    axes: DraftedAxes
    reads: dict[str, TensorLayouts]
    head: str = ""
    embedding: str = ""
    fold: tuple[str, ...] = ()
    rms: bool = False
    residual: str = ""

    @property
    def unread(self) -> list[str]:
        """Tensors that the layout language cannot describe."""
        patterns = dict.fromkeys(tensor.pattern for tensor in self.found.base.tensors.values())
        return [name for name in patterns if name not in self.reads or not self.reads[name].complete]


def write(known: Architecture, candidate: Hypothesis, *, heading: Sequence[str] = ()) -> str:
    """The family file; what is not understood stands in it as comments."""
    found, kind = known.found, known.found.config["model_type"]
    lines = [f"# {kind}, drafted from one config by `hyperclone family draft`. Read what is marked as a guess.",
             *heading, f"model_types = [{toml(kind)}]", f"layers = {toml(found.layers)}"]  # fmt: skip
    if found.lists:
        lines.append(f"per_layer = [{', '.join(map(toml, found.lists))}]")
    if candidate.gain_offset:
        lines.append("gain_offset = 1    # guess: norms multiply by 1 + weight")
    lines += known.axes.text()
    if known.residual:
        lines += ["", "[residual]    # guess: tried at 1.5x widths", known.residual]
    if candidate.multiplied:
        lines += ["", "[multiplied]    # guess: the model multiplies it by the root of this size",
                  f'{toml(known.embedding)} = "hidden"']  # fmt: skip
    lines += ["", "[tensors]"]
    for name, read in known.reads.items():
        if read.complete:
            line = toml(_line(read, candidate))
            value = f'{{ line = {line}, when = "not tie_word_embeddings" }}' if name == known.head else line
            lines.append(f"{toml(name)} = {value}{_guess(read)}")
    lines += [f"# not understood: {name}" for name in known.unread]
    if known.head:
        lines += ["", "[tie]", 'when      = "tie_word_embeddings"', f"head      = {toml(known.head)}",
                  f"embedding = {toml(known.embedding)}",
                  f"fold      = [{', '.join(map(toml, known.fold))}]    # guess: the norm that runs last"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(read: TensorLayouts, candidate: Hypothesis) -> str:
    dims = [candidate.chosen.get(options, options[0]) for options in read.dims]
    kind = read.tensor.kind
    if kind == "norm" and len(dims) == 1:
        return f"norm{dims[0]}" if dims[0].startswith("(") else f"norm({dims[0]})"
    if len(dims) == 1 or kind in ("embedding", "norm"):
        return " ".join(dims)
    return f"{dims[0]} {'->' if kind == 'conv1d' else '<-'} {dims[1]}"


def _guess(read: TensorLayouts) -> str:
    reasons = [" or ".join(options) for options in read.dims if len(options) > 1]
    if read.tensor.kind not in _PLAIN:
        reasons.append(f"stored by {read.tensor.kind} as a Linear would" if len(read.dims) > 1 else read.tensor.kind)
    return f"    # guess: {'; '.join(reasons)}" if reasons else ""
