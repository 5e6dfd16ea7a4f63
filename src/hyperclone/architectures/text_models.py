"""The text model inside a model that also sees images: its config, and the names of its tensors.

transformers has such a model as one class around a language model, whose config is the `text_config` of the whole.
What the text model is called on its own is data: text_models.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any

from hyperclone.architectures import not_grown, registry
from hyperclone.architectures.family import Family
from hyperclone.errors import CheckpointError

_INHERITED = ("bos_token_id", "eos_token_id", "pad_token_id")
_DTYPES = ("dtype", "torch_dtype")
_TIE = "tie_word_embeddings"
_ROPE = ("rope_parameters", "rope_scaling")
_OF_IMAGES = ("image_", "video_", "vision_", "audio_")  # how fields of the whole begin where it has no text_config


def has_text_model(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a whole with a text model in it."""
    if isinstance(config.get("text_config"), dict):
        return True
    return str(config.get("model_type")) in _table()["types"] and isinstance(config.get("vision_config"), dict)


@cache
def wholes() -> Mapping[str, str]:
    """Model types with a text model in them that can be grown on its own -> the type that it has then."""
    becomes = _table()["becomes"]
    return {whole: becomes[kind]["type"] if kind in becomes else kind for whole, kind in _table()["types"].items()}


def difference(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """What unmodified transformers does in a whole on text, if that is not what its text model does; else "".

    Args:
        config, text: of the whole, and of the text model as a causal language model.
    """
    whole, kind = (str(one.get("model_type")) for one in (config, text))
    unread = [
        field
        for field, rule in _table()["logits"].items()
        if kind in rule["types"] and whole not in rule["read_by"]
        and text.get(field, rule["defaults"].get(kind, rule.get("neutral"))) != rule.get("neutral")
    ]  # fmt: skip
    if unread:
        return f"does not apply {' and '.join(unread)} to the logits"
    return str(_table()["differs"].get(whole, ""))


def text_config(config: Mapping[str, Any], *, head_stored: bool) -> dict[str, Any]:
    """The config of the text model as a causal language model of its own.

    As in transformers, it inherits the type of its numbers, token ids and the tie of its head from the whole, where it
    has none itself.

    Args:
        config: of the whole.
        head_stored: the head is stored. Then it is tied where a config says so, and none says that it is not: the
            defaults of the two differ, and a stored head is the model's whatever they say.

    Raises:
        CheckpointError: there is no text model in it (the message says what it is), or its type is not known.
    """
    if not has_text_model(config):
        raise no_text_model(config)
    own = config.get("text_config")
    if not isinstance(own, dict):  # of an older config, which has the fields of both in one
        left = ("model_type", "architectures", "auto_map")
        own = {name: v for name, v in config.items() if not name.startswith(_OF_IMAGES) and name not in left}
    kind = own.get("model_type") or _table()["types"].get(str(config.get("model_type")))
    if not isinstance(kind, str):
        raise CheckpointError("the text model's type is not known", file="config.json", field="text_config.model_type",
                              found=kind, expected="a model type", cure="name it there")  # fmt: skip
    inherited = {name: config[name] for name in _INHERITED if name in config and name not in own}
    if not any(own.get(name) for name in _DTYPES):
        inherited |= {name: config[name] for name in _DTYPES if name in config}
    fields = {**inherited, **own}
    if kind in _table()["becomes"]:
        kind, fields = _as_causal(kind, fields)
    said = [c[_TIE] for c in (config, own) if isinstance(c.get(_TIE), bool)]
    tied = not head_stored or (bool(said) and all(said))
    named = _table()["classes"].get(kind)
    return {**({"architectures": [named]} if named else {}), **fields, "model_type": kind, _TIE: tied}


def no_text_model(config: Mapping[str, Any], user_family: Family | None = None) -> CheckpointError:
    """The refusal of --text-model for a config that `has_text_model` denies: what the model is instead.

    Args:
        config: of the model.
        user_family: the user's family file.
    """
    model_type = config.get("model_type")
    found = model_type if isinstance(model_type, str) else None
    if registry.shipped(found) is not None or (user_family is not None and found in user_family.model_types):
        problem, cure = "there is no text model in this model: it is a plain language model", "omit --text-model"
    elif config.get("is_encoder_decoder") is True:
        problem = "only decoders are grown, and this model has an encoder beside its decoder, which reads its states"
        cure = None
    else:
        problem = "there is no text model in this model, as far as its config.json says"
        cure = "without --text-model, `hyperclone plan` says what can be done about this model type"
        if (reason := not_grown.reasons().get(found or "")) is not None:
            problem, cure = f"this model cannot be grown, with or without --text-model: {reason}", None
    return CheckpointError(problem, file="config.json", field="text_config", found=found, cure=cure)


def _as_causal(kind: str, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(type, fields) of a text model under the type that computes the same on text."""
    defaults = dict(_table()["becomes"][kind])
    kind, result = str(defaults.pop("type")), {**fields, **defaults.pop("always", {})}
    for name in _ROPE:
        if isinstance(rope := result.get(name), dict):
            rope = {key: value for key, value in rope.items() if not key.startswith("mrope_")}
            result[name] = {key: "default" if value == "mrope" else value for key, value in rope.items()}
            if "rope_theta" in rope:
                defaults.pop("rope_theta", None)
    if isinstance(scaling := result.get("rope_scaling"), dict) and all(v == "default" for v in scaling.values()):
        result["rope_scaling"] = None
    rope = result.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" not in rope and "rope_theta" in defaults:
        result["rope_parameters"] = {**rope, "rope_theta": result.get("rope_theta", defaults.pop("rope_theta"))}
    return kind, {**defaults, **result}


def text_names(stored: Collection[str], family: Family) -> dict[str, str]:
    """The stored tensors of the text model, each with its name in the causal language model.

    Args:
        stored: names in the files of the whole.
        family: of the text model.
    """
    prefix = family.prefix
    patterns = [line.pattern for line in family.lines]
    inner = {name.removeprefix(prefix).partition(".")[0] for name in patterns if name.startswith(prefix)}
    outer = {name.partition(".")[0] for name in patterns if not name.startswith(prefix)}
    if family.tie is not None:
        outer.add(family.tie.head.partition(".")[0])
    root = next((root for root in _roots(prefix) if any(_below(name, root) in inner for name in stored)), None)
    names = {}
    for name in stored:
        if root is not None and _below(name, root) in inner:
            names[name] = prefix + name.removeprefix(root)
            continue
        head = next((front for front in ("language_model.", "model.", "") if _below(name, front) in outer), None)
        if head is not None:
            names[name] = name.removeprefix(head)
    return names


def _roots(prefix: str) -> tuple[str, ...]:
    """How the names of the text model's body may begin, the longest first."""
    return (
        f"model.language_model.{prefix}", f"language_model.{prefix}", "model.language_model.", "language_model.",
        "model.text_model.", "text_model.", prefix,
    )  # fmt: skip


def _below(name: str, root: str) -> str | None:
    """The part of a name after a root; None if it does not begin so."""
    return name.removeprefix(root).partition(".")[0] if name.startswith(root) else None


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("hyperclone.architectures").joinpath("text_models.toml").read_text("utf-8"))
