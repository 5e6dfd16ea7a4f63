"""A tiny random instance of an architecture: the source's config with small sizes, built by unmodified transformers.

The family says which config fields hold sizes, so every axis shrinks and every flag stays. Two layers are kept, or as
many as it takes to have every kind of layer. Where an architecture needs more (rotary factors for each frequency, the
best eight of its experts), the source's head_dim, number of experts or number of layers is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures.expression import lead_field
from hyperclone.architectures.family import Family
from hyperclone.errors import FamilyError, HypercloneError, reason_with_class
from hyperclone.hf.models import parse_config, quiet

_VOCAB = 304
_EPS = 0.1  # padding channels change the norms' eps (padding.py): large enough to show in every norm that uses it
_WINDOW = 8  # shorter than the proof's inputs


def save_tiny_model(path: Path, config: Mapping[str, Any], family: Family) -> None:
    """Write a tiny random model of this architecture to `path`, in fp32.

    Raises:
        FamilyError: no small config makes a model that runs.
    """
    reason: Exception | None = None
    for small in small_configs(config, family):
        try:
            with quiet():
                model = randomize_parameters(build_model(small), seed=0)
                with torch.inference_mode():
                    logits = model(input_ids=torch.arange(12)[None], use_cache=False).logits
                if bool(logits.isfinite().all()):
                    model.save_pretrained(path)
                    return
        except HypercloneError:
            raise
        except Exception as error:  # a config class or a model may refuse these sizes in any way: try others
            reason = reason or error
    raise FamilyError(
        "no tiny instance of this architecture could be built to prove the family file on",
        file=family.file,
        found=reason_with_class(reason) if reason else "logits that are not finite",
        cure="the sizes in [axes] may name the wrong config fields",
    )


def build_model(config: Mapping[str, Any], *, device: str = "cpu") -> Any:
    """A causal language model of unmodified transformers with this config, in evaluation mode and fp32.

    Args:
        config: as config.json has it; fields that ask for remote code or a type are ignored.
        device: "meta" for a model without weights.

    Raises:
        FamilyError: transformers has none of this model type.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not known or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FamilyError(
            "transformers has no causal language model of this type, and remote code is never run",
            file="config.json",
            field="model_type",
            found=kind,
            cure="try a newer transformers" if kind else None,
        )
    fields = {key: value for key, value in config.items() if key not in ("auto_map", "dtype", "torch_dtype")}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(parse_config(fields), dtype=torch.float32).eval()


def randomize_parameters(model: Any, *, seed: int) -> Any:
    """The model in evaluation mode, every parameter random: a bias or gain that is forgotten changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms have other names too (ln_1); nothing else has a weight of one dimension.
            gain = name.endswith("weight") and ("norm" in name.lower() or parameter.dim() == 1)
            parameter.copy_(1 + 0.3 * noise if gain else (0.2 if parameter.dim() > 1 else 0.3) * noise)
    return model.eval()


def small_configs(config: Mapping[str, Any], family: Family) -> Iterator[dict[str, Any]]:
    """Small configs of the same architecture, the smallest first.

    Raises:
        GrowthError: the family's expressions do not allow small sizes.
    """
    config = family.canonical(config)
    sizes = family.sizes(config)
    heads = [8, sizes["head_dim"]] if sizes["head_dim"] > 8 else [sizes["head_dim"]]
    experts = sorted({min(4, sizes["experts"]), sizes["experts"]}) if "experts" in sizes else [1]
    for layers in dict.fromkeys((_layers(config, family), family.depth(config))):
        for count in experts:
            for head_dim in heads:
                new = _sizes(config, family, head_dim=head_dim, experts=count)
                small = family.grown_config(config, {axis: (sizes[axis], size) for axis, size in new.items()})
                small |= {spec.eps: _EPS for spec in family.residual.values() if spec.eps}
                yield fit_token_ids(_cut(small, family, layers), vocab=new.get("vocab", _VOCAB))


def _sizes(config: Mapping[str, Any], family: Family, *, head_dim: int, experts: int) -> dict[str, int]:
    """A small size for every axis. Sizes that are equal by construction stay so; others differ."""
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
    if lead_field(family.axes["ffn"].size) is None:  # a multiple of hidden, without a field of its own
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
    """The config with the first layers only; lists with an entry for each layer are cut to them."""
    depth = family.depth(config)
    cut = {k: v[:layers] if isinstance(v, list) and len(v) == depth else v for k, v in config.items()}
    return cut if isinstance(cut.get(family.layers), list) else {**cut, family.layers: layers}


def _layers(config: Mapping[str, Any], family: Family) -> int:
    """The smallest number of first layers, two or more, with every kind of tensor and every entry of config lists."""
    depth = family.depth(config)
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == depth]
    kinds = _kinds(config, family)
    for layers in range(min(2, depth), depth):
        complete = all(str(entry) in map(str, value[:layers]) for value in lists for entry in value)
        if complete and _kinds(_cut(config, family, layers), family) == kinds:
            return layers
    return depth


def _kinds(config: Mapping[str, Any], family: Family) -> set[tuple[str, str]]:
    return {(re.sub(r"\d+", "#", name), layout.text) for name, layout in family.tensors(config).items()}


def fit_token_ids(config: dict[str, Any], *, vocab: int) -> dict[str, Any]:
    """The config, changed in place: token ids within the vocabulary, and a sliding window shorter than the inputs."""
    for key, value in config.items():
        if key.endswith("_token_id") and isinstance(value, int):
            config[key] = value % vocab
        elif key.endswith("_token_id") and isinstance(value, list):
            config[key] = [token % vocab for token in value if isinstance(token, int)]
    if isinstance(config.get("sliding_window"), int):
        config["sliding_window"] = min(config["sliding_window"], _WINDOW)
    return config
