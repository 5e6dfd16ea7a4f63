"""Token and FLOP efficiency of one study's arms relative to the control of another, seed by seed.

    python studies/across.py lengths recipes

Both studies must have the same text in the same order. The control is read where it first comes to an arm's last loss,
so in the middle of its schedule where that arm is short, which flatters the arm (docs/study.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hyperclone.report import load
from hyperclone.study import speedup

HERE = Path(__file__).parent


def main() -> None:
    """Print a line for each arm and seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study")
    parser.add_argument("other", help="the study whose control arm is taken")
    args = parser.parse_args()
    ours, theirs = (load.read(HERE / f"{name}.runs") for name in (args.study, args.other))
    assert theirs.control is not None
    controls = {run.seed: run.curve for run in theirs.runs[theirs.control]}
    print("arm, seed, final loss, token efficiency, FLOP efficiency with the source charged")
    for arm, runs in ours.runs.items():
        cost = speedup.charged(ours.arms[arm]["kind"], ours.study["sources"].get(ours.arms[arm]["source"]))
        for run in runs:
            compared = speedup.compare(run.curve, controls[run.seed], cost=cost)
            shown = (compared.token_efficiency, compared.charged_flop_efficiency)
            figures = ", ".join("-" if value is None else f"{value:.2f}" for value in shown)
            print(f"{arm}, {run.seed}, {compared.final:.4f}, {figures}")


if __name__ == "__main__":
    main()
