"""Training in several processes: they have the curve of a single one, with whole models or shards, and resumed on
others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone.errors import TrainingError
from hyperclone.evaluation import wheel_data
from hyperclone.optimizer_state import distributed
from hyperclone.training import metrics
from tests.helpers import launch_on_cpu, models
from tests.helpers.training_text import documents, jsonl

pytestmark = pytest.mark.slow

STEPS = 10
MIXTURE = {"text.jsonl": 0.6, "more.jsonl": 0.4}
OPTIONS: dict[str, Any] = {
    "seq_len": 32,
    "batch_tokens": 256,
    "micro_batch": 2,
    "tokens": 256 * STEPS,
    "lr": 3e-3,
    "optimizer": "adamw",
    "held_out": 0.1,  # 33 windows: the last batch of two processes has one, and three that fill it up
    "log_every": 1,
    "eval_every": 5,
    "save_every": 5,
    "keep": 0,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a grown model, text, and the run of a single process."""
    directory = tmp_path_factory.mktemp("runs")
    models.build("llama-grouped-tied").save_pretrained(directory / "source")
    models.save_tokenizer(directory / "source")
    hyperclone.grow(directory / "source", directory / "grown", hyperclone.Growth(width=2), proof="none")
    texts = documents(60)
    jsonl(directory / "text.jsonl", texts[:40])
    jsonl(directory / "more.jsonl", texts[40:])
    train_here(directory, "one")
    return directory


def train_here(directory: Path, output: str, **options: Any) -> None:
    """A run of a single process: this one."""
    hyperclone.train(
        hyperclone.Training(
            model=str(directory / "grown"),
            data=[f"{directory / name}={weight}" for name, weight in MIXTURE.items()],
            output=str(directory / output),
            cache=str(directory / "cache"),
            anatomy=True,
            **{**OPTIONS, **options},
        )
    )


def command(directory: Path, output: str, *more: str) -> list[str]:
    """The training that `train_here` does, as a command."""
    options = [part for name, value in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    paths = [("--data", f"{name}={weight}") for name, weight in MIXTURE.items()]
    paths += [("--output", output), ("--cache", "cache")]
    where = [part for option, name in paths for part in (option, str(directory / name))]
    return ["train", str(directory / "grown"), *where, *options, "--anatomy", *more]


def launch(*target: str, processes: int) -> str:
    """torchrun with a module or file and its arguments; returns what it says on standard error and output."""
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *how, *target], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stderr + result.stdout


IN_COPIES: dict[str, dict[str, Any]] = {
    name: {"optimizer": name, "difference_lr": 6e-3} for name in ("rotated", "muon")
}


@pytest.fixture(scope="module")
def sharded(runs: Path) -> str:
    """Sharded runs beside the others: "shards", "rotated-shards" and "muon-shards" of two processes, each then resumed
    from half of it as "...-resumed" by one process, which reduces gradients only. Returns what the resumed ones say.
    """
    arms: dict[str, list[str]] = {"shards": []}
    for name in IN_COPIES:
        arms[f"{name}-shards"] = ["--optimizer", name, "--difference-lr", "6e-3"]
    file = str(Path(launch_on_cpu.__file__))
    launch(file, *one_after_another([command(runs, output, *more, "--sharding", "full")
                                     for output, more in arms.items()]), processes=2)  # fmt: skip
    for output in arms:
        shutil.copytree(runs / output, runs / f"{output}-resumed")
        shutil.rmtree(runs / f"{output}-resumed/checkpoint-10")
        (runs / f"{output}-resumed/model.safetensors").unlink()
    rest = [command(runs, f"{output}-resumed", *more, "--sharding", "gradients", "--resume")
            for output, more in arms.items()]  # fmt: skip
    return launch(file, *one_after_another(rest), processes=1)


def one_after_another(commands: list[list[str]]) -> list[str]:
    """Commands as `launch_on_cpu` takes them."""
    return [word for one in commands for word in ("+", *one)][1:]


def check_equal(directory: Path, output: str, reference: str = "one") -> None:
    """Losses of every step, gradients' norms, held-out losses and weights, to 1e-5; the copies' symmetry as well."""
    for figure in ("loss", "grad_norm", "eval_loss"):
        one, other = (
            [line[figure] for line in metrics.read(directory / name) if figure in line] for name in (reference, output)
        )
        assert other == pytest.approx(one, abs=1e-5), figure
    one, other = (
        [line for line in metrics.read(directory / name) if "anatomy" in line] for name in (reference, output)
    )
    assert [line["step"] for line in other] == [line["step"] for line in one] == [0, 5, STEPS]
    for mine, whole in zip(other, one, strict=True):
        assert mine["anatomy"] == pytest.approx(whole["anatomy"], rel=1e-4)
    whole, mine = (
        load_file(directory / reference / "model.safetensors"),
        load_file(directory / output / "model.safetensors"),
    )
    assert whole.keys() == mine.keys()
    for name in whole:
        assert torch.allclose(mine[name], whole[name], atol=1e-4), name
    plain, sharded = ({file.name for file in (directory / name).iterdir()} for name in (reference, output))
    assert sharded == plain


def test_streamed_text_is_read_by_one_process_and_gives_the_same_curve(runs: Path) -> None:
    """Resumed by a single process as well, which goes on where two have stopped."""
    train_here(runs, "streamed", streaming=True, eval_data=str(runs / "text.jsonl"))
    launch("-m", "hyperclone", *command(runs, "two-streamed", "--streaming", "--eval-data", str(runs / "text.jsonl")),
           processes=2)  # fmt: skip
    check_equal(runs, "two-streamed", "streamed")
    shutil.rmtree(runs / "two-streamed/checkpoint-10")
    (runs / "two-streamed/model.safetensors").unlink()
    train_here(runs, "two-streamed", streaming=True, eval_data=str(runs / "text.jsonl"), resume=True)
    check_equal(runs, "two-streamed", "streamed")


def test_two_processes_have_the_curve_of_one(runs: Path) -> None:
    said = launch("-m", "hyperclone", *command(runs, "two"), processes=2)
    assert said.count("Trained on") == 1
    assert "2 processes x 2 x 2" in said
    check_equal(runs, "two")


def test_shards_have_the_same_curve_and_are_resumed_on_another_number_of_processes(runs: Path, sharded: str) -> None:
    check_equal(runs, "shards")
    state = distributed.DistributedState(runs / "shards/checkpoint-10/optimizer_0")  # all moments, by their names
    whole = torch.load(runs / "one/checkpoint-10/optimizer.pt", weights_only=True)
    groups = whole["param_groups"]
    assert len({group["lr_scale"] for group in groups}) > 1  # the scaling rule's groups are what was sharded
    for group in groups:
        for key, name in zip(group["params"], group["param_names"], strict=True):
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.allclose(state.tensor(name, kind), whole["state"][key][kind], atol=1e-5), name
    assert sharded.count("resumes from step 5") == 1 + len(IN_COPIES)
    check_equal(runs, "shards-resumed")


@pytest.mark.usefixtures("sharded")
def test_a_sharded_checkpoint_is_not_resumed_as_a_whole_one(runs: Path) -> None:
    with pytest.raises(TrainingError, match="sharded and whole checkpoints cannot be resumed as each other"):
        train_here(runs, "shards", resume=True)


@pytest.mark.usefixtures("sharded")
@pytest.mark.parametrize("name", IN_COPIES)
def test_optimizers_of_copies_have_the_same_curve_when_these_lie_on_different_machines(runs: Path, name: str) -> None:
    """To 1e-3: where copies have equal gradients, rounding decides in which direction a first step moves each."""

    def curve(output: str, figure: str = "loss") -> list[float]:
        return [line[figure] for line in metrics.read(runs / output) if figure in line]

    train_here(runs, name, **IN_COPIES[name])
    assert max(abs(a - b) for a, b in zip(curve(name), curve("one"), strict=True)) > 0.03
    assert curve(f"{name}-shards") == pytest.approx(curve(name), abs=1e-3)
    assert curve(f"{name}-shards", "eval_loss") == pytest.approx(curve(name, "eval_loss"), abs=1e-3)
    assert curve(f"{name}-shards-resumed") == pytest.approx(curve(f"{name}-shards"), abs=1e-3)


def test_tasks_have_the_figures_of_one_process(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from tests.evaluation.test_evaluation import write_wheel

    monkeypatch.setenv(wheel_data.VARIABLE, str(write_wheel(tmp_path)))
    tasks, more = ["lambada_openai", "piqa", "arc_easy"], {"tokens": 256 * 5}
    train_here(runs, "tasks", tasks=tasks, **more)
    options = ["--tasks", ",".join(tasks), "--tokens", str(more["tokens"])]
    said = launch("-m", "hyperclone", *command(runs, "tasks-ddp", *options), processes=2)
    assert said.count("Running loglikelihood requests: 100%") == 2  # one bar at the start and one at the end
    launch(str(Path(launch_on_cpu.__file__)),
           *one_after_another([command(runs, f"tasks-{sharding}", *options, "--sharding", sharding)
                               for sharding in ("full", "gradients")]), processes=2)  # fmt: skip
    figures = {
        name: [(line["step"], line["tasks"]) for line in metrics.read(runs / name) if "tasks" in line]
        for name in ("tasks", "tasks-ddp", "tasks-full", "tasks-gradients")
    }
    whole = figures["tasks"]
    assert [step for step, _ in whole] == [0, 5]
    assert whole[0][1]["lambada_openai"]["perplexity"] != whole[1][1]["lambada_openai"]["perplexity"]
    for name, found in figures.items():
        assert [step for step, _ in found] == [0, 5]
        for task in tasks:
            # The same weights, which lie elsewhere in memory; then trained ones, which differ by rounding.
            assert found[0][1][task] == pytest.approx(whole[0][1][task], rel=1e-5), (name, task)
            assert found[1][1][task] == pytest.approx(whole[1][1][task], rel=1e-3), (name, task)


@pytest.mark.parametrize(("name", "reshard"), [("full", True), ("gradients", False)])
def test_the_shipped_accelerate_configs_say_fsdp2(name: str, reshard: bool) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = resources.files("hyperclone.training").joinpath(f"accelerate/fsdp2-{name}.yaml")
    config = load_config_from_file(str(file))
    assert str(config.distributed_type).endswith("FSDP")
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_reshard_after_forward"] is reshard
    assert config.fsdp_config["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"
