"""`hyperclone demo`: a real model is grown, proved, and trained against random weights.

Seedling (demo/seedling, made by studies/seedling.py) is grown 2-fold and proved; the clone, the same architecture from
random weights, and Seedling itself then train on the same new text in the same order (demo/demo.toml, an ordinary
study); the report is drawn. Everything lies in one directory, and what has finished is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hyperclone import units
from hyperclone.conversion.grow import Grown
from hyperclone.conversion.grow import grow as grow_model
from hyperclone.conversion.verify import verify
from hyperclone.errors import DestinationError, HypercloneError, StudyError
from hyperclone.hf.models import quiet
from hyperclone.planning.growth import Growth
from hyperclone.planning.plan import Plan
from hyperclone.study.config import Study
from hyperclone.study.config_file import read as read_study
from hyperclone.study.progress import OnEvent, Progress
from hyperclone.study.run import run as run_study

DATA = Path(str(resources.files("hyperclone.demo")))
PROMPT = "The people of the United States"
_NAMES = ("clone", "runs", "report.html")
_NEEDED = ("accelerate", "datasets", "matplotlib")


def request(tokens: str | int | None = None) -> Study:
    """The study of the demonstration, with another budget if one is given."""
    study = read_study(DATA / "demo.toml")
    if tokens is None:
        return study
    budget = {"tokens": units.parse(tokens, "tokens")}
    return replace(
        study,
        train={**study.train, **budget},
        arms={name: replace(arm, train={**arm.train, **budget}) for name, arm in study.arms.items()},
    )


def prepare(output: Path) -> None:
    """A directory for the demonstration.

    Raises:
        StudyError: Seedling is not there, or a package that training or the report needs.
        DestinationError: the directory holds something else.
    """
    for package in _NEEDED:
        if find_spec(package) is None:
            raise StudyError(f"the demonstration needs {package}", cure="pip install 'hyperclone[train,report]'")
    if not (DATA / "seedling" / "model.safetensors").is_file():
        raise StudyError("Seedling is missing from this installation", file=DATA / "seedling",
                         cure="python studies/seedling.py trains it again")  # fmt: skip
    if output.exists() and (not output.is_dir() or any(p.name not in _NAMES and not p.name.startswith(".")
                                                       for p in output.iterdir())):  # fmt: skip
        raise DestinationError("this holds something else", file=output, cure="--output names another directory")
    output.mkdir(parents=True, exist_ok=True)


def grow(output: Path, *, on_plan: Callable[[Plan], None] | None = None, progress: Any = None) -> Grown | None:
    """Seedling grown 2-fold and proved from disk, unless that was done before.

    The clone of another version's Seedling is replaced.
    """
    clone, seedling = output / "clone", DATA / "seedling"
    if clone.is_dir():
        try:
            if verify(seedling, clone, proof="structural").passed:
                return None
        except HypercloneError:
            pass  # no clone of this Seedling
    return grow_model(seedling, clone, Growth(width=2), overwrite=clone.is_dir(), on_plan=on_plan, progress=progress)


def train(
    output: Path, *, tokens: str | int | None = None, jobs: int | None = None, threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Progress:  # fmt: skip
    """The arms, or what is left of them."""
    return run_study(request(tokens), output=output / "runs", jobs=jobs, threads=threads, on_event=on_event)


def report(output: Path) -> Path:
    """The page."""
    from hyperclone.report.write import report as write

    return write(output / "runs", output / "report.html")[0]


def write_on(progress: Progress, *, length: int = 48) -> list[tuple[str, str]]:
    """What Seedling and the trained arms make of one prompt, greedily."""
    models_by_name = [("seedling", DATA / "seedling")]
    models_by_name += [
        (run.arm.name, run.path) for run in progress.runs if run.status == "finished" and run.path is not None
    ]
    return [(name, _continue(directory, length)) for name, directory in models_by_name]


def _continue(directory: Path, length: int) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), torch.inference_mode():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length,
                                   repetition_penalty=1.3, pad_token_id=0)  # fmt: skip
        return str(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True))
