"""What a user may ask for, how it is read, and what is refused with the nearest thing that works."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperclone import Growth
from hyperclone.errors import GrowthError, HypercloneError, OptionError
from hyperclone.io.shards import TensorHeader, lay_out
from hyperclone.planning.growth import resolve, resolve_layers, spelled
from hyperclone.planning.recipe import Expansion, Noise, Recipe
from hyperclone.units import parse_size
from tests.helpers.examples import examples

SMOLLM2 = {"hidden": 576, "ffn": 1536, "kv_heads": 3, "group": 3, "head_dim": 64, "vocab": 49152}
MULTI_HEAD = {"hidden": 2048, "ffn": 8192, "kv_heads": 16, "group": 1, "head_dim": 128}
MULTI_QUERY = {"hidden": 2048, "ffn": 8192, "kv_heads": 1, "group": 16, "head_dim": 128}
PYTHIA = {"hidden": 1024, "ffn": 4096, "heads": 16, "head_dim": 64}
MANY = examples(300, derandomize=True)


def grown(sizes: dict[str, int], **request: Any) -> dict[str, int]:
    """The axes that change."""
    new = resolve(Growth(**request), sizes)
    assert new.keys() == sizes.keys()
    assert {type(size) for size in new.values()} == {int}
    return {axis: size for axis, size in new.items() if size != sizes[axis]}


def refused(sizes: dict[str, int], *words: str, **request: Any) -> None:
    with pytest.raises(GrowthError) as caught:
        resolve(Growth(**request), sizes)
    for word in words:
        assert word in str(caught.value)


# --- Sizes


@pytest.mark.parametrize("width", [2, "2", "2x", "2X", " 2 x ", 2.0, "2.0", "2.0x"])
def test_width_is_a_factor_however_it_is_written(width: Any) -> None:
    assert grown(SMOLLM2, width=width) == {"hidden": 1152, "ffn": 3072, "kv_heads": 6}


@pytest.mark.parametrize("hidden", [2, "2", "2x", 2.0, 1152, "1152", "1152.0", " 1152 "])
def test_a_size_is_a_factor_or_absolute(hidden: Any) -> None:
    assert grown(SMOLLM2, hidden=hidden) == {"hidden": 1152}
    assert grown(SMOLLM2, hidden=hidden, width=3) == {"hidden": 1152, "ffn": 4608, "kv_heads": 9}


def test_factors_and_sizes_mix_and_what_is_said_of_one_width_goes_before_width() -> None:
    assert grown(SMOLLM2, width=2, ffn="1x") == {"hidden": 1152, "kv_heads": 6}
    assert grown(SMOLLM2, width=2, ffn=1536) == {"hidden": 1152, "kv_heads": 6}
    assert grown(SMOLLM2, hidden=1728, ffn="2x", heads=9) == {"hidden": 1728, "ffn": 3072}
    assert grown(PYTHIA, hidden="2x", heads=32, ffn=1) == {"hidden": 2048, "heads": 32}
    assert grown(PYTHIA, heads="64x") == {"heads": 1024}


def test_a_bare_number_that_could_be_both_is_refused_and_both_meanings_are_spelled_out() -> None:
    small = {"hidden": 4, "ffn": 8, "heads": 2, "head_dim": 2}
    refused(small, "factor or a size", "heads", "4x for 8", "2x for 4", heads=4)
    refused(small, "factor or a size", "hidden", "4x for 16", "1x for 4", hidden=4)
    refused(small, "factor or a size", "heads", "3x for 6", heads=3)
    assert grown(small, heads="4x", ffn=16) == {"heads": 8, "ffn": 16}
    assert grown(MULTI_QUERY | {"group": 1}, kv_heads=4, heads=4) == {"kv_heads": 4}  # one head: both mean the same


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("hidden", "1152.5", ["1152 or 1153"]),
        ("hidden", "1.0001x", ["576.058", "576 or 577"]),
        ("ffn", "1.3333x", ["2047 or 2048"]),
        ("ffn", "0.5x", ["1 or more"]),
        ("heads", 14, ["12 or 15"]),
        ("heads", "1.5x", ["that is 13.5", "12 or 15"]),
        ("heads", 20, ["18 or 21"]),
        ("width", "0.5x", ["1 or more"]),
        ("hidden", 288, ["576 or more", "smaller"]),
        ("width", 1152, ["--hidden", "size"]),
        ("hidden", "1152x", ["too large for a factor"]),
    ],
)
def test_sizes_that_do_not_come_out_are_refused_with_the_nearest_that_do(
    field: str, value: Any, nearest: list[str]
) -> None:
    refused(SMOLLM2, field, f"found:    {value}", *nearest, **{field: value})


@pytest.mark.parametrize(
    "value",
    ["", "x", "two", "2xx", "x2", "-2", -2, 0, "0x", 0.0, "1e3", "2,0", "2 3", True, float("nan"), float("inf"), [2],
     "9" * 400, 10**400, 1e300, "²", "２", b"2", "2\n2", "0x10"],
    ids=lambda v: repr(v)[:20],
)  # fmt: skip
@pytest.mark.parametrize("field", ["width", "hidden", "ffn", "heads", "kv_heads"])
def test_what_is_no_width_is_refused(field: str, value: Any) -> None:
    refused(SMOLLM2, field, "expected", **{field: value})


@pytest.mark.parametrize(
    ("sizes", "request_", "changed"),
    [
        (SMOLLM2, {"hidden": 8}, {"hidden": 4608}),  # the largest bare factor
        (SMOLLM2, {"hidden": 577}, {"hidden": 577}),
        (SMOLLM2, {"ffn": "64x"}, {"ffn": 98304}),
        (SMOLLM2, {"width": 64}, {"hidden": 36864, "ffn": 98304, "kv_heads": 192}),
        (SMOLLM2, {"hidden": "9" * 15}, {"hidden": 999_999_999_999_999}),
        (SMOLLM2, {"ffn": "1.333333333x"}, {"ffn": 2048}),  # within 1e-9 of a whole number
        (PYTHIA | {"heads": 5}, {"heads": 4}, {"heads": 20}),
        (PYTHIA | {"heads": 4}, {"heads": 5}, {"heads": 5}),
        (PYTHIA, {"head_dim": 65}, {"head_dim": 65}),
        (PYTHIA, {"width": 2, "head_dim": "2x"}, {"hidden": 2048, "ffn": 8192, "head_dim": 128}),  # heads stay
        (PYTHIA, {"width": 2, "head_dim": "1x"}, {"hidden": 2048, "ffn": 8192, "heads": 32}),
        (SMOLLM2 | {"kv_heads": 1, "group": 1}, {"heads": "3x"}, {"kv_heads": 3}),
        (SMOLLM2 | {"kv_heads": 1, "group": 2}, {"heads": "2x"}, {"group": 4}),  # stays multi-query
        (SMOLLM2 | {"kv_heads": 4}, {"heads": 15}, {"kv_heads": 5}),  # whole groups
        (SMOLLM2 | {"kv_heads": 4}, {"heads": 16}, {"group": 4}),  # else more heads in each
    ],
)
def test_sizes_at_the_ends_of_what_can_be_asked(
    sizes: dict[str, int], request_: dict[str, Any], changed: dict[str, int]
) -> None:
    assert grown(sizes, **request_) == changed


@pytest.mark.parametrize(
    ("sizes", "request_", "words"),
    [
        (SMOLLM2, {"hidden": 9}, "smaller than in the source"),
        (SMOLLM2, {"hidden": 575}, "smaller than in the source"),
        (SMOLLM2, {"hidden": "64.5x"}, "too large for a factor"),
        (SMOLLM2, {"hidden": "0.999999x"}, "1 or more"),
        (SMOLLM2, {"hidden": "1" + "0" * 15}, "not a width"),
        (SMOLLM2, {"ffn": "1.33333333x"}, "2047 or 2048"),  # 2.5e-9 from a whole number
        (PYTHIA | {"heads": 4}, {"heads": 4}, "factor or a size"),
    ],
)
def test_sizes_just_beyond_are_refused(sizes: dict[str, int], request_: dict[str, Any], words: str) -> None:
    refused(sizes, words, **request_)


@MANY
@given(old=st.integers(1, 300), more=st.integers(0, 20_000))
@example(old=2, more=126)
@example(old=2, more=128)
@example(old=3, more=1)
@example(old=4, more=1)
def test_a_size_that_is_spelled_is_read_as_that_size(old: int, more: int) -> None:
    new = resolve(Growth(ffn=spelled(old, old + more)), {**PYTHIA, "ffn": old}, deeper=True)
    assert new == {**PYTHIA, "ffn": old + more}


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [(576, 1152, "2x"), (576, 576, "1x"), (2, 128, "64x"), (2, 130, "130"), (2, 3, "1.5x"), (4, 5, "5"),
     (3, 4, "1.33333333333333x"), (1, 4, "4x"), (576, 865, "865")],
)  # fmt: skip
def test_a_size_is_spelled_as_a_factor_where_it_is_one(old: int, new: int, text: str) -> None:
    assert spelled(old, new) == text


@pytest.mark.parametrize("field", ["width", "hidden", "ffn", "heads", "kv_heads", "head_dim"])
def test_copies_come_with_any_width_and_not_with_layers_or_experts(field: str) -> None:
    request: dict[str, Any] = {field: 2}
    assert Growth(**request).wider
    assert not Growth(layers="2x", experts=4).wider


def test_layers_are_spread_or_stacked_up_to_a_limit() -> None:
    assert resolve_layers(Growth(layers=5), 2) == (0, 0, 0, 1, 1)
    assert resolve_layers(Growth(layers=5, depth_mode="stack"), 2) == (0, 1, 0, 1, 0)
    assert resolve_layers(Growth(), 3) == (0, 1, 2)
    assert len(resolve_layers(Growth(layers=100_000), 2)) == 100_000


def test_the_recipe_is_what_was_asked_for() -> None:
    asked = Growth(width=2, expansion="diagonal", noise="gaussian", snr_db=-40, seed=7)
    assert asked.recipe == Recipe(expansion=Expansion.DIAGONAL, noise=Noise.GAUSSIAN, snr_db=-40, seed=7)
    assert Growth(width=2, snr_db=80).recipe == Recipe(snr_db=80)


def test_two_experts_are_the_fewest_and_a_token_may_get_all_of_them() -> None:
    assert Growth(experts=2).experts == 2
    assert Growth(experts=3, top_k=3).top_k == 3
    assert Growth(experts=3, top_k=1).top_k == Growth(top_k=1).top_k == 1


def test_a_request_is_typed_as_its_options_that_are_not_at_their_defaults() -> None:
    asked = Growth(width="1.5x", kv_heads=4, layers=5, depth_mode="stack", seed=1, untie=True, top_k=2, snr_db=10.0)
    assert asked.flags() == "--width 1.5x --kv-heads 4 --layers 5 --depth-mode stack --seed 1 --untie"


def test_growing_nothing_is_refused_with_the_options_that_grow() -> None:
    for request in ({}, {"width": 1}, {"hidden": "1x", "ffn": 1536}, {"heads": 9, "kv_heads": "1x"}):
        refused(SMOLLM2, "nothing to grow", "--width 2", **request)


# --- Heads


def test_kv_heads_follow_the_heads_unless_there_is_one_for_all() -> None:
    assert grown(MULTI_HEAD, heads=48) == {"kv_heads": 48}
    assert grown(SMOLLM2, heads=18) == {"kv_heads": 6}
    assert grown(MULTI_QUERY, heads=32) == {"group": 32}
    assert grown(PYTHIA, heads=32) == {"heads": 32}


def test_kv_heads_can_be_asked_for_where_whole_groups_stay_together() -> None:
    assert grown(SMOLLM2, heads=18, kv_heads="1x") == {"group": 6}
    assert grown(SMOLLM2, heads="4x", kv_heads="2x") == {"kv_heads": 6, "group": 6}
    assert grown(MULTI_QUERY, heads="4x", kv_heads=2) == {"kv_heads": 2, "group": 32}
    assert grown(MULTI_HEAD, heads="2x", kv_heads="1x") == {"group": 2}
    assert grown(SMOLLM2, heads=15) == {"kv_heads": 5}
    assert grown(SMOLLM2, heads=20, kv_heads=5) == {"kv_heads": 5, "group": 4}
    refused(SMOLLM2, "heads", "expected: 18", kv_heads="2x")
    refused(SMOLLM2, "heads", "27", heads="2x", kv_heads="3x")
    refused(PYTHIA, "no separate key-value heads", "use heads", width=2, kv_heads="2x")


@MANY
@given(
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 8),
    request=st.fixed_dictionaries(
        {},
        optional={
            "width": st.integers(1, 6),
            "hidden": st.integers(1, 400) | st.integers(1, 6).map("{}x".format),
            "ffn": st.integers(1, 400) | st.integers(1, 6).map("{}x".format),
            "heads": st.integers(1, 200) | st.integers(1, 6).map("{}x".format),
            "kv_heads": st.integers(1, 60) | st.integers(1, 6).map("{}x".format),
        },
    ),
)
def test_sizes_are_those_asked_for_and_every_query_head_keeps_its_kv_head(
    kv_heads: int, group: int, request: dict[str, Any]
) -> None:
    sizes = {"hidden": 96, "ffn": 80, "kv_heads": kv_heads, "group": group, "head_dim": 4, "vocab": 7}
    try:
        new = resolve(Growth(**request), sizes)
    except GrowthError:
        return
    assert new != sizes
    assert all(new[axis] >= sizes[axis] for axis in sizes)
    assert (new["head_dim"], new["vocab"]) == (4, 7)
    for axis in ("hidden", "ffn"):
        asked = str(request.get(axis, request.get("width", 1)))
        factor = asked.endswith("x") or int(asked) < sizes[axis] or axis not in request
        assert new[axis] == (int(asked.rstrip("x")) * sizes[axis] if factor else int(asked))
    # New query head (i, g) reads new KV head i, a copy of old i mod kv_heads; it is itself a copy of the old query head
    # (i mod kv_heads, g mod group), which reads that one.
    for query in range(new["kv_heads"] * new["group"]):
        reads, position = divmod(query, new["group"])
        old_query = (reads % kv_heads) * group + position % group
        assert old_query // group == reads % kv_heads


# --- Everything else


@pytest.mark.parametrize("name", ["widht", "d_model", "hidden_size", "snr", "noise_level", "n_experts"])
def test_a_misspelled_option_is_an_error(name: str) -> None:
    options: dict[str, Any] = {name: 2}
    with pytest.raises(TypeError, match=name):
        Growth(**options)


def test_options_are_named_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        Growth(2)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        Growth(width=2).width = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("expansion", "symetric", ["symmetric, diagonal"]),
        ("expansion", None, ["symmetric, diagonal"]),
        ("noise", "white", ["split, gaussian, none"]),
        ("noise", False, ["split, gaussian, none"]),
        ("dtype", "int8", ["bf16, fp16, fp32, fp64"]),
        ("dtype", ["bf16"], ["bf16"]),
        ("snr_db", 81, ["-40 to 80"]),
        ("snr_db", -41.0, ["-40 to 80"]),
        ("snr_db", float("nan"), ["-40 to 80"]),
        ("snr_db", float("inf"), ["-40 to 80"]),
        ("snr_db", "10", ["-40 to 80"]),
        ("snr_db", True, ["-40 to 80"]),
        ("snr_db", None, ["-40 to 80"]),
        ("seed", 1.5, ["whole number"]),
        ("seed", "1", ["whole number"]),
        ("seed", True, ["whole number"]),
        ("seed", -1, ["a whole number from 0"]),
        ("untie", "no", ["True or False"]),
        ("untie", 1, ["True or False"]),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(field: str, value: Any, words: list[str]) -> None:
    with pytest.raises(GrowthError) as caught:
        Growth(**{field: value})
    for word in [field, *words]:
        assert word in str(caught.value)


def test_an_error_names_its_parts_in_order_and_leaves_out_what_there_is_not() -> None:
    error = HypercloneError("it is wrong", cure="do it right", file="a/b.json", found=0, expected="", tensor=None)
    assert str(error).splitlines() == [
        "it is wrong", "  file:     a/b.json", "  found:    0", "  expected: ", "  cure:     do it right",
    ]  # fmt: skip
    assert error.details == {"file": "a/b.json", "found": "0", "expected": "", "cure": "do it right"}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), ("1.5kb", 1500), ("1234", 1234), (" 1 KiB ", 1024),
     ("0.1", 1)],
)  # fmt: skip
def test_a_shard_size_is_read_in_common_units(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "big", "5 TB!", "-5GB", "0", "0GB", "GB", "1e9", "5PB", "nan", "9" * 400 + "GB", "٥GB"]
)
def test_what_is_no_shard_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="5GB"):
        parse_size(text)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "5", " 500000 "])
def test_a_number_that_is_no_shard_size_is_refused(size: Any) -> None:
    with pytest.raises(OptionError, match="shard_size"):
        lay_out([TensorHeader("a", "F32", (1,), 4)], shard_size=size)


@MANY
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(["F64", "F32", "BF16", "F16"])), min_size=1, max_size=12
    ),
    shard_size=st.integers(1, 300),
)
def test_shards_hold_every_tensor_once_in_order_aligned_and_within_their_size(
    sizes: list[tuple[int, str]], shard_size: int
) -> None:
    width = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
    tensors = [TensorHeader(f"t{i}", dtype, (n,), n * width[dtype]) for i, (n, dtype) in enumerate(sizes)]
    files = lay_out(tensors, shard_size=shard_size)
    names = [name for file in files for name in sorted(file.offsets, key=lambda n: int(n[1:]))]
    assert names == [tensor.name for tensor in tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    for file in files:
        assert len(file.header) % 8 == 0
        end = len(file.header)
        for name in sorted(file.offsets, key=file.offsets.__getitem__):
            assert file.offsets[name] == end
            assert end % width[by_name[name].dtype] == 0
            end += by_name[name].nbytes
        assert end == file.nbytes
        assert len(file.offsets) == 1 or end - len(file.header) <= shard_size
        sizes_there = [by_name[name].nbytes for name in file.largest_first]
        assert sizes_there == sorted(sizes_there, reverse=True)
    for file, following in itertools.pairwise(files):  # no file is closed while the next tensor would fit
        first = min(following.offsets, key=lambda n: int(n[1:]))
        assert file.nbytes - len(file.header) + by_name[first].nbytes > shard_size
    assert [file.file for file in files] == (
        ["model.safetensors"]
        if len(files) == 1
        else [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    )
