"""What a source names: a directory by any of its names, a folder of the Hub's cache, or a Hub id that is asked for."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import hyperclone
from hyperclone import Growth
from hyperclone.architectures import family_file
from hyperclone.cli import main
from hyperclone.errors import CheckpointError, HypercloneError
from hyperclone.io import hub
from tests.helpers.edits import edit_json

ModelDir = Callable[..., Path]
NAME, TWICE = "llama-grouped-tied", Growth(width=2)
COMMITS = ("0123456789" * 4, "9876543210" * 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the Hub is asked for; it must be nothing where a source is a path."""
    asked: list[str] = []

    def refuse(what: str, *_: object, **__: object) -> None:
        asked.append(what)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", lambda self, what, **_: refuse(what))
    return asked


@pytest.fixture
def folder(model_dir: ModelDir, tmp_path: Path) -> Path:
    """A folder of a Hub cache with two snapshots, the second of which is main."""
    folder = tmp_path / "hub/models--org--tiny-llama"
    for commit in COMMITS:
        shutil.copytree(model_dir(NAME), folder / "snapshots" / commit)
    edit_json(folder / "snapshots" / COMMITS[1] / "config.json", bos_token_id=7)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMITS[1])
    return folder


@pytest.mark.parametrize("below", ["", "snapshots", f"snapshots/{COMMITS[1]}"])
def test_a_folder_of_the_hub_cache_stands_for_its_main_snapshot(below: str, folder: Path) -> None:
    source = folder / below
    assert hyperclone.plan(source, TWICE).source_config["bos_token_id"] == 7
    assert hub.config(source)["bos_token_id"] == 7
    assert hub.resolve(str(source)) == folder / "snapshots" / COMMITS[1]
    assert hub.public_name(source) == "org/tiny-llama"
    assert hub.on_hub(source)


def test_a_revision_of_a_folder_of_the_hub_cache_is_a_reference_or_a_commit(folder: Path) -> None:
    (folder / "refs/old").write_text(COMMITS[0])
    for revision in ("old", COMMITS[0]):
        assert hub.resolve(folder, revision=revision).name == COMMITS[0]
    with pytest.raises(CheckpointError, match=f"no such snapshot(.|\n)*{COMMITS[0]}, {COMMITS[1]}"):
        hub.resolve(folder, revision="../../elsewhere")


def test_without_a_main_reference_the_only_snapshot_is_taken_and_several_are_refused(folder: Path) -> None:
    (folder / "refs/main").unlink()
    with pytest.raises(CheckpointError, match=f"no main snapshot(.|\n)*{COMMITS[0]}, {COMMITS[1]}") as caught:
        hub.resolve(folder)
    assert hub.resolve(caught.value.details["cure"].removeprefix("name one of them: ")).name == COMMITS[0]
    shutil.rmtree(folder / "snapshots" / COMMITS[0])
    assert hub.resolve(folder).name == COMMITS[1]


@pytest.mark.parametrize(
    "source",
    [
        "./smol",
        "../smol",
        ".",
        "/nowhere/smol",
        "~/no-such-model-here",
        "a/b/c",
        r"models\smol",
        "here/smol",
        "a b",
        "",
    ],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    source: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for call in (lambda: hyperclone.plan(source, TWICE), lambda: hub.config(source)):
        with pytest.raises(CheckpointError):
            call()
    assert asked == []
    with pytest.raises(CheckpointError):
        hyperclone.plan(Path("org/model"), TWICE)  # a path by its type
    assert asked == []


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/org/model", "https://hf.co/org/model/tree/main", "hf://org/model"]
)
def test_an_address_is_answered_with_the_hub_id_in_it(address: str, asked: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"cure: +give org/model$"):
        hyperclone.plan(address, TWICE)
    assert asked == []


@pytest.mark.parametrize("source", ["gpt2", "org/model"])
def test_other_names_are_asked_of_the_hub(source: str, asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a local directory nor an accessible model"):
        hyperclone.plan(source, TWICE)
    assert asked


@pytest.mark.parametrize(
    ("spelled", "right"),
    [
        ("models/smollm3", "models/smollm2"),
        ("smolm", "smollm"),
        ("modles/smollm2", "models/smollm2"),
        ("./modles/smolm2", "models/smollm2"),
        ("MODELS/deep/Lama", "models/deep/llama"),
        ("models/deep/LLAMA", "models/deep/llama"),
        ("SMOLLM", "smollm"),
        ("modles/deeep/llama", "models/deep/llama"),
    ],
)
def test_a_typo_is_answered_with_what_is_there(
    spelled: str, right: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models/smollm2", "models/deep/llama", "smollm", "else"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (spelled, f"{tmp_path}/{spelled}"):
        expected = right if source is spelled else f"{tmp_path}/{right}"
        with pytest.raises(CheckpointError) as caught:
            hyperclone.plan(source, TWICE)
        assert caught.value.details["cure"] == f"did you mean {expected}?"
    with pytest.raises(CheckpointError) as caught:
        hyperclone.plan("./nothing/like/it", TWICE)
    assert "did you mean" not in str(caught.value)


def test_a_tilde_is_the_home_directory_in_every_path(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_dir(NAME), tmp_path / "source")
    hyperclone.plan("~/source", TWICE)
    assert hyperclone.grow("~/source", "~/grown", TWICE, proof="structural").path == tmp_path / "grown"
    assert hyperclone.verify("~/source", "~/grown", proof="structural").passed
    assert hyperclone.collapse("~/grown", "~/collapsed").path == tmp_path / "collapsed"
    (tmp_path / "bad.toml").write_text("x = 1")
    with pytest.raises(HypercloneError, match=r"~/bad\.toml"):
        family_file.read("~/bad.toml")
    assert not (tmp_path / "~").exists()


def test_a_tilde_is_expanded_in_every_word_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["~/a", "--output=~/b", "--width=2", "-o", "~", "a~b", "--text=a=~/b", "~nobody-of-this-name/x"]
    expected = [f"{tmp_path}/a", f"--output={tmp_path}/b", *words[2:4], str(tmp_path), *words[5:]]
    assert [main._expanded(word) for word in words] == expected


@pytest.mark.parametrize("failure", ["no network", "out of order"])
def test_without_the_hub_a_cached_model_is_taken_with_a_note_and_another_is_refused_at_once(
    failure: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def head(self, url: str, *, timeout: float) -> Any:
            if failure == "no network":
                raise huggingface_hub.errors.HfHubHTTPError.__bases__[0]("no address for huggingface.co")
            return SimpleNamespace(status_code=503, headers={}, request=None)

    def never(self: Any, *_: object, **__: object) -> None:
        raise AssertionError("the client would try again and again")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", never)
    for plan in (
        hyperclone.plan("org/tiny-llama", TWICE),
        hyperclone.grow("org/tiny-llama", tmp_path / "grown", TWICE, proof="none").plan,
    ):
        [note] = [note for note in plan.notes if "The Hub is not accessible" in note]
        assert COMMITS[1] in note
        assert ("no address" if failure == "no network" else "503") in note
    assert hub.config("org/tiny-llama")["bos_token_id"] == 7
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="neither a local directory nor an accessible model") as caught:
        hyperclone.plan("org/another", TWICE)
    assert time.monotonic() - start < 1
    found = caught.value.details["found"]
    why = "could not be reached" if failure == "no network" else "is out of order"
    assert found.startswith(f"the Hub is not accessible: it {why} (")
    assert ("no address" if failure == "no network" else "503") in found
    assert "check the network" in caught.value.details["cure"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"offline mode is on(.|\n)*unset HF_HUB_OFFLINE"):
        hyperclone.plan("org/another", TWICE)


def test_a_file_where_a_directory_is_asked_for_names_the_directory(model_dir: ModelDir) -> None:
    file = model_dir(NAME) / "model.safetensors"
    with pytest.raises(CheckpointError, match="not a model directory") as caught:
        hyperclone.plan(file, TWICE)
    assert caught.value.details["cure"] == f"name the directory: {file.parent}"
    assert os.path.isdir(file.parent)
