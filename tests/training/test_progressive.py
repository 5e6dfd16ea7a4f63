"""`train --grow-at`: a small model from random weights, its growth, and the training of the clone, as one thing."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import hyperclone
from hyperclone import Growth
from hyperclone.conversion import receipt
from hyperclone.errors import DestinationError, HypercloneError, TrainingError
from hyperclone.training import lr_schedule, metrics, progressive, resume, run_file
from hyperclone.training.config import Training
from hyperclone.training.events import CheckpointSaved, Event, ModelGrown, OptimizerStateLoaded, StageStarted
from hyperclone.training.growing_checks import share_or_tokens
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.training_text import documents, jsonl
from tests.training.test_skipped import seen
from tests.training.test_train import windows_of
from tests.training.test_train_processes import launch

__all__ = ["seen"]  # a fixture
SEQUENCE, WINDOWS, STEPS, BEFORE = 32, 4, 12, 4
STEP = SEQUENCE * WINDOWS
TEXTS = documents(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text, and a model without weights and without dropout."""
    directory = tmp_path_factory.mktemp("progressive")
    models.build("llama-grouped-tied").config.save_pretrained(directory / "blank")
    models.save_tokenizer(directory / "blank")
    jsonl(directory / "text.jsonl", TEXTS)
    return directory


def request(place: Path, output: Path, **asked: Any) -> Training:
    usual: dict[str, Any] = {
        "model": str(place / "blank"), "data": str(place / "text.jsonl"), "cache": str(place / "cache"),
        "seq_len": SEQUENCE, "batch_tokens": STEP, "tokens": STEPS * STEP, "micro_batch": 2, "held_out": 0.2,
        "lr": 4e-3, "warmup": 2, "schedule": "wsd", "decay": 0.25, "beta2": 0.95, "save_every": 2, "eval_every": 2,
        "log_every": 1, "seed": 3, "from_scratch": True, "grow_at": BEFORE / STEPS,
    }  # fmt: skip
    return Training(output=str(output), **{**usual, **asked})


def weights(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(directory / "model.safetensors")
    return tensors


def evaluations(output: Path) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in metrics.read(output) if "eval_loss" in line}


def trained_on(seen: list[torch.Tensor], place: Path) -> torch.Tensor:
    """The windows that were seen since the last call, without those of the held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(place / "blank")
    held_out = {tuple(window.tolist()) for window in windows_of(TEXTS[::5], tokenizer)}
    windows = [window for window in seen if tuple(window.tolist()) not in held_out]
    seen.clear()
    return torch.stack(windows)


class Killed(Exception):
    """As a kill would, it leaves everything as it is."""


def killed_at(condition: Callable[[Event], bool]) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if condition(event):
            raise Killed

    return watch


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", None])
def test_it_is_what_three_commands_do(optimizer: Any, place: Path, tmp_path: Path, seen: list[torch.Tensor]) -> None:
    """The small model, its growth and the clone's training, each by the command of its own; the data in one order."""
    events: list[Event] = []
    done = hyperclone.train(request(place, tmp_path / "out", optimizer=optimizer), watch=events.append)
    windows = trained_on(seen, place)

    shared: dict[str, Any] = {"grow_at": None, "optimizer": optimizer}
    small = request(place, tmp_path / "small", **shared, tokens=BEFORE * STEP, schedule="constant")
    hyperclone.train(small)
    state = tmp_path / f"small/checkpoint-{BEFORE}"
    hyperclone.grow(state, tmp_path / "grown", Growth(width=2), optimizer_state=state)
    rest = STEPS - BEFORE
    large = request(
        place, tmp_path / "large", **shared, model=str(tmp_path / "grown"), from_scratch=False, tokens=rest * STEP,
        skip_tokens=BEFORE * STEP, decay=3 / rest,
    )  # fmt: skip
    hyperclone.train(large)
    for ours, theirs in (("out/small", "small"), ("out/grown", "grown"), ("out", "large")):
        one, other = weights(tmp_path / ours), weights(tmp_path / theirs)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(windows, trained_on(seen, place))
    hyperclone.train(request(place, tmp_path / "one", **shared))
    assert torch.equal(windows, trained_on(seen, place))  # as a single run reads it

    kinds = (StageStarted, ModelGrown, OptimizerStateLoaded)
    assert [type(event) for event in events if isinstance(event, kinds)] == [StageStarted, ModelGrown, *kinds[::2]]
    before, after = evaluations(tmp_path / "out/small"), evaluations(tmp_path / "out")
    assert after[0] == pytest.approx(before[BEFORE], abs=1e-5)  # the same function, computed in fp32
    assert before[0] - after[0] > 0.01
    assert (done.step, done.tokens, done.small_tokens) == (rest, rest * STEP, BEFORE * STEP)
    curve = resume.curve(tmp_path / "out")
    assert curve["optimizer"] == (optimizer or "muon")
    assert curve["difference_lr"] == 4e-3 / 2
    hidden = receipt.read(tmp_path / "out")
    assert hidden is not None
    assert hidden.source_lr == 4e-3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_is_killed_anywhere_ends_as_what_is_not(optimizer: Any, place: Path, tmp_path: Path) -> None:
    hyperclone.train(request(place, tmp_path / "whole", optimizer=optimizer))
    killed = tmp_path / "killed"
    points: list[Callable[[Event], bool]] = [
        lambda event: isinstance(event, CheckpointSaved) and event.step == 2,  # in the small stage
        lambda event: isinstance(event, CheckpointSaved) and event.step == BEFORE,  # trained, and not exported
        lambda event: isinstance(event, ModelGrown),
        lambda event: isinstance(event, CheckpointSaved) and event.step == 6,
    ]
    for point in points:
        with pytest.raises(Killed):
            hyperclone.train(request(place, killed, optimizer=optimizer, resume=True), watch=killed_at(point))
    began: list[Event] = []
    hyperclone.train(request(place, killed, optimizer=optimizer, resume=True), watch=began.append)
    assert [e.stage for e in began if isinstance(e, StageStarted)] == ["grown"]  # nothing is done twice
    assert not any(isinstance(event, ModelGrown) for event in began)
    one, other = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert evaluations(tmp_path / "whole") == evaluations(killed)


@pytest.mark.slow
def test_a_growth_that_was_interrupted_is_made_again(place: Path, tmp_path: Path) -> None:
    """Also with other options of `grow`, and its cost is on record."""
    growth = Growth(width=2, layers="1.5x", noise="gaussian", allow_rounding=True)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        hyperclone.train(
            request(place, out, grow=growth, grow_at=str(BEFORE * STEP)),
            watch=killed_at(lambda event: isinstance(event, ModelGrown)),
        )
    shutil.rmtree(out / "grown")
    hyperclone.train(request(place, out, grow=growth, grow_at=str(BEFORE * STEP), resume=True))
    recorded = receipt.read(out)
    assert recorded is not None
    assert recorded.growth == growth
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    small = json.loads((out / resume.RECORD_FILE).read_text())["small"]
    assert (small["model"], small["tokens"]) == ("blank", BEFORE * STEP)
    assert small["flops"] == small["tokens"] * small["flops_per_token"] > 6 * small["tokens"] * 1000
    with pytest.raises(TrainingError, match="the model was grown otherwise before"):
        hyperclone.train(request(place, out, grow_at=str(BEFORE * STEP), resume=True))
    with pytest.raises(TrainingError, match="other settings"):
        hyperclone.train(request(place, out, grow=growth, grow_at=str(STEP * 5), resume=True))
    with pytest.raises(DestinationError, match="--resume continues it"):
        hyperclone.train(request(place, out, grow=growth, grow_at=str(BEFORE * STEP)))


def test_the_two_stages_are_the_request_in_two_parts(place: Path) -> None:
    stages = progressive.plan(request(place, Path("o"), optimizer="rotated", warmup=0.1, push_to_hub="me/model"))
    small, large = stages.small, stages.large
    assert (small.total_tokens, large.total_tokens, large.skipped_tokens) == (512, 1024, 512)
    assert (small.optimizer, large.optimizer) == ("adamw", "rotated")
    assert (small.schedule, large.schedule) == ("constant", "wsd")
    assert small.warmup == large.warmup == 2  # a tenth of twelve steps
    assert (small.push_to_hub, large.push_to_hub) == (None, "me/model")
    assert (small.lr, large.lr, large.source_lr) == (4e-3, 4e-3, 4e-3)
    whole = lr_schedule.stable_until("wsd", steps=STEPS, decay=0.25)
    assert BEFORE + lr_schedule.stable_until("wsd", steps=STEPS - BEFORE, decay=large.decay) == whole


def test_the_decay_begins_at_the_step_at_which_that_of_a_single_run_does() -> None:
    for steps, part in ((whole, part) for whole in range(1, 60) for part in range(whole + 1)):
        share = progressive._share(part, steps)
        assert 0 <= share <= 1
        assert steps - lr_schedule.stable_until("wsd", steps=steps, decay=share) == part


def test_what_cannot_be_grown_on_the_way_says_why_before_anything_runs(place: Path, tmp_path: Path) -> None:
    def refused(match: str, **asked: Any) -> None:
        with pytest.raises(HypercloneError, match=match):
            hyperclone.train(request(place, tmp_path / "out", **asked))
        assert not (tmp_path / "out").exists()

    refused("hyperclone grow, then hyperclone train", from_scratch=False)
    refused("--tokens 2B", tokens=None)
    refused("a share of --tokens between 0 and 1", grow_at="soon")
    refused("a share of --tokens between 0 and 1", grow_at=-1)
    refused("expected: a step from 2 to 9", grow_at=0.99)
    refused("expected: a step from 2 to 9", grow_at=0.1)
    refused("more --tokens", warmup=8)
    refused("leave --streaming or --grow-at out", streaming=True, eval_data=str(place / "text.jsonl"))
    refused("leave --branch-from or --grow-at out", branch_from="o")
    refused("leave --skip-tokens or --grow-at out", skip_tokens=STEP)
    refused("too large for a factor", grow_width=100)
    refused("download the dataset", data="org/name")
    refused("download the dataset", eval_data="org/name")
    refused("could not|no such size|heads", grow_width=1.3)
    refused("give --grow-at 0.25", grow_at=None, grow_width=2)
    refused("cannot be grown on the way", sharding="full")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match="does not hold a training that grows its model"):
        hyperclone.train(request(place, tmp_path / "other", resume=True))


def test_a_point_is_a_share_or_a_number_of_tokens() -> None:
    assert share_or_tokens("0.25") == share_or_tokens(0.25) == share_or_tokens("1/4") == Fraction(1, 4)
    assert share_or_tokens("2B") == share_or_tokens(2e9) == share_or_tokens(2_000_000_000) == 2_000_000_000


def test_a_run_file_has_the_growth_as_a_table(tmp_path: Path) -> None:
    text = 'model = "m"\ndata = ["d"]\noutput = "o"\ntokens = "1M"\nfrom_scratch = true\ngrow_at = 0.25\n'
    file = tmp_path / "run.toml"
    file.write_text(f'{text}[grow]\nwidth = 2\nnoise = "none"\n')
    assert run_file.read(file, {}).growth == Growth(width=2, noise="none")
    assert run_file.read(file, {"grow_width": "3"}).growth == Growth(width="3", noise="none")
    file.write_text(text)
    assert run_file.read(file, {}).growth == Growth(width=2)
    for table, match in (
        ("[grow]\nwith = 2", "did you mean width"),
        ("[grow]\nseed = true", r"grow\.seed"),
        ("[grow]\nwidth = 0.5", r"grow\.width"),
        ("grow = 2", "not a table of options"),
    ):
        file.write_text(f"{text}{table}\n")
        with pytest.raises(TrainingError, match=match):
            run_file.read(file, {})


def test_a_dry_run_shows_both_stages_and_what_they_take_together(place: Path, tmp_path: Path) -> None:
    asked = request(place, tmp_path / "out")
    command = [
        "train", asked.model, "--data", *asked.data, "--cache", str(asked.cache), "--output", asked.output,
        "--from-scratch", "--grow-at", "0.34", "--tokens", str(STEPS * STEP), "--seq-len", str(SEQUENCE),
        "--batch-tokens", str(STEP), "--lr", "4e-3", "--warmup", "2", "--schedule", "wsd", "--dry-run",
    ]  # fmt: skip
    shown = call(*command).stdout
    assert "Stage 1 of 2" in shown
    assert "starts from grown moments" in " ".join(shown.split())
    planned = json.loads(call(*command, "--json").stdout)
    small, grown = planned["small"], planned["grown"]
    assert (small["steps"], grown["steps"], grown["options"]["skip_tokens"]) == (BEFORE, STEPS - BEFORE, BEFORE * STEP)
    assert (small["weights"], grown["weights"]) == ("random", "grown")
    assert grown["options"]["difference_lr"] == 2e-3
    assert f"{small['flops']['run'] + grown['flops']['run']:.3g} FLOPs" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_do_what_one_does(place: Path, tmp_path: Path) -> None:
    """One of them grows the model, and the other waits for it."""
    asked = request(place, tmp_path / "one", optimizer="muon")
    hyperclone.train(asked)
    command = [
        "train", asked.model, "--data", *asked.data, "--cache", str(asked.cache), "--output", str(tmp_path / "two"),
        "--from-scratch", "--grow-at", str(asked.grow_at), "--tokens", str(STEPS * STEP), "--seq-len", str(SEQUENCE),
        "--batch-tokens", str(STEP), "--micro-batch", "2", "--held-out", "0.2", "--lr", "4e-3", "--warmup", "2",
        "--schedule", "wsd", "--decay", "0.25", "--beta2", "0.95", "--save-every", "2", "--eval-every", "2",
        "--seed", "3", "--optimizer", "muon",
    ]  # fmt: skip
    said = launch("-m", "hyperclone", *command, processes=2)
    assert said.count("proved to be the same function") == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert evaluations(tmp_path / "two") == pytest.approx(evaluations(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
def test_the_example_of_the_guide_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")
    (block,) = re.findall(r"```console\n\$ hyperclone (train blank .*?)\n```", guide, re.DOTALL)
    shown, *lines = block.split("\n")
    shutil.copytree(place / "blank", tmp_path / "blank")
    shutil.copyfile(place / "text.jsonl", tmp_path / "corpus.jsonl")
    monkeypatch.chdir(tmp_path)
    ran = call(*shlex.split(shown), "--cache", "cache")
    assert ran.returncode == 0, ran.stderr
    said = [line.replace(f"{tmp_path}/", "") for line in ran.stderr.splitlines()]
    assert [line for line in said if line.startswith(("stage", "grown"))] == lines
    assert (tmp_path / "run/model.safetensors").is_file()
