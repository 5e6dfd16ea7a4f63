"""Checks of a plan: stored tensors against the architecture, sizes against its norms, factors against types."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperclone.architectures import heads
from hyperclone.architectures.entries import Tie
from hyperclone.architectures.family import Family
from hyperclone.architectures.layout import Layout
from hyperclone.architectures.stored_names import differs_in_numbers, is_buffer
from hyperclone.errors import CheckpointError, GrowthError
from hyperclone.io.tensor_files import DTYPES, Entry
from hyperclone.planning import head_scaling
from hyperclone.planning.growth import Growth
from hyperclone.planning.recipe import Noise

if TYPE_CHECKING:
    from hyperclone.io.source import Source
    from hyperclone.planning.plan import TensorPlan

# Parts of names: of adapters of peft; of what bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 store for a weight.
_ADAPTER = re.compile(r"\.base_layer\.|\.lora_[A-Za-z_]+\.")
_QUANTIZED = re.compile(
    r"\.(?:qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|nested_\w+|quant_state\.\w+|weight_packed|weight_shape"
    r"|weight_scale|weight_scale_inv|input_scale|weight_zero_point)(?:\.|$)"
)

# Levels in dB that come out within half a dB. Louder shares of an exact split are clipped; fainter ones fall below a
# unit in the last place, until none is left (docs/mathematics.md, measured). Gaussian shares that are louder than the
# weights cancel, and what their rounding loses is missing from the function.
_LEVELS = {
    Noise.SPLIT: {"BF16": (0, 30), "F16": (0, 50), "F32": (0, 80), "F64": (0, 80)},
    Noise.GAUSSIAN: {"BF16": (5, 40), "F16": (5, 60), "F32": (5, 80), "F64": (5, 80)},
}


def check_tensors(
    source: Source, family: Family, expected: Mapping[str, Layout], *, tied: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Raise unless the stored tensors are the expected ones, in the sizes that the config gives.

    Returns:
        Stored buffers that no model loads, and pairs (head, embedding) that are both stored although tied.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another size, or of a type that cannot be grown.
    """
    sizes = family.sizes(source.config)
    dropped, ties = [], []
    shapes: dict[int, tuple[int, ...]] = {}
    for name, entry in source.entries.items():
        if name in expected:
            continue
        if tied and family.tie and name == family.tie.head:
            ties.append((name, family.tie.embedding))
        elif family.ignored(name, source.config) or is_buffer(name, entry.shape):
            dropped.append(name)
        else:
            raise _unknown_tensor(source, family, name) or CheckpointError(
                "a stored tensor is not part of this architecture",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"the tensors of {family.file} for this config",
                cure="if it is a real weight, the family file needs a line for it; if it is a leftover, remove it",
            )
    for name, layout in expected.items():
        if name not in source.entries:
            if family.tie and name in (family.tie.head, _bias_of(family.tie.head)):
                raise _without_head(family.tie, name, expected)
            raise CheckpointError(
                "a tensor of this architecture is missing",
                tensor=name,
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
                cure="the checkpoint may be incomplete or without its head, or config.json may be another model's",
            )
        entry = source.entries[name]
        if id(layout) not in shapes:  # once for each line of the family file, which may stand for thousands of experts
            shapes[id(layout)] = layout.shape(sizes)
        if entry.shape == shapes[id(layout)] and entry.dtype in DTYPES:
            continue
        if entry.shape == (0,) != layout.shape(sizes):
            raise CheckpointError(
                "this tensor was saved empty, as by a process of DeepSpeed ZeRO-3, which holds a part of every tensor",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
                cure="in the directory of the DeepSpeed checkpoint, with its global_step folders: python "
                "zero_to_fp32.py . OUT --safe_serialization, then copy config.json and the tokenizer to OUT; in "
                "training, set stage3_gather_16bit_weights_on_model_save and save with engine.save_16bit_model",
            )
        if entry.shape != layout.shape(sizes):
            raise CheckpointError(
                "a tensor's size disagrees with the config",
                file=entry.file,
                tensor=name,
                found=list(entry.shape),
                expected=f"{list(layout.shape(sizes))} ({layout.text})",
            )
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                "a tensor of this type cannot be grown",
                file=entry.file,
                tensor=name,
                found=entry.dtype,
                expected=", ".join(DTYPES),
                cure="grow the original bf16 / fp16 / fp32 checkpoint",
            )
    return tuple(dropped), tuple(ties)


def check_chosen_type(growth: Growth, entries: Mapping[str, Entry]) -> None:
    """Raise where weights are stored as small numbers with scales and no type is chosen for what they stand for."""
    scaled = [name for name, entry in entries.items() if entry.parts is not None]
    if scaled and growth.dtype is None:
        raise GrowthError("the weights are FP8 or MXFP4, small numbers with scales, which cannot be grown as they are",
                          tensor=scaled[0], found=f"{len(scaled)} such tensors", expected="a type to convert them to",
                          field="dtype", cure="give --dtype bf16, or fp32")  # fmt: skip


def _unknown_tensor(source: Source, family: Family, name: str) -> CheckpointError | None:
    """The refusal of a tensor that is not the family's, where its name says what it is; None where it does not."""
    entry = source.entries[name]
    if _ADAPTER.search(name):
        return CheckpointError(
            "an adapter that was not merged is among the weights of the model", file=entry.file, tensor=name,
            expected="a model of transformers",
            cure="merge it and save again: model.merge_and_unload().save_pretrained(OUT)",
        )  # fmt: skip
    if _QUANTIZED.search(name):
        return CheckpointError(
            "the weights are quantized, though config.json has no quantization_config", file=entry.file, tensor=name,
            found=entry.dtype, expected=", ".join(DTYPES), cure="grow the original bf16 / fp16 / fp32 checkpoint",
        )  # fmt: skip
    if differs_in_numbers(name, family):
        return CheckpointError(
            "by the config there is no such tensor in this layer, or no such layer", file=entry.file, tensor=name,
            found=list(entry.shape), expected=f"the tensors of {family.file} for this config",
            cure="correct config.json (the number or types of layers, the number of experts, biases) if the model has "
            "it; if it is a leftover, remove it from the file",
        )  # fmt: skip
    return _of_another_head(source, name, hidden=family.sizes(source.config)["hidden"])


def _of_another_head(source: Source, name: str, *, hidden: int) -> CheckpointError | None:
    """The refusal of a tensor of a head that cannot be grown; None if it is of none that is known."""
    file, named, first = source.entries[name].file, source.config.get("architectures"), name.partition(".")[0]
    if heads.head_of(source.config) and first in ("score", "classifier"):
        return CheckpointError(
            "the class that config.json names has no such tensor, and transformers would not load it", file=file,
            tensor=name, field="architectures", found=named, expected="a model of transformers",
            cure="remove the tensor from the file, or save the model again: from_pretrained(SRC).save_pretrained(OUT) "
            "of that class leaves it out",
        )  # fmt: skip
    if first in ("v_head", "value_head"):
        return CheckpointError(
            "this is a value head beside the language model (as of trl), which transformers does not load", file=file,
            tensor=name, found=list(source.entries[name].shape), expected="a model of transformers",
            cure="AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) leaves it out; grow OUT",
        )  # fmt: skip
    if first in ("score", "classifier", "qa_outputs", "multiple_choice_head"):
        return CheckpointError(
            "this model has a head that cannot be grown", file=file, field="architectures", tensor=name, found=named,
            expected="a causal language model, or a class that ends in " + " or ".join(heads.names()),
            cure="if it is of such a class, name that in config.json; else grow the model that it was fine-tuned from",
        )  # fmt: skip
    shape = source.entries[name].shape
    if name.count(".") == 1 and len(shape) == 2 and shape[0] < shape[1] == hidden:
        return CheckpointError(
            "a matrix lies beside the layers, such as a head for rewards, which transformers would not load", file=file,
            tensor=name, found=list(shape), expected="the tensors of a class of transformers",
            cure="if it is a linear head with one output for each label, store it as score.weight and name a class in "
            "config.json's architectures that ends in ForSequenceClassification, with num_labels; if the language "
            "model is wanted alone, AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) leaves it out",
        )  # fmt: skip
    return None


def _bias_of(head: str) -> str:
    return head.removesuffix("weight") + "bias"


def _without_head(tie: Tie, name: str, expected: Container[str]) -> CheckpointError:
    cure = "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(OUT) stores one with such values"
    if tie.when.isidentifier() and _bias_of(tie.head) not in expected:  # an embedding has no bias
        cure = f'set "{tie.when}": true in config.json if the embedding may be the head; else {cure}'
    return CheckpointError("the head is not stored, so transformers would initialize it randomly", tensor=name,
                           expected="a whole causal language model; this one may have been saved from its base model",
                           cure=cure)  # fmt: skip


def rounded(tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The tensors whose values bf16 or fp16 cannot hold."""
    return [t for t in tensors if t.rounds and t.dtype in ("BF16", "F16")]


def rounding_refused(tensors: Sequence[TensorPlan], *, why: Sequence[str], ways: Sequence[Growth]) -> GrowthError:
    """The refusal where weights would be rounded to bf16 or fp16, which the logits show, without consent.

    Args:
        tensors: of the plan; some are rounded.
        why: where the factors come from (exact_ways.py).
        ways: growths like this one that need no rounding.
    """
    coarse = rounded(tensors)
    first = coarse[0]
    found = "a factor of " + " or ".join(f"{factor:.6g}" for factor in first.inexact_factors)
    expected = "powers of two (in F16, of 1 or more)"
    if first.offset:
        found = f"gains of which {first.offset:g} is not stored, multiplied by {first.factor:.6g} or split"
        expected = "gains that stay as they are"
    tensors_text = "1 tensor" if len(coarse) == 1 else f"{len(coarse)} tensors"
    exact = f"exact in {first.dtype}: {', or '.join(way.flags() for way in ways)}; else " if ways else ""
    return GrowthError(
        f"this growth is not exact in {first.dtype}: {tensors_text} would have to be rounded",
        tensor=first.name,
        found=f"{found}, since {'; and '.join(why)}" if why else found,
        expected=f"{expected}, or a type in which rounding does not matter",
        cure=f"{exact}write fp32 (--dtype fp32), or accept that the logits move, about as much as computing in "
        f"{first.dtype} moves them; the proof measures it (--allow-rounding)",
    )


def check_uneven(
    family: Family,
    config: Mapping[str, Any],
    expected: Mapping[str, Layout],
    sizes: Mapping[str, tuple[int, int]],
    padding: Mapping[str, str],
) -> None:
    """Raise where a norm would see some units copied more often than others: only padding channels can even it out."""
    for name, layout in expected.items():
        axes = layout.axes if layout.norm else {axis for axis in layout.axes if family.stream(axis, config) == "hidden"}
        for axis in sorted(axes - padding.keys()):
            old, new = sizes[axis]
            if new % old:
                raise GrowthError(
                    f"{axis} of this model can only grow to multiples of {old}",
                    field=axis,
                    tensor=name,
                    found=new,
                    expected=f"{new // old * old} or {(new // old + 1) * old}",
                    cure="a norm needs equally many copies of all that it sees; other widths may have other factors",
                )


def check_level(growth: Growth, tensors: Sequence[TensorPlan]) -> None:
    """Raise where a type cannot hold noise of this level."""
    for dtype in sorted({tensor.dtype for tensor in tensors if tensor.inputs != 1}):
        low, high = _LEVELS.get(growth.recipe.noise, {}).get(dtype, (-math.inf, math.inf))
        if not low <= growth.snr_db <= high:
            raise GrowthError(
                f"{growth.noise} noise of this level is out of range in {dtype}",
                field="snr_db",
                found=f"{growth.snr_db:g} dB",
                expected=f"{low} to {high} dB",
                cure="choose a level in this range, or a wider dtype",
            )


def check_head_dim(
    family: Family,
    config: Mapping[str, Any],
    expected: Mapping[str, Layout],
    sizes: Mapping[str, tuple[int, int]],
) -> None:
    """Raise where head_dim cannot grow: queries must be known, to be rescaled, and positions not depend on it.

    Families that ship with the package refuse it themselves where it is not for rotary positions.
    """
    old, new = sizes[head_scaling.AXIS]
    if new == old or any(layout.queries for layout in expected.values()):
        return
    rotary = not family.text or any("rope" in field or "rotary" in field for field in family.fields(config))
    raise GrowthError(
        "head_dim of this architecture cannot grow",
        field=head_scaling.AXIS,
        found=new,
        expected=f"{old} (unchanged)",
        cure="rotary positions rotate channels at frequencies that depend on head_dim; grow the number of heads"
        if rotary
        else "the family file does not say which tensors are queries, which would be rescaled: grow the number of "
        "heads, or mark them with query(...) where positions do not act on single channels of a head",
    )


def stored_sizes(source: Source, family: Family) -> str | None:
    """Sizes that a source's tensors have and its config does not give, in words; None where they agree."""
    found: dict[str, str] = {}
    sizes = family.sizes(source.config)
    try:
        expected = family.tensors(source.config)
    except CheckpointError:  # nothing is known of its tensors
        return None
    for name, layout in expected.items():
        entry = source.entries.get(name)
        if entry is None or len(entry.shape) != len(layout.shape(sizes)):
            continue
        for dim, (stored, size) in enumerate(zip(entry.shape, layout.shape(sizes), strict=True)):
            axes = layout.axes_of(dim)
            if stored != size and len(axes) == 1 and sizes[axis := next(iter(axes))] == size:
                found.setdefault(axis, f"{axis} {stored} in {name}, {size} by the config")
    return "; ".join(found.values()) or None
