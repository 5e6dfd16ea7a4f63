"""What a model's weights say of its growth, against what its receipt and its config say.

The channels of an embedding are copied as they are, so in a grown model they come in copies, which hardly drift apart;
in others they are independent of each other.
"""

from __future__ import annotations

from typing import Any

import torch

from hyperclone.conversion import receipt
from hyperclone.io.files import exists
from hyperclone.training.preparation import PreparedRun

_ROWS = 256  # of the embedding that are looked at
_ALIKE = 0.5  # cosine between channels from which they are taken for copies; of others it is near 0
_MOST = 4  # copies that are looked for


def doubt(prepared: PreparedRun, model: Any) -> str | None:
    """What speaks against the way in which a run takes its model; None for nothing.

    Args:
        prepared: the run.
        model: with the weights that it starts from.
    """
    if prepared.weights == "stored" and (copies := copies_in(model)) > 1:
        return (
            f"this looks like a model that was grown ({copies} copies of each channel), but nothing here says how: it "
            "is trained without the scaling rule, and its copies hardly diverge. --receipt DIR names the directory "
            "that it was grown into"
        )
    said_by_config = prepared.receipt == prepared.directory and not exists(prepared.directory / receipt.FILE)
    if prepared.weights == "grown" and said_by_config and copies_in(model) == 1:
        return (
            "the config says that this model was grown, but no channel of its embedding has a copy: if its weights "
            f"are others, remove the field {receipt.CONFIG_FIELD!r} from config.json"
        )
    return None


def copies_in(model: Any) -> int:
    """How many copies of each channel the embedding of a model seems to have; 1 if it seems to have none."""
    rows = model.get_input_embeddings().weight.detach()[:_ROWS].float()
    for count in range(_MOST, 1, -1):
        if rows.shape[1] % count:
            continue
        tiled = rows.unflatten(1, (count, -1)).unbind(1)
        side_by_side = rows.unflatten(1, (-1, count)).unbind(2)
        for first, *others in (tiled, side_by_side):
            if min(torch.cosine_similarity(first, other, dim=0).median() for other in others) > _ALIKE:
                return count
    return 1
