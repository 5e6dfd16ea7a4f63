"""The command as a user runs it: output, exit codes, and what it must never do."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer.main
from rich.console import Console
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.cli.arguments import say_error
from hyperclone.cli.display import plan_and_proof
from hyperclone.cli.main import app
from hyperclone.cli.terminal import wrapped
from hyperclone.conversion import receipt
from hyperclone.errors import GrowthError
from hyperclone.optimizer_state.moments import Treatment
from hyperclone.options import flags
from hyperclone.planning import planner
from hyperclone.planning.recipe import OutputDtype
from hyperclone.proof.proof import ProofKind, ProofToRun
from hyperclone.training.config import Training
from tests.helpers.command import call, run
from tests.helpers.headers import headers

ModelDir = Callable[..., Path]


@pytest.mark.slow
def test_grow_verify_collapse_from_the_command_line(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    grow = run("grow", source, tmp_path / "grown", "--width", "2")
    assert grow.returncode == 0, grow.stderr
    for words in ("hidden size", "64", "PROVED", "20 of 20 tensors", "real text, fp32", "Greedy continuation", "Wrote"):
        assert words in grow.stdout
    verify = call("verify", source, tmp_path / "grown", "--json")
    assert verify.returncode == 0, verify.stderr
    assert json.loads(verify.stdout)["passed"] is True
    collapse = call("collapse", tmp_path / "grown", tmp_path / "again")
    assert collapse.returncode == 0, collapse.stderr
    assert "every tensor has the hash" in collapse.stdout


@pytest.mark.slow
def test_a_failed_proof_exits_with_1_and_names_the_tensor(model_dir: ModelDir, tmp_path: Path) -> None:
    source = model_dir("opt")
    assert call("grow", source, tmp_path / "grown", "--width", "2", "--proof", "none").returncode == 0
    tensors = load_file(tmp_path / "grown/model.safetensors")
    tensors["model.decoder.layers.1.fc2.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "grown/model.safetensors", {"format": "pt"})
    verify = run("verify", source, tmp_path / "grown", "--proof", "structural")
    assert verify.returncode == 1
    assert "FAILED" in verify.stdout
    assert "model.decoder.layers.1.fc2.weight" in verify.stdout
    as_json = call("verify", source, tmp_path / "grown", "--proof", "structural", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "nowhere-at-all/x", "--width", "2"], ["nowhere-at-all/x", "cure"]),
        (["plan", "./nowhere", "--width", "2"], ["no such directory"]),
        (["plan", "SRC"], ["nothing to grow", "--width 2"]),
        (["plan", "SRC", "--width", "1.3"], ["hidden", "41.6", "41 or 42"]),
        (["plan", "SRC", "--hidden", "33"], ["head_dim"]),
        (["plan", "SRC", "--width", "2", "--expansion", "diagnal"], ["expansion", "diagnal", "diagonal"]),
        (["plan", "SRC", "--width", "2", "--noise", "loud"], ["noise", "loud", "split"]),
        (["plan", "SRC", "--width", "2", "--dtype", "int8"], ["dtype", "int8", "bf16"]),
        (["plan", "SRC", "--width", "2", "--shard-size", "big"], ["shard_size", "big", "5GB"]),
        (["plan", "SRC", "--widht", "2"], ["--widht"]),
        (["grow", "SRC", "DST", "--width", "2", "--threads", "0"], ["threads"]),
        (["grow", "SRC", "DST", "--width", "2", "--proof", "maybe"], ["proof", "maybe", "structural"]),
        (["grow", "SRC", "SRC", "--width", "2"], ["destination is the source"]),
        (["verify", "SRC", "SRC", "--proof", "none"], ["proof"]),
        (["collapse", "SRC", "DST"], ["receipt"]),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else None,
)
def test_what_is_impossible_exits_with_2_and_one_message(
    arguments: list[str], words: list[str], model_dir: ModelDir, tmp_path: Path
) -> None:
    paths = {"SRC": str(model_dir("opt")), "DST": str(tmp_path / "dst")}
    result = call(*[paths.get(a, a) for a in arguments])
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "dst").exists()


def test_dry_run_shows_the_plan_and_writes_nothing(model_dir: ModelDir, tmp_path: Path) -> None:
    result = call("grow", model_dir("opt"), tmp_path / "grown", "--width", "2", "--dry-run")
    assert result.returncode == 0
    assert "hidden size" in result.stdout
    assert "Not there yet" not in result.stdout
    deep = call("grow", model_dir("opt"), tmp_path / "new/er/grown", "--width", "2", "--dry-run").stdout
    assert f"Not there yet, and made with grown: {tmp_path}/new, {tmp_path}/new/er\n" in deep
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [("--experts", "4", "--untie"), ("--hidden", "2", "--ffn", "1x")], ids=" ".join)
def test_a_plans_table_explains_its_words_and_shortens_every_name_alike(
    options: tuple[str, ...], model_dir: ModelDir
) -> None:
    out = call("plan", model_dir("llama-grouped-tied"), *options, *(["--width", "2"] if "--experts" in options else []))
    assert out.returncode == 0, out.stderr
    table, _, legend = out.stdout.partition("tensor: without .weight; {i}: model.layers.0, 1, ...")
    rows = [line.split() for line in table.split("layout")[1].splitlines() if line.strip()]
    assert not [row for row in rows if ".weight" in row[0] or row[0].startswith("model.layers")]
    words = {word for row in rows for word in row[1:3] if word in ("repeat", "same", "random") or word.startswith("1/")}
    assert words
    for word in words:
        assert f"{'1/n' if word.startswith('1/') else word}:" in legend
    for word in {"repeat", "same", "random", "1/n"} - {"1/n" if word.startswith("1/") else word for word in words}:
        assert f"{word}:" not in legend


def test_a_locked_clone_is_announced(model_dir: ModelDir) -> None:
    result = call("plan", model_dir("llama-grouped-tied"), "--width", "2", "--noise", "none")
    assert "WARNING: The copies will never diverge" in result.stdout


def test_plan_as_json_is_the_whole_plan(model_dir: ModelDir) -> None:
    plan = json.loads(call("plan", model_dir("neox-parallel"), "--width", "3", "--json").stdout)
    assert plan["sizes"]["hidden"] == [32, 96]
    (head,) = [t for t in plan["tensors"] if t["name"] == "embed_out.weight"]
    assert (head["shape"], head["layout"], head["lr"]) == ([300, 96], "vocab <- hidden", pytest.approx(1 / 3))


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["grow", "--help"], ["--version"]], ids=str)
def test_help_is_instant_because_nothing_heavy_is_imported(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom hyperclone.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "[]"
    assert result.stdout


@pytest.mark.parametrize("command", ["plan", "groups"])
def test_plan_and_groups_import_neither_torch_nor_transformers(
    command: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    script = (
        "import sys\nfrom hyperclone.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    plan = planner.make_plan(headers("opt"), Growth(width=2))
    (tmp_path / "hyperclone.json").write_text(json.dumps(receipt.make_receipt(plan, "opt", None, files={})))
    arguments = {"plan": [str(model_dir("opt")), "--width", "2"], "groups": [str(tmp_path)]}[command]
    words = [sys.executable, "-c", script, command, *arguments]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "[]"
    assert {"plan": "hidden size", "groups": "copies interleaved"}[command] in result.stdout


def test_a_reader_that_leaves_is_no_error(model_dir: ModelDir) -> None:
    command = (
        f"{sys.executable} -c 'from hyperclone.cli.main import main; main()' plan {model_dir('opt')} --width 2 | true"
    )
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr


def test_the_grown_directory_is_plain_hugging_face_with_a_card_and_a_receipt(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir("llama-grouped-tied"), source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/small\n---\n# Small\n")
    (source / "LICENSE").write_text("Apache")
    (source / "generation_config.json").write_text('{"bos_token_id": 1}')
    (source / "optimizer.pt").write_bytes(b"training state stays behind")
    assert call("grow", source, tmp_path / "grown", "--width", "2").returncode == 0
    names = {p.name for p in (tmp_path / "grown").iterdir()}
    assert names == {
        "README.md", "LICENSE", "config.json", "generation_config.json", "hyperclone.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    card = (tmp_path / "grown/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model: someone/small" in card
    assert "bit for bit" in card
    assert str(tmp_path) not in card
    receipt = json.loads((tmp_path / "grown/hyperclone.json").read_text())
    assert str(tmp_path) not in json.dumps(receipt)
    assert receipt["source"] == "source"
    assert receipt["growth"]["width"] == "2"
    assert receipt["proof"]["passed"] is True
    assert receipt["versions"]["torch"]
    stored = load_file(tmp_path / "grown/model.safetensors")
    assert set(receipt["training"]["parameters"]) == set(receipt["sha256"]["output"]) == set(stored)
    assert receipt["training"]["parameters"]["model.norm.weight"]["lr"] == 0.5


# A flag that goes or changes its name breaks people's scripts: this list changes on purpose only.
FLAGS = {
    "plan": "--allow-rounding --depth-mode --dtype --expansion --experts --family --ffn --head-dim --heads --help "
    "--hidden --json --kv-heads --layers --multiple-of --noise --order --params --revision --seed --shard-size "
    "--snr-db --text-model --tokens --top-k --untie --width",
    "grow": "--allow-rounding --depth-mode --dry-run --dtype --expansion --experts --family --ffn --head-dim --heads "
    "--help --hidden --kv-heads --layers --moments --noise --optimizer-state --order --overwrite --proof --push-to-hub "
    "--revision --seed --shard-size --snr-db --text-model --threads --top-k --untie --width",
    "verify": "--allow-changed --family --help --json --proof --revision --threads",
    "collapse": "--help --shard-size --threads",
    "train": "--anatomy --attention --batch-tokens --beta1 --beta2 --branch-from --cache --compile --data --decay "
    "--difference-lr --documents --dry-run --eval-data --eval-early --eval-every --from-scratch --grow-at --grow-width "
    "--gradient-checkpointing --grown-moments --held-out --help --json --keep --log-every --lr --lr-rule "
    "--max-grad-norm --micro-batch --min-lr --momentum --optimizer --output --precision --push-to-hub --receipt "
    "--report-to "
    "--resume --sample-by --save-every --schedule --seed --seq-len --sharding --skip-tokens --source-lr --streaming "
    "--tasks --text-field --tokens --warmup --weight-decay",
    "groups": "--adamw-lr --adjust-lr-fn --decay-all --eps --help --json --lr --optimizer --weight-decay",
    "anatomy": "--activations --against --family --help --json --layers --output --revision --spectra --tensors",
    "eval": "--against --batch-size --data-wheel --device --dtype --help --hub --json --limit --revision --tasks",
    "families": "--coverage --help --json --markdown",
    "study": "--dry-run --help --jobs --output --source --threads",
    "report": "--control --figures --help --output",
    "demo": "--help --jobs --output --threads --tokens",
}


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_these(command: str) -> None:
    found = {opt for option in options_of(command) for opt in option.opts if opt.startswith("--")} | {"--help"}
    assert found == set(FLAGS[command].split())


@pytest.mark.parametrize("command", FLAGS)
def test_an_option_has_the_same_short_form_and_placeholder_in_every_command(command: str) -> None:
    placeholders = {"tokens": "COUNT", "params": "COUNT", "tasks": "NAME,...", "against": "SRC", "shard_size": "SIZE"}
    for option in options_of(command):
        if option.name == "output":
            assert set(option.opts) == {"--output", "-o"}
        if option.name in placeholders:
            assert option.metavar == placeholders[option.name]
        assert option.opts[0] not in ("--out", "--task", "--report")  # what they are called where they differ


def test_help_lists_the_words_that_an_option_takes() -> None:
    """A placeholder of words joined by | is what the request accepts; verify cannot run no proof."""
    metavar = {(command, option.name): option.metavar for command in FLAGS for option in options_of(command)}
    assert metavar["grow", "proof"] == "|".join(get_args(ProofKind))
    assert metavar["verify", "proof"] == "|".join(get_args(ProofToRun)) == "full|structural"
    assert metavar["grow", "moments"] == "|".join(get_args(Treatment))
    assert metavar["train", "grown_moments"] == "auto|none"
    assert metavar["eval", "dtype"] == "|".join(get_args(OutputDtype))
    assert metavar["anatomy", "spectra"] == "some|all|none"


def test_names_in_a_list_are_typed_with_commas_and_paths_by_repeating_the_option() -> None:
    asked = {"data": ["a, b.txt", "c.txt"], "tasks": ["piqa", "sciq"], "report_to": ["wandb"]}
    typed = flags(Training, asked)
    assert typed == ["--data", "a, b.txt", "--data", "c.txt", "--tasks", "piqa,sciq", "--report-to", "wandb"]
    training = Training(model="m", output="o", data="a, b.txt", tasks=" piqa,sciq, ", report_to="wandb")
    assert (training.data, training.tasks, training.report_to) == (("a, b.txt",), ("piqa", "sciq"), ("wandb",))
    assert Training(model="m", output="o", data=["a"]).tasks == ()


def options_of(command: str) -> list[Any]:
    """A command's arguments and options, as its parser has them."""
    group: Any = typer.main.get_command(app)
    return list(group.commands[command].params)


def test_bars_end_their_line_also_in_a_file() -> None:
    file = io.StringIO()
    with plan_and_proof.progress_bars(Console(file=file, width=80)) as show:
        show("write", 1, 2)
        show("write", 2, 2)
    assert "2/2" in file.getvalue()
    assert file.getvalue().endswith("\n")


@pytest.mark.parametrize(("done", "ends"), [(81_400_000_000, "left"), (162_800_000_000, "elapsed")])
def test_the_times_beside_bars_say_what_they_are_on_lines_of_80_columns(done: int, ends: str) -> None:
    file = io.StringIO()
    with plan_and_proof.progress_bars(Console(file=file, width=80)) as show:
        show("prove", 1, 162_800_000_000)
        time.sleep(0.01)
        show("prove", done, 162_800_000_000)
        show("compare", 1, 7)
    weights, logits = file.getvalue().splitlines()  # one line for each
    assert re.search(rf"\d:\d\d:\d\d {ends} *$", weights)
    assert re.search(r"1/7 steps +\d:\d\d:\d\d elapsed *$", logits)
    assert len(re.findall(r"\d:\d\d:\d\d", file.getvalue())) == 2


def test_an_error_is_wrapped_at_the_width_of_a_terminal_and_never_in_a_pipe(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_dir("llama-grouped-tied", dtype=torch.bfloat16)
    piped = call("plan", source, "--hidden", "48").stderr
    assert max(map(len, piped.splitlines())) > 150

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(GrowthError) as refused:
        hyperclone.plan(source, Growth(hidden=48))
    say_error(refused.value)
    shown = screen.getvalue()
    assert 80 < max(map(len, shown.splitlines())) <= 90
    assert shown.split() == piped.split()
    assert all(line.startswith(("hyperclone: ", "  ")) for line in shown.splitlines())
    assert wrapped("  file:     /" + "a" * 100, width=60).split()[-1] == "/" + "a" * 100  # a path stays whole
