"""The experiment in small: it runs from what ships, offline, to a report; and a second time without training again."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyperclone import demo, study
from hyperclone.errors import DestinationError
from hyperclone.training import metrics

SEEDLING = demo.DATA / "seedling"


def test_seedling_is_small_whole_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in SEEDLING.iterdir()) < 8e6
    card = (SEEDLING / "README.md").read_text()
    assert "public domain" in card
    assert "license: apache-2.0" in card
    lines = [line for line in metrics.read(SEEDLING) if "eval_loss" in line]
    assert lines[0]["eval_loss"] > 7 > 4 > lines[-1]["eval_loss"]  # from the logarithm of 2048 tokens down
    assert lines[-1]["tokens"] > 19e6


def test_seedlings_loss_on_its_held_out_text_is_the_one_on_record() -> None:
    """By stock transformers, on windows cut by hand; bf16 weights, so not to the last digit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    model = AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32)
    ids: list[int] = []
    with gzip.open(SEEDLING / "held_out.jsonl.gz", "rt") as text:
        for line in text:
            ids += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    windows = torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)
    with torch.inference_mode():
        losses = [float(model(input_ids=one[None], labels=one[None]).loss) for one in windows]
    recorded = [line["eval_loss"] for line in metrics.read(SEEDLING) if "eval_loss" in line][-1]
    assert sum(losses) / len(losses) == pytest.approx(recorded, abs=0.01)


def test_the_demonstration_trains_its_arms_on_equal_tokens() -> None:
    told = demo.request("30k")
    assert {arm.train["tokens"] for arm in told.arms.values()} == {30_000}
    assert {tuple(arm.train["data"]) for arm in told.arms.values()} == {(str(SEEDLING / "train.jsonl.gz"),)}
    assert told.control == "random"


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DestinationError):
        demo.prepare(tmp_path)


def test_it_runs_offline_to_a_report_and_reuses_what_is_done(tmp_path: Path) -> None:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HYPERCLONE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "COLUMNS": "100",
    }  # fmt: skip
    command = [sys.executable, "-m", "hyperclone", "demo", "--output", "small", "--tokens", "8k", "--jobs", "2"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert said.returncode == 0, said.stderr
    assert "PROVED" in said.stdout
    assert "Random weights end at" in said.stdout
    assert (tmp_path / "small/report.html").stat().st_size > 50_000
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "small/runs/runs").glob("*/metrics.jsonl")}
    assert len(before) == len(study.read(demo.DATA / "demo.toml").arms)
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
