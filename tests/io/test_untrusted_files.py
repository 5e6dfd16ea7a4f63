"""Links, devices and files that change under the reader: refused at once, and nothing else of the machine is read."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CheckpointError
from hyperclone.io.checkpoint import Checkpoint

TWICE = Growth(width=2)


def test_weights_may_be_links_to_files_anywhere(victim: Path, tmp_path: Path) -> None:
    (victim / "model.safetensors").rename(tmp_path / "elsewhere")
    (victim / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert hyperclone.grow(victim, tmp_path / "grown", TWICE, proof="structural").proof


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "LICENSE", "config.json", "chat_templates/a.jinja"]
)
def test_what_is_copied_with_a_model_is_no_link_to_another_place(name: str, victim: Path, tmp_path: Path) -> None:
    secret, file = tmp_path / "a secret", victim / name
    file.parent.mkdir(exist_ok=True)
    secret.write_bytes(file.read_bytes() if file.exists() else b"secret")
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    for run in (
        lambda: hyperclone.plan(victim, TWICE),
        lambda: hyperclone.grow(victim, tmp_path / "grown", TWICE, proof="none"),
    ):
        with pytest.raises(CheckpointError, match="a link to a file elsewhere") as caught:
            run()
    assert not (tmp_path / "grown").exists()
    subprocess.run(caught.value.details["cure"].partition(": ")[2], shell=True, check=True)
    assert hyperclone.plan(victim, TWICE)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.txt", "config.json", "model.safetensors", "generation_config.json"]
)
@pytest.mark.parametrize("kind", ["fifo", "device", "endless", "socket", "broken"])
def test_what_blocks_or_never_ends_is_refused_at_once(
    name: str, kind: str, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = victim / name
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as endpoint:
            monkeypatch.chdir(victim)  # the address of a socket must be short
            endpoint.bind(name)
    elif kind == "broken":
        file.symlink_to("nowhere")
    else:
        with file.open("wb") as stream:
            stream.truncate(2**40)  # a hole: it takes no space
    with pytest.raises(CheckpointError):
        hyperclone.plan(victim, TWICE)


def test_a_name_that_could_move_the_cursor_is_refused(victim: Path) -> None:
    tensors: dict[str, torch.Tensor] = load_file(victim / "model.safetensors")
    tensors["a\x1b[2J"] = tensors.pop("model.norm.weight")
    save_file(tensors, victim / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="control characters"):
        hyperclone.plan(victim, TWICE)


@pytest.mark.parametrize("when", ["after the headers", "while it is read"])
def test_a_source_that_is_replaced_or_written_to_meanwhile_is_refused(
    when: str, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = victim / "model.safetensors"
    if when == "after the headers":
        opened = Checkpoint.open.__func__  # type: ignore[attr-defined]

        def then_replaced(cls: type[Checkpoint], /, path: Path, **options: Any) -> Checkpoint:
            checkpoint: Checkpoint = opened(cls, path, **options)
            if Path(path) == victim:
                (tmp_path / "other").write_bytes(weights.read_bytes())
                (tmp_path / "other").replace(weights)
            return checkpoint

        monkeypatch.setattr(Checkpoint, "open", classmethod(then_replaced))
    else:
        read, times = Checkpoint.read, itertools.count()

        def then_written(self: Checkpoint, *arguments: Any, **options: Any) -> Any:
            rows = read(self, *arguments, **options)
            os.utime(weights, ns=(next(times), next(times)))
            return rows

        monkeypatch.setattr(Checkpoint, "read", then_written)
    for proof in ("none", "structural"):
        with pytest.raises(CheckpointError, match="changed or replaced while it was being read"):
            hyperclone.grow(victim, tmp_path / "grown", TWICE, proof=proof)
    assert not (tmp_path / "grown").exists()
