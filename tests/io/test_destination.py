"""Promise 5: the destination is either complete or absent, whatever happens, and a rerun resumes.

Every disk operation of a run is made to fail, and a run is killed before every one of them.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hyperclone
from hyperclone import Growth
from hyperclone.errors import CheckpointError, DestinationError
from hyperclone.io import streaming
from hyperclone.io.destination import RECEIPT
from hyperclone.io.scratch import scratch_directory

ModelDir = Callable[..., Path]
NAME = "llama-grouped-tied"
TWICE = Growth(width=2)
OPERATIONS = ("pwrite", "fsync", "rename", "unlink", "posix_fallocate")


def run(source: Path, target: Path, growth: Growth = TWICE, **options: Any) -> Path:
    """A growth into several shards, proved by structure."""
    options = {"shard_size": "40KB", "proof": "structural", "threads": 1, **options}
    return hyperclone.grow(source, target, growth, **options).path


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def source(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shutil.copytree(model_dir(NAME), tmp_path_factory.mktemp("here") / "source")
    (path / "chat_templates").mkdir()
    (path / "chat_templates/tool.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    return content(run(source, tmp_path_factory.mktemp("whole") / "grown"))


def interrupted(source: Path, target: Path, *, after: int = 130_000) -> Path:
    """Leave a partial directory with some finished shards; `after` is how many bytes get written."""

    def stop(stage: str, done: int, total: int) -> None:
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, target, progress=stop)
    assert not target.exists()
    return target.with_name(f".{target.name}.partial")


def finished_shards(partial: Path) -> list[str]:
    lines = [json.loads(line) for line in (partial / "journal.jsonl").read_text().splitlines()]
    return [line["shard"] for line in lines[1:]]


# --- Where an output may go


def test_a_destination_that_exists_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    (tmp_path / "file-link").symlink_to(tmp_path / "file")
    (tmp_path / "full-link").symlink_to(tmp_path / "full")
    before = content(tmp_path)
    for name, overwrite, words in (
        ("file", False, "is a file"),
        ("file", True, "is a file"),
        ("file-link", True, "is a file"),
        ("full", False, "pass --overwrite"),
        ("full-link", False, "pass --overwrite"),
        ("full", True, "not written by hyperclone"),
        ("full-link", True, "not written by hyperclone"),
        ("file/below", False, "cannot create"),
    ):
        with pytest.raises(DestinationError, match=words) as caught:
            run(source, tmp_path / name, overwrite=overwrite)
        assert "file:" in str(caught.value)
    assert content(tmp_path) == before


def test_the_source_is_never_written_into_whatever_way_it_is_called(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    mine = Path(shutil.copytree(source, here / "source"))
    (here / "link").symlink_to(mine)
    (here / "up").symlink_to(here)
    before = content(here)
    monkeypatch.chdir(mine)
    places = {
        "is the source": [mine, here / "link", Path("."), Path("../source"), here / "up/source", Path("sub/..")],
        "inside the source": [mine / "grown", here / "link/a/b", Path("grown"), Path("./x/../y"), here / "up/source/z"],
        "source is inside": [here, Path(".."), here / "up", Path("/")],
    }
    for words, targets in places.items():
        for target in targets:
            for name in (mine, here / "link", Path(".")):
                with pytest.raises(DestinationError, match=words):
                    run(name, target, overwrite=True)
    assert content(here) == before


def test_a_path_that_cannot_be_written_is_refused_with_the_reason(source: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for target in (tmp_path / ("x" * 300), tmp_path / ("x" * 250), tmp_path / "a", tmp_path / "nul\0"):
        with pytest.raises(DestinationError, match="found:"):
            run(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("kind", ["new", "deep", "empty", "relative", "dangling link", "link to empty"])
def test_a_path_that_is_free_is_taken_and_nothing_is_left_beside_it(
    kind: str, source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "grown"
    real = tmp_path / "elsewhere" / "real"
    real.parent.mkdir()
    if kind == "deep":
        target = tmp_path / "a/b/grown"
    elif kind == "empty":
        target.mkdir()
    elif kind == "relative":
        monkeypatch.chdir(tmp_path)
        target = Path("grown")
    elif "link" in kind:
        target.symlink_to(real)
        if kind == "link to empty":
            real.mkdir()
    assert run(source, target) == target.resolve()
    assert content(target) == whole
    assert target.is_symlink() == ("link" in kind)
    assert not list(tmp_path.rglob(".*"))


def test_overwrite_replaces_what_hyperclone_made(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    target, link = tmp_path / "grown", tmp_path / "link"
    run(source, target, Growth(width=3))
    link.symlink_to(target)
    assert content(target) != whole
    run(source, target, overwrite=True)
    assert content(target) == whole
    run(source, link, Growth(width=3), overwrite=True)
    assert link.is_symlink()
    assert content(target) != whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grown", "link"]


def test_the_old_output_stays_until_the_new_one_is_complete(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "grown"
    run(source, target, Growth(width=3))
    old, stages = content(target), set()

    def look(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        assert content(target) == old

    run(source, target, overwrite=True, progress=look)
    assert stages == {"grow", "prove"}
    assert content(target) != old


def test_what_somebody_puts_there_meanwhile_is_not_replaced(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "grown"

    def meddle(stage: str, done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "thesis.txt").write_text("mine")

    for overwrite in (False, True):
        with pytest.raises(DestinationError, match="destination"):
            run(source, target, progress=meddle, overwrite=overwrite)
        assert content(target) == {"thesis.txt": b"mine"}
        shutil.rmtree(target)
    run(source, target)
    assert content(target) == whole


def test_a_strangers_directory_where_the_output_would_be_built_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".grown.partial").mkdir()
    (tmp_path / ".grown.partial/thesis.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"\.grown\.partial"):
        run(source, tmp_path / "grown")
    assert content(tmp_path) == {".grown.partial/thesis.txt": b"mine"}


def test_a_strangers_directory_where_the_old_output_would_be_kept_is_left_alone(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "grown")
    (tmp_path / ".grown.replaced").mkdir()
    (tmp_path / ".grown.replaced/thesis.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(DestinationError, match="old output would be kept"):
        run(source, tmp_path / "grown", overwrite=True)
    assert content(tmp_path) == before
    shutil.rmtree(tmp_path / "grown")
    run(source, tmp_path / "grown")  # nothing to replace
    assert (tmp_path / ".grown.replaced/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [".grown.partial", ".grown.replaced", ".grown.partial/deeper"])
def test_a_source_that_lies_where_the_output_would_be_built_is_not_destroyed(
    place: str, source: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(source, tmp_path / place))
    (tmp_path / ".grown.partial").mkdir(exist_ok=True)
    (tmp_path / ".grown.partial/journal.jsonl").write_text("")
    before = content(tmp_path)
    with pytest.raises(DestinationError, match="would be built"):
        run(mine, tmp_path / "grown")
    assert content(tmp_path) == before


# --- Room on the disk


def test_too_little_space_is_found_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = hyperclone.plan(source, TWICE, shard_size="40KB")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=plan.nbytes - 1))
    monkeypatch.setattr(os, "pwrite", None)
    with pytest.raises(DestinationError, match="not enough space") as caught:
        run(source, tmp_path / "grown")
    for word in ("found:", "expected:", "cure:", str(tmp_path)):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=plan.nbytes))
    run(source, tmp_path / "grown")


def test_finished_shards_count_as_space_and_survive_a_full_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(source, tmp_path / "grown")
    done = finished_shards(partial)
    usage, nbytes = shutil.disk_usage(tmp_path), hyperclone.plan(source, TWICE, shard_size="40KB").nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DestinationError, match="not enough space"):
        run(source, tmp_path / "grown")
    assert finished_shards(partial) == done
    there = sum((partial / name).stat().st_size for name in done)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=nbytes - there))
    run(source, tmp_path / "grown")


# --- Interrupted, failed and killed runs


def test_a_rerun_resumes_and_gives_the_same_files(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "grown"
    partial = interrupted(source, target)
    done = finished_shards(partial)
    assert 0 < len(done) < len([n for n in whole if n.endswith(".safetensors")])
    assert {p.name for p in partial.iterdir()} == {"journal.jsonl", *done}  # half a shard is not kept
    before = {name: ((partial / name).stat().st_ino, (partial / name).stat().st_mtime_ns) for name in done}
    written: list[int] = []
    real = os.pwrite

    def counting(descriptor: int, data: Any, at: int) -> int:
        written.append(len(data))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", counting)
    run(source, target)
    assert {name: ((target / name).stat().st_ino, (target / name).stat().st_mtime_ns) for name in done} == before
    assert sum(written) == sum(len(whole[n]) for n in whole if n.endswith(".safetensors") and n not in done)
    assert content(target) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["grown"]


def test_a_run_that_fails_at_the_very_end_has_nothing_to_write_again(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(DestinationError, match="cannot be renamed to its target"):
            run(source, tmp_path / "grown")
    monkeypatch.setattr(os, "pwrite", None)
    run(source, tmp_path / "grown")
    assert content(tmp_path / "grown") == whole


@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", "weights of the same time", "config", "seed", "shard size", "dtype"])
def test_what_another_source_or_request_has_left_is_not_used(change: str, source: Path, tmp_path: Path) -> None:
    mine, target = Path(shutil.copytree(source, tmp_path / "source")), tmp_path / "grown"
    partial = interrupted(mine, target)
    stale = {name: (partial / name).read_bytes() for name in finished_shards(partial)}
    growth, options = TWICE, {}
    weights = mine / "model.safetensors"
    if "weights" in change:
        stat, changed = weights.stat(), bytearray(weights.read_bytes())
        data = 8 + int.from_bytes(changed[:8], "little")
        changed[data : data + 1000] = bytes(1000)  # of the first tensor, which is in a finished shard
        weights.write_bytes(changed)
        if change == "weights of the same time":
            os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "config":
        config = json.loads((mine / "config.json").read_text())
        (mine / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    elif change == "seed":
        growth = Growth(width=2, seed=1)
    elif change == "dtype":
        growth = Growth(width=2, dtype="bf16")
    else:
        options = {"shard_size": "50KB"}
    run(mine, target, growth, **options)
    run(mine, tmp_path / "fresh", growth, **options)
    assert content(target) == content(tmp_path / "fresh")
    assert change == "config" or any(content(target).get(name) != data for name, data in stale.items())


def test_files_of_an_earlier_run_that_the_source_no_longer_has_do_not_reappear(source: Path, tmp_path: Path) -> None:
    mine, target = Path(shutil.copytree(source, tmp_path / "source")), tmp_path / "grown"
    partial = interrupted(mine, target)
    (partial / "tokenizer.json").write_text("of the earlier run")
    (partial / "chat_templates").mkdir()
    (partial / "dead").symlink_to("nowhere")
    (partial / "link").symlink_to(mine)
    (mine / "tokenizer.json").unlink()
    shutil.rmtree(mine / "chat_templates")
    run(mine, target)
    assert not (target / "tokenizer.json").exists()
    assert not {"chat_templates", "dead", "link"} & {p.name for p in target.iterdir()}
    assert (mine / "config.json").exists()


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text[:-9],
        lambda text: text + '{"shard": "model-000',
        lambda text: text + "\0\0\0\0",
        lambda text: text + "\udcff\udcfe\n",
        lambda text: text + '5\n[]\nnull\n"x"\n{}\n',
        lambda text: text + '{"shard": 3, "bytes": 4}\n{"shard": "x"}\n{"bytes": 1}\n{"shard": null, "bytes": null}\n',
        lambda text: text + '{"shard": "../source/config.json", "bytes": 1}\n{"shard": "..", "bytes": 4096}\n',
        lambda text: text + '{"shard": "model-00005-of-00007.safetensors", "bytes": 7}\n',
        lambda text: text + "[" * 100_000 + "\n",
        lambda text: "not a journal\n" + text,
        lambda text: "\n" + text,
        lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'),
        lambda text: text.replace('"bytes": ', '"bytes": 1'),
    ],
)
def test_a_damaged_journal_costs_time_and_nothing_else(
    damage: Callable[[str], str],
    source: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    target = tmp_path / "grown"
    journal = interrupted(source, target) / "journal.jsonl"
    journal.write_bytes(damage(journal.read_text()).encode("utf-8", "surrogateescape"))
    run(source, target)
    assert content(target) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["grown"]


@pytest.mark.parametrize("damage", ["shorter", "gone", "a link", "a directory"])
def test_a_shard_that_is_not_as_the_journal_says_is_written_again(
    damage: str, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "grown"
    partial = interrupted(source, target)
    shard = partial / finished_shards(partial)[0]
    kept = shard.read_bytes()
    shard.unlink()
    if damage == "shorter":
        shard.write_bytes(kept[:-1])
    elif damage == "a link":
        (tmp_path / "other").write_bytes(kept)
        shard.symlink_to(tmp_path / "other")
    elif damage == "a directory":
        shard.mkdir()
    run(source, target)
    assert content(target) == whole


def test_a_finished_shard_that_is_corrupted_fails_the_proof_and_is_written_again_by_the_next_run(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "grown"
    partial = interrupted(source, target)
    shard = partial / finished_shards(partial)[0]
    rotten = bytearray(shard.read_bytes())
    rotten[-5] ^= 64
    shard.write_bytes(rotten)
    with pytest.raises(hyperclone.HypercloneError, match="proof failed"):
        run(source, target)
    assert not target.exists()
    run(source, target)
    assert content(target) == whole


class Failing:
    """Operations on the disk, counted, of which one does what `action` does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], None]) -> None:
        self.count, self.at, self.action = 0, at, action
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(shutil, "copyfileobj", self._wrap(shutil.copyfileobj))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.action()
            return real(*arguments, **options)

        return operation


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_whichever_disk_operation_fails_it_is_reported_and_a_rerun_succeeds(
    overwrite: bool, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    old_output = content(run(source, tmp_path / "old", Growth(width=3)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        counted = Failing(monkeypatch, -1, lambda: None)
        run(source, tmp_path / "counted")
    assert counted.count > 40

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    everywhere, at_the_end = range(1, counted.count, 3), range(counted.count - 10, counted.count + 3 * overwrite)
    for at in at_the_end if overwrite else sorted({*everywhere, *at_the_end}):
        target = tmp_path / f"grown-{at}"
        if overwrite:
            shutil.copytree(tmp_path / "old", target)
        number = (errno.ENOSPC, errno.EIO, errno.EDQUOT)[at % 3]
        with pytest.MonkeyPatch.context() as monkeypatch:
            Failing(monkeypatch, at, fail)
            message = ""
            try:
                run(source, target, overwrite=overwrite)
            except DestinationError as error:
                message = str(error)
            assert not message or all(word in message for word in ("file:", os.strerror(number), "cure:"))
            # The last ones only tidy up what is complete; not being able to must not hurt.
            if target.exists():
                assert {k: v for k, v in content(target).items() if k != "journal.jsonl"} in (whole, old_output)
            else:
                assert not overwrite
        run(source, target, overwrite=target.exists())
        assert content(target) == whole
        assert not list(tmp_path.glob(".*"))


KILLED_AT_EVERY_OPERATION = """
import json, os, shutil, signal, sys
from pathlib import Path
import hyperclone.conversion.model_card, hyperclone.conversion.receipt
import hyperclone.expansion.writer, hyperclone.proof.proof
from hyperclone import Growth, grow

source, place, old = map(Path, sys.argv[1:4])

count, kill_at = 0, -1

def wrap(real):
    def operation(*arguments, **options):
        global count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return operation

for name in sys.argv[4].split():
    setattr(os, name, wrap(getattr(os, name)))
shutil.copyfileobj = wrap(shutil.copyfileobj)

def run(target, overwrite=False):
    grow(source, target, Growth(width=2), shard_size="40KB", proof="none", threads=2, overwrite=overwrite)

def killed(target, overwrite, at):
    global count, kill_at
    if not (child := os.fork()):  # the threads of the run before have ended
        count, kill_at = 0, at
        try:
            run(target, overwrite)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()
            and p.name not in ("journal.jsonl", ".hyperclone-replaced")} if path.exists() else None

run(place / "whole")
total = count
whole, before = content(place / "whole"), content(old)
for overwrite in (False, True):
    last = range(total - 8, total + 3 * overwrite)
    for at in last if overwrite else sorted({*range(1, total, 3), *last}):
        target = place / f"grown-{at}-{overwrite}"
        if overwrite:
            shutil.copytree(old, target)
        code = killed(target, overwrite, at)
        assert code == -9 or (code == 0 and at > total - 2), (code, at)
        found = content(target)
        assert found in (None, whole, before), (at, overwrite, found and found.keys())
        if overwrite and found is None:
            assert content(target.with_name(f".{target.name}.replaced")) == before
        if found != whole:
            run(target, overwrite)
            assert content(target) == whole, (at, overwrite)
            assert not (target / "journal.jsonl").exists()
            assert not [p for p in place.iterdir() if p.name.startswith(f".{target.name}")], at
print("killed", total)
"""


@pytest.mark.slow
def test_killed_before_any_disk_operation_a_run_leaves_nothing_or_everything_and_a_rerun_completes_it(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    run(source, tmp_path / "old", Growth(width=3))
    arguments = [str(source), str(tmp_path / "place"), str(tmp_path / "old"), " ".join(OPERATIONS)]
    result = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_OPERATION, *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.stderr == ""
    assert int(result.stdout.removeprefix("killed ")) > 40


def command(*arguments: object, slowly: bool = False) -> subprocess.Popen[str]:
    """The command line in a process of its own; slowly, so that there is time to interrupt it."""
    slow = (
        "import os, time\nreal = os.pwrite\nos.pwrite = lambda *a: (time.sleep(0.2), real(*a))[1]\n" if slowly else ""
    )
    # a shell's background jobs, and so their children, ignore Ctrl-C; nohup's ignore SIGHUP
    heard = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    )
    script = f"{slow}{heard}from hyperclone.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_the_command_killed_at_random_moments_leaves_nothing_and_a_rerun_completes_it(
    source: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "whole", Growth(width="2"))
    target, partial, chance = tmp_path / "grown", tmp_path / ".grown.partial", random.Random(4)
    arguments = [
        "grow",
        source,
        target,
        "--width",
        "2",
        "--shard-size",
        "40KB",
        "--proof",
        "structural",
        "--threads",
        1,
    ]
    for _ in range(2):
        process = command(*arguments, slowly=True)
        while not partial.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.05, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not target.exists()
    run(source, target, Growth(width="2"))
    assert content(target) == content(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grown", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_with_one_line_that_says_what_is_kept_and_the_next_run_resumes(
    number: signal.Signals, code: int, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target, partial = tmp_path / "grown", tmp_path / ".grown.partial"
    arguments = ["grow", source, target, "--width", "2", "--shard-size", "40KB", "--proof", "none", "--threads", 2]
    process = command(*arguments, slowly=True)
    while not list(partial.glob("model-00003*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    (line,) = (line for line in errors.splitlines() if "Interrupted" in line)
    assert line == (
        f"Interrupted. {target} was not touched; finished files are kept in .grown.partial beside it. "
        "Rerun the same command to resume or to start again."
    )
    assert "Traceback" not in errors
    assert not target.exists()
    assert len(finished_shards(partial)) >= 2
    done = finished_shards(partial)
    before = [(partial / name).stat() for name in done]
    run(source, target, Growth(width="2"))
    assert [(s.st_ino, s.st_mtime_ns) for s in before] == [
        (s.st_ino, s.st_mtime_ns) for s in ((target / name).stat() for name in done)
    ]
    assert all(content(target)[name] == whole[name] for name in whole if name.endswith(".safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_verification_that_is_ended_leaves_no_copy_of_the_model_for_long(
    number: signal.Signals, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    run(source, tmp_path / "grown", Growth(width="2"))
    script = (
        "import time\nfrom transformers import PreTrainedModel\nsave = PreTrainedModel.save_pretrained\n"
        "PreTrainedModel.save_pretrained = lambda *a, **k: (save(*a, **k), time.sleep(60))\n"
        "from hyperclone.cli.main import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "verify", source, tmp_path / "grown"])
    while not list((tmp_path / "tmp").glob(".hyperclone-*/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == (143 if number == signal.SIGTERM else -number)
    left = list((tmp_path / "tmp").glob(".hyperclone-*"))
    assert len(left) == (number == signal.SIGKILL)
    with scratch_directory(tmp_path / "tmp") as other:
        assert list((tmp_path / "tmp").glob(".hyperclone-*")) == [other]
    assert not list((tmp_path / "tmp").glob(".hyperclone-*"))


def test_scratch_directories_in_use_are_left_alone(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as first, scratch_directory(tmp_path) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_closes_no_file_that_a_thread_still_writes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed descriptor's number is given to the next file that is opened, and the write would end up in that."""
    real_write, wrong = os.pwrite, []

    def slow(descriptor: int, data: Any, at: int) -> int:
        time.sleep(0.02)
        try:
            return real_write(descriptor, data, at)
        except OSError as error:
            wrong.append(error)
            raise

    calls = []

    def interrupt(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return concurrent.futures.wait(*arguments, **options)

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(streaming, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "grown", threads=4)
    assert calls
    assert wrong == []


def test_a_write_that_the_disk_takes_in_bites_is_finished(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:101], at))
    run(source, tmp_path / "grown")
    assert content(tmp_path / "grown") == whole


def test_everything_is_on_the_disk_before_it_has_its_name_and_the_journal_never_runs_ahead(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []  # what happened to which inode
    real_sync, real_rename, real_write = os.fsync, os.rename, os.pwrite
    target, partial = tmp_path / "grown", tmp_path / ".grown.partial"
    journal: list[list[str]] = []

    def sync(descriptor: int) -> None:
        real_sync(descriptor)
        events.append(("sync", os.fstat(descriptor).st_ino))

    def rename(old: Any, new: Any) -> None:
        events.append(("rename", os.stat(old).st_ino))
        real_rename(old, new)

    def write(descriptor: int, data: Any, at: int) -> int:
        number = os.fstat(descriptor).st_ino
        events.append(("write", number))
        journal.append(finished_shards(partial))
        for name in journal[-1]:  # what the journal calls finished is synced and is not this one
            assert ("sync", (partial / name).stat().st_ino) in events
            assert (partial / name).stat().st_ino != number
        return real_write(descriptor, data, at)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "pwrite", write)
    run(source, target)
    named = events.index(("rename", target.stat().st_ino))
    for file in [target, *(p for p in target.rglob("*") if p.is_file())]:
        number = file.stat().st_ino
        assert ("sync", number) in events[:named], file.name
        assert ("write", number) not in events[events[:named].index(("sync", number)) :]
    assert ("sync", tmp_path.stat().st_ino) in events[named:]
    assert journal[-1]


def test_a_second_run_at_the_same_time_is_refused_and_harms_nothing(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target, refusals = tmp_path / "grown", []

    def second(stage: str, done: int, total: int) -> None:
        for growth in (TWICE, Growth(width=3)):
            with pytest.raises(DestinationError, match="another run is writing") as caught:
                run(source, target, growth)
            refusals.append(caught.value)

    run(source, target, progress=second)
    assert refusals
    assert content(target) == whole
    with pytest.raises(DestinationError, match="exists"):
        run(source, target)


def test_a_failed_source_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "source"))
    weights = bytearray((mine / "model.safetensors").read_bytes())
    weights[-4:] = b"\xff\xff\xff\xff"
    (mine / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError):
        run(mine, tmp_path / "grown", shard_size="5GB")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_complete_destination_has_its_receipt_and_its_templates(source: Path, whole: dict[str, bytes]) -> None:
    assert {RECEIPT, "config.json", "README.md", "chat_templates/tool.jinja", "tokenizer.json"} <= set(whole)
    assert not [name for name in whole if "journal" in name]


@pytest.mark.parametrize("lasts", [False, True])
def test_a_scratch_directory_is_never_published(
    lasts: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full proof works in one inside of the output; its removal may fail, as on a full disk that copies on write."""
    remove = os.unlink
    failed: list[Any] = []

    def unlink(path: Any, *arguments: Any, **options: Any) -> None:
        if str(path) == "config.json" and (lasts or not failed):  # only the scratch directory's is removed
            failed.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        remove(path, *arguments, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    if lasts:
        with pytest.raises(DestinationError, match="cannot be renamed to its target"):
            hyperclone.grow(source, tmp_path / "out", TWICE)
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()
    hyperclone.grow(source, tmp_path / "out", TWICE, proof="full" if not lasts else "structural")
    assert failed
    assert not list((tmp_path / "out").glob(".*"))
