"""A tiny random instance of an architecture: a source's own config with small sizes, built by stock transformers.

Which config fields hold sizes is read from the family, so that every axis shrinks and every flag stays. Two layers are
kept, or as many as it takes to have every kind of layer. Where an architecture wants more than that (rotary factors
for each frequency, the best eight of its experts), the source's own head size, experts or layers are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures.expression import lead_field
from hyperclone.architectures.family import Family
from hyperclone.errors import FamilyError, HypercloneError
from hyperclone.hf import models

_VOCAB = 304
_EPS = 0.1  # for fillers the norms' eps changes (fill.py): it must show which other norms it belongs to
_WINDOW = 8  # short enough for the proof's inputs to reach beyond it


def save(path: Path, config: Mapping[str, Any], family: Family) -> None:
    """Write a tiny random model of this architecture to `path`, in fp32.

    Raises:
        FamilyError: no small config gives a model that runs.
    """
    reason: Exception | None = None
    for small in configs(config, family):
        try:
            with models.quiet():
                model = randomise(build(small), seed=0)
                with torch.inference_mode():
                    logits = model(input_ids=torch.arange(12)[None], use_cache=False).logits
                if bool(logits.isfinite().all()):
                    model.save_pretrained(path)
                    return
        except HypercloneError:
            raise
        except Exception as error:  # whatever a config class or a model finds wrong with these sizes: try others
            reason = reason or error
    raise FamilyError(
        "no tiny instance of this architecture could be made to prove the family file on",
        file=family.file,
        found=f"{type(reason).__name__}: {reason}".splitlines()[0] if reason else "logits that are not finite",
        cure="the sizes in [axes] may name the wrong config fields",
    )


def build(config: Mapping[str, Any], *, device: str = "cpu") -> Any:
    """A causal language model of stock transformers with this config, in evaluation mode and fp32.

    Raises:
        FamilyError: transformers has none of this model type.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FamilyError(
            "transformers has no causal language model of this type, and remote code is never run",
            file="config.json",
            field="model_type",
            found=kind,
            cure="a newer transformers may have it" if kind else None,
        )
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "dtype", "torch_dtype")}
    with torch.device(device):
        made = CONFIG_MAPPING[kind].from_dict(plain)
        return AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()


def randomise(model: Any, *, seed: int) -> Any:
    """The model in evaluation mode, every parameter drawn: a bias or gain that is forgotten must show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms go by other names too (ln_1); nothing else has a weight of one dimension.
            gain = name.endswith("weight") and ("norm" in name.lower() or parameter.dim() == 1)
            parameter.copy_(1 + 0.3 * noise if gain else (0.2 if parameter.dim() > 1 else 0.3) * noise)
    return model.eval()


def configs(config: Mapping[str, Any], family: Family) -> Iterator[dict[str, Any]]:
    """Small configs of the same architecture, the smallest first.

    Raises:
        GrowthError: the family's expressions cannot say small sizes.
    """
    sizes = family.sizes(config)
    heads = [8, sizes["head_dim"]] if sizes["head_dim"] > 8 else [sizes["head_dim"]]
    experts = sorted({min(4, sizes["experts"]), sizes["experts"]}) if "experts" in sizes else [1]
    for layers in dict.fromkeys((_layers(config, family), family.depth(config))):
        for count in experts:
            for head_dim in heads:
                new = _sizes(config, family, head_dim=head_dim, experts=count)
                small = family.grown_config(config, {axis: (sizes[axis], size) for axis, size in new.items()})
                small |= {spec.eps: _EPS for spec in family.residual.values()}
                yield plain(_cut(small, family, layers), vocab=new.get("vocab", _VOCAB))


def _sizes(config: Mapping[str, Any], family: Family, *, head_dim: int, experts: int) -> dict[str, int]:
    """A small size for every axis. Sizes that are equal by construction stay so; others are told apart."""
    old = family.sizes(config)
    new = dict(old)
    if "heads" in old:
        new["heads"] = min(4, old["heads"])
        heads, count = old["heads"], new["heads"]
    else:
        new["kv_heads"] = min(2, old["kv_heads"])
        new["group"] = min(2 if old["kv_heads"] > 1 else 4, old["group"])
        heads, count = old["kv_heads"] * old["group"], new["kv_heads"] * new["group"]
    new["head_dim"] = head_dim
    new["hidden"] = count * (head_dim if old["hidden"] == heads * old["head_dim"] else head_dim + 8)
    new["ffn"] = new["hidden"] * 3 // 2
    if lead_field(family.axes["ffn"].size) is None:  # a multiple of hidden, which no field could change
        new["ffn"] = max(1, new["hidden"] * old["ffn"] // old["hidden"])
    if "vocab" in old:
        new["vocab"] = min(_VOCAB, old["vocab"])
    if "experts" in old:
        new["experts"] = experts
    for axis in old:
        lead = family.grows_with(axis, config)
        if lead != axis:
            new[axis] = max(1, old[axis] * new[lead] // old[lead])
    return new


def _cut(config: Mapping[str, Any], family: Family, layers: int) -> dict[str, Any]:
    """The config of the first layers; lists with an entry for each layer are cut with them."""
    depth = family.depth(config)
    cut = {k: v[:layers] if isinstance(v, list) and len(v) == depth else v for k, v in config.items()}
    return {**cut, family.layers: layers}


def _layers(config: Mapping[str, Any], family: Family) -> int:
    """The fewest first layers, two or more, that have every kind of tensor and every entry of the config's lists."""
    depth = family.depth(config)
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == depth]
    every = _kinds(config, family)
    for layers in range(min(2, depth), depth):
        seen = all(str(entry) in map(str, value[:layers]) for value in lists for entry in value)
        if seen and _kinds(_cut(config, family, layers), family) == every:
            return layers
    return depth


def _kinds(config: Mapping[str, Any], family: Family) -> set[tuple[str, str]]:
    return {(re.sub(r"\d+", "#", name), layout.text) for name, layout in family.tensors(config).items()}


def plain(config: dict[str, Any], *, vocab: int) -> dict[str, Any]:
    """Token ids within the vocabulary, and a window short enough to matter."""
    for key, value in config.items():
        if key.endswith("_token_id") and isinstance(value, int):
            config[key] = value % vocab
        elif key.endswith("_token_id") and isinstance(value, list):
            config[key] = [one % vocab for one in value if isinstance(one, int)]
    if isinstance(config.get("sliding_window"), int):
        config["sliding_window"] = min(config["sliding_window"], _WINDOW)
    return config
