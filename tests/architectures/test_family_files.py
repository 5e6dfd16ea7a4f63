"""A family file of the user's own: used everywhere, kept in the receipt, and never believed without a proof."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file, registry
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError, FamilyError, OptionError
from hyperclone.hf import tiny_models
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.planning import planner
from hyperclone.proof import behavioral, family_validation
from tests.helpers.command import call
from tests.helpers.models import build
from tests.proof.test_proof import logits_of

ModelDir = Callable[..., Path]


def shipped(name: str) -> str:
    return resources.files("hyperclone.architectures").joinpath(f"families/{name}.toml").read_text("utf-8")


KEY_HEADS = 'k_proj.weight"           = "(kv_heads head_dim)'
WRONG = shipped("llama").replace(KEY_HEADS, KEY_HEADS.replace("kv_heads head_dim", "head_dim kv_heads"))


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """hyperclone knows no architecture at all."""
    monkeypatch.setattr(registry, "shipped", lambda model_type: None)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(shipped("llama"))
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """Key heads flattened the other way round: every size agrees, heads are mixed."""
    path = tmp_path / "wrong.toml"
    path.write_text(WRONG)
    return path


@pytest.mark.usefixtures("unlisted")
def test_an_unlisted_model_is_planned_grown_verified_and_collapsed(
    toml: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir("llama-grouped-tied")
    with pytest.raises(FamilyError, match="family draft"):
        hyperclone.plan(source, Growth(width=2))
    plan = hyperclone.plan(source, Growth(width=2), family=toml)
    assert any("tiny random instance" in note for note in plan.notes)
    done = hyperclone.grow(source, tmp_path / "grown", Growth(width=2), family=toml)
    assert done.proof is not None
    assert any("mine.toml" in note for note in done.proof.notes)
    ids = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(1))
    before, after = logits_of(source, ids), logits_of(tmp_path / "grown", ids)
    assert (after - before).norm() / before.norm() < 2e-6
    toml.unlink()  # the directory alone is enough from here on
    verified = hyperclone.verify(source, tmp_path / "grown")
    assert verified.passed
    assert any("receipt" in note for note in verified.summary()["notes"])
    collapsed = hyperclone.collapse(tmp_path / "grown", tmp_path / "again")
    assert collapsed.exact
    one, two = load_file(source / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.slow
def test_the_receipt_holds_the_file_and_no_path_on_disk(toml: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(ffn="2x"), family=toml)
    content = json.loads((tmp_path / "grown/hyperclone.json").read_text())
    assert content["family"] == {"file": "mine.toml", "text": shipped("llama")}
    assert str(tmp_path) not in json.dumps(content)
    assert "mine.toml" in (tmp_path / "grown/README.md").read_text()
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "built-in", Growth(ffn="2x"), proof="structural")
    assert json.loads((tmp_path / "built-in/hyperclone.json").read_text())["family"] is None


@pytest.mark.parametrize("proof", ["full", "structural"])
def test_a_wrong_file_is_refused_before_anything_is_written(
    proof: Literal["full", "structural"], wrong: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    assert wrong.read_text() != shipped("llama")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(family_validation.FamilyValidationFailed, match="nothing was written") as caught:
        hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), family=wrong, proof=proof)
    assert caught.value.proof.structure.passed  # the weights are where the file says; it says wrong
    assert any("random tokens" in failure for failure in caught.value.proof.failures)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(family_validation.FamilyValidationFailed):
        hyperclone.grow_model(build("llama-grouped-tied"), Growth(width=2), family=wrong)


def test_a_file_that_is_wrong_about_heads_may_still_grow_the_feed_forward_part(
    wrong: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    """The trial grows what is asked for, so it judges the lines that matter."""
    assert hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(ffn="2x"), family=wrong).proof


def test_without_a_proof_a_users_file_is_not_used(toml: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="proof"):
        hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), family=toml, proof="none")


def test_where_the_real_logits_do_not_fit_into_memory_the_tiny_proof_stands_and_is_named(
    toml: Path, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1e12, 1e6])  # for the tiny instance, then for the model itself
    monkeypatch.setattr(behavioral, "available_memory", lambda: next(free))
    done = hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), family=toml)
    assert done.proof is not None
    assert done.proof.behavior is not None
    assert "memory" in done.proof.behavior.skipped[0]
    assert any("tiny random instance" in note for note in done.proof.notes)


def test_a_trial_that_could_not_run_the_logits_is_no_proof(
    toml: Path, model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behavioral, "available_memory", lambda: 1e6)
    with pytest.raises(FamilyError, match="could not be proved"):
        hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", Growth(width=2), family=toml)
    assert not (tmp_path / "grown").exists()


# --- Receipts are not believed


@pytest.fixture(scope="module")
def grown_once(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grown-with-a-file")
    (directory / "mine.toml").write_text(shipped("llama"))
    source = model_dir("llama-grouped-tied")
    hyperclone.grow(source, directory / "grown", Growth(width=2), family=directory / "mine.toml", proof="structural")
    return directory / "grown"


@pytest.fixture
def grown(grown_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown_once, tmp_path / "grown"))


def put(directory: Path, text: Any) -> None:
    content = json.loads((directory / receipt.FILE).read_text())
    content["family"] = text
    (directory / receipt.FILE).write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("proof", ["full", "structural"])
def test_a_receipt_with_a_wrong_family_fails(
    proof: Literal["full", "structural"], grown: Path, model_dir: ModelDir
) -> None:
    put(grown, {"file": "mine.toml", "text": WRONG})
    result = hyperclone.verify(model_dir("llama-grouped-tied"), grown, proof=proof)
    assert not result.passed
    assert any("failed its proof on a tiny random instance" in failure for failure in result.failures)


@pytest.mark.slow
def test_a_file_given_to_verify_goes_before_the_receipts(grown: Path, wrong: Path, model_dir: ModelDir) -> None:
    source = model_dir("llama-grouped-tied")
    assert not hyperclone.verify(source, grown, family=wrong, proof="structural").passed
    put(grown, {"file": "mine.toml", "text": WRONG})
    (wrong.parent / "right.toml").write_text(shipped("llama"))
    result = hyperclone.verify(source, grown, family=wrong.parent / "right.toml", proof="structural")
    assert result.passed
    assert not any("receipt" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"file": "mine.toml", "text": "model_types = ["}, "TOML"),
        ({"file": "mine.toml"}, "incomplete"),
        ({"file": "mine.toml", "text": 7}, "TOML"),
        ("mine", "incomplete"),
    ],
    ids=str,
)
def test_a_receipt_with_no_sound_family_is_refused(text: Any, words: str, grown: Path, model_dir: ModelDir) -> None:
    put(grown, text)
    with pytest.raises((FamilyError, CheckpointError), match=words):
        hyperclone.verify(model_dir("llama-grouped-tied"), grown)


# --- Which file is used


def test_a_users_file_goes_before_the_one_that_ships(toml: Path, model_dir: ModelDir) -> None:
    toml.write_text(shipped("llama").replace('"model.norm.weight"', '"model.other.weight"'))
    with pytest.raises(CheckpointError, match="not part of this architecture") as caught:
        hyperclone.plan(model_dir("llama-grouped-untied"), Growth(width=2), family=toml)
    assert str(toml) in caught.value.details["expected"]


def test_a_file_for_another_model_type_is_refused(toml: Path, model_dir: ModelDir) -> None:
    with pytest.raises(FamilyError, match="not for this model") as caught:
        hyperclone.plan(model_dir("opt"), Growth(width=2), family=toml)
    assert caught.value.details["expected"] == "opt"


def test_names_without_prefix_are_those_of_the_users_file(model_dir: ModelDir, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(shipped("llama").replace("[axes]", '[axes]\nspare = "hidden_size"'))
    (tmp_path / "prefixed.toml").write_text(shipped("llama").replace('prefix = "model."', 'prefix = "base."'))
    mine = Checkpoint.open(model_dir("llama-grouped-tied"), family=family_file.read(tmp_path / "mine.toml"))
    assert "model.norm.weight" in mine.entries
    prefixed = Checkpoint.open(model_dir("llama-grouped-tied"), family=family_file.read(tmp_path / "prefixed.toml"))
    assert "model.norm.weight" in prefixed.entries  # a line of the file has it as it is


def test_another_text_is_another_growth(toml: Path, model_dir: ModelDir) -> None:
    """What an interrupted run has begun is not continued with another family file."""
    source = model_dir("llama-grouped-tied")
    one = hyperclone.plan(source, Growth(width=2), family=toml).fingerprint
    toml.write_text("# changed\n" + shipped("llama"))
    assert hyperclone.plan(source, Growth(width=2), family=toml).fingerprint != one


@pytest.mark.slow
def test_in_memory_and_on_disk_give_the_same_bytes(toml: Path, model_dir: ModelDir, tmp_path: Path) -> None:
    hyperclone.grow_model(build("llama-grouped-tied"), Growth(width=2), family=toml).save_pretrained(
        tmp_path / "memory"
    )
    hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "disk", Growth(width=2), family=toml)
    one, two = (load_file(tmp_path / side / "model.safetensors") for side in ("memory", "disk"))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


# --- The tiny instance


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name",
    ["gpt2-tied", "gptj-tied", "opt-projected-post-norm", "qwen3-moe", "cohere2", "falcon-40b", "glm4-grouped-untied"],
)
def test_a_tiny_instance_of_any_family_grows_and_passes(name: str, model_dir: ModelDir) -> None:
    plan = planner.make_plan(Checkpoint.open(model_dir(name)), Growth(width=2, allow_rounding=True))
    assert family_validation.prove_tiny(plan).passed


def test_a_tiny_instance_has_small_sizes_every_kind_of_layer_and_the_models_own_flags() -> None:
    config: dict[str, Any] = {
        "model_type": "exaone4", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 102400, "sliding_window": 4096,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 8,
        "eos_token_id": 102399, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    exaone = registry.families()["exaone4"]
    small = next(tiny_models.small_configs(config, exaone))
    assert exaone.sizes(small) == {
        "hidden": 32, "ffn": 48, "kv_heads": 2, "group": 2, "head_dim": 8, "vocab": 304,
    }  # fmt: skip
    assert small["layer_types"] == config["layer_types"][:4]  # the first that has both kinds
    assert small["num_hidden_layers"] == 4
    assert small["sliding_window"] < 16
    assert 0 <= small["eos_token_id"] < 304
    assert small["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize(
    ("asked", "tiny_growth"),
    [
        ({"width": 2}, {"hidden": "2x", "ffn": "2x", "heads": "2x", "kv_heads": "2x"}),
        ({"hidden": 80, "ffn": 50}, {"hidden": "1.5x", "ffn": "1.5x", "heads": "1x", "kv_heads": "1x"}),
        ({"heads": "2x", "kv_heads": "1x"}, {"hidden": "1x", "ffn": "1x", "heads": "2x", "kv_heads": "1x"}),
        ({"layers": 5}, {"hidden": "1x", "ffn": "1x", "heads": "1x", "kv_heads": "1x", "layers": "2x"}),
    ],
    ids=str,
)
def test_the_trial_grows_what_is_asked_for(
    asked: dict[str, Any], tiny_growth: dict[str, str], model_dir: ModelDir
) -> None:
    request = Growth(**asked, expansion="diagonal", seed=3, dtype="fp32", allow_rounding=True)
    found = family_validation.tiny_growth(hyperclone.plan(model_dir("llama-grouped-untied"), request))
    assert {key: getattr(found, key) for key in tiny_growth} == tiny_growth
    assert (found.expansion, found.seed, found.dtype) == ("diagonal", 3, None)


@pytest.mark.slow
def test_stacked_layers_are_left_out_of_the_trial_so_that_logits_can_be_judged(
    wrong: Path, toml: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    stack = Growth(width=2, layers="2x", depth_mode="stack")
    with pytest.raises(family_validation.FamilyValidationFailed):
        hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", stack, family=wrong)
    assert hyperclone.grow(model_dir("llama-grouped-tied"), tmp_path / "grown", stack, family=toml).proof


# --- The command line


@pytest.mark.slow
def test_the_command_line_uses_the_file_and_says_so(
    toml: Path, wrong: Path, model_dir: ModelDir, tmp_path: Path
) -> None:
    source = model_dir("llama-grouped-tied")
    done = call("grow", source, tmp_path / "grown", "--width", "2", "--family", toml)
    assert done.returncode == 0, done.stderr
    assert "mine.toml" in done.stdout
    verified = call("verify", source, tmp_path / "grown", "--proof", "structural", "--json")
    assert verified.returncode == 0, verified.stderr
    assert len(json.loads(verified.stdout)["notes"]) == 2
    failed = call("grow", source, tmp_path / "other", "--width", "2", "--family", wrong)
    assert failed.returncode == 1
    assert "nothing was written" in failed.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", [None, "model_types = [", "layers = 3", "\x00"], ids=repr)
def test_a_file_that_is_none_is_refused_without_a_traceback(
    text: str | None, model_dir: ModelDir, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    result = call("plan", model_dir("llama-grouped-tied"), "--width", "2", "--family", tmp_path / "mine.toml")
    assert result.returncode == 2
    assert "mine.toml" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plan_with_a_users_file_starts_without_torch(toml: Path, model_dir: ModelDir) -> None:
    script = (
        "import sys\nfrom hyperclone.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["plan", str(model_dir("llama-grouped-tied")), "--width", "2", "--family", str(toml)]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "[]"
    assert "hidden size" in result.stdout
