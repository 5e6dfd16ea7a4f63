"""Growing an optimizer state: a clone continues where its source stood, and what cannot be kept is reported."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CheckpointError, GrowthError, OptionError
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.optimizer_state import writer
from hyperclone.planning import planner
from tests.helpers import training_steps
from tests.helpers.training_steps import CORE, DECAY, LR, MAKE, batches, in_double, in_float64, plain, source, train

ModelDir = Callable[..., Path]
__all__ = ["in_float64"]
NO_NOISE = Growth(width=2, noise="none", order="tiled")


def trained(name: str, optimizer: str, place: Path, *, steps: int = 6) -> tuple[Any, torch.optim.Optimizer]:
    """A source that has been trained, saved with its optimizer's state as Trainer saves it."""
    model = source(name)
    past = plain(model, optimizer)
    train(model, [past], batches(steps, seed=1))
    model.save_pretrained(place)
    torch.save(past.state_dict(), place / "optimizer.pt")
    return model, past


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return in_double(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64))


def by_the_scaling_rule(model: Any, optimizer: str, path: Path | None = None) -> torch.optim.Optimizer:
    return MAKE[optimizer](
        hyperclone.param_groups(model, lr=LR[optimizer], weight_decay=DECAY, optimizer=optimizer, receipt=path)
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, "adamw") for name in [*CORE, "gpt2-untied", "qwen3-grouped-tied", "olmo2-tied-biases", "gemma"]),
        *((name, "sgd") for name in ["llama-grouped-tied", "neox-parallel", "opt"]),
    ],
)
def test_with_its_state_a_clone_follows_its_source_from_where_that_stands(
    name: str, optimizer: str, tmp_path: Path
) -> None:
    small, past = trained(name, optimizer, tmp_path / "source")
    growth = Growth(width=2, noise="none", allow_rounding=True)
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", growth, optimizer_state=tmp_path / "source", proof="structural"
    )
    wide = load(tmp_path / "grown")
    follows = by_the_scaling_rule(wide, optimizer)
    loaded = hyperclone.load_state(follows, wide, tmp_path / "grown")
    assert (loaded.step, loaded.fresh) == (6 if optimizer == "adamw" else None, ())
    expected = train(small, [past], batches(50))
    assert train(wide, [follows], batches(50)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.slow
@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["llama-grouped-tied", "neox-parallel", "opt", "gpt2-untied", "gemma"])
def test_what_copies_have_in_common_goes_on_under_rotated_adamw(name: str, tmp_path: Path) -> None:
    small, past = trained(name, "adamw", tmp_path / "source")
    growth = Growth(width=2, noise="none", allow_rounding=True)
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", growth, optimizer_state=tmp_path / "source", proof="none")
    wide = load(tmp_path / "grown")
    follows = hyperclone.rotated_adamw(
        wide, lr=LR["adamw"], weight_decay=DECAY, betas=past.defaults["betas"], difference_lr=0.0
    )
    loaded = hyperclone.load_state(follows, wide, tmp_path / "grown")
    assert (loaded.step, loaded.fresh) == (6, ())
    expected = train(small, [past], batches(50))
    assert train(wide, [follows], batches(50)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)])
def test_differences_have_no_past_and_step_as_if_they_knew_that(betas: tuple[float, float], tmp_path: Path) -> None:
    """With grown moments and without, where nothing but differences can move."""
    trained("llama-grouped-tied", "adamw", tmp_path / "source")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", Growth(width=3), optimizer_state=tmp_path / "source", proof="none"
    )
    ends = []
    for loads in (False, True):
        wide = load(tmp_path / "grown")
        optimizer = hyperclone.rotated_adamw(wide, lr=1e-12, difference_lr=1e-4, betas=betas, eps=1e-13)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p.dim() == 2]  # norms have no rule to keep here
            group["param_names"] = [name for name in group["param_names"] if "proj" in name or "embed" in name]
        if loads:
            hyperclone.load_state(optimizer, wide, tmp_path / "grown")
        train(wide, [optimizer], batches(12))
        ends.append(wide.state_dict())
    start = load(tmp_path / "grown").state_dict()
    for name, value in ends[0].items():
        moved = (value - start[name]).abs().max()
        assert torch.allclose(ends[1][name], value, rtol=0, atol=1e-3 * float(moved) + 1e-10), name
    assert any(not torch.equal(value, start[name]) for name, value in ends[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["first-copy", "reset"])
def test_other_treatments_leave_the_sources_loss(moments: Literal["first-copy", "reset"], tmp_path: Path) -> None:
    """The contract above can fail: moments that are missing show."""
    small, past = trained("llama-grouped-tied", "adamw", tmp_path / "source")
    state = tmp_path / "source"
    hyperclone.grow(state, tmp_path / "grown", NO_NOISE, optimizer_state=state, moments=moments, proof="none")
    wide = load(tmp_path / "grown")
    optimizer = by_the_scaling_rule(wide, "adamw")
    loaded = hyperclone.load_state(optimizer, wide, tmp_path / "grown")
    assert (loaded.step, loaded.filled == 0) == (6, moments == "reset")
    expected, found = train(small, [past], batches(8)), train(wide, [optimizer], batches(8))
    assert found[0] == pytest.approx(expected[0], abs=1e-10)
    assert abs(found[-1] - expected[-1]) > 1e-4


def test_first_copy_keeps_the_moments_of_the_first_copy_and_breaks_the_lock(tmp_path: Path) -> None:
    """SPARKLING (arXiv 2602.02472): with equal weights, unequal moments alone make the copies part."""
    trained("llama-grouped-tied", "adamw", tmp_path / "source")
    state = tmp_path / "source"
    hyperclone.grow(
        state, tmp_path / "grown", NO_NOISE, optimizer_state=state, moments="first-copy", proof="structural"
    )
    moments = load_file(tmp_path / "grown/optimizer_state.safetensors")
    up = moments["model.layers.0.mlp.up_proj.weight.exp_avg"]  # (96, 64)
    assert up[:48, :32].any()
    assert not up[48:].any()
    assert not up[:, 32:].any()
    wide = load(tmp_path / "grown")
    optimizer = by_the_scaling_rule(wide, "adamw")
    hyperclone.load_state(optimizer, wide, tmp_path / "grown")
    train(wide, [optimizer], batches(3))
    first, second = wide.get_input_embeddings().weight.detach().chunk(2, 1)
    assert not first.equal(second)


def collapsed_gradients(moments: dict[str, Tensor], name: str, copies: tuple[int, int]) -> Tensor:
    """(d_out, d_in) sum over all copies of a moment."""
    m = moments[name]
    return m.view(copies[0], m.shape[0] // copies[0], copies[1], -1).sum((0, 2))


def test_moments_sum_to_the_sources_as_gradients_do(tmp_path: Path) -> None:
    """dL/dw is the sum of s dL/dcopy over the copies; so is an average of it. Independent of how r is derived."""
    small, past = trained("llama-grouped-untied", "adamw", tmp_path / "source")
    growth = Growth(hidden="2x", heads="2x", ffn="3x", noise="none", order="tiled")
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", growth, optimizer_state=tmp_path / "source", proof="none")
    moments = load_file(tmp_path / "grown/optimizer_state.safetensors")
    for name, s, copies in (
        ("model.layers.1.mlp.down_proj.weight", 1 / 3, (2, 3)),
        ("model.layers.1.mlp.up_proj.weight", 1 / 2, (3, 2)),
        ("model.embed_tokens.weight", 1.0, (1, 2)),
    ):
        before = past.state[small.get_parameter(name)]
        total = s * collapsed_gradients(moments, f"{name}.exp_avg", copies)
        torch.testing.assert_close(total, before["exp_avg"])
        size = s * collapsed_gradients({"root": moments[f"{name}.exp_avg_sq"].sqrt()}, "root", copies)
        torch.testing.assert_close(size, before["exp_avg_sq"].sqrt())


def test_padding_channels_uneven_copies_and_bf16_moments_pass_the_proof(tmp_path: Path) -> None:
    model, past = trained("llama-grouped-tied", "adamw", tmp_path / "source")
    for moments in past.state.values():
        moments["exp_avg"] = moments["exp_avg"].bfloat16()
    torch.save(past.state_dict(), tmp_path / "source/optimizer.pt")
    growth = Growth(hidden=40, ffn=100, allow_rounding=True)
    done = hyperclone.grow(tmp_path / "source", tmp_path / "grown", growth, optimizer_state=tmp_path / "source",
                           proof="structural")  # fmt: skip
    assert done.proof is not None
    assert done.proof.passed
    moments = load_file(tmp_path / "grown/optimizer_state.safetensors")
    embedding = moments["model.embed_tokens.weight.exp_avg"]
    assert embedding.dtype is torch.bfloat16
    assert not embedding[:, 32:].any()  # channels that copy nothing
    assert embedding[:, :32].equal(past.state[model.get_input_embeddings().weight]["exp_avg"])  # one copy each: r = 1


def test_what_has_no_past_starts_afresh(tmp_path: Path) -> None:
    trained("llama-grouped-tied", "adamw", tmp_path / "source")
    deeper = Growth(layers="2x", noise="none")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "deep", deeper, optimizer_state=tmp_path / "source", proof="structural"
    )
    wide = load(tmp_path / "deep")
    optimizer = by_the_scaling_rule(wide, "adamw")
    loaded = hyperclone.load_state(optimizer, wide, tmp_path / "deep")
    assert {int(name.split(".")[2]) for name in loaded.fresh} == {1, 3}  # the copies beside their originals
    assert optimizer.state[wide.model.norm.weight]["step"] == 6
    assert optimizer.state[wide.model.layers[1].mlp.up_proj.weight] == {}
    train(wide, [optimizer], batches(1))
    assert optimizer.state[wide.model.layers[1].mlp.up_proj.weight]["step"] == 1
    cut = Growth(width=2, untie=True)
    done = hyperclone.grow(
        tmp_path / "source", tmp_path / "cut", cut, optimizer_state=tmp_path / "source", proof="none"
    )
    assert done.optimizer_state is not None
    assert set(done.optimizer_state.fresh) == {"lm_head.weight", "model.embed_tokens.weight"}


@pytest.mark.slow
def test_fused_experts_find_their_moments_again(tmp_path: Path) -> None:
    """In memory experts are one parameter, on disk one tensor each: moments take both ways and come back."""
    small, past = trained("mixtral", "adamw", tmp_path / "source")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="structural"
    )
    wide = load(tmp_path / "grown")
    optimizer = by_the_scaling_rule(wide, "adamw")
    assert hyperclone.load_state(optimizer, wide, tmp_path / "grown").fresh == ()
    grown = optimizer.state[wide.model.layers[0].mlp.experts.gate_up_proj]["exp_avg"]  # (4, 2 x 96, 64)
    before = past.state[small.model.layers[0].mlp.experts.gate_up_proj]["exp_avg"]  # (4, 2 x 48, 32)
    assert before.any()
    # Each of gate and up has two copies of every row and of every column, s = 1/2, r = 1/2.
    torch.testing.assert_close(
        grown.view(4, 2, 2, 48, 2, 32), (before / 2).view(4, 2, 1, 48, 1, 32).expand(4, 2, 2, 48, 2, 32)
    )


def test_muons_momentum_grows_as_well(tmp_path: Path) -> None:
    model = source("llama-grouped-untied")
    matrices = {n: p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n}
    past = torch.optim.Muon(matrices.items(), lr=1e-2)  # given names, so any groups can be read
    train(model, [past], batches(2))
    model.save_pretrained(tmp_path / "source")
    torch.save(past.state_dict(), tmp_path / "source/optimizer.pt")
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="structural"
    )
    wide = load(tmp_path / "grown")
    optimizer = by_the_scaling_rule(wide, "muon")
    loaded = hyperclone.load_state(optimizer, wide, tmp_path / "grown")
    assert (loaded.step, loaded.filled, loaded.fresh) == (None, len(matrices), ())


def test_a_real_trainer_run_goes_on_as_a_wider_one(tmp_path: Path) -> None:
    """Trainer trains and saves; the clone continues in a Trainer with our groups; the resumed source has its losses."""
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": ids[0], "labels": ids[0]} for ids in batches(16)]

    def trainer(model: Any, kind: type[Trainer], steps: int, out: str) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / out), max_steps=steps, save_steps=3, logging_steps=1, learning_rate=1e-3, weight_decay=0.1,
            lr_scheduler_type="constant", report_to=[], per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False, max_grad_norm=0.0,
        )  # fmt: skip
        return kind(model, arguments, train_dataset=data)

    class Wider(Trainer):  # type: ignore[misc]  # transformers is not typed; as docs/training.md shows it
        optimizer: torch.optim.Optimizer | None

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            if self.optimizer is None:
                groups = hyperclone.param_groups(
                    self.model, lr=self.args.learning_rate, weight_decay=self.args.weight_decay,
                    eps=self.args.adam_epsilon,
                )  # fmt: skip
                cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = cls(groups, **options)
                hyperclone.load_state(self.optimizer, self.model, self.model.name_or_path)
            return self.optimizer

    trainer(source("llama-grouped-tied").double(), Trainer, 3, "small").train()
    checkpoint = tmp_path / "small/checkpoint-3"
    hyperclone.grow(checkpoint, tmp_path / "grown", NO_NOISE, optimizer_state=checkpoint, proof="structural")
    goes_on = trainer(load(checkpoint), Trainer, 6, "small")
    goes_on.train(resume_from_checkpoint=str(checkpoint))
    # The clone sees what the source sees from its fourth step on.
    wider = trainer(load(tmp_path / "grown"), Wider, 6, "wide")
    (tmp_path / "wide-state").mkdir()
    wider.get_train_dataloader = lambda: list(goes_on.get_train_dataloader())[3:]
    wider.args.max_steps = 3
    wider.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (goes_on, wider)]
    assert losses[1] == pytest.approx(losses[0][-3:], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-grouped-tied", "mixtral"])  # one tensor for each parameter, and fused ones
def test_a_state_of_other_sizes_is_refused_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    trained(name, "adamw", tmp_path / "source")
    for place, growth in (("grown", NO_NOISE), ("wider", Growth(width=4, noise="none"))):
        hyperclone.grow(
            tmp_path / "source", tmp_path / place, growth, optimizer_state=tmp_path / "source", proof="none"
        )
    wide = load(tmp_path / "grown")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        hyperclone.load_state(by_the_scaling_rule(wide, "adamw"), wide, tmp_path / "wider")


def test_moments_in_rotated_coordinates_are_not_taken_for_adamws_nor_first_copies_for_theirs(tmp_path: Path) -> None:
    trained("llama-grouped-tied", "adamw", tmp_path / "source", steps=2)
    state = tmp_path / "source"
    hyperclone.grow(state, tmp_path / "grown", NO_NOISE, optimizer_state=state, moments="first-copy", proof="none")
    wide = load(tmp_path / "grown")
    optimizer = hyperclone.rotated_adamw(wide, lr=1e-3)
    with pytest.raises(CheckpointError, match=r"first-copy(.|\n)*--moments copy"):
        hyperclone.load_state(optimizer, wide, tmp_path / "grown")
    trained("llama-grouped-tied", "sgd", tmp_path / "sgd", steps=2)
    hyperclone.grow(tmp_path / "sgd", tmp_path / "other", NO_NOISE, optimizer_state=tmp_path / "sgd", proof="none")
    with pytest.raises(CheckpointError, match=r"another optimizer(.|\n)*RotatedAdamW"):
        hyperclone.load_state(optimizer, wide, tmp_path / "other")
    train(wide, [optimizer], batches(1))
    wide.save_pretrained(tmp_path / "again")
    torch.save(optimizer.state_dict(), tmp_path / "again/optimizer.pt")
    with pytest.raises(CheckpointError, match=r"cannot be grown(.|\n)*rotated_avg"):
        hyperclone.grow(
            tmp_path / "again", tmp_path / "wider", NO_NOISE, optimizer_state=tmp_path / "again", proof="none"
        )


def test_a_state_of_another_architecture_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    for name in ("llama-grouped-tied", "opt"):
        trained(name, "adamw", tmp_path / name, steps=1)
        hyperclone.grow(
            tmp_path / name, tmp_path / f"{name}-grown", NO_NOISE, optimizer_state=tmp_path / name, proof="none"
        )
    wide = load(tmp_path / "llama-grouped-tied-grown")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        hyperclone.load_state(by_the_scaling_rule(wide, "adamw"), wide, tmp_path / "opt-grown")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-grouped-tied", "mixtral"])
def test_a_state_that_lacks_a_moment_is_refused_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    trained(name, "adamw", tmp_path / "source", steps=1)
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="none"
    )
    file = tmp_path / "grown/optimizer_state.safetensors"
    moments = load_file(file)
    first = next(key for key in moments if ".mlp." in key or ".experts." in key)
    wide = load(tmp_path / "grown")
    for gone in ([".exp_avg"], [".exp_avg_sq"], *([[".exp_avg", ".exp_avg_sq"]] if name == "mixtral" else [])):
        left_out = {first.rpartition(".")[0] + kind for kind in gone}
        save_file({key: value for key, value in moments.items() if key not in left_out}, file)
        with pytest.raises(CheckpointError, match="a moment is missing"):
            hyperclone.load_state(by_the_scaling_rule(wide, "adamw"), wide, tmp_path / "grown")


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_a_distributed_checkpoint_gives_the_same_state(flat: bool, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model, past = trained("neox-parallel", "adamw", tmp_path / "source")
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    content = {"optimizer": get_optimizer_state_dict(model, past, options=options)}
    with warnings.catch_warnings(action="ignore"):  # that there is no process group
        save(content, checkpoint_id=tmp_path / "checkpoint/optimizer_0", no_dist=True)
    for name, state in (("one", tmp_path / "source"), ("two", tmp_path / "checkpoint")):
        hyperclone.grow(tmp_path / "source", tmp_path / name, NO_NOISE, optimizer_state=state, proof="structural")
    one, two = (load_file(tmp_path / name / "optimizer_state.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)
    steps = [
        json.loads((tmp_path / name / "hyperclone.json").read_text())["optimizer_state"]["step"]
        for name in ("one", "two")
    ]
    assert steps == [6, 6]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_no_code_runs_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained("opt", "sgd", tmp_path / "source", steps=1)
    (tmp_path / "state").mkdir()
    torch.save({"state": Evil(), "param_groups": []}, tmp_path / "state/optimizer.pt")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/.metadata").write_bytes(pickle.dumps(Evil()))
    for name, words in (("state", "without running code"), ("shards", "not the metadata")):
        with pytest.raises(CheckpointError, match=words):
            hyperclone.grow(
                tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / name, proof="none"
            )
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "grown").exists()


def test_a_state_of_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    trained("llama-grouped-tied", "adamw", tmp_path / "source", steps=1)
    _, other = trained("llama-multihead", "adamw", tmp_path / "other", steps=1)

    def grow(**options: Any) -> None:
        hyperclone.grow(tmp_path / "source", tmp_path / "grown", NO_NOISE, proof="none", **options)

    with pytest.raises(
        CheckpointError, match=r"not the model's parameters in Trainer's order|belongs to another model"
    ):
        grow(optimizer_state=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no optimizer state here"):
        grow(optimizer_state=tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        grow(optimizer_state=tmp_path / "nowhere")
    state = other.state_dict()
    state["state"] = {key: {"exp_avg_sq_row": torch.zeros(1)} for key in state["state"]}
    torch.save(state, tmp_path / "other/optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot be grown"):
        hyperclone.grow(
            tmp_path / "other", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "other", proof="none"
        )
    with pytest.raises(OptionError, match="unknown treatment of the moments"):
        grow(optimizer_state=tmp_path / "source", moments="half")
    with pytest.raises(OptionError, match="no optimizer state to take moments from"):
        grow(moments="reset")
    with pytest.raises(GrowthError, match="diagonal"):
        hyperclone.grow(tmp_path / "source", tmp_path / "grown", Growth(width=2, expansion="diagonal"),
                        optimizer_state=tmp_path / "source", proof="none")  # fmt: skip
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="none"
    )
    wide = load(tmp_path / "grown")
    with pytest.raises(CheckpointError, match="belongs to another optimizer"):
        hyperclone.load_state(by_the_scaling_rule(wide, "sgd"), wide, tmp_path / "grown")
    with pytest.raises(CheckpointError, match="no optimizer state here"):
        hyperclone.load_state(by_the_scaling_rule(wide, "adamw"), wide, tmp_path / "source")


def test_a_wrong_moment_is_found_by_proof_and_by_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperclone.errors import ProofFailed
    from hyperclone.optimizer_state import moments, reader

    trained("llama-grouped-tied", "adamw", tmp_path / "source", steps=1)
    state = tmp_path / "source"
    hyperclone.grow(state, tmp_path / "grown", NO_NOISE, optimizer_state=state, proof="structural")
    file = tmp_path / "grown/optimizer_state.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight.exp_avg"][40] += 1e-9
    save_file(tensors, file)
    proof = hyperclone.verify(state, tmp_path / "grown", proof="structural")
    assert [failure.split(":")[0] for failure in proof.failures] == ["model.norm.weight.exp_avg"]
    monkeypatch.setitem(reader.MOMENTS, "exp_avg", 1.5)  # a grower that is wrong about r ...
    compare = moments.compare

    def independent(*args: Any) -> str:
        with monkeypatch.context() as patch:  # ... and a proof that is not
            patch.setitem(reader.MOMENTS, "exp_avg", 1)
            return compare(*args)

    monkeypatch.setattr(moments, "compare", independent)
    with pytest.raises(ProofFailed, match="does not collapse to the source's moment"):
        hyperclone.grow(state, tmp_path / "again", NO_NOISE, optimizer_state=state, proof="structural")
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_shards_and_threads_do_not_change_a_byte_and_the_model_beside_loads(tmp_path: Path) -> None:
    trained("opt", "adamw", tmp_path / "source", steps=1)
    state = tmp_path / "source"
    hyperclone.grow(state, tmp_path / "one", NO_NOISE, optimizer_state=state, proof="none", threads=1)
    hyperclone.grow(
        state, tmp_path / "two", NO_NOISE, optimizer_state=state, proof="structural", threads=3, shard_size="100kB"
    )
    files = sorted((tmp_path / "two").glob("optimizer_state-*.safetensors"))
    assert len(files) > 1
    many = {name: tensor for file in files for name, tensor in load_file(file).items()}
    one = load_file(tmp_path / "one/optimizer_state.safetensors")
    assert one.keys() == many.keys()
    assert all(one[key].equal(many[key]) for key in one)
    wide = load(tmp_path / "two")
    assert hyperclone.load_state(by_the_scaling_rule(wide, "adamw"), wide, tmp_path / "two").fresh == ()


def test_sharded_parameters_get_sharded_moments(tmp_path: Path) -> None:
    """FSDP2: parameters are DTensors, and so must their moments be."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    trained("llama-grouped-tied", "adamw", tmp_path / "source", steps=1)
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="none"
    )
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wide = load(tmp_path / "grown")
        fully_shard(wide, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        optimizer = by_the_scaling_rule(wide, "adamw", tmp_path / "grown")
        assert hyperclone.load_state(optimizer, wide, tmp_path / "grown").fresh == ()
        rotated = hyperclone.rotated_adamw(wide, lr=1e-3, receipt=tmp_path / "grown")
        assert hyperclone.load_state(rotated, wide, tmp_path / "grown").fresh == ()
        assert all(isinstance(rotated.state[p]["rotated_avg_sq"], DTensor) for p in wide.parameters())
        moment = optimizer.state[wide.model.norm.weight]["exp_avg"]
        assert isinstance(moment, DTensor)
        stored = load_file(tmp_path / "grown/optimizer_state.safetensors")["model.norm.weight.exp_avg"]
        assert moment.full_tensor().equal(stored)
    finally:
        dist.destroy_process_group()


def test_the_receipt_remembers_step_treatment_and_the_sources_settings(tmp_path: Path) -> None:
    trained("opt", "adamw", tmp_path / "source", steps=2)
    hyperclone.grow(
        tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source", proof="none"
    )
    recorded = json.loads((tmp_path / "grown/hyperclone.json").read_text())["optimizer_state"]
    figures = [recorded[field] for field in ("optimizer", "moments", "step", "steps", "fresh")]
    assert figures == ["adamw", "copy", 2, {}, []]
    assert [group["lr"] for group in recorded["settings"]] == [training_steps.LR["adamw"]] * 2
    assert [group["weight_decay"] for group in recorded["settings"]] == [DECAY, 0]
    assert set(recorded["sha256"]) == set(load_file(tmp_path / "grown/optimizer_state.safetensors"))
    assert str(tmp_path) not in json.dumps(recorded)


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_off_by_more_than_rounding_are_found_even_where_all_copies_agree(
    kind: str, tmp_path: Path
) -> None:
    trained("llama-grouped-tied", "adamw", tmp_path / "source", steps=1)
    hyperclone.grow(tmp_path / "source", tmp_path / "grown", NO_NOISE, optimizer_state=tmp_path / "source",
                    proof="structural")  # fmt: skip
    file = tmp_path / "grown/optimizer_state.safetensors"
    source = Checkpoint.open(tmp_path / "source")
    plan = writer.plan_state(
        planner.make_plan(source, NO_NOISE), source, tmp_path / "source", treatment="copy", shard_size="5GB"
    )
    for name in (f"model.norm.weight.{kind}", f"model.layers.0.mlp.up_proj.weight.{kind}"):
        tensors = load_file(file)
        factor = 1 + 16 * torch.finfo(tensors[name].dtype).eps
        tensors[name] *= factor
        save_file(tensors, file)
        assert [failure.split(":")[0] for failure in writer.prove_state(plan, tmp_path / "grown")] == [name]
        tensors[name] /= factor
        save_file(tensors, file)
