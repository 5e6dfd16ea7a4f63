"""The model card of a grown directory: where it comes from, what was proved, how to train it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperclone.version import __version__

if TYPE_CHECKING:
    from hyperclone.planning.plan import Plan
    from hyperclone.proof.proof import Proof

_EXPERTS = (
    "Its experts start as the source's feed-forward block (sparse upcycling, "
    "[arXiv 2212.05055](https://arxiv.org/abs/2212.05055)) and its routers were drawn at random: train with a "
    "load-balancing loss. An expert sees some of the tokens only, so for experts and routers these numbers are a "
    "starting point, not a law."
)
CARRIED = ("license", "license_name", "license_link", "language")


def make(made: Plan, place: Path, source: str, proof: Proof | None, *, on_hub: bool) -> str:
    """README.md with Hub metadata.

    Args:
        made: the plan.
        place: the source's directory; its own card gives licence and language.
        source: the source's public name: a Hub id, or the name of a local directory.
        proof: its figures are quoted; None if none was run.
        on_hub: `source` is a Hub id.
    """
    from huggingface_hub import ModelCard, ModelCardData

    told = source_metadata(place)
    data = ModelCardData(
        base_model=source if on_hub else told.get("base_model"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hyperclone"],
        ignore_metadata_errors=True,
        **{key: told[key] for key in CARRIED if told.get(key)},
    )
    what = "wider copy of" if made.growth.experts is None else "mixture of experts made from"
    lines = [
        f"# {source.rsplit('/', 1)[-1]}, grown",
        "",
        f"A {what} `{source}` that computes the same function, made by hyperclone {__version__} "
        "(HyperCloning, [arXiv 2409.12903](https://arxiv.org/abs/2409.12903)). It has not been trained since: "
        "it knows exactly what its source knows, and has room for more.",
        "",
        "| | source | grown |",
        "|---|---:|---:|",
        *(f"| {name} | {old:,} | {new:,} |" for name, (old, new) in made.widths().items()),
        f"| parameters | {made.source_parameters:,} | {made.parameters:,} |",
        *([f"| active for a token | | {made.active_parameters:,} |"] if made.growth.experts is not None else []),
        "",
        f"Expansion `{made.growth.expansion}`, noise `{made.growth.noise}`"
        + (f" at {made.growth.snr_db:g} dB, seed {made.growth.seed}." if made.growth.noise != "none" else "."),
        "",
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
        *([_EXPERTS, ""] if made.growth.experts is not None else []),
        *(f"> {warning}" for warning in made.warnings),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n"))


def ours(file: Path) -> bool:
    """Whether a card was written by hyperclone, so that it may be written again; a missing one may be, too."""
    return not file.is_file() or "hyperclone" in source_metadata(file.parent).get("tags", [])


def source_metadata(place: Path) -> dict[str, Any]:
    """The metadata of the source's own card; empty if it has none that can be read."""
    from huggingface_hub import ModelCard

    if not (place / "README.md").is_file():
        return {}
    try:
        return dict(ModelCard.load(place / "README.md", ignore_metadata_errors=True).data.to_dict())
    except Exception:  # somebody else's card, in whatever state, must not stop a growth
        return {}


def _proof_lines(proof: Proof | None) -> list[str]:
    if proof is None:
        return ["No proof was run (`--proof none`). `hyperclone verify SOURCE THIS` runs it."]
    structure = proof.structure
    lines = [
        f"Collapsing the files on disk gives the source back: {structure.bit_equal} of {structure.tensors} tensors bit "
        "for bit"
        + (f"; {structure.rounded} had to be rounded to their type" if structure.rounded else "")
        + (f"; {structure.drawn} are new routers, drawn at random" if structure.drawn else "")
        + (f"; largest difference {structure.largest_error:.1e}." if structure.largest_error else ".")
    ]
    if proof.behaviour and proof.behaviour.measured:
        lines += [
            "",
            "| inputs | type | relative logit error | explained by rounding | same top token |",
            "|---|---|---:|---:|---:|",
            *(
                f"| {m.what} | {m.dtype} | {m.relative:.1e} | {m.tolerance:.1e} | {m.top1:.1%} |"
                for m in proof.behaviour.measured
            ),
        ]
    return lines + [line for note in proof.notes for line in ("", note)]
