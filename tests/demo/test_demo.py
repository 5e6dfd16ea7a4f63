"""The experiment in small: it runs from what ships, offline, to a report; and a second time without training again."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from hyperclone.cli.display import demo as demo_display
from hyperclone.demo import demo
from hyperclone.errors import DestinationError, StudyError
from hyperclone.study import config_file
from hyperclone.study.progress import Began, Run
from hyperclone.study.speedup import Curve, Speedup, compare
from hyperclone.training import metrics
from tests.helpers.command import call

SEEDLING = demo.DATA / "seedling"


def test_seedling_is_small_whole_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in SEEDLING.iterdir()) < 2e6
    card = (SEEDLING / "README.md").read_text()
    assert "public domain" in card
    assert "license: apache-2.0" in card
    lines = [line for line in metrics.read(SEEDLING) if "eval_loss" in line]
    assert lines[0]["eval_loss"] > 7 > 4.1 > lines[-1]["eval_loss"]  # from the logarithm of 2048 tokens down
    assert lines[-1]["tokens"] > 2.9e6


@pytest.mark.slow
def test_seedlings_loss_on_its_held_out_text_is_the_one_on_record() -> None:
    """By unmodified transformers, on windows cut by hand; bf16 weights, so not to the last digit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    model = AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32)
    ids: list[int] = []
    with gzip.open(SEEDLING / "held_out.jsonl.gz", "rt") as text:
        for line in text:
            ids += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    windows = torch.tensor(ids[: len(ids) // 128 * 128]).view(-1, 128)
    with torch.inference_mode():
        losses = [float(model(input_ids=one[None], labels=one[None]).loss) for one in windows]
    recorded = [line["eval_loss"] for line in metrics.read(SEEDLING) if "eval_loss" in line][-1]
    assert sum(losses) / len(losses) == pytest.approx(recorded, abs=0.01)


def test_the_demonstration_trains_its_arms_on_equal_tokens() -> None:
    study = demo.request("30k")
    assert {arm.train["tokens"] for arm in study.arms.values()} == {30_000}
    assert {tuple(arm.train["data"]) for arm in study.arms.values()} == {(str(SEEDLING / "train.jsonl.xz"),)}
    assert study.control == "continued"  # what else one would do with Seedling


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DestinationError):
        demo.prepare(tmp_path)


def against_continued(arm: list[float], continued: list[float], *, flops_per_token: float = 12.0) -> Speedup:
    """An arm and Seedling trained further, after 0, 50 and 100 tokens; a token of the latter takes 4 operations."""
    tokens, seconds = [0.0, 50.0, 100.0], [0.0, 1.0, 2.0]
    return compare(Curve(tokens, arm, seconds, flops_per_token), Curve(tokens, continued, seconds, 4.0))


@pytest.mark.parametrize(
    ("clone", "said"),
    [
        (
            [3.4, 3.1, 2.9],
            [
                "ends at a held-out loss of 3.000",
                "0.100 nats below it, at 2.900",
                "1.3x fewer tokens, which took 2.2x the FLOPs",
            ],
        ),
        ([3.4, 2.5, 2.4], ["0.600 nats below", "4.5x fewer tokens, which took 1.5x fewer FLOPs"]),
        ([3.4, 3.3, 3.2], ["0.200 nats above it, at 3.200"]),
        ([3.4, 3.2, 3.0], ["ends level with it"]),
        ([2.9, 2.9, 2.9], ["0.100 nats below it"]),
    ],
)
def test_the_verdict_says_on_which_side_of_seedling_the_clone_ends_and_what_it_took(
    clone: list[float], said: list[str]
) -> None:
    """Straight lines between evaluations: [3.4, 3.1, 2.9] is at 3.0 after 75 of 100 tokens of 12 operations each."""
    arms = config_file.read(demo.DATA / "demo.toml").arms
    continued = [3.4, 3.2, 3.0]
    found = [
        (Run(arms[name], 1), against_continued(losses, continued))
        for name, losses in (("clone", clone), ("random", [7.0, 6.0, 5.0]), ("continued", continued))
    ]
    words = demo_display.verdict(found)
    for one in said:
        assert one in words
    assert ("fewer tokens" in words) == ("fewer tokens" in said[-1])
    assert "Random weights of the clone's size end at 5.000" in words
    assert "not evidence" in words
    assert demo_display.verdict(found[1:]) == ""


@pytest.mark.slow
def test_a_clone_of_another_seedling_is_grown_anew(tmp_path: Path) -> None:
    assert demo.grow(tmp_path) is not None
    assert demo.grow(tmp_path) is None
    weights = load_file(tmp_path / "clone/model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, tmp_path / "clone/model.safetensors", metadata={"format": "pt"})
    assert demo.grow(tmp_path) is not None
    assert demo.grow(tmp_path) is None


def running(directory: Path, *, tokens: int, loss: float, seconds: float) -> Path:
    directory.mkdir()
    lines = [{"step": 1, "tokens": tokens, "loss": loss + 0.1, "seconds": seconds - 1},
            {"step": 1, "tokens": tokens, "eval_loss": loss, "seconds": seconds}]  # fmt: skip
    (directory / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_time_left_counts_the_arms_that_wait(tmp_path: Path) -> None:
    study = demo.request("1k")
    for jobs, left in ((1, 15.0 + 20.0 + 20.0), (2, 27.5), (3, 20.0)):  # at 50 tokens a second
        view = demo_display.DemoView(Console(file=io.StringIO(), width=100), study, 1000, jobs=jobs)
        assert view.left() is None
        directory = running(tmp_path / f"random-{jobs}", tokens=250, loss=6.0, seconds=5.0)
        view(Began("random", directory, Run(study.arms["random"], 1)))
        assert view.left() == pytest.approx(left)


def test_both_frames_the_losses_and_who_waits_fit_a_terminal(tmp_path: Path) -> None:
    study = demo.request("1k")
    for height in (24, 40):
        console = Console(width=100, height=height, force_terminal=True, record=True, file=io.StringIO())
        view = demo_display.DemoView(console, study, 1000, jobs=2)
        for arm, loss in (("random", 6.125), ("clone", 3.25)):
            directory = running(tmp_path / f"{arm}-{height}", tokens=250, loss=loss, seconds=5.0)
            view(Began(arm, directory, Run(study.arms[arm], 1)))
        console.print(view._draw())
        screen = console.export_text()
        assert len(screen.splitlines()) <= height
        assert all(len(line) <= 100 for line in screen.splitlines())
        assert ("without random weights" in screen) == (height == 40)
        near = screen.partition("without random weights")[2].partition("0 ")[0]  # up to its axis
        assert ("clone" in near) == (height == 40)
        assert "random" not in near
        assert "6.125" in screen
        assert "3.250" in screen
        assert "waiting" in screen


@pytest.mark.slow
def test_without_a_terminal_each_quarter_is_said_once(tmp_path: Path) -> None:
    study, heard = demo.request("8k"), io.StringIO()
    directory = running(tmp_path / "clone", tokens=4096, loss=3.25, seconds=5.0)
    with demo_display.DemoView(Console(file=heard, width=100), study, 8000) as view:
        view(Began("clone", directory, Run(study.arms["clone"], 1)))
        until = time.monotonic() + 60
        while "4k of 8k" not in heard.getvalue() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.5)  # another reading
    assert heard.getvalue().count("clone: 4k of 8k tokens, held-out loss 3.2500") == 1


def test_a_missing_extra_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else math)
    with pytest.raises(StudyError, match=r"hyperclone\[train,report\]"):
        demo.prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_runs_offline_to_a_report_resumes_after_ctrl_c_and_reuses_what_is_done(tmp_path: Path) -> None:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HYPERCLONE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "COLUMNS": "100",
    }  # fmt: skip
    arguments = ["demo", "--output", str(tmp_path / "small"), "--tokens", "16k", "--jobs", "2"]
    command = [sys.executable, "-m", "hyperclone", *arguments]
    begun = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert begun.stdout is not None
    heard = ""
    while "training (" not in heard:
        line = begun.stdout.readline()
        assert line, heard
        heard += line
    begun.send_signal(signal.SIGINT)
    heard += begun.communicate(timeout=300)[0]
    assert begun.returncode == 130
    assert "PROVED" in heard
    assert "rerun the same command to resume" in heard
    said = call(*arguments, **environment)
    assert said.returncode == 0, said.stderr
    assert "grown and proved before" in said.stdout
    assert "Seedling itself, trained further, ends at" in said.stdout
    assert (tmp_path / "small/report.html").stat().st_size > 50_000
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "small/runs/runs").glob("*/metrics.jsonl")}
    assert len(before) == len(config_file.read(demo.DATA / "demo.toml").arms)
    again = call(*arguments, **environment)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
