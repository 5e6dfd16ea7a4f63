"""A study as it is requested: a TOML file, read and checked before anything runs.

name = "what is compared"
seeds = [1, 2, 3]                  # every arm with every seed; a seed gives the data order, the noise, random weights
control = "random"                 # the arm that speed-ups are measured against

[train]                            # options of `hyperclone train`, the same for all arms
data = ["train.jsonl.gz"]          # paths are relative to this file
eval_data = ["held_out.jsonl.gz"]
tokens = "6M"

[tune]                             # optional: choose each arm's learning rate
lr = [2e-3, 4e-3, 8e-3]            # extended past an end that wins, up to `extend` times (4)
tokens = "500k"                    # on a short horizon,
seed = 0                           # a separate seed,
eval_data = ["validation.jsonl.gz"]  # and a text that decides nothing else

[sources.small]                    # models that clones are grown from
model = "small"                    # a directory or Hub id; with `train`, trained from random weights first
train = { data = ["pretrain.jsonl.gz"], tokens = "20M", lr = 6e-3 }
branch_of = "early"                # a shorter source with the same settings, from whose end it goes on
remake = "make source"             # a command that trains it again; by default `hyperclone study FILE --source small`

[sources.base]
study = "other.toml"               # the source `base` of another study

[arms.random]
random = true                      # the clone's architecture, randomly initialized
growth = { width = 2 }

[arms.progressive]
random = true                      # the source's architecture from random weights, grown on the way: with each seed
growth = { width = 2 }             # a small model of its own, whose cost is in the run's
grow_at = 0.25                     # share of the tokens after which it is grown

[arms.continued]                   # the source itself, trained further

[arms.clone]
growth = { width = 2 }             # options of `hyperclone grow`
moments = "copy"                   # the optimizer state is grown too: copy, first-copy or reset
train = { lr_rule = "scaled" }     # what differs from [train]
tune = { lr = [1e-3, 2e-3] }       # what differs from [tune]
branches = ["2M", "4M"]            # lengths that are trained as well, from the stable phase of this arm's runs
like = "other"                     # take the learning rate that was chosen for another arm
label = "2x, scaling rule"         # for figures and tables
group = "recipes"                  # arms of a group share a figure

[arms.ours]
model = "my-clone"                 # a model made elsewhere, trained as it is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperclone.planning.growth import Growth

MOMENTS = ("copy", "first-copy", "reset")


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model to grow.

    Attributes:
        name: for people.
        model: directory or Hub id; of a source with `train`, config and tokenizer only.
        train: options of its own training from random weights; None if it is ready.
        remake: the command that trains it again.
        study: file of the study that it is trained in, if that is another one.
        branch_of: the source from whose stable phase its training begins; None if it begins by itself.
    """

    name: str
    model: str
    train: Mapping[str, Any] | None
    remake: str
    study: Path | None = None
    branch_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How learning rates are chosen.

    Attributes:
        lr: rates to try.
        seed: of these short runs.
        extend: how often the grid may be extended past an end that wins.
        train: options that differ from the study's.
    """

    lr: tuple[float, ...]
    seed: int
    extend: int
    train: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name, label, group: for people.
        kind: "random", "source", "clone" or "model" (made elsewhere).
        source: what it starts from; None for a model made elsewhere.
        model: its directory, if it was made elsewhere.
        growth: options of Growth; empty for the source itself.
        moments: how the optimizer's moments are grown; None for a fresh optimizer.
        train: all options of its training, shared ones included.
        like: whose tuned learning rate it takes.
        tuning: how its learning rate is to be chosen; None if it is given, or another arm's.
        branch_of: the arm from the stable phase of whose runs its own begin; None if they begin by themselves.
        grow_at: of an arm of kind "random", the share of its tokens after which the source's architecture is grown;
            None where the grown architecture is trained from the start.
    """

    name: str
    label: str
    group: str | list[str] | None
    kind: str
    source: SourceModel | None
    model: str | None
    growth: Mapping[str, Any]
    moments: str | None
    train: Mapping[str, Any]
    like: str | None
    tuning: Tuning | None
    branch_of: str | None = None
    grow_at: float | None = None

    def grown(self, seed: int) -> Growth:
        """The growth with a seed, if it names none."""
        return Growth(**{"seed": seed, **self.growth})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A request.

    Attributes:
        file: where it was read from.
        name, note: for people.
        seeds: every arm is run with each.
        control: name of the arm that speed-ups are measured against; None if there is none.
        train: options of `hyperclone train` that all arms share.
        tuning: None if learning rates are given.
        sources, arms: by name, in the file's order.
        headline: the arm that a report opens with; None for the first clone.
        anatomy: whether grown arms are examined before and after (the first seed's).
    """

    file: Path
    name: str
    note: str
    seeds: tuple[int, ...]
    control: str | None
    train: Mapping[str, Any]
    tuning: Tuning | None
    sources: Mapping[str, SourceModel]
    arms: Mapping[str, Arm]
    anatomy: bool = True
    headline: str | None = None
