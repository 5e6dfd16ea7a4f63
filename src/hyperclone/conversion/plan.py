"""Plan a growth by name: a directory or a Hub id, of which headers are read only."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Unpack

from hyperclone import units
from hyperclone.architectures import family_file
from hyperclone.conversion.source_rate import note_on_rate, source_rate
from hyperclone.io import hub
from hyperclone.io.files import user_path
from hyperclone.planning import planner
from hyperclone.planning.growth import Growth
from hyperclone.planning.growth_options import GrowthOptions, requested
from hyperclone.planning.notes import notes_on_tokens
from hyperclone.planning.plan import Plan


def plan(
    source: str | os.PathLike[str],
    growth: Growth | None = None,
    *,
    shard_size: str | int = planner.DEFAULT_SHARD_SIZE,
    revision: str | None = None,
    tokens: str | int | None = None,
    family: str | os.PathLike[str] | None = None,
    text_model: bool = False,
    **options: Unpack[GrowthOptions],
) -> Plan:
    """What growing a model would give; reads headers only.

    Args:
        source: a local model directory or a Hub id.
        growth: the request; or give its fields as keywords: width=2.
        shard_size: largest weight file, in bytes or as "5GB".
        revision: branch, tag or commit of a Hub id.
        tokens: planned for training the grown model ("26B" or a number), for a note on how many these are.
        family: a family file of your own, for an architecture that is not built in, or to be used in its place.
        text_model: of a model that also sees images, its text model is grown on its own.
        options: the fields of `Growth`, where no `growth` is given.

    Raises:
        OptionError: `tokens` or `shard_size` is not a number.
        HypercloneError: the source cannot be grown like this.
    """
    growth = requested(growth, options)
    user_family = None if family is None else family_file.read(family)
    planned_tokens = None if tokens is None else units.parse(tokens, "tokens")
    headers = hub.headers(source, revision=revision, family=user_family, text_model=text_model)
    result = planner.make_plan(headers, growth, shard_size=shard_size)
    if (directory := user_path(source)).is_dir():
        result = replace(result, notes=(*result.notes, *note_on_rate(source_rate(directory), result)))
    if planned_tokens is None:
        return result
    texts = notes_on_tokens(planned_tokens, result.parameters)
    return replace(result, notes=result.notes + texts.notes, warnings=result.warnings + texts.warnings)
