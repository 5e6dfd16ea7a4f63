"""Mixtures: weights of sources, the source of every window, and runs on two sources."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

import hyperclone
from hyperclone.cli.display.training import summary
from hyperclone.errors import TrainingError
from hyperclone.study import config_file, run_keys
from hyperclone.training import inputs, metrics, mixture, packing, run_file
from hyperclone.training.config import Training
from hyperclone.training.data_sources import TextSource
from hyperclone.training.dry_run import dry_run
from hyperclone.training.events import Event, RunStarted, StepTaken
from hyperclone.training.mixture import DataSource, Interleaving, one_epoch, sources_of
from hyperclone.units import human_count
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.examples import examples
from tests.helpers.training_text import documents, jsonl
from tests.training.test_train import windows_of

SEQUENCE, WINDOWS, STEPS = 32, 8, 6
WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


def shares_of(weights: list[int]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def request(**asked: Any) -> Training:
    return Training(**{"model": "m", "output": "o", **asked})


@examples(100)
@given(WEIGHTS)
@example([7, 3])
@example([5, 20, 1, 1, 20])  # always taking the source that lags most is off by 1.06 windows here
@example([40, 9, 1, 1, 40, 1, 9])
def test_every_prefix_has_each_source_by_its_share_to_less_than_a_window(weights: list[int]) -> None:
    shares = shares_of(weights)
    interleaving, taken = Interleaving(shares), Counter[int]()
    for index in range(min(2 * sum(weights) + 3, 300)):
        source, number = interleaving.at(index)
        assert number == taken[source]  # its windows come in their order, none twice and none left out
        taken[source] += 1
        for one, share in enumerate(shares):
            assert abs(taken[one] - share * (index + 1)) < 1


@examples(30)
@given(WEIGHTS, st.lists(st.integers(0, 500), min_size=1, max_size=9))
def test_a_window_is_the_same_wherever_a_run_begins(weights: list[int], indices: list[int]) -> None:
    shares = shares_of(weights)
    whole = Interleaving(shares)
    order = [whole.at(index) for index in range(501)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "_BLOCK", 7)
        resumed = Interleaving(shares)
        assert [resumed.at(index) for index in indices] == [order[index] for index in indices]


@examples(100)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=6))
def test_one_epoch_ends_where_the_first_source_is_used_up(sources: list[tuple[int, int]]) -> None:
    shares, sizes = shares_of([weight for weight, _ in sources]), [size for _, size in sources]
    count, interleaving = one_epoch(sizes, shares), Interleaving(shares)

    def taken(windows: int) -> Counter[int]:
        return Counter(interleaving.at(index)[0] for index in range(windows))

    assert all(taken(count)[source] <= size for source, size in enumerate(sizes))
    longest = max(math.ceil(1 / share) for share in shares)
    assert any(taken(count + 2 * longest)[source] > size for source, size in enumerate(sizes))


@pytest.mark.parametrize("weights", [[1], [7, 3], [1, 2], [1, 1, 20, 20, 5]])
def test_of_a_hub_dataset_as_much_is_read_as_its_share_of_the_run_needs(weights: list[int]) -> None:
    hub = [TextSource("org/name", "hub", name="org/name")]
    for windows in (1, 10, 47):
        taken = Counter(Interleaving(shares_of(weights)).at(index)[0] for index in range(windows))
        for source, share in enumerate(shares_of(weights)):
            limit = inputs._limit(request(data="d", tokens=windows * SEQUENCE), hub, share, SEQUENCE)
            assert limit is not None
            assert taken[source] * SEQUENCE <= limit <= share * windows * SEQUENCE + 2 * SEQUENCE + 1
            assert len(weights) > 1 or limit == (windows + 1) * SEQUENCE


def order_of(sizes: list[int], weights: list[int], *, count: int, seed: int = 0) -> list[tuple[int, int]]:
    windows: Any = [range(size) for size in sizes]  # each window is its own number
    mixed: Any = packing.Mixed(windows, shares_of(weights), count=count, seed=seed)
    interleaving = Interleaving(shares_of(weights))
    return [(interleaving.at(index)[0], mixed[index]) for index in range(count)]


def test_each_source_has_epochs_and_an_order_of_its_own() -> None:
    order = order_of([4, 10, 10], [2, 1, 1], count=80)
    by_source = [[window for source, window in order if source == one] for one in range(3)]
    assert [len(windows) for windows in by_source] == [40, 20, 20]
    for windows, size in zip(by_source, (4, 10, 10), strict=True):
        epochs = [windows[start : start + size] for start in range(0, len(windows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert by_source[1] != by_source[2]


def test_the_order_of_a_mixture_depends_on_seed_and_shares_alone() -> None:
    order = order_of([30, 50], [7, 3], count=90, seed=4)
    assert order == order_of([30, 50], [70, 30], count=90, seed=4)
    assert order[:40] == order_of([30, 50], [7, 3], count=40, seed=4)
    assert order != order_of([30, 50], [7, 3], count=90, seed=5)
    assert [source for source, _ in order] == [source for source, _ in order_of([9, 9], [7, 3], count=90, seed=5)]


def test_one_source_has_the_order_of_text_without_weights() -> None:
    windows: Any = range(30)
    plain = packing.Shuffled(windows, count=70, seed=3)
    assert [window for _, window in order_of([30], [1], count=70, seed=3)] == [plain.window(i) for i in range(70)]


def test_a_weight_stands_after_the_last_sign_unless_something_has_this_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lang=en/a.txt", "year=2020/a.txt", "old=0.5", "plain.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    for spelled in ("plain.txt", "lang=en/*.txt", "lang=*", "year=2020", "ye*=2020", "old=0.5", "no=such.txt", "no=/x"):
        assert sources_of([spelled]) == (DataSource((spelled,)),)
    assert sources_of("plain.txt") == sources_of([Path("plain.txt")]) == (DataSource(("plain.txt",)),)
    assert sources_of(["a", "b", "a"]) == (DataSource(("a", "b", "a")),)
    weights = {"lang=en/*.txt": "7", "year=2020": ".7", "old=0.5": "1e-1", "org/n@config:train": "2", "~/x/": "0.2"}
    weighted = sources_of([f"{name}={weight}" for name, weight in weights.items()])
    assert [source.spelled for source in weighted] == [(name,) for name in weights]
    assert [source.share for source in weighted] == [Fraction(n, 100) for n in (70, 7, 1, 20, 2)]
    assert sources_of(["plain.txt=0.1", "plain.txt=0.2"])[0].share == Fraction(1, 3)  # decimals are not rounded
    assert request(data=["plain.txt=0.7", "old=0.5=0.3"]).data_sources[1] == DataSource(("old=0.5",), Fraction(3, 10))


@pytest.mark.parametrize("weight", ["0", "-0.3", "nan", "inf", "1e999", "1e-999", "70%", "half", "", "0x1", "9" * 5000])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    with pytest.raises(TrainingError) as caught:
        request(data=["new.txt=0.7", f"old.txt={weight}"])
    assert str(caught.value) == (
        "not a weight of a source, and no file has this name\n"
        "  field:    data\n"
        f"  found:    old.txt={weight}\n"
        "  expected: a number above 0 after the last =, such as 0.7"
    )


def test_weights_are_for_all_sources_or_for_none_and_not_for_held_out_text() -> None:
    with pytest.raises(TrainingError) as caught:
        request(data=["new.txt=0.7", "old.txt"])
    assert str(caught.value) == (
        "some sources have a weight and some have none\n"
        "  field:    data\n"
        "  found:    old.txt without a weight\n"
        "  expected: a weight for every source, or for none\n"
        "  cure:     old.txt=WEIGHT"
    )
    with pytest.raises(TrainingError) as caught:
        request(data="new.txt", eval_data=["held.txt=0.5"])
    assert str(caught.value) == (
        "held-out text takes no weights: every window of it counts the same\n"
        "  field:    eval_data\n"
        "  found:    held.txt=0.5\n"
        "  cure:     --eval-data held.txt"
    )


def test_a_run_file_has_the_same_spelling_relative_to_it(tmp_path: Path) -> None:
    for name in ("new/a.txt", "old.jsonl", "x=0.5.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file, least = tmp_path / "run.toml", 'model = "m"\noutput = "lr=3/"\n'
    file.write_text(least + 'data = ["new/=2", "new/*.txt=1", "old.jsonl=1", "x=0.5.jsonl=1", "org/name:train=5"]\n')
    read = run_file.read(file, {})
    names = [f"{tmp_path}/{name}" for name in ("new", "new/*.txt", "old.jsonl", "x=0.5.jsonl")]
    assert [source.spelled[0] for source in read.data_sources] == [*names, "org/name:train"]
    assert [source.share for source in read.data_sources] == [Fraction(n, 10) for n in (2, 1, 1, 1, 5)]
    assert read.output == f"{tmp_path}/lr=3"
    assert run_file.read(file, {"data": ("a", "b")}).data_sources == (DataSource(("a", "b")),)
    (tmp_path / "year=5").mkdir()
    file.write_text(least + 'data = "year=5"\n')
    assert run_file.read(file, {}).data_sources == (DataSource((f"{tmp_path}/year=5",)),)
    file.write_text(least + 'data = ["new=0.7", "old.jsonl=0"]\n')
    with pytest.raises(TrainingError) as caught:
        run_file.read(file, {})
    assert caught.value.problem == "not a weight of a source, and no file has this name"
    expected = {"file": str(file), "field": "data", "found": f"{tmp_path}/old.jsonl=0"}
    assert expected.items() <= caught.value.details.items()


def test_a_study_takes_weights_and_its_keys_follow_the_shares(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "s.toml").write_text('[train]\ndata = ["a.txt=2", "b.txt=1"]\ntokens = 9\n[arms.x]\nmodel = "org/m"\n')
    assert config_file.read(tmp_path / "s.toml").train["data"] == (f"{tmp_path}/a.txt=2", f"{tmp_path}/b.txt=1")
    a, b = (str(tmp_path / name) for name in ("a.txt", "b.txt"))

    def key(*data: str) -> dict[str, Any]:
        return run_keys.training({"data": data})

    assert key(a, b) == {"data": run_keys.text([a, b])} == {"data": [*run_keys.text(a), *run_keys.text(b)]}
    assert run_keys.training({"data": a}) == key(a) == key(f"{a}=2")
    assert key(f"{a}=0.7", f"{b}=0.3") == key(f"{a}=7", f"{b}=3")
    different = [key(a, b), key(f"{a}=7", f"{b}=3"), key(f"{a}=3", f"{b}=7"), key(f"{b}=7", f"{a}=3"), key(a)]
    assert len({json.dumps(one) for one in different}) == len(different)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a short new text and a long old one."""
    directory = tmp_path_factory.mktemp("mixture")
    models.build("llama-grouped-tied").save_pretrained(directory / "model")
    models.save_tokenizer(directory / "model")
    jsonl(directory / "new.jsonl", documents(4, seed=1))
    jsonl(directory / "old.jsonl", documents(60, seed=2))
    return directory


def on_both(directory: Path, output: str, weights: tuple[str, str] = ("0.7", "0.3"), **asked: Any) -> Training:
    usual: dict[str, Any] = {
        "data": [f"{directory / name}.jsonl={weight}" for name, weight in zip(("new", "old"), weights, strict=True)],
        "seq_len": SEQUENCE, "batch_tokens": SEQUENCE * WINDOWS, "held_out": 0.1, "lr": 3e-3, "log_every": 1,
        "eval_every": STEPS, "save_every": 3, "keep": 0, "cache": str(directory / "cache"),
        "tokens": SEQUENCE * WINDOWS * STEPS,
    }  # fmt: skip
    return Training(model=str(directory / "model"), output=str(directory / output), **{**usual, **asked})


@pytest.fixture(scope="module")
def whole(directory: Path) -> RunStarted:
    """A run on both, not interrupted."""
    events: list[Event] = []
    hyperclone.train(on_both(directory, "whole"), watch=events.append)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    return started


def test_a_run_trains_on_the_windows_of_the_mixture_and_measures_all_held_out_text(
    whole: RunStarted, directory: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    texts = documents(4, seed=1), documents(60, seed=2)
    train = [windows_of([t for i, t in enumerate(each) if i % 10], tokenizer) for each in texts]
    held_out = torch.cat([windows_of(each[::10], tokenizer) for each in texts])
    assert len(train[0]) < 22  # new.jsonl is read again before step 4, where the next test stops

    order = order_of([len(windows) for windows in train], [7, 3], count=WINDOWS)
    batch = torch.stack([train[source][window] for source, window in order])
    measured = metrics.read(directory / "whole")
    with torch.no_grad():
        first, before = (float(model(input_ids=ids, labels=ids).loss) for ids in (batch, held_out))
    assert next(line["loss"] for line in measured if "loss" in line) == pytest.approx(first, abs=1e-5)
    assert next(line["eval_loss"] for line in measured if "eval_loss" in line) == pytest.approx(before, abs=1e-5)
    assert [round(source.epochs or 0, 6) for source in whole.mixture] == [
        round(share * STEPS * WINDOWS / len(windows), 6) for share, windows in zip((0.7, 0.3), train, strict=True)
    ]


@pytest.mark.usefixtures("whole")
def test_a_mixture_that_is_resumed_is_the_same_to_the_bit_and_keeps_its_weights(directory: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepTaken) and event.step == 4:  # in the second epoch of new.jsonl
            os.kill(os.getpid(), 15)

    assert hyperclone.train(on_both(directory, "parts"), watch=stop).step == 4
    unweighted = [str(directory / f"{name}.jsonl") for name in ("new", "old")]
    for other in ({"weights": ("0.6", "0.4")}, {"data": unweighted}):
        asked = on_both(directory, "parts", resume=True, **other)
        with pytest.raises(TrainingError) as caught:
            hyperclone.train(asked)
        assert caught.value.problem == "this output holds a training run with other settings"
        assert caught.value.details["field"] == "data_shares"
        assert caught.value.details["expected"] == "['7/10', '3/10']"
    again = on_both(directory, "parts", ("70", "30"), resume=True)  # the same shares
    assert dry_run(again).start == 4
    assert hyperclone.train(again).step == STEPS
    whole, parts = (load_file(directory / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    record = json.loads((directory / "parts/training.json").read_text())
    assert (record["curve"]["data_shares"], record["data"]) == (["7/10", "3/10"], ["new.jsonl", "old.jsonl"])


def test_summary_and_dry_run_say_what_each_source_gives(whole: RunStarted, directory: Path) -> None:
    new, old = whole.mixture
    assert (new.share, new.trained_tokens, old.share) == (0.7, round(0.7 * SEQUENCE * WINDOWS * STEPS), 0.3)
    shown = "\n".join(summary(whole))
    line = f"70% of the windows: {directory}/new.jsonl, {human_count(new.tokens or 0)} tokens, trained on 1.1k, "
    assert f"mixture   {line}{new.epochs:.3g} epochs\n" in shown
    assert "budget    1.5k tokens\n" in shown
    dry = dry_run(on_both(directory, "another"))
    assert (dry.mixture, dry.windows, dry.budget) == (whole.mixture, whole.windows, whole.budget)
    assert dry.text.files == 2

    epoch = dry_run(on_both(directory, "another", tokens=None))
    assert epoch.steps == int((new.tokens or 0) // SEQUENCE / 0.7) // WINDOWS
    assert (epoch.mixture[0].epochs or 9) <= 1
    fresh = dry_run(on_both(directory, "another", tokens=None, cache=str(directory / "none")))
    assert (fresh.steps, fresh.mixture[0].tokens, fresh.mixture[0].epochs) == (None, None, None)

    data = [word for spelled in on_both(directory, "o").data for word in ("--data", spelled)]
    asked = ("train", directory / "model", *data, "-o", directory / "o", "--seq-len", SEQUENCE, "--batch-tokens",
             SEQUENCE * WINDOWS, "--held-out", "0.1", "--dry-run", "--cache")  # fmt: skip
    said = call(*asked, directory / "cache", COLUMNS="300").stdout
    assert f"70% of the windows: {directory}/new.jsonl, {human_count(new.tokens or 0)} tokens, trained on " in said
    assert ", until the first source is used up" in said
    said = call(*asked, directory / "none", COLUMNS="300").stdout
    assert f"30% of the windows: {directory}/old.jsonl, not tokenized yet " in said
    assert "until the first source is used up: known after tokenizing, or with --tokens" in said


def test_a_run_without_tokens_ends_where_the_first_source_is_used_up(whole: RunStarted, directory: Path) -> None:
    events: list[Event] = []
    asked = on_both(directory, "epoch", tokens=None, batch_tokens=2 * SEQUENCE)
    done = hyperclone.train(asked, watch=events.append)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    windows = (whole.mixture[0].tokens or 0) // SEQUENCE  # of new.jsonl, which is used up first
    assert done.step == started.budget.steps == int(windows / 0.7) // 2
    assert 1 - 2 / windows < (started.mixture[0].epochs or 0) <= 1
    assert "tokens, until the first source is used up" in "\n".join(summary(started))


def test_the_guide_shows_what_its_example_prints(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")
    block = re.findall(r"```console\n\$ hyperclone (train SRC --data 'new.*?)\n```", guide, re.DOTALL)[0]
    command, *shown = block.split("\n")
    monkeypatch.chdir(directory)
    for name in ("a", "b"):
        (directory / "new").mkdir(exist_ok=True)
        jsonl(directory / f"new/{name}.jsonl", documents(12, seed=ord(name)))
    ran = call(*shlex.split(command.replace("SRC", "model")), HYPERCLONE_CACHE="cache")
    assert ran.returncode == 0, ran.stderr
    assert [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith(("text", "mixture"))] == shown


def test_a_source_that_is_too_short_is_named(directory: Path) -> None:
    jsonl(directory / "short.jsonl", ["Two words.", "Or three words."])
    weighted = [f"{directory / 'old.jsonl'}=1", f"{directory / 'short.jsonl'}=1"]
    with pytest.raises(TrainingError) as caught:
        hyperclone.train(on_both(directory, "short", data=weighted))
    assert caught.value.problem == "this source of the mixture does not fill one window"
    assert caught.value.details["file"] == f"{directory}/short.jsonl"
    assert caught.value.details["expected"] == f"at least {SEQUENCE} tokens"
    jsonl(directory / "short.jsonl", ["One document."])
    with pytest.raises(TrainingError, match="every document is held out") as caught:
        hyperclone.train(on_both(directory, "short", data=weighted))
    assert caught.value.details["file"] == f"{directory}/short.jsonl"
