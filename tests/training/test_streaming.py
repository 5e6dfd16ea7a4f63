"""Text that is streamed: the same windows as from a cache, an order by the seed alone, and resumed to the bit."""

from __future__ import annotations

import itertools
import os
import signal
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import hyperclone
from hyperclone.errors import TrainingError
from hyperclone.training import budget, data_sources, dry_run, metrics, token_cache
from hyperclone.training.events import Event, RunStarted, StepTaken, TextEnded
from hyperclone.training.streamed_text import StreamedText
from hyperclone.training.streaming import Streamed
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.training_text import documents, jsonl

SEQUENCE, WINDOWS, STEPS = 32, 8, 10


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which some steps see many batches of documents, and a buffer that is smaller than the run."""
    monkeypatch.setattr(token_cache, "_BATCH", 700)
    monkeypatch.setattr(budget, "BUFFER", SEQUENCE * 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a grown model and text: several files, some with empty documents."""
    path = tmp_path_factory.mktemp("streaming")
    models.build("llama-grouped-tied", attention_dropout=0.1).save_pretrained(path / "source")
    models.save_tokenizer(path / "source")
    hyperclone.grow(path / "source", path / "grown", hyperclone.Growth(width=2), proof="none")
    texts = documents(300)
    (path / "text").mkdir()
    jsonl(path / "text/a.jsonl", [*texts[:120], "", *texts[120:130]])
    (path / "text/b.txt").write_text("\n\n".join(texts[130:200]))
    jsonl(path / "text/c.jsonl", [" ", *texts[200:240]])
    jsonl(path / "more.jsonl", texts[240:262])
    jsonl(path / "held.jsonl", documents(20, seed=5))
    return path


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> Any:
    return AutoTokenizer.from_pretrained(place / "grown")


def text_of(spelled: Path, tokenizer: Any) -> StreamedText:
    sources = tuple(data_sources.find(str(spelled)))
    end = tokenizer.eos_token_id
    return StreamedText(spelled.name, sources, "text", "paragraph", tokenizer, end, len(tokenizer))


def streamed(*texts: StreamedText, shares: list[Fraction] | None = None, **asked: Any) -> Streamed:
    usual: dict[str, Any] = {"isolated": False, "seq_len": SEQUENCE, "count": 80, "batch": WINDOWS, "seed": 3}
    return Streamed(texts, shares or [Fraction(1)], **{**usual, **asked})


def reference(spelled: Path, tokenizer: Any) -> Iterator[tuple[int, ...]]:
    """The windows of a text without end: its documents with end-of-text tokens, over and over, cut."""
    rows: list[int] = []
    for _ in range(9):
        for source in data_sources.find(str(spelled)):
            for text in data_sources.texts(source, field="text", sample_by="paragraph"):
                rows += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return (tuple(rows[i : i + SEQUENCE]) for i in range(0, len(rows) - SEQUENCE + 1, SEQUENCE))


def ids(window: dict[str, torch.Tensor]) -> tuple[int, ...]:
    return tuple(window["input_ids"].tolist())


def in_order(windows: Streamed) -> list[tuple[int, ...]]:
    return [ids(windows[i]) for i in range(len(windows))]


def test_a_run_has_the_first_windows_of_the_text_each_once_in_an_order_of_the_seed(place: Path, tokenizer: Any) -> None:
    text = text_of(place / "text", tokenizer)
    expected = list(itertools.islice(reference(place / "text", tokenizer), 80))
    found = in_order(streamed(text))
    assert sorted(found) == sorted(expected)
    assert found == in_order(streamed(text))
    assert found != in_order(streamed(text, seed=4))
    waited = [i - expected.index(window) for i, window in enumerate(found)]
    assert len(set(waited)) > 20  # in a buffer of 20 windows, each for a time of its own
    assert all(expected.index(window) < i + 20 for i, window in enumerate(found))


def test_where_the_text_ends_it_is_read_again(place: Path, tokenizer: Any) -> None:
    told: list[tuple[str, int]] = []
    text = text_of(place / "more.jsonl", tokenizer)
    once = sum(len(tokenizer(t)["input_ids"]) + 1 for t in documents(300)[240:262])
    count = 5 * once // (2 * SEQUENCE)  # two and a half times
    found = in_order(streamed(text, count=count, ended=lambda name, passes: told.append((name, passes))))
    assert sorted(found) == sorted(itertools.islice(reference(place / "more.jsonl", tokenizer), count))
    assert told == [("more.jsonl", 1), ("more.jsonl", 2)]


def test_a_mixture_has_its_shares_at_every_window(place: Path, tokenizer: Any) -> None:
    names, shares = ("text", "more.jsonl"), [Fraction(3, 10), Fraction(7, 10)]
    windows = in_order(streamed(*(text_of(place / n, tokenizer) for n in names), shares=shares, count=60))
    first, second = (set(itertools.islice(reference(place / name, tokenizer), 60)) for name in names)
    assert not first & second
    for count in range(1, 61):
        of_second = sum(window in second for window in windows[:count])
        assert abs(of_second - 0.7 * count) < 1
        assert of_second + sum(window in first for window in windows[:count]) == count


def test_windows_of_isolated_documents_are_those_from_a_cache(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    from hyperclone.training import packing

    text = text_of(place / "text", tokenizer)
    reading = token_cache.ReadingOptions("text", "paragraph", 0.0)
    corpus, _ = token_cache.prepare(list(text.sources), reading, tokenizer, end=text.end, cache=tmp_path)
    cached = packing.Windows(corpus, SEQUENCE, isolated=True)
    expected = {ids(cached[i]): cached[i] for i in range(len(cached))}
    windows = streamed(text, isolated=True, count=len(cached))
    for i in range(len(cached)):
        window = windows[i]
        same = expected[ids(window)]
        assert window.keys() == same.keys() == {"input_ids", "labels", "position_ids"}
        assert all(torch.equal(window[name], same[name]) for name in same)


@pytest.mark.parametrize("isolated", [False, True])
def test_windows_go_on_from_every_step(place: Path, tokenizer: Any, tmp_path: Path, isolated: bool) -> None:
    """Also within the second pass through the shorter text, and when the next step's first window was fetched."""
    texts = [text_of(place / name, tokenizer) for name in ("text", "more.jsonl")]
    asked: dict[str, Any] = {"shares": [Fraction(1, 4), Fraction(3, 4)], "count": 160, "isolated": isolated}
    windows, whole = streamed(*texts, **asked), []
    for index in range(160):
        whole.append(windows[index])
        if index % WINDOWS == 0:
            windows.save(tmp_path / str(index), window=index)
    for start in (0, 8, 72, 152):
        again = streamed(*texts, **asked, start=tmp_path / str(start))
        for index in range(start, 160):
            window = again[index]
            assert all(torch.equal(window[name], whole[index][name]) for name in whole[index])


def test_memory_does_not_grow_with_the_text(place: Path, tokenizer: Any) -> None:
    def peak(count: int) -> int:
        windows = streamed(text_of(place / "text", tokenizer), count=count)
        windows[0]
        tracemalloc.start()
        for index in range(1, count):
            windows[index]
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    peak(2400)  # whatever is imported and cached on the way
    assert peak(7200) < 1.1 * peak(2400)  # the text is read six times and twice


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", '{"text": " "}\n', "holds no text"),
        ("other.jsonl", '{"body": "a"}\n', "no such column"),
        ("none.txt", "", "holds no text"),
    ],
)
def test_text_that_cannot_be_used_is_refused(
    tmp_path: Path, tokenizer: Any, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match=said):
        streamed(text_of(tmp_path / name, tokenizer))[0]


def test_a_damaged_place_in_the_text_is_refused(place: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "place").write_bytes(b"half")
    for file in ("place", "missing"):
        with pytest.raises(TrainingError, match=r"cannot be read(.|\n)*remove this checkpoint"):
            streamed(text_of(place / "text", tokenizer), start=tmp_path / file)[0]


def request(place: Path, output: Path, **asked: Any) -> hyperclone.Training:
    usual: dict[str, Any] = {
        "data": [str(place / "text")],
        "eval_data": str(place / "held.jsonl"),
        "cache": str(output.parent / "cache"),
        "streaming": True,
        "sample_by": "paragraph",
        "seq_len": SEQUENCE,
        "batch_tokens": SEQUENCE * WINDOWS,
        "tokens": SEQUENCE * WINDOWS * STEPS,
        "micro_batch": 4,
        "lr": 3e-3,
        "log_every": 1,
        "save_every": 3,
        "keep": 0,
    }
    return hyperclone.Training(**{"model": place / "grown", "output": output, **usual, **asked})


def losses(output: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in metrics.read(output) if name in line]


@pytest.mark.slow
def test_a_run_is_resumed_to_the_bit(place: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepTaken) and event.step in (4, 7):  # no checkpoint is due there
            os.kill(os.getpid(), signal.SIGTERM)

    data = [f"{place / 'text'}=0.4", f"{place / 'more.jsonl'}=0.6"]
    tokens = SEQUENCE * WINDOWS * 30  # more.jsonl is read again
    whole = hyperclone.train(request(place, tmp_path / "whole", data=data, tokens=tokens))
    asked = request(place, tmp_path / "parts", data=data, tokens=tokens, resume=True)
    steps = [hyperclone.train(asked, watch=stop).step for _ in range(3)]
    assert (steps, whole.step) == ([4, 7, 30], 30)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert losses(tmp_path / "parts", "eval_loss")[1:] == losses(tmp_path / "whole", "eval_loss")[1:]
    for name, value in load_file(tmp_path / "whole/model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "parts/model.safetensors")[name])
    started = next(event for event in events if isinstance(event, RunStarted))
    assert (started.windows, started.text) == (None, None)
    assert next(e.text for e in events if isinstance(e, TextEnded)).endswith("more.jsonl")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1  # the held-out text alone
    again = hyperclone.train(asked)  # a finished run
    assert (again.step, losses(tmp_path / "parts")) == (30, losses(tmp_path / "whole"))
    for changed in ({"streaming": False}, {"sample_by": "line"}, {"data": data[::-1]}):
        with pytest.raises(TrainingError, match="other settings"):
            hyperclone.train(
                request(place, tmp_path / "parts", **{"data": data, "tokens": tokens, "resume": True, **changed})
            )


def test_the_size_of_a_forward_pass_does_not_change_the_curve(place: Path, tmp_path: Path) -> None:
    models.build("llama-grouped-tied").save_pretrained(tmp_path / "model")  # without dropout
    models.save_tokenizer(tmp_path / "model")
    curves = []
    for micro in (8, 2):
        hyperclone.train(
            request(
                place, tmp_path / str(micro), model=tmp_path / "model", micro_batch=micro, held_out=0.0, eval_data=()
            )
        )
        curves.append(losses(tmp_path / str(micro)))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)  # sums in another order


def test_what_streaming_needs_is_asked_for(place: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"needs its length(.|\n)*--tokens 2B"):
        request(place, tmp_path / "out", tokens=None)
    with pytest.raises(TrainingError, match=r"(.|\n)*--eval-data PATH(.|\n)*--held-out 0"):
        request(place, tmp_path / "out", eval_data=())


def test_the_dry_run_says_what_is_known(place: Path, tmp_path: Path) -> None:
    planned = dry_run.dry_run(request(place, tmp_path / "out"))
    assert (planned.steps, planned.windows, planned.text.files, planned.text.tokens) == (STEPS, None, 3, None)
    assert planned.text.nbytes > 10_000
    shown = call(
        "train", place / "grown", "--data", place / "text", "--streaming", "--held-out", 0, "--tokens", 2560,
        "--batch-tokens", 256, "--seq-len", 32, "-o", tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "read and tokenized while training goes on" in shown.stdout
    assert "10 steps" in shown.stdout
    assert "epochs" not in shown.stdout
    assert not (tmp_path / "out").exists()


def test_a_branch_of_streamed_text_is_refused() -> None:
    """The order of a short run of streamed text is not the beginning of a long one's."""
    with pytest.raises(TrainingError, match="--streaming or --branch-from"):
        hyperclone.Training(
            model="m", data="d.jsonl", eval_data="e.jsonl", output="o", tokens="1M", streaming=True, branch_from="run"
        )
