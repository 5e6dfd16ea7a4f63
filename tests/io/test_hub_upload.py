"""Uploading, with a Hub of three functions in place of huggingface_hub's: who is logged in, repositories, and files."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # not in __all__

import hyperclone
from hyperclone.errors import DestinationError
from hyperclone.io import hub, hub_upload
from tests.helpers import models
from tests.helpers.command import call
from tests.helpers.training_text import documents, jsonl

CREATE, UPLOAD = inspect.signature(HfApi.create_repo), inspect.signature(HfApi.upload_folder)
TOKEN = "hf_thisIsTheSecretOfTheTest"


class Hub:
    """What was created and uploaded, and by which rules."""

    def __init__(self) -> None:
        self.user: dict[str, Any] = {
            "name": "me",
            "orgs": [{"name": "we"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.fails: Exception | None = None
        self.created: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}

    def create_repo(self, repo_id: str, **options: Any) -> str:
        CREATE.bind(None, repo_id, **options)
        self.created[repo_id] = options
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        UPLOAD.bind(None, **options)
        if self.fails is not None:
            raise self.fails
        repo_id, folder_path, allow_patterns = (options[name] for name in ("repo_id", "folder_path", "allow_patterns"))
        every = [file.relative_to(folder_path).as_posix() for file in Path(folder_path).rglob("*") if file.is_file()]
        wanted = filter_repo_objects(every, allow_patterns=allow_patterns)  # as the real one chooses
        self.files[repo_id] = {name: (Path(folder_path) / name).read_bytes() for name in wanted}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "check_accessible", lambda: None)
    monkeypatch.setattr(HfApi, "whoami", lambda self: there.user)
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, staticmethod(getattr(there, name)))
    return there


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a source and text."""
    path = tmp_path_factory.mktemp("upload")
    models.build("llama-grouped-tied").save_pretrained(path / "source")
    models.save_tokenizer(path / "source")
    (path / "source/LICENSE").write_text("Apache")
    jsonl(path / "text.jsonl", documents())
    return path


def train(place: Path, output: Path, *more: object) -> Any:
    return call(
        "train", place / "source", "--data", place / "text.jsonl", "--cache", place / "cache", "-o", output,
        "--held-out", 0, "--seq-len", 32, "--batch-tokens", 256, "--tokens", 512, "--push-to-hub", "me/mine", *more,
    )  # fmt: skip


def test_names_are_completed_and_namespaces_of_others_refused(fake: Hub) -> None:
    assert hub_upload.check("mine") == "me/mine"
    assert [hub_upload.check(f"{name}/mine") for name in ("me", "we")] == ["me/mine", "we/mine"]
    with pytest.raises(DestinationError, match=r"not in this namespace(.|\n)*they(.|\n)*me, we(.|\n)*me/MODEL"):
        hub_upload.check("they/mine")
    fake.user["auth"]["accessToken"]["role"] = "fineGrained"  # which may not see organizations
    assert hub_upload.check("they/mine") == "they/mine"
    fake.user["auth"]["accessToken"]["role"] = "read"
    with pytest.raises(DestinationError, match=r"may only read(.|\n)*hf auth login"):
        hub_upload.check("mine")


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "me/..", "me/mine.git", "https://huggingface.co/me/mine"])
def test_what_is_no_name_of_a_repository_is_refused(fake: Hub, name: str) -> None:
    with pytest.raises(DestinationError, match=r"cannot be the name(.|\n)*NAMESPACE/MODEL"):
        hub_upload.check(name)


def response(status: int, said: str) -> HfHubHTTPError:
    class Answer:
        status_code, headers, request = status, dict[str, str](), None

    return HfHubHTTPError(said, response=Answer())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalTokenNotFoundError("Token is required"), r"needs a login(.|\n)*hf auth login"),
        (response(401, f"Invalid user token {TOKEN}"), r"does not accept the token(.|\n)*hf auth login"),
        (response(503, f"{TOKEN}"), r"not accessible(.|\n)*out of order"),
        (OSError("Name or service not known"), r"not accessible(.|\n)*could not be reached(.|\n)*network"),
    ],
)
def test_what_the_hub_refuses_is_said_before_anything_runs(
    fake: Hub, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "whoami", refuse)
    with pytest.raises(DestinationError, match=said) as refused:
        hub_upload.check("mine")
    assert TOKEN not in str(refused.value)
    for more in ((), ("--dry-run",)):
        done = train(place, tmp_path / "out", *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert not (tmp_path / "out").exists()
        assert "push_to_hub" in done.stderr


def test_offline_is_refused(fake: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DestinationError, match=r"offline mode(.|\n)*HF_HUB_OFFLINE(.|\n)*unset"):
        hub_upload.check("mine")


def test_a_trained_model_is_uploaded_without_checkpoints_and_secrets(fake: Hub, place: Path, tmp_path: Path) -> None:
    hyperclone.grow(place / "source", tmp_path / "grown", hyperclone.Growth(width=2), proof="none")
    (tmp_path / "text.jsonl").symlink_to(place / "text.jsonl")
    shutil.copytree(tmp_path / "grown", tmp_path / "source")
    fake.fails = ConnectionError(f"lost with {TOKEN}")
    failed = train(tmp_path, tmp_path / "out")
    assert failed.returncode == 2
    said = failed.stderr.split()
    assert f"hf upload me/mine {tmp_path / 'out'} . --private --exclude 'checkpoint-*/*'" in " ".join(said)
    assert "the model is complete here" in failed.stderr
    assert (tmp_path / "out/model.safetensors").exists()
    fake.fails = None
    (tmp_path / "out/notes.txt").write_text("mine alone")
    done = train(tmp_path, tmp_path / "out", "--resume")  # nothing is left to do but the upload
    assert done.returncode == 0, done.stderr
    assert "https://huggingface.co/me/mine" in done.stdout + done.stderr
    assert fake.created == {"me/mine": {"private": True, "exist_ok": True}}
    files = fake.files["me/mine"]
    assert set(files) == {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} - {"notes.txt"}
    assert set(files) >= {
        "README.md", "LICENSE", "config.json", "hyperclone.json", "metrics.jsonl", "model.safetensors",
        "tokenizer.json", "training.json",
    }  # fmt: skip
    for name, content in files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    for shown in (failed.stdout, failed.stderr, done.stdout, done.stderr):
        assert TOKEN not in shown
    for directory, _, names in os.walk(tmp_path / "out"):
        assert not any(TOKEN.encode() in (Path(directory) / name).read_bytes() for name in names)
    assert "push_to_hub" not in json.dumps(json.loads(files["training.json"]))


def test_a_grown_model_is_uploaded(fake: Hub, place: Path, tmp_path: Path) -> None:
    done = call("grow", place / "source", tmp_path / "grown", "--width", 2, "--proof", "none", "--push-to-hub", "wide")
    assert done.returncode == 0, done.stderr
    assert "Uploaded to https://huggingface.co/me/wide" in done.stdout + done.stderr
    assert set(fake.files["me/wide"]) == {path.name for path in (tmp_path / "grown").iterdir()}
    fake.user["auth"]["accessToken"]["role"] = "read"
    refused = call("grow", place / "source", tmp_path / "other", "--width", 2, "--push-to-hub", "wide")
    assert refused.returncode == 2
    assert not (tmp_path / "other").exists()
