"""Validation of a user's family file: the full proof on a tiny random instance, before anything is written.

A family file describes an architecture, perhaps wrongly. The structural proof relies on it, and the behavioral proof of
the real output may not fit into memory. On a tiny instance (hf/tiny_models.py) both are always possible: it is grown
like the real model (the same axes, expansion, noise and depth), and its logits are compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hyperclone.errors import FamilyError, ProofFailed
from hyperclone.expansion import writer
from hyperclone.hf import tiny_models
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.destination import Destination
from hyperclone.io.scratch import scratch_directory
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import Plan
from hyperclone.proof import proof as proofs
from hyperclone.proof.proof import Proof


class FamilyValidationFailed(ProofFailed):
    """The family file describes its architecture wrongly; `proof` says where. Nothing was written."""

    sentence = "the family file failed its proof on a tiny random instance, so nothing was written"


def validate(plan: Plan) -> str:
    """Prove a plan's family on a tiny instance.

    Returns:
        A sentence for the proof's notes.

    Raises:
        FamilyValidationFailed: the tiny grown model is not the function of the tiny source.
        FamilyError: no tiny instance can be made or run.
    """
    proof = prove_tiny(plan)
    if not proof.passed:
        raise FamilyValidationFailed(proof, plan.family.file)
    assert proof.behavior is not None
    used = max(m.relative / m.tolerance for m in proof.behavior.measured)
    file, kind = Path(plan.family.file).name, plan.source_config.get("model_type")
    return (
        f"{file} is not one of hyperclone's own family files. It was proved on a tiny random instance of {kind}: "
        f"{proof.structure.bit_equal} of {proof.structure.tensors} tensors bit for bit, and the logits use "
        f"{used:.2f} of their tolerance at most."
    )


def prove_tiny(plan: Plan) -> Proof:
    """The full proof of a tiny instance of the plan's source, grown like the plan."""
    with scratch_directory() as scratch:
        tiny_models.save_tiny_model(scratch / "source", plan.source_config, plan.family)
        source = Checkpoint.open(scratch / "source", family=plan.family)
        tiny_plan = planner.make_plan(source, tiny_growth(plan))
        grown = scratch / "grown"
        target = Destination(
            grown, source=source.path, fingerprint=tiny_plan.fingerprint, nbytes=tiny_plan.nbytes, overwrite=False
        )
        try:
            writer.write(tiny_plan, source, target)
            proof = proofs.prove(source, target.partial, tiny_plan)
        finally:
            target.close()
    if proof.passed and not (proof.behavior and proof.behavior.measured):
        raise FamilyError("the family file could not be proved on a tiny random instance", file=plan.family.file,
                          found="; ".join(proof.behavior.skipped) if proof.behavior else None)  # fmt: skip
    return proof


def tiny_growth(plan: Plan) -> Growth:
    """The plan's growth for a tiny instance: the same axes, by the same factors where these are whole, else by 1.5."""

    def factor(*axes: str) -> str:
        product = 1.0
        for old, new in (plan.sizes[axis] for axis in axes):
            product *= new // old if new % old == 0 else 1.5
        return f"{product:g}x"

    grouped = "kv_heads" in plan.sizes
    if not plan.keeps_function:  # stacked layers change the function; judge the widths
        wider = any(new != old for old, new in plan.sizes.values())
        plan = replace(plan, layers=plan.layers[:1]) if wider else plan
    return replace(
        plan.growth,
        width=None,
        hidden=factor("hidden"),
        ffn=factor("ffn"),
        heads=factor("kv_heads", "group") if grouped else factor("heads"),
        kv_heads=factor("kv_heads") if grouped else None,
        head_dim=factor("head_dim"),
        layers="2x" if plan.deeper else None,
        dtype=None,
        allow_rounding=True,
    )
