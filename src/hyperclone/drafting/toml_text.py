"""The text of a drafted family file, with every guess marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperclone.drafting.dimensions import DraftedAxes, Layouts, TensorLayouts, toml_value
from hyperclone.drafting.probe import ConfigFields

_PLAIN = ("linear", "conv1d", "embedding", "norm")  # modules that store their weights in a known orientation


@dataclass(frozen=True)
class Hypothesis:
    """A guess at everything that shapes leave open.

    Attributes:
        chosen: candidate layouts of a dimension -> the one chosen; the likeliest where it is not given.
        multiplied: the model multiplies its embedding by the square root of hidden.
        gain_offset: the model adds 1 to stored gains.
        transposed: matrices of experts in one tensor have their outputs as columns.
    """

    chosen: Mapping[Layouts, str] = field(default_factory=dict)
    multiplied: bool = False
    gain_offset: bool = False
    transposed: bool = False


@dataclass
class Architecture:
    """What is known about an architecture, whatever the hypothesis.

    Attributes:
        fields, axes: of its config.
        layouts: candidate layouts of its tensors by pattern.
        head, embedding: their names on disk, if tie_word_embeddings decides whether they are tied; else "".
        fold: tensors of the norm in front of the head.
        rms: whether that norm is an RMSNorm.
        residual: the line of [residual], if it has been tried and holds.
    """

    fields: ConfigFields
    axes: DraftedAxes
    layouts: dict[str, TensorLayouts]
    head: str = ""
    embedding: str = ""
    fold: tuple[str, ...] = ()
    rms: bool = False
    residual: str = ""

    @property
    def not_understood(self) -> list[str]:
        """Tensors that the layout language cannot describe."""
        patterns = dict.fromkeys(tensor.pattern for tensor in self.fields.base.tensors.values())
        return [name for name in patterns if name not in self.layouts or not self.layouts[name].complete]


def family_text(architecture: Architecture, hypothesis: Hypothesis, *, heading: Sequence[str] = ()) -> str:
    """The family file; tensors that are not understood are comments in it.

    Args:
        architecture: what is known.
        hypothesis: the guess at the rest.
        heading: comment lines on what was proved.
    """
    fields, kind = architecture.fields, architecture.fields.config["model_type"]
    lines = [f"# {kind}, drafted from one config by `hyperclone family draft`. Check the lines marked as guesses.",
             *heading, f"model_types = [{toml_value(kind)}]", f"layers = {toml_value(fields.layers)}"]  # fmt: skip
    if fields.lists:
        lines.append(f"per_layer = [{', '.join(map(toml_value, fields.lists))}]")
    if any(name.startswith(fields.base.prefix) for name in fields.base.tensors):
        lines.append(f"prefix = {toml_value(fields.base.prefix)}")
    if hypothesis.gain_offset:
        lines.append("gain_offset = 1    # guess: norms multiply by 1 + weight")
    if fields.aliases:
        lines += ["", "[aliases]", *(f"{alias} = {toml_value(name)}" for alias, name in fields.aliases.items())]
    lines += architecture.axes.text()
    if architecture.residual:
        lines += ["", "[residual]    # guess: equal logits at 1.5x widths", architecture.residual]
    if hypothesis.multiplied:
        lines += ["", "[multiplied]    # guess: the model multiplies it by the square root of this size",
                  f'{toml_value(architecture.embedding)} = "hidden"']  # fmt: skip
    lines += ["", "[tensors]"]
    for name, layouts in architecture.layouts.items():
        if layouts.complete:
            line = toml_value(_line(layouts, hypothesis))
            value = f'{{ line = {line}, when = "not tie_word_embeddings" }}' if name == architecture.head else line
            lines.append(f"{toml_value(name)} = {value}{_guess(layouts, hypothesis)}")
    lines += [f"# not understood: {name}" for name in architecture.not_understood]
    if architecture.head:
        fold = ", ".join(map(toml_value, architecture.fold))
        lines += ["", "[tie]", 'when      = "tie_word_embeddings"', f"head      = {toml_value(architecture.head)}",
                  f"embedding = {toml_value(architecture.embedding)}",
                  f"fold      = [{fold}]    # guess: the norm that runs last"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(layouts: TensorLayouts, hypothesis: Hypothesis) -> str:
    """A tensor's layout line."""
    dims = [hypothesis.chosen.get(candidates, candidates[0]) for candidates in layouts.dims]
    kind = layouts.tensor.kind
    if kind == "norm" and len(dims) == 1:
        return f"norm{dims[0]}" if dims[0].startswith("(") else f"norm({dims[0]})"
    if len(dims) == 1 or kind in ("embedding", "norm") or layouts.of_biases:
        return " ".join(dims)
    if layouts.tensor.stacked:
        return " ".join([*dims[:2], "->" if hypothesis.transposed else "<-", dims[2]])
    return f"{dims[0]} {'->' if kind == 'conv1d' else '<-'} {dims[1]}"


def _guess(layouts: TensorLayouts, hypothesis: Hypothesis) -> str:
    """The comment on a layout line that is a guess; else ""."""
    reasons = [" or ".join(candidates) for candidates in layouts.dims if len(candidates) > 1]
    if layouts.tensor.kind not in _PLAIN:
        like = "a Conv1D" if hypothesis.transposed and layouts.tensor.stacked else "a Linear"
        plain = len(layouts.dims) == 1 or layouts.of_biases
        reasons.append(layouts.tensor.kind if plain else f"{layouts.tensor.kind} stores it like {like}")
    return f"    # guess: {'; '.join(reasons)}" if reasons else ""
