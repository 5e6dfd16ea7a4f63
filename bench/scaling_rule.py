"""The scaling rule, seen: a source, its continuation, and 2x clones of it on the same batches.

    python bench/scaling_rule.py [--steps 150] [-o docs/figures/scaling_rule.svg]

A small byte-level Llama is trained on the text of this repository's documents, stopped, and grown with its AdamW
moments by `hyperclone.grow(..., optimizer_state=...)`. Arms, all on the same batches in the same order:

    source                       the source, trained further
    scaled                       a noise-free clone, its param groups by the scaling rule and its grown moments
    scaled, moments reset        the same groups, moments zero
    uniform, moments reset       one learning rate everywhere, as in the HyperCloning paper, moments zero
    scaled, split noise 10 dB    the default clone, groups and moments

One seed and one constant learning rate, so that the arms differ in nothing but their rules. The curves show what each
rule does to the function that was grown, not which is the better way to train.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import hyperclone
from hyperclone import Growth
from hyperclone.planning.scaling_rule import LrRule

ROOT = Path(__file__).parents[1]
LR, DECAY, BETAS = 2e-3, 0.05, (0.9, 0.95)
BATCH, WINDOW = 16, 128
CONFIG = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": WINDOW, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# name: (which clone, lr_rule, whether it has grown moments)
ARMS: dict[str, tuple[str, LrRule, bool]] = {
    "scaled": ("clone", "scaled", True),
    "scaled, moments reset": ("clone", "scaled", False),
    "uniform, moments reset": ("clone", "uniform", False),
    "scaled, split noise 10 dB": ("noisy", "scaled", True),
}


def corpus() -> Tensor:
    """(bytes,) the Markdown and family files of this repository, in the order of their names."""
    files = sorted(
        [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("src/hyperclone/architectures/families/*.toml")]
    )
    return torch.tensor(list(b"".join(file.read_bytes() for file in files)), dtype=torch.long)


def batches(text: Tensor, *, seed: int, steps: int) -> Iterator[Tensor]:
    """(BATCH, WINDOW) random windows, the same for every call with one seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - WINDOW, (BATCH,), generator=generator)
        yield torch.stack([text[start : start + WINDOW] for start in starts.tolist()])


def train(model: Any, optimizer: torch.optim.Optimizer, data: Iterator[Tensor]) -> list[float]:
    """Losses in nats for each byte, before each step."""
    losses = []
    for ids in data:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def trainers_groups(model: Any) -> list[dict[str, Any]]:
    """Parameters as transformers' Trainer groups them: decayed, and not."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if "norm" not in name and not name.endswith("bias")]
    rest = [p for name, p in named if "norm" in name or name.endswith("bias")]
    return [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]


def load(path: Path) -> Any:
    """A model in fp32, to be trained."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()


def run(*, steps: int, before: int, seed: int) -> dict[str, list[float]]:
    """Losses of every arm."""
    text = corpus()
    torch.manual_seed(seed)
    source = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("llama", **CONFIG)).train()
    optimizer = torch.optim.AdamW(trainers_groups(source), lr=LR, betas=BETAS)
    curves = {"before": train(source, optimizer, batches(text, seed=seed, steps=before))}

    def data() -> Iterator[Tensor]:
        return batches(text, seed=seed + 1, steps=steps)

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        source.save_pretrained(directory / "source")
        torch.save(optimizer.state_dict(), directory / "source/optimizer.pt")
        for name, growth in (("clone", Growth(width=2, noise="none")), ("noisy", Growth(width=2, seed=seed))):
            hyperclone.grow(directory / "source", directory / name, growth, optimizer_state=directory / "source")
        curves["source"] = train(source, optimizer, data())
        for arm, (name, lr_rule, moments) in ARMS.items():
            model = load(directory / name)
            groups = hyperclone.param_groups(model, lr=LR, weight_decay=DECAY, lr_rule=lr_rule)
            clones = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
            if moments:
                hyperclone.load_state(clones, model, directory / name)
            curves[arm] = train(model, clones, data())
    return curves


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The first steps after growing, and the difference from the source."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, not outlines: a third of the size
    matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans"]  # SVG names all of them with every text
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    colors = dict(zip([name for name in curves if name != "before"], ("0.3", "C0", "C1", "C3", "C2"), strict=True))
    for name, color in colors.items():
        wide = {"linewidth": 5.0, "alpha": 0.4} if name == "source" else {"linewidth": 1.4}
        steps = range(0, len(curves[name]), 2)  # every other one: the figure is half the size
        left.plot(steps, curves[name][::2], color=color, label=name, **wide)
        if name != "source":
            gap = [a - b for a, b in zip(curves[name], curves["source"], strict=True)]
            right.plot(steps, gap[::2], color=color, linewidth=1.4)
    left.set(xlabel="steps after growing", ylabel="training loss (nats per byte)", title="Same batches, 2x clones")
    right.set(xlabel="steps after growing", ylabel="loss minus the source's", title="Difference from the source")
    right.axhline(0, color="0.3", linewidth=5, alpha=0.4)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    if path.suffix == ".svg":  # a tenth of a point is enough for a line, which needs no line for each of its points
        text = re.sub(r' d="[^"]*"', lambda line: re.sub(r"(?<=\d\.\d)\d+| ?\n", "", line[0]), path.read_text())
        path.write_text(re.sub(r"\n +", "\n", text))


def main() -> None:
    """Run all arms, print their differences from the source, write the figure and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="after growing")
    parser.add_argument("--before", type=int, default=300, help="of the source, before it is grown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--figure", type=Path, default=ROOT / "docs/figures/scaling_rule.svg")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/scaling_rule.json")
    parser.add_argument("--draw", action="store_true", help="only draw the figure again, from the numbers")
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.json.read_text())["curves"], args.figure)
        return
    curves = run(steps=args.steps, before=args.before, seed=args.seed)
    summary = {}
    for name, losses in curves.items():
        if name in ("before", "source"):
            continue
        gaps = [a - b for a, b in zip(losses, curves["source"], strict=True)]
        summary[name] = {"largest": max(gaps, key=abs), "highest": max(gaps), "last_20_mean": sum(gaps[-20:]) / 20}
        print(f"{name:40} largest difference {summary[name]['largest']:+.2e}, mean of the last 20 "
              f"{summary[name]['last_20_mean']:+.2e}")  # fmt: skip
    content = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seed": args.seed, "lr": LR, "weight_decay": DECAY, "betas": BETAS, "batch": BATCH, "window": WINDOW,
        "config": CONFIG, "against_source": summary,
        "curves": {name: [round(loss, 6) for loss in losses] for name, losses in curves.items()},
    }  # fmt: skip
    args.json.write_text(json.dumps(content) + "\n")
    draw(curves, args.figure)


if __name__ == "__main__":
    main()
