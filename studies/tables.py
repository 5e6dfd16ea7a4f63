"""Markdown tables of the studies for docs/findings.md, from the committed results.

    python studies/tables.py recipes                     # print one table, or all
    python studies/tables.py --write docs/findings.md    # replace what is between the markers
    python studies/tables.py --check docs/findings.md    # exit code 1 if a table there is not the studies'

A table lies between the lines `<!-- table: NAME -->` and `<!-- end -->`; TABLES has the names. A cell over seeds is the
median, with the lowest and the highest in brackets; of an arm that is shown alone, the label is the study file's.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

from hyperclone.report import load
from hyperclone.report.load import Results
from hyperclone.study import speedup
from hyperclone.study.records import RunRecord
from hyperclone.study.speedup import Curve, Spread
from hyperclone.units import short_count

HERE = Path(__file__).parent
_BETWEEN = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)

Cell = Callable[[Results, str], str]  # of an arm
Columns = Sequence[tuple[str, Cell]]


# cells


def label(results: Results, arm: str) -> str:
    """What the arm is."""
    return str(results.arms[arm]["label"])


def seeds(results: Results, arm: str) -> str:
    """How many seeds have finished."""
    return str(len(results.runs[arm]))


def tokens(results: Results, arm: str) -> str:
    """Of its training, rounded: 5M."""
    return _count(results.runs[arm][0].tokens)


def parameters(results: Results, arm: str) -> str:
    """Of its model: 1.00M."""
    return f"{results.runs[arm][0].parameters / 1e6:.2f}M"


def operations(results: Results, arm: str) -> str:
    """Of its training."""
    run = results.runs[arm][0]
    return f"{run.tokens * run.flops_per_token / 1e12:.1f}e12"


def rates(results: Results, arm: str) -> str:
    """Learning rates, that of the differences between copies included."""
    train = {**results.study["train"], **results.arms[arm]["train"]}
    lr = _rate(results.runs[arm][0].lr)
    return f"{lr}, differences {_rate(train['difference_lr'])}" if "difference_lr" in train else lr


def start_loss(results: Results, arm: str) -> str:
    """Held-out loss before training."""
    return _over([run.curve.loss[0] for run in results.runs[arm]], ".4f")


def final_loss(results: Results, arm: str) -> str:
    """Held-out loss after training."""
    return _over([run.curve.loss[-1] for run in results.runs[arm]], ".4f")


def half_way_loss(results: Results, arm: str) -> str:
    """Median held-out loss at the evaluation nearest to half of the tokens."""
    return f"{statistics.median(_half_way(run.curve) for run in results.runs[arm]):.3f}"


def _half_way(curve: Curve) -> float:
    half = curve.tokens[-1] / 2
    return curve.loss[min(range(len(curve.tokens)), key=lambda i: abs(curve.tokens[i] - half))]


def minus(other: str, results: Results, arm: str) -> str:
    """Final loss minus another arm's of the same seed."""
    if arm == other or results.arms[arm]["kind"] == "random":
        return ""
    base = {run.seed: run.curve.loss[-1] for run in results.runs[other]}
    return _over([run.curve.loss[-1] - base[run.seed] for run in results.runs[arm] if run.seed in base], "+.4f")


def minus_control(results: Results, arm: str) -> str:
    """Final loss minus the control's, smoothed as for speed-ups."""
    if arm == results.control:
        return ""
    return _over([one.difference_to_target for one in results.speedups[arm]], "+.3f")


def speedup_over(other: str, results: Results, arm: str) -> str:
    """Speed-up in tokens over another arm than the control."""
    if arm == other or results.arms[arm]["kind"] == "random":
        return ""
    return _factors([one.speedup_tokens for one in load.against(results, other).speedups[arm]])


def speedup_over_control(results: Results, arm: str) -> str:
    """Speed-up in tokens."""
    return "control" if arm == results.control else _factors([one.speedup_tokens for one in results.speedups[arm]])


def efficiency(field: str, results: Results, arm: str) -> str:
    """Token or FLOP efficiency relative to the control, of the seeds where it is defined."""
    if arm == results.control:
        return ""
    known = [value for one in results.speedups[arm] if (value := getattr(one, field)) is not None]
    if not known:
        return "undefined"
    count = len(results.speedups[arm])
    return _over(known, ".2f") + ("" if len(known) == count else f", {len(known)} of {count} seeds")


def rise(results: Results, arm: str) -> str:
    """Highest rise above the source's loss; nothing for random weights."""
    if results.arms[arm]["kind"] == "random":
        return ""
    start = _source_loss(results, arm)
    rises = [speedup.forgetting(run.curve.loss, start[run.seed]) for run in results.runs[arm]]
    return _over(rises, ".3f").replace("0.000 ", "none ").replace("(0.000", "(none").removesuffix("0.000") or "none"


def cosines(results: Results, arm: str) -> str:
    """Mean cosine between copies at the start and at the end, of the seed that was examined."""
    run = next((run for run in results.runs[arm] if run.symmetry), None)
    if run is None:
        return ""
    return ", ".join(_number(_cosine(run, at), ".2f") for at in (run.symmetry[0].tokens, run.symmetry[-1].tokens))


def _cosine(run: RunRecord, at: int) -> float:
    layers = [layer for layer in run.symmetry if layer.tokens == at]
    return sum(layer.cosine * layer.matrices for layer in layers) / sum(layer.matrices for layer in layers)


# tables


def by_arm(study: str, *columns: tuple[str, Cell], group: str | None = None) -> str:
    """Arms of a study (of one of its groups), the lowest final loss first."""
    results = read(study)
    arms = [arm for arm in results.runs if group is None or group in load.in_groups(results.arms[arm])]
    arms.sort(key=lambda arm: statistics.median(run.curve.loss[-1] for run in results.runs[arm]))
    return markdown([title for title, _ in columns], [[cell(results, arm) for _, cell in columns] for arm in arms])


def tried_rates(study: str) -> str:
    """Validation loss by learning rate, the chosen one in bold."""
    results = read(study)
    tuned = {arm: dict(tried) for arm, tried in results.tuning.items()}
    every = sorted({lr for losses in tuned.values() for lr in losses})
    rows = [
        [label(results, arm), *(_bold(f"{losses[lr]:.4f}", lr == min(losses, key=losses.__getitem__)) if lr in losses
                                else "" for lr in every)]
        for arm, losses in tuned.items()
    ]  # fmt: skip
    return markdown(["arm", *map(_rate, every)], rows)


def by_source(study: str) -> str:
    """The sources of a study: continued, and grown."""
    results = read(study)
    rows = []
    for name, source in results.study["sources"].items():
        plain, grown = (
            next(arm for arm, about in results.arms.items() if about["source"] == name and about["kind"] == kind)
            for kind in ("source", "clone")
        )
        ends = [statistics.median(run.curve.loss[-1] for run in results.runs[arm]) for arm in (plain, grown)]
        size = f"{_count(source['tokens'])} tokens, {source['tokens'] / source['parameters']:.0f} for each parameter"
        losses = [cell(results, arm) for cell, arm in ((start_loss, plain), (final_loss, plain), (final_loss, grown))]
        rows.append([size, *losses, f"{ends[0] - ends[1]:.3f}", rise(results, grown)])
    titles = ["source", "its loss", "continued", "its 2x clone", "gained by width (of the medians)",
              "highest rise of the clone"]  # fmt: skip
    return markdown(titles, rows)


def summary(*studies: str) -> str:
    """The best recipe against each alternative, a size of the grown model a line."""
    titles = ["grown model", "tokens, and for each of its parameters", "speed-up in tokens over the published recipe",
              "over AdamW with noise and the scaling rule", "speed-up in FLOPs over the source continued",
              "speed-up in tokens over random weights", "token efficiency relative to random weights"]  # fmt: skip
    rows = []
    for study in studies:
        results = read(study)
        arm = str(results.headline)
        run = results.runs[arm][0]
        flops = [one.speedup_flops for one in load.against(results, "continued").speedups[arm]]
        rows.append([
            f"{run.parameters / 1e6:.1f}M", f"{tokens(results, arm)}, {run.tokens / run.parameters:.2g}",
            speedup_over("published", results, arm),
            speedup_over("scaled", results, arm) if "scaled" in results.runs else "not measured", _factors(flops),
            speedup_over_control(results, arm), efficiency("token_efficiency", results, arm),
        ])  # fmt: skip
    return markdown(titles, rows)


ARM, LOSS, RISE = ("arm", label), ("final held-out loss", final_loss), ("highest rise above the source", rise)
MAIN = (
    ARM, ("tokens", tokens), ("seeds", seeds), ("learning rate", rates), LOSS, ("minus control", minus_control),
    ("speed-up in tokens over the control", speedup_over_control),
    ("speed-up in tokens over the published recipe", partial(speedup_over, "published")),
)  # fmt: skip
EFFICIENCY = (
    ("token efficiency", partial(efficiency, "token_efficiency")),
    ("FLOP efficiency, source charged", partial(efficiency, "charged_flop_efficiency")),
)
COMPARED = (ARM, LOSS, ("after half", half_way_loss), RISE)
TABLES: dict[str, Callable[[], str]] = {
    "summary": partial(summary, "recipes", "larger", "gpu"),
    "recipes-rates": partial(tried_rates, "recipes"),
    "recipes": partial(by_arm, "recipes", *MAIN, *EFFICIENCY, RISE),
    "choices-noise": partial(by_arm, "choices", *COMPARED, ("cosine of copies, start and end", cosines), group="noise"),
    "choices-optimizer": partial(by_arm, "choices", *COMPARED, group="optimizer"),
    "choices-factor": partial(
        by_arm, "choices", ARM, ("parameters", parameters), ("FLOPs", operations), LOSS, RISE, group="factor"
    ),
    "lengths": partial(by_source, "lengths"),
    "depth": partial(
        by_arm, "depth", ARM, ("parameters", parameters), ("learning rate", rates),
        ("loss at the start", start_loss), LOSS, RISE,
    ),
    "larger": partial(by_arm, "larger", *MAIN, ("minus published, same seed", partial(minus, "published")), RISE),
    "gpu": partial(by_arm, "gpu", *MAIN, ("minus published, same seed", partial(minus, "published")), RISE),
}  # fmt: skip


@cache
def read(study: str) -> Results:
    """The committed results of a study."""
    return load.read(HERE / f"{study}.runs")


def _source_loss(results: Results, arm: str) -> dict[int, float]:
    """Loss of an arm's source before training by seed: of the source itself where it was run."""
    source = results.arms[arm]["source"]
    same = [other for other, about in results.arms.items() if about["source"] == source and about["kind"] == "source"]
    plain = next((other for other in same if other in results.runs), arm)
    return {run.seed: run.curve.loss[0] for run in results.runs[plain]}


def _over(values: Sequence[float], form: str) -> str:
    """Median over seeds (lowest to highest)."""
    middle, low, high = (_number(of(values), form) for of in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float, form: str) -> str:
    """A number without the sign of what rounds to zero."""
    text = f"{value:{form}}"
    return text.lstrip("+-") if float(text) == 0 else text


def _factors(values: Sequence[float | None]) -> str:
    """A speed-up over seeds."""
    over = Spread.over(values)
    middle, low, high = (_factor(value) for value in (over.median, over.low, over.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _factor(value: float) -> str:
    return "not reached" if value == 0 else "at the start" if value == float("inf") else f"{value:.2f}x"


def _count(count: float) -> str:
    """4997120 -> 5M: budgets are whole batches, a little below what was asked for."""
    return short_count(float(f"{count:.2g}"))


def _rate(lr: float) -> str:
    """0.00025 -> 2.5e-4."""
    mantissa, exponent = f"{lr:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is words, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in lines)


def replaced(text: str) -> str:
    """A page with its tables as they are now."""
    return _BETWEEN.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> None:
    """Print, write or check tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=Path, metavar="FILE")
    args = parser.parse_args()
    if page := args.write or args.check:
        text = page.read_text("utf-8")
        if (now := replaced(text)) == text:
            return
        if args.check:
            sys.exit(f"{page}: a table is not the studies' (python studies/tables.py --write {page})")
        page.write_text(now, "utf-8")
        return
    for name in args.tables or TABLES:
        print(f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->\n")


if __name__ == "__main__":
    main()
