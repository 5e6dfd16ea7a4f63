"""Grown moments one number at a time, what the proof of them notices, and the files that hold them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hyperclone import Growth
from hyperclone.errors import GrowthError, OptionError
from hyperclone.expansion import grown_tensors
from hyperclone.io import streaming
from hyperclone.io.destination import Destination
from hyperclone.io.streaming import Progress
from hyperclone.optimizer_state import moments, reader, writer
from hyperclone.optimizer_state.moments import MomentPlan
from hyperclone.optimizer_state.writer import StatePlan
from hyperclone.planning import planner
from hyperclone.planning.plan import Plan, TensorPlan
from tests.helpers.headers import headers
from tests.helpers.messages import Refusal, check_refusal

POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}


@dataclass
class State:
    """A source's moments as random numbers, and what else a state tells."""

    plan: Plan
    kinds: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    dtype: torch.dtype = torch.float32
    optimizer: str = "adamw"
    steps: dict[str, int] = field(default_factory=dict)
    file: Path = Path(__file__)
    settings: list[dict[str, Any]] = field(default_factory=lambda: [{"lr": 1e-3}])

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Of every tensor by kind."""
        return {t.source: {kind: self.moment(t.source, kind) for kind in self.kinds} for t in self.plan.tensors}

    def moment(self, name: str, kind: str) -> Tensor:
        """A moment of a tensor, of both signs, in its shape."""
        (shape,) = {tensor.source_shape for tensor in self.plan.tensors if tensor.source == name}
        seed = int.from_bytes(hashlib.sha256(f"{name} {kind}".encode()).digest()[:4], "big")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)


def planned(name: str, **options: Any) -> Plan:
    """The plan of a growth without noise."""
    return planner.make_plan(headers(name), Growth(noise="none", allow_rounding=True, order="tiled", **options))


def source_state(plan: Plan, **fields: Any) -> Any:
    """The state of a plan's source."""
    return State(plan, **fields)


def state_plan(plan: Plan, *, treatment: str = "copy", shard_size: str | int = "5GB", **fields: Any) -> StatePlan:
    """The plan of a state whose source need not be read."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reader, "read_state", lambda path, source: source_state(plan, **fields))
        source: Any = None
        return writer.plan_state(plan, source, "anywhere", treatment=treatment, shard_size=shard_size)


def expected_moment(tensor: TensorPlan, plan: Plan, old: Tensor, power: int, *, first_only: bool) -> Tensor:
    """Every number by itself: r = 1 / (k s), where k copies have s times the source's weight each."""
    grown = grown_tensors.map_of(tensor, plan)
    matrix = (old.reshape(1, -1) if old.dim() == 1 else old.T if "->" in tensor.layout.text else old).tolist()
    factors = grown_tensors.query_rows(tensor)
    queries = None if factors is None else factors.tolist()
    rows, columns = (list(zip(m.source.tolist(), m.number.tolist(), m.count.tolist(), strict=True))
                     for m in (grown.rows, grown.columns))  # fmt: skip
    a, b = (Counter(unit for unit, _, count in units if count) for units in (rows, columns))  # 0: a padding channel
    new = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for (i, (row, row_number, _)), (j, (column, column_number, _)) in itertools.product(
        [entry for entry in enumerate(rows) if entry[1][2]], [entry for entry in enumerate(columns) if entry[1][2]]
    ):
        if first_only and (row_number or column_number):
            continue
        query = 1.0 if queries is None else queries[column if old.dim() == 1 else row]
        s = tensor.factor * query / (b[column] if grown.splits else 1)
        new[i, j] = matrix[row][column] * (1 / (a[row] * b[column] * s)) ** power
    return new.flatten() if old.dim() == 1 else new.T if "->" in tensor.layout.text else new


GROWTHS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    # uneven copies, and padding channels with their factors
    ("llama-grouped-tied", {"hidden": 40, "ffn": 100}, ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")),
    # larger heads, whose queries have factors of their own; matrices that are stored inputs first
    ("gpt2-tied", {"hidden": "1.5x", "head_dim": "1.5x"},
     ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias", "transformer.h.1.mlp.c_proj.weight")),
    ("opt", {"width": 3}, ("model.decoder.layers.0.fc2.weight", "model.decoder.layers.0.fc2.bias",
                           "model.decoder.final_layer_norm.weight")),
]  # fmt: skip


@pytest.mark.parametrize("treatment", ["copy", "first-copy"])
@pytest.mark.parametrize(("name", "growth", "tensors"), GROWTHS, ids=[name for name, *_ in GROWTHS])
def test_every_number_is_the_sources_times_a_power_of_the_gradients_ratio(
    name: str, growth: dict[str, Any], tensors: tuple[str, ...], treatment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", 3000)
    plan = planned(name, **growth)
    state = source_state(plan, kinds=tuple(POWERS))
    for tensor in plan.tensors:
        if tensor.name not in tensors:
            continue
        for kind, power in POWERS.items():
            pieces = list(moments.grown_slices(MomentPlan(tensor, kind, torch.float64), plan, state, treatment))
            old = state.moment(tensor.source, kind)
            expected = expected_moment(tensor, plan, old, power, first_only=treatment == "first-copy")
            whole = old.dim() == 1 or "->" in tensor.layout.text
            rows = tensor.shape[0]
            assert len(pieces) == (1 if whole else math.ceil(rows / (rows * 3000 // (8 * math.prod(tensor.shape)))))
            found = torch.cat(pieces)
            assert found.dtype == torch.float64
            assert found.shape == tensor.shape
            torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def stored(plan: StatePlan, directory: Path, progress: Progress | None = None) -> Any:
    """A state's files, written and opened."""
    target = Destination(
        directory / "out", source=directory / "source", fingerprint="one", nbytes=plan.nbytes, overwrite=False
    )
    writer.write_state(plan, target, threads=1, progress=progress)
    target.publish()
    return writer.open_moments(directory / "out")


def differs(plan: StatePlan, moment: MomentPlan, directory: Path, change: Callable[[Tensor], Tensor | None]) -> str:
    """What the proof says of a grown moment that has been changed."""
    pieces = list(moments.grown_slices(moment, plan.model, plan.source, plan.treatment))
    changed = torch.cat(pieces).clone()
    replaced = change(changed)
    save_file({moment.name: changed if replaced is None else replaced}, directory / "optimizer_state.safetensors")
    return moments.compare(writer.open_moments(directory), moment, plan.model, plan.source, plan.treatment)


def put(*position: int, value: float) -> Callable[[Tensor], None]:
    """Write one number."""

    def write(tensor: Tensor) -> None:
        tensor[position] = value

    return write


def times(*position: int, value: float) -> Callable[[Tensor], None]:
    """Multiply one number."""

    def write(tensor: Tensor) -> None:
        tensor[position] *= value

    return write


UP, DOWN, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("treatment", ["copy", "first-copy"])
@pytest.mark.parametrize(("name", "growth", "tensors"), GROWTHS, ids=[name for name, *_ in GROWTHS])
def test_what_was_grown_passes_the_proof_and_the_rounding_of_its_type_is_allowed(
    name: str,
    growth: dict[str, Any],
    tensors: tuple[str, ...],
    treatment: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", 3000)
    for dtype in (torch.bfloat16, torch.float64):
        plan = state_plan(planned(name, **growth), treatment=treatment, dtype=dtype)
        for tensor in tensors:
            assert differs(plan, plan.moments[f"{tensor}.{kind}"], tmp_path, lambda _: None) == ""


def test_rounding_of_the_type_is_allowed_and_no_more() -> None:
    """First copies times their factors: two units in the last place, or the smallest normal number near zero."""
    info, factors = torch.finfo(torch.float32), torch.tensor([[4.0]], dtype=torch.float64)
    for copy, expected, passes in (
        ((1 + 2 * info.eps) / 4, 1.0, True),
        ((1 + 3 * info.eps) / 4, 1.0, False),
        ((1 - 3 * info.eps) / 4, 1.0, False),
        (info.tiny, 0.0, True),
        (info.tiny * 1.5, 0.0, False),
    ):
        found = moments._collapses(torch.tensor([[copy]]), torch.tensor([[expected]]), factors)
        assert found is passes, copy


NOTICED: dict[str, tuple[str, str, Callable[[Tensor], Any], str]] = {
    # UP is (96, 64) of (48, 32): two copies of rows, and of columns, which are split.
    "another value in a first copy": (UP, "copy", put(3, 5, value=1.0), "does not collapse to the source's moment"),
    "the same in the last slice of first copies":
        (UP, "copy", put(47, 31, value=1.0), "does not collapse to the source's moment"),
    "a little more than rounding":
        (UP, "copy", times(3, 5, value=1 + 1e-6), "does not collapse to the source's moment"),
    "another value in a copied row": (UP, "copy", times(51, 5, value=1 + 2e-7), "copies differ"),
    "another value in a copied column": (UP, "copy", times(3, 37, value=1 + 2e-7), "copies differ"),
    "another value in the last copy": (UP, "copy", times(95, 63, value=1 + 2e-7), "copies differ"),
    "NaN": (UP, "copy", put(3, 5, value=math.nan), "does not collapse to the source's moment"),
    "a copy beside a first copy": (UP, "first-copy", put(51, 5, value=1e-9), "copies differ"),
    "a copied column beside a first copy": (UP, "first-copy", put(3, 37, value=1e-9), "copies differ"),
    "a vector's first copy": (NORM, "copy", put(5, value=1.0), "does not collapse to the source's moment"),
    "a vector's copy": (NORM, "copy", times(40, value=1 + 2e-7), "copies differ"),
    "another shape": (NORM, "copy", lambda t: t[:5].clone(), "found F32 [5], expected F32 [64]"),
    "another type": (NORM, "copy", lambda t: t.bfloat16(), "found BF16 [64], expected F32 [64]"),
}  # fmt: skip


@pytest.mark.parametrize(("tensor", "treatment", "change", "words"), NOTICED.values(), ids=NOTICED)
def test_the_proof_says_what_is_wrong_with_a_moment(
    tensor: str,
    treatment: str,
    change: Callable[[Tensor], Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", 3000)
    plan = state_plan(planned("llama-grouped-tied", width=2), treatment=treatment)
    assert differs(plan, plan.moments[f"{tensor}.exp_avg"], tmp_path, change) == words


def test_padding_channels_have_no_moments(tmp_path: Path) -> None:
    plan = state_plan(planned("llama-grouped-tied", hidden=40))
    for tensor, position in ((UP, (3, 35)), (DOWN, (35, 3)), (NORM, (35,))):
        change = put(*position, value=1e-9)
        assert differs(plan, plan.moments[f"{tensor}.exp_avg"], tmp_path, change) == "copies differ"


# --- The files


def test_a_state_is_told_in_one_sentence() -> None:
    plan = planned("llama-grouped-tied", width=2)
    counted = {tensor.name: 1000 for tensor in plan.tensors}
    names = list(counted)
    counted[names[0]] = 7
    told = state_plan(plan, steps=counted)
    assert told.sentence == f"adamw after 1,000 steps, copy: {len(names)} tensors with moments, 0 start fresh"
    assert told.step == 1000
    assert told.steps == counted
    uncounted = state_plan(plan, treatment="reset", optimizer="sgd", kinds=("momentum_buffer",))
    assert uncounted.sentence == f"sgd, reset: 0 tensors with moments, {len(names)} start fresh"
    assert uncounted.step is None
    assert (uncounted.steps, uncounted.shards, uncounted.nbytes) == ({}, (), 0)


def test_the_fingerprint_tells_what_decides_the_bytes(tmp_path: Path) -> None:
    model, file = planned("llama-grouped-tied", width=2), tmp_path / "optimizer.pt"
    file.write_text("one")
    plan = state_plan(model, file=file)
    others = [
        state_plan(model, file=file, treatment="first-copy"),
        state_plan(model, file=file, shard_size=20_000),
        state_plan(model, file=file, kinds=("exp_avg_sq", "exp_avg")),
        state_plan(model, file=file, dtype=torch.bfloat16),
    ]
    prints = {one.fingerprint for one in (plan, *others)}
    assert len(prints) == 5
    assert state_plan(model, file=file).fingerprint == plan.fingerprint in prints
    file.write_text("three")
    assert plan.fingerprint not in prints


def test_what_has_no_past_starts_fresh() -> None:
    deeper = planned("llama-grouped-tied", layers="2x", width=2)
    copied = {tensor.name for tensor in deeper.tensors if not tensor.original}
    assert copied
    assert set(state_plan(deeper).fresh) == copied
    assert state_plan(planned("llama-grouped-tied", layers="2x", depth_mode="stack")).fresh == ()
    untied = state_plan(planned("llama-grouped-tied", width=2, untie=True))
    assert set(untied.fresh) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert len(untied.moments) == 2 * (len(untied.model.tensors) - 2)


@pytest.mark.parametrize("shard_size", [20_000, 400_000, "5GB"])
def test_files_index_receipt_and_hashes_agree(shard_size: str | int, tmp_path: Path) -> None:
    model = planned("llama-grouped-tied", width=2)
    counted = {tensor.name: 1000 for tensor in model.tensors} | {UP: 7}
    plan = state_plan(model, shard_size=shard_size, steps=counted)
    calls: list[tuple[str, int, int]] = []
    output = stored(plan, tmp_path, lambda *call: calls.append(call))
    assert {stage for stage, _, _ in calls} == {"state"}
    assert (calls[0][1], calls[-1][1:]) == (0, (plan.nbytes, plan.nbytes))
    out = tmp_path / "out"
    assert set(output.entries) == {f"{t.name}.{kind}" for t in model.tensors for kind in ("exp_avg", "exp_avg_sq")}
    files = {shard.file: shard for shard in plan.shards}
    assert sorted(files) == sorted(path.name for path in out.glob("optimizer_state*.safetensors"))
    assert plan.nbytes == sum((out / file).stat().st_size for file in files)
    places = {name: shard.file for shard in plan.shards for name in shard.offsets}
    assert writer.moment_files(out) == {name: out / file for name, file in places.items()}
    index = out / "optimizer_state.safetensors.index.json"
    assert len(files) == 2 or shard_size != 400_000
    assert index.exists() == (len(files) > 1)
    if len(files) > 1:
        assert json.loads(index.read_text()) == {"metadata": {"total_size": plan.nbytes}, "weight_map": places}
    assert writer.prove_state(plan, out) == []
    record = writer.receipt_part(plan, out)
    hashes = {name: hashlib.sha256(streaming.raw(output.read(name))).hexdigest() for name in plan.moments}
    assert record == {
        "optimizer": "adamw", "moments": "copy", "step": 1000, "steps": {UP: 7}, "settings": [{"lr": 1e-3}],
        "fresh": [], "sha256": hashes,
    }  # fmt: skip
    assert writer.compare_hashes(record, out) == []
    record["sha256"] |= {f"{UP}.exp_avg": "0", "extra.exp_avg": "1"}
    assert writer.compare_hashes(record, out) == [
        f"{UP}.exp_avg: not the moments that were written",
        "extra.exp_avg: missing from the optimizer state",
    ]
    assert writer.compare_hashes(record, tmp_path) == []  # all of its files have been removed
    assert writer.moment_files(tmp_path) == {}


def test_the_proof_names_moments_that_are_missing_or_wrong(tmp_path: Path) -> None:
    plan = state_plan(planned("llama-grouped-tied", width=2))
    output = stored(plan, tmp_path)
    tensors = {name: output.read(name).clone() for name in output.entries}
    tensors[f"{UP}.exp_avg"][0, 0] += 1
    del tensors[f"{DOWN}.exp_avg_sq"]
    save_file(tensors, tmp_path / "out/optimizer_state.safetensors")
    assert sorted(writer.prove_state(plan, tmp_path / "out")) == [
        f"{DOWN}.exp_avg_sq: missing from the optimizer state",
        f"{UP}.exp_avg: does not collapse to the source's moment",
    ]


def asked(model: Plan, treatment: str, checkpoint: str | None = "anywhere") -> None:
    """Plan a state that is refused before anything is read."""
    source: Any = None
    writer.plan_state(model, source, checkpoint, treatment=treatment, shard_size="5GB")


REFUSALS = {
    "an unknown treatment": Refusal(lambda: asked(planned("opt", width=2), "half"), OptionError,
        "unknown treatment of the moments",
        {"field": "moments", "found": "half", "expected": "copy, first-copy, reset"}),
    "no checkpoint": Refusal(lambda: asked(planned("opt", width=2), "reset", None), OptionError,
        "no optimizer state to take moments from",
        {"field": "moments", "found": "reset", "cure": "give --optimizer-state CHECKPOINT"}),
    "a diagonal expansion": Refusal(lambda: asked(planned("opt", width=2, expansion="diagonal"), "copy"), GrowthError,
        "the source's moments do not apply to this growth: copies of a diagonal expansion get different gradients",
        {"field": "expansion", "found": "diagonal", "cure": "--moments reset"}),
    "experts": Refusal(lambda: asked(planned("llama-multihead", experts=4), "first-copy"), GrowthError,
        "the source's moments do not apply to this growth: "
        "an expert gets only some of the tokens that the dense layer got",
        {"field": "experts", "found": "4", "cure": "--moments reset"}),
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_with_reason_and_cure(refusal: Refusal) -> None:
    check_refusal(refusal)


@pytest.mark.parametrize("growth", [{"width": 2, "expansion": "diagonal"}, {"experts": 4}], ids=str)
def test_where_moments_do_not_apply_they_can_be_reset(growth: dict[str, Any]) -> None:
    plan = state_plan(planned("llama-multihead", **growth), treatment="reset")
    assert plan.moments == {}
    assert set(plan.fresh) == {tensor.name for tensor in plan.model.tensors}
