"""The model card of a grown directory: where it comes from, what was proved, how to train it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.errors import printable
from hyperclone.io.checkpoint import Checkpoint, check_own_file
from hyperclone.planning.checks import rounded
from hyperclone.planning.growth import OUTPUT_DTYPES
from hyperclone.planning.notes import listed
from hyperclone.units import share
from hyperclone.version import __version__

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

_EXPERTS = (
    "Its experts start as the source's feed-forward block (sparse upcycling, "
    "[arXiv 2212.05055](https://arxiv.org/abs/2212.05055)) and its routers are randomly initialized: train with a "
    "load-balancing loss. An expert sees only some of the tokens, so for experts and routers these numbers are a "
    "starting point."
)
CARRIED = ("license", "license_name", "license_link", "language")

_TASKS = {"ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification"}


def make_card(plan: Plan, checkpoint: Checkpoint, source: str, proof: Proof | None, *, on_hub: bool) -> str:
    """README.md with Hub metadata.

    Args:
        plan: of the grown model.
        checkpoint: the source; the model card in its directory gives license and language.
        source: the source's public name: a Hub id, or the name of a local directory.
        proof: its figures are quoted; None if none was run.
        on_hub: `source` is a Hub id.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metadata = source_metadata(checkpoint.path)
    data = ModelCardData(
        base_model=source if on_hub else metadata.get("base_model"),
        library_name="transformers",
        pipeline_tag=_TASKS.get(plan.family.head, "text-generation"),
        tags=["hyperclone"],
        ignore_metadata_errors=True,
        **{key: metadata[key] for key in CARRIED if metadata.get(key)},
    )
    lines = [
        f"# {code(source.rsplit('/', 1)[-1])}, grown",
        "",
        _what_it_is(plan, checkpoint, source),
        "",
        "| | source | grown |",
        "|---|---:|---:|",
        *(f"| {name} | {old:,} | {new:,} |" for name, (old, new) in plan.widths().items()),
        f"| parameters | {plan.source_parameters:,} | {plan.parameters:,} |",
        *([f"| active for a token | | {plan.active_parameters:,} |"] if plan.growth.experts is not None else []),
        "",
        f"Expansion `{plan.growth.expansion}`, noise `{plan.growth.noise}`"
        + (f" at {plan.growth.snr_db:g} dB, seed {plan.growth.seed}" if plan.growth.noise != "none" else "")
        + f", copies `{plan.growth.order}`.",
        "",
        *(f"* {_escaped(note)}" for note in plan.notes),
        *([""] if plan.notes else []),
        "## Proof",
        "",
        *_proof_lines(proof),
        "",
        "## Training it",
        "",
        "Trained with the source's learning rate, every matrix that reads a grown axis would move n times as fast as "
        "in the source. `hyperclone.json` lists for every parameter the learning rate, weight decay and epsilon, "
        "relative to the source's, that keep AdamW's dynamics.",
        "",
        *([_EXPERTS, ""] if plan.growth.experts is not None else []),
        *(f"> {_escaped(warning)}" for warning in plan.warnings),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n"))


def _what_it_is(plan: Plan, checkpoint: Checkpoint, source: str) -> str:
    """What was grown, and how far the function is the source's."""
    kind = "wider copy of" if plan.growth.experts is None else "mixture of experts made from"
    origin = code(source) if checkpoint.left_out is None else f"the text model of {code(source)}"
    dtype, entries = plan.growth.dtype, checkpoint.entries.values()
    if dtype and any(entry.parts is not None or entry.dtype != OUTPUT_DTYPES[dtype] for entry in entries):
        origin += f", converted to {dtype},"
    if not plan.keeps_function:
        what, knows = "with repeated layers, which change the function", "."
    elif coarse := rounded(plan.tensors):
        what = f"that computes the same function up to the rounding of {len(coarse)} of its tensors"
        knows = ", and has added capacity."
    else:
        what = "that computes the same function"
        whose = "its source" if origin == code(source) else "that model"
        knows = f": it knows exactly what {whose} knows, and has added capacity."
    return (
        f"A {kind} {origin} {what}, made by hyperclone {__version__} "
        f"(HyperCloning, [arXiv 2409.12903](https://arxiv.org/abs/2409.12903)). It has not been trained since{knows}"
    )


def _escaped(sentence: str) -> str:
    """A note as Markdown that shows it as it is: names of files in it are the source's."""
    return re.sub(r"([\\`*_<>\[\]&])", r"\\\1", printable(sentence, line=True))


def code(text: str) -> str:
    """Text as a code span of Markdown, which shows it as it is: no markup, no HTML, no link, one line."""
    shown = printable(text, line=True)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}{shown}{fence}" if len(fence) == 1 else f"{fence} {shown} {fence}"


def is_ours(file: Path) -> bool:
    """Whether a card may be replaced: hyperclone wrote it, or there is none."""
    return not file.is_file() or "hyperclone" in source_metadata(file.parent).get("tags", [])


def source_metadata(directory: Path) -> dict[str, Any]:
    """The metadata of the source's model card; empty if there is none that can be read."""
    from huggingface_hub import ModelCard

    if not (directory / "README.md").is_file():
        return {}
    try:
        check_own_file(directory / "README.md", directory)
        return dict(ModelCard.load(directory / "README.md", ignore_metadata_errors=True).data.to_dict())
    except Exception:  # a malformed card must not stop a growth
        return {}


def _proof_lines(proof: Proof | None) -> list[str]:
    if proof is None:
        return ["No proof was run (`--proof none`). `hyperclone verify SOURCE THIS` runs it."]
    structure = proof.structure
    differs = structure.difference or structure.rounded
    lines = [
        f"Collapsing the files on disk gives the source back: {structure.bit_equal} of {structure.tensors} tensors bit "
        "for bit"
        + (f"; {structure.rounded} had to be rounded to their type" if structure.rounded else "")
        + (f" ({code(listed(structure.rounded_names))})" if structure.rounded else "")
        + (f"; {structure.new_routers} are new routers, randomly initialized" if structure.new_routers else "")
        + (f"; largest difference {structure.difference:.1e}." if differs else ".")
    ]
    if proof.behavior and proof.behavior.measured:
        lines += [
            "",
            f"| inputs | type | relative logit error | explained by rounding | same top {proof.behavior.choice} |",
            "|---|---|---:|---:|---:|",
            *(
                f"| {m.what} | {m.dtype} | {m.relative:.1e} | {m.tolerance:.1e} | {share(m.top1, m.positions)} |"
                for m in proof.behavior.measured
            ),
        ]
    return lines + [line for note in proof.notes for line in ("", note)]
