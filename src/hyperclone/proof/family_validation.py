"""The trial of a user's own family file: the full proof on a tiny random instance, before anything is written.

A family file is somebody's reading of an architecture, perhaps a guess. The structural proof takes its word, and the
behavioural proof of the real output may not fit into memory. On a tiny instance (tiny.py) both always can be had: it
is grown as the real model is to be (the same axes, expansion, noise and depth), and its logits are compared.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hyperclone.errors import FamilyError, ProofFailed
from hyperclone.expansion import writer
from hyperclone.hf import tiny_models
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import Plan
from hyperclone.proof import proof as proofs
from hyperclone.proof.proof import Proof


class TrialFailed(ProofFailed):
    """The family file is wrong about its architecture; `proof` says where. Nothing was written."""

    sentence = "the family file failed its proof on a tiny random instance, so nothing was written"


def check(made: Plan) -> str:
    """Prove a plan's family on a tiny instance; returns a sentence that says so.

    Raises:
        TrialFailed: the tiny grown model is not the function of the tiny source.
        FamilyError: no tiny instance can be made or run.
    """
    proof = prove(made)
    if not proof.passed:
        raise TrialFailed(proof, made.family.file)
    assert proof.behaviour is not None
    used = max(m.relative / m.tolerance for m in proof.behaviour.measured)
    file, kind = Path(made.family.file).name, made.source_config.get("model_type")
    return (
        f"{file} is not one of hyperclone's own family files. It was proved on a tiny random instance of {kind}: "
        f"{proof.structure.bit_equal} of {proof.structure.tensors} tensors bit for bit, and the logits use "
        f"{used:.2f} of their tolerance at most."
    )


def prove(made: Plan) -> Proof:
    """The full proof of a tiny instance of the plan's source, grown in the plan's way."""
    with tempfile.TemporaryDirectory(prefix="hyperclone-") as scratch:
        tiny_models.save_tiny_model(Path(scratch) / "source", made.source_config, made.family)
        origin = Checkpoint.open(Path(scratch) / "source", family=made.family)
        small = planner.make_plan(origin, growth_like(made))
        place = Path(scratch) / "grown"
        target = Destination(
            place, source=origin.path, fingerprint=small.fingerprint, nbytes=small.nbytes, overwrite=False
        )
        try:
            writer.write(small, origin, target)
            proof = proofs.prove(origin, target.partial, small)
        finally:
            target.close()
    if proof.passed and not (proof.behaviour and proof.behaviour.measured):
        raise FamilyError("the family file could not be proved on a tiny random instance", file=made.family.file,
                          found="; ".join(proof.behaviour.skipped) if proof.behaviour else None)  # fmt: skip
    return proof


def growth_like(made: Plan) -> Growth:
    """The plan's growth for a tiny instance: the same axes by the same whole factors, or half as much again."""

    def factor(*axes: str) -> str:
        product = 1.0
        for old, new in (made.sizes[axis] for axis in axes):
            product *= new // old if new % old == 0 else 1.5
        return f"{product:g}x"

    grouped = "kv_heads" in made.sizes
    if not made.keeps_function:  # stacked layers: the widths are what can be judged
        wider = any(new != old for old, new in made.sizes.values())
        made = replace(made, layers=made.layers[:1]) if wider else made
    return replace(
        made.growth,
        width=None,
        hidden=factor("hidden"),
        ffn=factor("ffn"),
        heads=factor("kv_heads", "group") if grouped else factor("heads"),
        kv_heads=factor("kv_heads") if grouped else None,
        head_dim=factor("head_dim"),
        layers="2x" if made.deeper else None,
        dtype=None,
        allow_rounding=True,
    )
