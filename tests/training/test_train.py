"""`hyperclone.train` end to end on small models, against plain torch and unmodified transformers."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone.architectures import registry
from hyperclone.errors import DestinationError, HypercloneError, NonFiniteLossError, TrainingError
from hyperclone.evaluation.scores import TaskAnswers
from hyperclone.training import hardware, metrics
from hyperclone.training.events import Event, OptimizerStateLoaded, RunStarted, StepTaken, Watch
from hyperclone.training.lr_schedule import factor
from hyperclone.training.optimizer_names import OptimizerName
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.training_text import documents, jsonl

ModelDir = Callable[..., Path]
SEQUENCE, WINDOWS, STEPS, EVERY = 32, 8, 12, 5
TEXTS = documents(60)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jsonl(tmp_path_factory.mktemp("text") / "text.jsonl", TEXTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with dropout, so that random numbers matter."""
    path = tmp_path_factory.mktemp("source") / "source"
    models.build("llama-grouped-tied", attention_dropout=0.1).save_pretrained(path)
    models.save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def grown(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grown") / "grown"
    hyperclone.grow(source, path, hyperclone.Growth(width=2), proof="none")
    return path


def request(model: Path, text: Path, output: Path, **asked: Any) -> hyperclone.Training:
    usual: dict[str, Any] = {
        "seq_len": SEQUENCE,
        "batch_tokens": SEQUENCE * WINDOWS,
        "tokens": SEQUENCE * WINDOWS * STEPS,
        "micro_batch": 4,
        "lr": 3e-3,
        "held_out": 1 / EVERY,
        "cache": str(text.parent / "cache"),
        "log_every": 1,
        "eval_every": 6,
        "save_every": 3,
        "keep": 0,
    }
    return hyperclone.Training(model=str(model), data=str(text), output=str(output), **{**usual, **asked})


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics.read(output) if "loss" in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(output / "model.safetensors")
    return tensors


def windows_of(texts: list[str], tokenizer: Any) -> torch.Tensor:
    """(windows, SEQUENCE) token ids: documents concatenated, with end-of-text tokens, and cut."""
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)


@pytest.mark.slow
def test_the_loss_curve_and_weights_are_those_of_a_plain_loop(model_dir: ModelDir, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hyperclone.grow(model_dir("llama-grouped-untied"), tmp_path / "grown", hyperclone.Growth(width=2), proof="none")
    steps = 45  # more than once through the data
    request_ = request(
        tmp_path / "grown",
        text,
        tmp_path / "out",
        tokens=steps * SEQUENCE * WINDOWS,
        eval_every=steps,
        save_every=steps,
        optimizer="adamw",
        warmup=5,
        max_grad_norm=0.5,
        weight_decay=0.1,
        schedule="wsd",
        seed=3,
    )
    done = hyperclone.train(request_)
    assert (done.step, done.tokens, done.interrupted) == (steps, steps * 256, None)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    data = windows_of([t for i, t in enumerate(TEXTS) if i % EVERY], tokenizer)
    assert 0.5 < steps * WINDOWS / len(data) > 1
    order = [
        index
        for epoch in range(9)
        for index in np.random.Generator(np.random.Philox(key=[3, epoch])).permutation(len(data))
    ]
    groups = hyperclone.param_groups(model, lr=3e-3, weight_decay=0.1)
    assert len({group["lr"] for group in groups}) > 1
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    peaks = [group["lr"] for group in groups]
    expected = []
    for step in range(steps):
        rate = factor(step, steps=steps, warmup=5, schedule="wsd", least=0.1, decay=0.2)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        batch = data[order[step * WINDOWS : (step + 1) * WINDOWS]]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        expected.append(loss.item())
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=2e-5)
    assert expected[-1] < expected[0] - 0.5
    state = json.loads((tmp_path / f"out/checkpoint-{steps}/trainer_state.json").read_text())
    assert state["total_flos"] == 6 * done.tokens * model.num_parameters(exclude_embeddings=True)  # Trainer's count
    for name, value in weights(tmp_path / "out").items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-4), name


@pytest.mark.slow
def test_a_clone_without_noise_follows_its_source(model_dir: ModelDir, text: Path, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-untied")
    growth = hyperclone.Growth(width=2, noise="none")
    hyperclone.grow(source, tmp_path / "grown", growth, proof="none")
    curves = []
    for name, model in (("source", source), ("clone", tmp_path / "grown")):
        hyperclone.train(request(model, text, tmp_path / name, max_grad_norm=0.0, weight_decay=0.2))
        curves.append(losses(tmp_path / name))
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)
    hyperclone.train(
        request(tmp_path / "grown", text, tmp_path / "fast", max_grad_norm=0.0, weight_decay=0.2, lr_rule="uniform")
    )
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "fast"), curves[0], strict=True)) > 0.02


def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(
    grown: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyperclone.train(request(grown, text, tmp_path / "whole"))
    machines = iter("ABAC")
    monkeypatch.setattr(hardware, "this_machine", lambda: {"cpu": next(machines)})
    asked = request(grown, text, tmp_path / "parts", resume=True)

    def stop(event: Event) -> None:
        if isinstance(event, StepTaken) and event.step in (4, 5):  # 4: before a checkpoint is due
            os.kill(os.getpid(), signal.SIGTERM if event.step == 4 else signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    first = hyperclone.train(asked, watch=stop)
    assert (first.step, first.interrupted) == (4, signal.SIGTERM)
    assert (tmp_path / "parts/checkpoint-4").is_dir()
    assert not (tmp_path / "parts/config.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    second = hyperclone.train(asked, watch=stop)
    assert (second.step, second.interrupted) == (5, signal.SIGINT)
    last = hyperclone.train(asked)
    assert (last.step, last.interrupted) == (STEPS, None)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (
        [line for line in metrics.read(tmp_path / name) if "eval_loss" in line] for name in ("whole", "parts")
    )
    assert [line["eval_loss"] for line in parts] == [line["eval_loss"] for line in whole]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "parts")[name]), name
    (tmp_path / "parts/model.safetensors").unlink()
    again = hyperclone.train(asked)  # nothing is left to do but to write the model
    ran = json.loads((tmp_path / "parts/training.json").read_text())["hardware"]
    assert [one["cpu"] for one in ran] == ["A", "B"]  # and C did none of it
    assert torch.equal(
        weights(tmp_path / "parts")["model.norm.weight"], weights(tmp_path / "whole")["model.norm.weight"]
    )
    assert (again.step, losses(tmp_path / "parts")) == (STEPS, losses(tmp_path / "whole"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    grown: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyperclone.train(request(grown, text, tmp_path / "whole"))
    save, calls = torch.save, []

    def full(content: Any, file: Any, **options: Any) -> None:
        calls.append(file)
        if str(file).endswith("optimizer.pt") and "checkpoint-6" in str(file):
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file, **options)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(DestinationError, match=r"No space left on device(.|\n)*checkpoint-3 is whole"):
            hyperclone.train(request(grown, text, output))
    assert calls
    assert [p.name for p in output.glob("*checkpoint*")] == ["checkpoint-3"]
    assert not (output / ".saving").exists()
    hyperclone.train(request(grown, text, output, resume=True))
    assert losses(output) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_save_is_not_picked_up(grown: Path, text: Path, tmp_path: Path) -> None:
    hyperclone.train(request(grown, text, tmp_path / "out"))
    shutil.copytree(tmp_path / "out/checkpoint-12", tmp_path / "out/.saving/checkpoint-99")
    (tmp_path / "out/.saving/checkpoint-99/optimizer.pt").write_bytes(b"half")
    done = hyperclone.train(request(grown, text, tmp_path / "out", resume=True))
    assert done.step == STEPS
    assert not (tmp_path / "out/.saving").exists()


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_unmodified_transformers(grown: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hyperclone.train(request(grown, text, tmp_path / "out", micro_batch=1))
    first, *_, last = (line for line in metrics.read(tmp_path / "out") if "eval_loss" in line)
    tokenizer = AutoTokenizer.from_pretrained(grown)
    held_out = [t for i, t in enumerate(TEXTS) if i % EVERY == 0]
    data = windows_of(held_out, tokenizer)
    tokens = sum(len(tokenizer(t)["input_ids"]) + 1 for t in held_out)
    for where, line in ((grown, first), (tmp_path / "out", last)):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64).eval()
        with torch.no_grad():
            loss = float(model(input_ids=data, labels=data).loss)
        assert line["eval_loss"] == pytest.approx(loss, abs=1e-5)
        bits = loss / math.log(2) * tokens / sum(len(t.encode()) for t in held_out)
        assert line["bits_per_byte"] == pytest.approx(bits, abs=1e-5)
    assert (first["step"], last["step"]) == (0, STEPS)


def test_isolated_documents_are_trained_as_each_alone(model_dir: ModelDir, text: Path, tmp_path: Path) -> None:
    """The first step's loss, over all windows of a batch, from documents that are run one at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = model_dir("llama-grouped-tied")
    one_step = {"tokens": SEQUENCE * WINDOWS, "documents": "isolated", "seed": 2, "held_out": 0.0}
    hyperclone.train(request(source, text, tmp_path / "out", **one_step))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    data, end = windows_of(TEXTS, tokenizer), tokenizer.eos_token_id
    order = np.random.Generator(np.random.Philox(key=[2, 0])).permutation(len(data))[:WINDOWS]
    total, predicted = 0.0, 0
    for window in data[order]:
        cuts = [0, *(int(i) + 1 for i in (window == end).nonzero().flatten()), SEQUENCE]
        for begin, stop in pairwise(cuts):
            if stop - begin > 1:
                part = window[None, begin:stop]
                total += model(input_ids=part, labels=part).loss.item() * (stop - begin - 1)
                predicted += stop - begin - 1
    assert predicted < WINDOWS * (SEQUENCE - 1)
    assert losses(tmp_path / "out") == [pytest.approx(total / predicted, abs=1e-5)]


@pytest.mark.slow
def test_the_control_arm_is_randomly_initialized_and_sees_the_same_data(
    grown: Path, text: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    for name, asked in (
        ("clone", {}),
        ("random", {"from_scratch": True}),
        ("other", {"from_scratch": True, "seed": 1}),
    ):
        hyperclone.train(request(grown, text, tmp_path / name, save_every=STEPS, **asked))
    clone, control = (
        json.loads((tmp_path / name / "training.json").read_text())["curve"] for name in ("clone", "random")
    )
    assert {field for field in clone if clone[field] != control[field]} == {"from_scratch"}
    assert (tmp_path / "clone/hyperclone.json").exists()
    assert not list((tmp_path / "random").rglob("hyperclone.json"))  # nothing in it would be true of random weights
    set_seed(0)
    config = AutoConfig.from_pretrained(grown)
    del config.hyperclone  # that it was grown is not true of random weights
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "initialized")
    models.save_tokenizer(tmp_path / "initialized")
    hyperclone.train(request(tmp_path / "initialized", text, tmp_path / "again", save_every=STEPS))
    assert losses(tmp_path / "random") == losses(tmp_path / "again")
    assert losses(tmp_path / "random") != losses(tmp_path / "other")


@pytest.mark.slow
def test_the_output_is_a_plain_model_directory_in_the_type_that_came_in(
    model_dir: ModelDir, text: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hyperclone.grow(
        model_dir("opt", dtype=torch.bfloat16), tmp_path / "grown", hyperclone.Growth(width=2), proof="none"
    )
    (tmp_path / "grown/LICENSE").write_text("Apache")
    done = hyperclone.train(request(tmp_path / "grown", text, tmp_path / "out", eval_data=[str(text)]))
    model, info = AutoModelForCausalLM.from_pretrained(done.path, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    assert weights(done.path).keys() == weights(tmp_path / "grown").keys()  # the tied head once, as it came
    assert AutoTokenizer.from_pretrained(done.path)("a")["input_ids"]
    names = {p.name for p in done.path.iterdir()}
    assert {"LICENSE", "hyperclone.json", "metrics.jsonl", "training.json", "config.json", "checkpoint-12"} <= names
    assert (done.path / "config.json").read_text() == (tmp_path / "grown/config.json").read_text()
    checkpoint = AutoModelForCausalLM.from_pretrained(done.path / "checkpoint-12")
    assert checkpoint.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint.state_dict()[name].bfloat16())


@pytest.mark.slow
def test_a_grown_optimizer_state_is_where_the_run_starts(source: Path, text: Path, tmp_path: Path) -> None:
    hyperclone.train(request(source, text, tmp_path / "first", optimizer="adamw"))
    state = tmp_path / "first/checkpoint-12"
    hyperclone.grow(
        tmp_path / "first", tmp_path / "grown", hyperclone.Growth(width=2), proof="none", optimizer_state=state
    )
    loaded: list[Event] = []
    for name, asked in (("with", {}), ("without", {"grown_moments": "none"})):
        hyperclone.train(
            request(tmp_path / "grown", text, tmp_path / name, optimizer="rotated", **asked),
            watch=lambda event: loaded.append(event) if isinstance(event, OptimizerStateLoaded) else None,
        )
    assert loaded == [OptimizerStateLoaded(step=STEPS, filled=20, fresh=0)]
    after = torch.load(tmp_path / "with/checkpoint-3/optimizer.pt", weights_only=True)
    assert {int(s["step"]) for s in after["state"].values()} == {STEPS + 3}
    assert losses(tmp_path / "with")[0] == losses(tmp_path / "without")[0]
    assert losses(tmp_path / "with")[3] != losses(tmp_path / "without")[3]
    other = tmp_path / "other"
    hyperclone.grow(source, other, hyperclone.Growth(width=3), proof="none")
    for file in (tmp_path / "grown").glob("optimizer_state*"):
        shutil.copy(file, other)
    receipt = json.loads((other / "hyperclone.json").read_text())
    receipt["optimizer_state"] = json.loads((tmp_path / "grown/hyperclone.json").read_text())["optimizer_state"]
    (other / "hyperclone.json").write_text(json.dumps(receipt))
    with pytest.raises(HypercloneError, match="belongs to another model"):
        hyperclone.train(request(other, text, tmp_path / "refused"))


@pytest.mark.slow
def test_tasks_are_noted_and_change_nothing(
    grown: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Chosen:
        def run(self, model: Any, tokenizer: Any, *, batch_size: int, shown: bool) -> dict[str, Any]:
            assert not model.training
            assert shown
            torch.rand(7), np.random.rand(7)
            torch.manual_seed(99)
            return {"piqa": TaskAnswers("piqa", {"acc": 0.5}, {}, [])}

    hyperclone.train(request(grown, text, tmp_path / "without"))
    monkeypatch.setattr("hyperclone.training.task_callback.evaluate.select_tasks", lambda names, wheel: Chosen())
    monkeypatch.setattr("hyperclone.training.task_callback.wheel_data.find", lambda: None)
    hyperclone.train(request(grown, text, tmp_path / "with", tasks=["piqa"]))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    found = [line for line in metrics.read(tmp_path / "with") if "tasks" in line]
    assert [(line["step"], line["tasks"]) for line in found] == [(s, {"piqa": {"acc": 0.5}}) for s in (0, 6, 12)]


@pytest.mark.slow
def test_the_rotated_optimizer_trains_and_is_resumed_to_the_bit(grown: Path, text: Path, tmp_path: Path) -> None:
    asked = {"optimizer": "rotated", "difference_lr": 6e-3, "grown_moments": "none", "resume": True}
    hyperclone.train(request(grown, text, tmp_path / "whole", **asked))
    hyperclone.train(request(grown, text, tmp_path / "parts", **asked), watch=stopped_after(4))
    hyperclone.train(request(grown, text, tmp_path / "parts", **asked))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    hyperclone.train(request(grown, text, tmp_path / "adamw", optimizer="adamw"))
    assert losses(tmp_path / "adamw")[0] == losses(tmp_path / "whole")[0]
    assert losses(tmp_path / "adamw")[3:] != losses(tmp_path / "whole")[3:]


def test_the_rotated_optimizer_refuses_what_has_no_copies(source: Path, text: Path, tmp_path: Path) -> None:
    for asked, problem in (
        ({}, r"no receipt(.|\n)*leave --optimizer out"),
        ({"from_scratch": True}, "randomly initialized"),
    ):
        with pytest.raises(TrainingError, match=problem):
            hyperclone.train(request(source, text, tmp_path / "out", optimizer="rotated", **asked))
    with pytest.raises(TrainingError, match="--optimizer rotated"):
        request(source, text, tmp_path / "out", optimizer="adamw", difference_lr=6e-3)
    with pytest.raises(TrainingError, match=r"no receipt(.|\n)*leave --difference-lr out"):
        hyperclone.train(request(source, text, tmp_path / "out", difference_lr=6e-3))


@pytest.mark.slow
def test_the_optimizer_that_is_taken_when_none_is_named(source: Path, grown: Path, text: Path, tmp_path: Path) -> None:
    """Muon; AdamW for the published recipe, for first-copy moments, and where matrices are not known."""
    from transformers import CTRLConfig, CTRLLMHeadModel

    hyperclone.train(request(source, text, tmp_path / "first", optimizer="adamw"))
    unknown = tmp_path / "unknown"
    config = CTRLConfig(vocab_size=models.VOCAB, n_embd=32, n_layer=1, n_head=2, dff=48, n_positions=64)
    CTRLLMHeadModel(config).save_pretrained(unknown)
    models.save_tokenizer(unknown)
    treatments: dict[str, Literal["copy", "first-copy"]] = {"moments": "copy", "first-copy": "first-copy"}
    for name, moments in treatments.items():
        hyperclone.grow(
            tmp_path / "first", tmp_path / name, hyperclone.Growth(width=2), proof="none",
            optimizer_state=tmp_path / "first/checkpoint-12", moments=moments,
        )  # fmt: skip
    deeper = tmp_path / "deeper"
    hyperclone.grow(tmp_path / "first", deeper, hyperclone.Growth(layers="2x"), proof="none")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (source, {}, "muon"),
        (grown, {}, "muon"),
        (grown, {"difference_lr": 6e-3}, "muon"),
        (grown, {"lr_rule": "scaled"}, "muon"),
        (grown, {"lr_rule": "uniform"}, "adamw"),
        (grown, {"from_scratch": True}, "muon"),
        (tmp_path / "moments", {}, "muon"),
        (tmp_path / "first-copy", {}, "adamw"),
        (tmp_path / "first-copy", {"grown_moments": "none"}, "muon"),
        (deeper, {}, "muon"),
        (unknown, {}, "adamw"),
        (grown, {"optimizer": "muon", "difference_lr": 6e-3}, "muon"),
        (grown, {"optimizer": "muon", "from_scratch": True}, "muon"),
        (grown, {"optimizer": "plain-muon"}, "plain-muon"),
        (tmp_path / "first-copy", {"optimizer": "plain-muon"}, "plain-muon"),
        (source, {"optimizer": "muon"}, "muon"),
    ]
    for number, (model, asked, expected) in enumerate(cases):
        output = tmp_path / f"out-{number}"
        events: list[Event] = []
        hyperclone.train(request(model, text, output, tokens=SEQUENCE * WINDOWS, **asked), watch=events.append)
        (started,) = (event for event in events if isinstance(event, RunStarted))
        assert json.loads((output / "training.json").read_text())["curve"]["optimizer"] == expected
        state = torch.load(output / "checkpoint-1/optimizer.pt", weights_only=True)["state"]
        kinds = {kind for moments in state.values() for kind in moments}
        of_copies = expected == "muon" and model not in (source, deeper) and "from_scratch" not in asked
        assert ("rotated_avg" in kinds) == of_copies
        assert ("momentum_buffer" in kinds) == ("muon" in expected)
        assert started.training.optimizer == expected
    for model, asked, problem in (
        (tmp_path / "first-copy", {}, r"--grown-moments none"),
        (grown, {"from_scratch": True}, "leave --difference-lr out: randomly"),
        (grown, {"lr_rule": "uniform"}, "--optimizer rotated"),
        (grown, {"optimizer": "muon", "from_scratch": True}, "leave --difference-lr out: randomly"),
    ):
        with pytest.raises(TrainingError, match=problem):
            hyperclone.train(request(model, text, tmp_path / "out", difference_lr=6e-3, **asked))
    for optimizer in ("rotated", "muon"):
        with pytest.raises(TrainingError, match=r"first copies(.|\n)*--grown-moments none"):
            hyperclone.train(request(tmp_path / "first-copy", text, tmp_path / "out", optimizer=optimizer))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optimizer", ["rotated", "adamw"])
def test_the_state_of_muon_is_for_muon(
    optimizer: OptimizerName, source: Path, grown: Path, text: Path, tmp_path: Path
) -> None:
    """Before anything is loaded or written, and with a cure."""
    model = tmp_path / "grown"
    shutil.copytree(grown, model)
    record = json.loads((model / "hyperclone.json").read_text())
    record["optimizer_state"] = {"optimizer": "muon", "moments": "copy", "step": None, "steps": {}, "sha256": {}}
    (model / "hyperclone.json").write_text(json.dumps(record))
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({f"{name}.momentum_buffer": weights[name]}, model / "optimizer_state.safetensors")
    with pytest.raises(TrainingError, match=r"(?s)state of muon.*--grown-moments none.*--optimizer muon or plain-muon"):
        hyperclone.train(request(model, text, tmp_path / "out", optimizer=optimizer))
    assert not (tmp_path / "out").exists()


def test_muon_needs_to_know_the_matrices_of_a_model(source: Path, text: Path, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown"
    shutil.copytree(source, unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(TrainingError, match=r"(?s)not known.*mamba.*--optimizer adamw"):
        hyperclone.train(request(unknown, text, tmp_path / "out", optimizer="muon"))
    assert not (tmp_path / "out").exists()


def test_random_weights_have_the_matrices_of_the_family_file_in_the_receipt(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my.toml"
    shutil.copy(Path(registry.__file__).parent / "families/llama.toml", file)
    grown = tmp_path / "grown"
    hyperclone.grow(source, grown, hyperclone.Growth(width=2), family=file, proof="structural")
    monkeypatch.setattr(registry, "known", lambda config: None)
    asked = request(grown, text, tmp_path / "out", tokens=SEQUENCE * WINDOWS, optimizer="muon", from_scratch=True)
    assert hyperclone.train(asked).step == 1


def test_a_loss_that_is_no_number_stops_the_run(grown: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="no longer a number") as error:
        hyperclone.train(request(grown, text, tmp_path / "out", lr=1e30, max_grad_norm=0.0))
    assert error.value.exit_code == 4  # by which a study tells it from a failure


@pytest.mark.slow
def test_what_cannot_be_resumed_says_why(grown: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    hyperclone.train(request(grown, text, output, optimizer="adamw"))
    for asked, problem in (
        ({}, "--resume"),
        ({"resume": True, "lr": 1e-3}, "lr"),
        ({"resume": True, "tokens": "1M"}, "steps"),
        ({"resume": True, "from_scratch": True}, "from_scratch"),
    ):
        with pytest.raises(HypercloneError, match=problem):
            hyperclone.train(request(grown, text, output, optimizer="adamw", **asked))
    other, moved = (tmp_path / name / text.name for name in ("other", "moved"))
    for file, lines in ((other, text.read_text().splitlines()[1:]), (moved, text.read_text().splitlines())):
        file.parent.mkdir()
        file.write_text("\n".join(lines) + "\n")
    with pytest.raises(HypercloneError, match="texts"):
        hyperclone.train(request(grown, other, output, optimizer="adamw", resume=True))
    hyperclone.train(request(grown, moved, output, resume=True))  # with the optimizer that it began with
    with pytest.raises(HypercloneError, match="optimizer"):
        hyperclone.train(request(grown, text, output, resume=True, optimizer="rotated", grown_moments="none"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(DestinationError, match="does not hold a training run"):
        hyperclone.train(request(grown, text, tmp_path / "mine", resume=True))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seq_len": 65}, ["positions", "65", "64 at most"]),
        ({"tokens": 255}, ["token budget", "256"]),
        (
            {"held_out": 0.4, "seq_len": 64, "eval_data": ["SHORT"], "batch_tokens": 512},
            ["held-out text", "at least 64"],
        ),
        ({"data": ["SHORT"]}, ["every document is held out", "1 document", "--sample-by paragraph"]),
        ({"attention": "flash_attention_2"}, ["attention"]),
        ({"sharding": "full"}, ["torchrun"]),
        ({"report_to": ["trackio"]}, ["trackio"]),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused(
    asked: dict[str, Any], words: list[str], grown: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    short = [str(tmp_path / "short.txt")]
    asked = {field: short if value == ["SHORT"] else value for field, value in asked.items()}
    data = Path(asked.pop("data", [str(text)])[0])
    with pytest.raises(HypercloneError) as error:
        hyperclone.train(request(grown, data, tmp_path / "out", **asked))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tokens_that_the_model_does_not_have_are_refused(text: Path, tmp_path: Path) -> None:
    models.build("llama-grouped-tied", vocab_size=100).save_pretrained(tmp_path / "small")
    models.save_tokenizer(tmp_path / "small")
    with pytest.raises(TrainingError, match=r"more tokens than the model(.|\n)*below 100"):
        hyperclone.train(request(tmp_path / "small", text, tmp_path / "out"))


@pytest.mark.slow
def test_the_command_stops_with_143_and_resumes(grown: Path, text: Path, tmp_path: Path) -> None:
    options = {
        "--data": text, "--output": tmp_path / "out", "--cache": text.parent / "cache", "--tokens": "10_240",
        "--seq-len": 32, "--batch-tokens": 256, "--micro-batch": 4, "--held-out": 0.2, "--lr": 3e-3,
        "--log-every": 1, "--eval-every": 200, "--save-every": 200,
    }  # fmt: skip
    command = ["train", grown, *[part for pair in options.items() for part in pair], "--resume"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hyperclone", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "Stopped by signal 15 after step" in out
    assert "--resume" in out
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    result = call(*command)
    assert result.returncode == 0, result.stderr
    assert "resumes from step" in result.stderr
    assert "Trained on 10.2k tokens" in result.stdout
    assert "by the scaling rule" in result.stderr
    lines = metrics.read(tmp_path / "out")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))


@pytest.mark.slow
def test_early_evaluations_are_at_powers_of_two_and_change_nothing(source: Path, text: Path, tmp_path: Path) -> None:
    for name, early in (("plain", False), ("early", True)):
        hyperclone.train(request(source, text, tmp_path / name, eval_early=early))
    steps = {
        name: [line["step"] for line in metrics.read(tmp_path / name) if "eval_loss" in line]
        for name in ("plain", "early")
    }
    assert steps == {"plain": [0, 6, 12], "early": [0, 1, 2, 4, 6, 12]}
    assert losses(tmp_path / "plain") == losses(tmp_path / "early")
    assert_same_weights(tmp_path / "plain", tmp_path / "early")


def assert_same_weights(one: Path, other: Path) -> None:
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def stopped_after(step: int) -> Watch:
    def stop(event: Event) -> None:
        if isinstance(event, StepTaken) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4])  # between two measurements; right at one
def test_a_resumed_run_repeats_no_measurement(step: int, grown: Path, text: Path, tmp_path: Path) -> None:
    asked = {"eval_early": True, "anatomy": True, "resume": True}
    hyperclone.train(request(grown, text, tmp_path / "whole", **asked))
    hyperclone.train(request(grown, text, tmp_path / "parts", **asked), watch=stopped_after(step))
    hyperclone.train(request(grown, text, tmp_path / "parts", **asked))
    whole, parts = (
        [
            {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_second")}
            for line in metrics.read(tmp_path / name)
        ]
        for name in ("whole", "parts")
    )
    assert parts == whole
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_anatomy_while_training_is_that_of_the_directories_and_changes_nothing(
    grown: Path, text: Path, tmp_path: Path
) -> None:
    for name, asked in (("plain", False), ("anatomy", True)):
        hyperclone.train(request(grown, text, tmp_path / name, anatomy=asked))
    assert losses(tmp_path / "plain") == losses(tmp_path / "anatomy")
    assert_same_weights(tmp_path / "plain", tmp_path / "anatomy")
    assert not [line for line in metrics.read(tmp_path / "plain") if "anatomy" in line]
    lines = [line for line in metrics.read(tmp_path / "anatomy") if "anatomy" in line]
    assert [line["step"] for line in lines] == [0, 6, STEPS]
    for directory, line in ((grown, lines[0]), (tmp_path / "anatomy", lines[-1])):
        expected = hyperclone.examine(directory, layers="all", spectra="all", activations=False)
        of_layers = [t for t in expected.tensors if t.layer is not None]
        figures = dict(line["anatomy"])
        for key, values in (
            ("read", [t.input_symmetry for t in of_layers]),
            ("write", [t.output_symmetry for t in of_layers]),
            ("divergence", [t.read and t.read.divergence for t in of_layers]),
            ("effective_rank", [t.effective_rank for t in of_layers]),
        ):
            assert figures.pop(key) == pytest.approx(np.mean([v for v in values if v is not None]), rel=1e-6), key
        assert figures == {
            f"read/{t.name}": pytest.approx(t.input_symmetry, rel=1e-6)
            for t in of_layers
            if t.input_symmetry is not None
        }
    assert lines[0]["anatomy"]["read"] != lines[-1]["anatomy"]["read"]
    went_on = request(grown, text, tmp_path / "plain", anatomy=True, resume=True)  # it is no setting of the curve
    assert hyperclone.train(went_on).step == STEPS


def test_anatomy_of_a_model_that_was_not_grown_is_refused_before_anything_is_written(
    source: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"no receipt(.|\n)*anatomy(.|\n)*leave --anatomy out"):
        hyperclone.train(request(source, text, tmp_path / "out", anatomy=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trained_directory_says_what_it_is_and_leaves_a_card_of_the_users_alone(
    source: Path, text: Path, tmp_path: Path
) -> None:
    licensed = tmp_path / "licensed"
    shutil.copytree(source, licensed)
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n# a model\n")
    hyperclone.train(request(licensed, text, tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model: org/base" in card
    assert f"{STEPS * WINDOWS * SEQUENCE:,} tokens" in card
    assert str(tmp_path) not in card
    last = [line for line in metrics.read(tmp_path / "out") if "eval_loss" in line][-1]
    assert last["step"] == STEPS
    assert f"| held-out loss, nats per token | {last['eval_loss']:.4f} |" in card
    assert "| lr_rule | uniform |" in card
    (tmp_path / "out/README.md").write_text(card.replace("trained on", "was fed with"))  # as an older version would say
    hyperclone.train(request(licensed, text, tmp_path / "out", resume=True))
    assert (tmp_path / "out/README.md").read_text() == card
    (tmp_path / "out/README.md").write_text("# mine\n")
    hyperclone.train(request(licensed, text, tmp_path / "out", resume=True))
    assert (tmp_path / "out/README.md").read_text() == "# mine\n"


@pytest.mark.slow
def test_the_card_of_a_trained_clone_says_what_it_grew_from_and_by_which_rates(
    grown: Path, text: Path, tmp_path: Path
) -> None:
    for name, asked, words in (
        ("clone", {}, ["`grown`, grown from `source`", "| lr_rule | scaled |"]),
        ("random", {"from_scratch": True}, ["randomly initialized", "| lr_rule | uniform |"]),
    ):
        hyperclone.train(request(grown, text, tmp_path / name, save_every=STEPS, **asked))
        card = (tmp_path / name / "README.md").read_text()
        assert all(word in card for word in words), card
        assert ("grown from" in card) == (name == "clone")


def stable(model: Path, text: Path, output: Path, **asked: Any) -> hyperclone.Training:
    """A run with warm-up, stable phase and decay, whose warm-up does not depend on its length."""
    return request(model, text, output, **{"schedule": "wsd", "warmup": 2, "decay": 0.5, "lr_rule": "scaled", **asked})


@pytest.mark.parametrize("longer", [True, False], ids=["a longer run", "a shorter run"])
def test_a_branch_is_the_run_itself_to_the_bit(longer: bool, grown: Path, text: Path, tmp_path: Path) -> None:
    tokens = SEQUENCE * WINDOWS * (20 if longer else 8)
    hyperclone.train(stable(grown, text, tmp_path / "trunk"))  # 12 steps, of which 6 are stable, a checkpoint every 3
    before = sorted((tmp_path / "trunk").rglob("*"))
    hyperclone.train(stable(grown, text, tmp_path / "whole", tokens=tokens))
    branched = stable(grown, text, tmp_path / "branch", tokens=tokens, branch_from=str(tmp_path / "trunk"))
    started: list[RunStarted] = []
    hyperclone.train(branched, watch=lambda event: started.append(event) if isinstance(event, RunStarted) else None)
    assert started[0].step == (6 if longer else 3)
    assert sorted((tmp_path / "trunk").rglob("*")) == before
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "branch")[name]), name
    assert losses(tmp_path / "branch") == losses(tmp_path / "whole")
    assert any(
        (weights(tmp_path / "trunk")[name] != value).any() for name, value in weights(tmp_path / "whole").items()
    )


def test_a_branch_is_resumed_from_its_own_checkpoint(grown: Path, text: Path, tmp_path: Path) -> None:
    hyperclone.train(stable(grown, text, tmp_path / "trunk"))
    tokens = SEQUENCE * WINDOWS * 20
    hyperclone.train(stable(grown, text, tmp_path / "whole", tokens=tokens))
    asked = stable(grown, text, tmp_path / "branch", tokens=tokens, branch_from=str(tmp_path / "trunk"), resume=True)

    def stop(event: Event) -> None:
        if isinstance(event, StepTaken) and event.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    assert hyperclone.train(asked, watch=stop).step == 13
    shutil.rmtree(tmp_path / "trunk")
    assert hyperclone.train(asked).step == 20
    assert losses(tmp_path / "branch") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "branch/training.json").read_text())["branch_from"] == "trunk"


def test_what_is_no_branch_says_why(grown: Path, text: Path, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    hyperclone.train(stable(grown, text, trunk, keep=1))
    asked: dict[str, Any]
    for asked, words in (
        ({"lr": 1e-3}, ["lr", "0.001", "0.003"]),
        ({"seed": 5}, ["seed"]),
        ({"optimizer": "adamw"}, ["optimizer", "muon"]),
        ({"warmup": 0.3, "tokens": SEQUENCE * WINDOWS * 20}, ["warmup", "number of steps"]),
        ({"schedule": "cosine"}, ["stable phase", "--schedule wsd"]),
        ({"tokens": SEQUENCE * WINDOWS * 20}, ["before the learning rate decays", "checkpoint-12", "--keep 0"]),
        ({"branch_from": str(tmp_path)}, ["no training run"]),
    ):
        with pytest.raises(TrainingError) as error:
            hyperclone.train(stable(grown, text, tmp_path / "out", **{"branch_from": str(trunk), **asked}))
        for word in words:
            assert word in str(error.value), asked
        assert not (tmp_path / "out").exists()
