"""What a token and a FLOP of one study's arms are worth against the control of another, seed by seed.

    python studies/across.py lengths recipes

Both studies must have the same text in the same order. The control is read where it first comes to an arm's last loss,
so in the middle of its schedule where that arm is short, which flatters the arm (docs/study.md, "Worth").
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hyperclone.report import load
from hyperclone.report.load import Results
from hyperclone.study import speedup

HERE = Path(__file__).parent


def curve(results: Results, arm: str, seed: int) -> speedup.Curve:
    """One run."""
    run = next(one for one in results.curves[arm] if one.seed == seed)
    return speedup.Curve(run.tokens, run.loss, run.seconds, results.arms[arm]["flops_per_token"])


def main() -> None:
    """Print a line for each arm and seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study")
    parser.add_argument("other", help="the study whose control arm is taken")
    args = parser.parse_args()
    ours, theirs = (load.read(HERE / f"{name}.runs") for name in (args.study, args.other))
    assert theirs.control is not None
    print("arm, seed, final loss, worth of a token, worth of a FLOP with the source charged")
    for arm, runs in ours.curves.items():
        cost = speedup.charged(ours.arms[arm]["kind"], ours.study["sources"].get(ours.arms[arm]["source"]))
        for run in runs:
            told = speedup.compare(curve(ours, arm, run.seed), curve(theirs, theirs.control, run.seed), cost=cost)
            worth = (told.worth_tokens, told.worth_charged)
            print(f"{arm}, {run.seed}, {told.final:.4f}, " + ", ".join("-" if w is None else f"{w:.2f}" for w in worth))


if __name__ == "__main__":
    main()
