"""The parts of a training, each against an independent reference: schedule, budget, documents, cache, windows, FLOPs,
checkpoints.
"""

from __future__ import annotations

import gzip
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from hyperclone.errors import DestinationError, TrainingError
from hyperclone.optimizer_state import distributed
from hyperclone.training import budget, checkpoints, data_sources, export, flops, metrics, packing, resume, token_cache
from hyperclone.training.config import Training
from hyperclone.training.lr_schedule import factor, warmup_steps
from hyperclone.training.token_cache import ReadingOptions
from tests.helpers import models
from tests.helpers.training_text import documents as made_up
from tests.helpers.training_text import jsonl

ModelDir = Callable[..., Path]
READING = ReadingOptions("text", "document", 0.0)


@pytest.fixture(scope="module")
def tokenizer(model_dir: ModelDir) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir("llama-grouped-tied"))


def request(**asked: Any) -> Training:
    return Training(**{"model": "m", "data": "d", "output": "o", **asked})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_warms_up_from_above_zero_peaks_and_ends_at_its_least(
    schedule: Literal["cosine", "linear", "wsd", "constant"],
) -> None:
    rates = [factor(s, steps=100, warmup=10, schedule=schedule, least=0.1, decay=0.2) for s in range(101)]
    assert rates[:10] == [pytest.approx((s + 1) / 10) for s in range(10)]
    assert max(rates) == 1 == rates[10]
    assert rates[100] == pytest.approx(1 if schedule == "constant" else 0.1)
    half = {"cosine": 0.55, "linear": 0.55, "wsd": 1.0, "constant": 1.0}[schedule]
    assert rates[55] == pytest.approx(half)
    if schedule == "wsd":
        assert rates[80] == 1 > rates[81]
        assert rates[90] == pytest.approx(0.55)


def test_cosine_without_a_floor_is_transformers_own_after_the_warm_up() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 7, 50)
    for step in range(50):
        if step >= 7:
            ours = factor(step, steps=50, warmup=7, schedule="cosine", least=0.0, decay=0.2)
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warm_up_is_steps_or_a_share_of_them() -> None:
    assert [warmup_steps(w, 250) for w in (0, 0.01, 0.1, 1, 30)] == [0, 3, 25, 1, 30]


def test_the_batch_is_the_same_however_many_processes_share_it() -> None:
    for processes, micro, accumulation in ((1, 8, 3), (2, 6, 2), (3, 8, 1), (24, 1, 1)):
        sizes = budget.plan(request(batch_tokens=24 * 64, tokens="1M"), seq_len=64, available=10, processes=processes)
        assert (sizes.windows, sizes.micro_batch, sizes.accumulation) == (24, micro, accumulation)
        assert (sizes.steps, sizes.tokens) == (651, 651 * 24 * 64)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch_tokens": 100}, ["batch_tokens", "64 or 128"]),
        ({"batch_tokens": 10}, ["batch_tokens", "64"]),
        ({"batch_tokens": 192}, ["batch_tokens", "3 windows for 2 processes", "256"]),
        ({"batch_tokens": 256, "micro_batch": 3}, ["micro_batch", "divisor of 2"]),
        ({"batch_tokens": 1280, "tokens": 1279}, ["token budget", "1280"]),
        ({"batch_tokens": 1280}, ["the data is smaller than one step", "640"]),
    ],
    ids=str,
)
def test_what_does_not_fit_a_step_is_refused(asked: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TrainingError) as error:
        budget.plan(request(**asked), seq_len=64, available=10, processes=2)
    for word in words:
        assert word in str(error.value)


def test_a_window_is_no_longer_than_the_model_has_positions() -> None:
    assert budget.sequence_length(None, 64) == 64
    assert budget.sequence_length(None, 4096) == 1024
    with pytest.raises(TrainingError, match="64 at most"):
        budget.sequence_length(65, 64)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"data": ()}, "no data"),
        ({"tokens": "many"}, "tokens"),
        ({"batch_tokens": "1.5"}, "batch_tokens"),
        ({"schedule": "cos"}, "wsd"),
        ({"lr": 0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"warmup": 2.5}, "warmup"),
        ({"held_out": 0.9}, "held_out"),
        ({"keep": -1}, "keep"),
        ({"from_scratch": True, "lr_rule": "scaled"}, "randomly initialized"),
        ({"seed": "x"}, "seed"),
        ({"seq_len": True}, "seq_len"),
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(TrainingError, match=word):
        request(**asked)


def read(path: object, **options: Any) -> list[str]:
    options = {"field": "text", "sample_by": "document", **options}
    return [text for source in data_sources.find(str(path)) for text in data_sources.texts(source, **options)]


def test_text_is_read_from_files_of_every_kind(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = made_up(3)
    jsonl(tmp_path / "a.jsonl", texts)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write((tmp_path / "a.jsonl").read_text())
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "body": texts}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("One.\nTwo.\n\nThree.\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/e.md").write_text("# Four\r\n")
    (tmp_path / "ignored.png").write_bytes(b"\x89PNG")
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl.gz") == texts
    assert read(tmp_path / "c.parquet", field="body") == texts
    assert read(tmp_path / "d.txt") == ["One.\nTwo.\n\nThree.\n"]
    assert [t.strip() for t in read(tmp_path / "d.txt", sample_by="line")] == ["One.", "Two.", "Three."]
    assert [t.strip() for t in read(tmp_path / "d.txt", sample_by="paragraph")] == ["One.\nTwo.", "Three."]
    assert read(f"{tmp_path}/*.jsonl*") == texts * 2
    (tmp_path / "c.parquet").unlink()
    assert len(read(tmp_path)) == 3 + 3 + 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\xfe\x00binary", ["UTF-8", "a.txt"]),
        ("a.jsonl", b'{"body": "x"}\n', ["no such column", "body", "--text-field"]),
        ("a.jsonl", b'{"text": 3}\n', ["no text", "int"]),
        ("a.jsonl", b'{"text": "x"}\n{broken\n', ["cannot be read", "a.jsonl"]),
        ("a.parquet", b"PAR1nonsense", ["cannot be read", "a.parquet"]),
        ("a.pdf", b"x", ["unknown kind", ".jsonl"]),
        ("none", None, ["no such file"]),
    ],
    ids=str,
)
def test_what_is_not_text_is_refused_by_name(
    name: str, content: bytes | None, words: list[str], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError) as error:
        read(tmp_path / name)
    for word in words:
        assert word in str(error.value)


def test_a_hub_dataset_is_spelled_with_config_and_split() -> None:
    (source,) = data_sources.find("Salesforce/wikitext@wikitext-2-raw-v1:validation")
    assert (source.kind, source.name, source.config, source.split) == (
        "hub",
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "validation",
    )
    assert data_sources.find("allenai/c4")[0].split == "train"


def prepare(path: Path, tokenizer: Any, cache: Path, reading: ReadingOptions = READING, **options: Any) -> Any:
    return token_cache.prepare(
        data_sources.find(str(path)), reading, tokenizer, end=tokenizer.eos_token_id, cache=cache, **options
    )


def test_the_cache_holds_every_document_and_an_end_after_each(tokenizer: Any, tmp_path: Path) -> None:
    texts = [*made_up(9), "ünïcode", "   ", ""]
    train, held_out = prepare(
        jsonl(tmp_path / "a.jsonl", texts), tokenizer, tmp_path / "c", ReadingOptions("text", "document", 0.25)
    )
    kept = texts[:10]
    split = [t for i, t in enumerate(kept) if i % 4], [t for i, t in enumerate(kept) if i % 4 == 0]
    for stream, part in zip((train, held_out), split, strict=True):
        expected = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in part]
        assert stream.ids().tolist() == [i for ids in expected for i in ids]
        assert stream.starts().tolist() == [0, *np.cumsum([len(ids) for ids in expected])[:-1].tolist()]
        assert (stream.documents, stream.nbytes) == (len(part), sum(len(text.encode()) for text in part))
        assert stream.ids().dtype == np.uint16
        assert stream.largest == max(stream.ids())


def test_text_is_tokenized_once_and_again_when_it_changes(tokenizer: Any, tmp_path: Path) -> None:
    file, calls = jsonl(tmp_path / "a.jsonl", made_up(5)), []

    def entry(**options: Any) -> Any:
        return prepare(file, tokenizer, tmp_path / "c", progress=lambda *a: calls.append(a), **options)

    first = entry()
    assert len(calls) == 1
    assert entry() == first
    assert len(calls) == 1
    assert entry(reading=ReadingOptions("text", "document", 0.5)) != first
    jsonl(file, made_up(6))
    assert entry() != first
    assert len(calls) == 3


def test_text_is_the_same_wherever_it_lies_and_another_is_not(tokenizer: Any, tmp_path: Path) -> None:
    here, there = (tmp_path / folder / name for folder, name in (("a", "a.jsonl"), ("b", "b.jsonl.gz")))
    for file in (here, there):
        file.parent.mkdir()
    there.write_bytes(gzip.compress(jsonl(here, made_up(5)).read_bytes()))
    other = jsonl(tmp_path / "c.jsonl", [*made_up(4), "another"])
    end = tokenizer.eos_token
    one_text = jsonl(
        tmp_path / "d.jsonl", [end.join(made_up(5)[:2]), *made_up(5)[2:]]
    )  # the same tokens, one document less
    entries = [prepare(file, tokenizer, tmp_path / "c")[0] for file in (here, there, other, one_text)]
    assert entries[0].ids().tolist() == entries[3].ids().tolist()
    assert entries[0].digest == entries[1].digest
    assert len({entry.digest for entry in entries}) == 3


def test_a_failed_tokenization_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": 1}\n{"text": "y"}\n')
    with pytest.raises(TrainingError):
        prepare(tmp_path / "a.jsonl", tokenizer, tmp_path / "c")
    assert [p.name for p in (tmp_path / "c").iterdir() if not p.name.endswith(".lock")] == []
    with pytest.raises(TrainingError, match="no text"):
        prepare(jsonl(tmp_path / "b.jsonl", ["", " "]), tokenizer, tmp_path / "c")


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_empty_files_hold_no_text_and_do_no_harm(suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"a.{suffix}").touch()
    with pytest.raises(TrainingError, match="the data holds no text"):
        prepare(folder, tokenizer, tmp_path / "c")
    jsonl(folder / f"b.{suffix}", ["abc"])
    assert len(read(folder)) == 1


def test_the_size_of_compressed_text_is_not_known_before_it_is_read(tmp_path: Path) -> None:
    for name, known in (("a.jsonl", True), ("a.jsonl.gz", False), ("a.parquet", False)):
        (tmp_path / name).write_bytes(b"12345")
        assert data_sources.find(str(tmp_path / name))[0].nbytes == (5 if known else None)


def test_windows_of_isolated_documents_know_their_documents(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["abc", "defgh", "i", "jklmnopqrst"]
    stream, _ = prepare(jsonl(tmp_path / "a.jsonl", texts), tokenizer, tmp_path / "c")
    owner = [(n, position) for n, text in enumerate(texts) for position in range(len(text) + 1)]
    windows = packing.Windows(stream, 8, isolated=True)
    assert len(windows) == len(owner) // 8
    for index in range(len(windows)):
        window, positions = windows[index], owner[8 * index : 8 * index + 8]
        first = {n: min(i for i, (m, _) in enumerate(positions) if m == n) for n, _ in positions}
        assert window["position_ids"].tolist() == [i - first[n] for i, (n, _) in enumerate(positions)]
        ids = stream.ids()[8 * index : 8 * index + 8].tolist()
        assert window["input_ids"].tolist() == ids
        expected = [packing.IGNORED if position == 0 else i for i, (_, position) in zip(ids, positions, strict=True)]
        assert window["labels"].tolist() == expected
        assert packing.Windows(stream, 8)[index]["labels"].tolist() == ids


def test_isolated_documents_have_the_loss_that_each_has_alone(tokenizer: Any, tmp_path: Path) -> None:
    model = models.build("llama-grouped-tied", dtype=torch.float64, use_cache=False)
    texts = made_up(2, seed=3)
    texts = [texts[0][:20], texts[1][:41]]
    stream, _ = prepare(jsonl(tmp_path / "a.jsonl", texts), tokenizer, tmp_path / "c")
    batch = packing.collate([packing.Windows(stream, 63, isolated=True)[0]])
    with torch.no_grad():
        packed = model(**batch).loss
        alone = [
            model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
            for text in texts
            for ids in [torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])]
        ]
    assert float(packed) == pytest.approx(
        float(sum(alone)) / (20 + 41), abs=1e-6
    )  # transformers computes losses in fp32


def test_isolation_is_refused_where_attention_crosses_documents() -> None:
    packing.check_isolated(models.build("llama-grouped-tied", use_cache=False), precision="fp32")
    packing.check_isolated(models.build("neox-parallel", use_cache=False), precision="fp32")
    with pytest.raises(TrainingError, match="does not stay inside"):
        packing.check_isolated(models.build("llama-grouped-tied", use_cache=True), precision="fp32")
    with pytest.raises(TrainingError, match="does not stay inside"):
        packing.check_isolated(
            models.build("opt", use_cache=False), precision="fp32"
        )  # its attention does not look at positions


def test_the_order_of_windows_depends_on_the_seed_alone() -> None:
    class Ten:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            return index

    def order(seed: int, count: int = 30) -> list[int]:
        made = packing.Shuffled(Ten(), count=count, seed=seed)  # type: ignore[arg-type]
        return [made.window(i) for i in range(count)]

    one = order(5)
    assert one == order(5)
    assert one[:13] == order(5, 13)
    assert one != order(6)
    epochs = [one[:10], one[10:20], one[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("name", ["llama-grouped-tied", "llama-grouped-untied", "neox-parallel", "opt"])
def test_flops_are_what_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = models.build(name)
    model.set_attn_implementation("eager")
    ids = torch.arange(2 * 48).view(2, 48) % 250
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert flops.per_token(model, 48) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.005)


def test_experts_that_are_not_visited_do_not_count() -> None:
    model = models.build("mixtral")
    config, total = model.config, sum(p.numel() for p in model.parameters() if p.dim() > 1)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    embedding = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    idle = experts * (1 - config.num_experts_per_tok / config.num_local_experts)
    assert flops.multiplying(model) == pytest.approx(total - embedding - idle)


def test_only_a_whole_checkpoint_has_the_name(tmp_path: Path) -> None:
    with checkpoints.writing(tmp_path, main=True) as partial:
        (partial / "checkpoint-4").mkdir(parents=True)
        (partial / "checkpoint-4/model").write_text("4")
        checkpoints.publish(partial / "checkpoint-4", tmp_path / "checkpoint-4")

    def fail() -> None:
        with checkpoints.writing(tmp_path, main=True) as partial:
            (partial / "checkpoint-8").mkdir(parents=True)
            raise OSError(28, "No space left on device")

    with pytest.raises(DestinationError, match="checkpoint-4 is whole"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-4"
    for step in (8, 12, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, 0)
    assert len(checkpoints.every(tmp_path)) == 4
    checkpoints.rotate(tmp_path, 2)
    assert [step for step, _ in checkpoints.every(tmp_path)] == [12, 100]


def test_metrics_of_a_resumed_run_are_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    first = metrics.MetricsFile(tmp_path, step=0)
    for step in range(1, 6):
        first.add({"step": step, "loss": 1 / step})
    with (tmp_path / metrics.FILE).open("a") as stream:
        stream.write('{"step": 6, "lo')
    spent = metrics.read(tmp_path)[2]["seconds"]
    second = metrics.MetricsFile(tmp_path, step=3)
    line = second.add({"step": 4, "loss": 0.25})
    assert [entry["step"] for entry in metrics.read(tmp_path)] == [1, 2, 3, 4]
    assert line["seconds"] >= spent


@pytest.mark.parametrize("name", ["llama-grouped-tied", "mixtral"])  # a tie; experts that are fused in memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sharded_checkpoint_becomes_what_transformers_saves(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict_saver import save
    from transformers import AutoModelForCausalLM

    model = models.build(name)
    with warnings.catch_warnings(action="ignore"):  # that there is no process group
        save({"model": model.state_dict()}, checkpoint_id=tmp_path / "saved", no_dist=True)
    model.to(dtype).save_pretrained(tmp_path / "expected")
    saved = distributed.DistributedTensors(tmp_path / "saved")
    with torch.device("meta"):
        bare = type(model)(model.config)  # names are all that is asked of it
    if model.config.tie_word_embeddings:
        bare.tie_weights()
    for folder, size in (("one", "5GB"), ("many", "20KB")):
        export.write_shards(bare, saved, tmp_path / folder, dtype, file_size=size)
        files = sorted((tmp_path / folder).glob("*.safetensors"))
        assert (len(files) > 1) == (folder == "many") == (tmp_path / folder / "model.safetensors.index.json").is_file()
        found = {key: value for file in files for key, value in load_file(file).items()}
        expected = load_file(tmp_path / "expected/model.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == dtype
            assert torch.equal(found[key], value), key
        model.config.save_pretrained(tmp_path / folder)
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_a_run_from_before_an_option_existed_ran_with_its_default(tmp_path: Path) -> None:
    curve = {field: getattr(request(), field) for field in resume._CURVE}
    older = {name: value for name, value in curve.items() if name != "momentum"}
    (tmp_path / resume.RECORD_FILE).write_text(json.dumps({"curve": older}))
    assert resume.checkpoint_to_resume(tmp_path, {"curve": curve}, resume=True) is None  # none was written yet
    with pytest.raises(TrainingError, match=r"momentum(.|\n)*0\.5(.|\n)*expected: 0\.95"):
        resume.checkpoint_to_resume(tmp_path, {"curve": {**curve, "momentum": 0.5}}, resume=True)
