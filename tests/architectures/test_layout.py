"""The layout language: what each line means, and what is refused where."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperclone.architectures.layout import Dim, Factor, Layout, Query, parse
from hyperclone.errors import FamilyError
from tests.helpers.examples import examples

LINES: dict[str, tuple[tuple[Dim, ...], int | None, bool]] = {
    "vocab hidden": (((("vocab",),), (("hidden",),)), None, False),
    "(kv_heads group head_dim) <- hidden": (((("kv_heads", "group", "head_dim"),), (("hidden",),)), 1, False),
    "hidden -> (3 heads head_dim)": (((("hidden",),), ((3, "heads", "head_dim"),)), 0, False),
    "(kv_heads group head_dim + 2 kv_heads head_dim) <- hidden": (
        ((("kv_heads", "group", "head_dim"), (2, "kv_heads", "head_dim")), (("hidden",),)),
        1,
        False,
    ),
    "(kv_heads (group + 2) head_dim) <- hidden": (
        ((("kv_heads", (("group",), (2,)), "head_dim"),), (("hidden",),)),
        1,
        False,
    ),
    "norm(hidden)": (((("hidden",),),), None, True),
    "norm(kv_heads head_dim)": (((("kv_heads", "head_dim"),),), None, True),
    "(kv_heads group) norm(head_dim)": (((("kv_heads", "group"),), (("head_dim",),)), None, True),
    "<- hidden": (((("hidden",),),), 0, False),
    "experts (2 ffn) <- hidden": (((("experts",),), ((2, "ffn"),), (("hidden",),)), 2, False),
    "experts hidden -> (ffn 2)": (((("experts",),), (("hidden",),), (("ffn", 2),)), 1, False),
    "hidden": (((("hidden",),),), None, False),
    "(heads 3 head_dim)": (((("heads", 3, "head_dim"),),), None, False),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_means_what_the_documentation_says(line: str) -> None:
    layout = parse(line)
    assert (layout.dims, layout.reads, layout.norm) == LINES[line]
    assert layout.text == line


def test_the_stored_shape_follows_from_the_sizes_of_the_axes() -> None:
    sizes = {"hidden": 12, "heads": 4, "kv_heads": 2, "group": 2, "head_dim": 3, "vocab": 50}
    assert parse("vocab hidden").shape(sizes) == (50, 12)
    assert parse("(kv_heads group head_dim) <- hidden").shape(sizes) == (12, 12)
    assert parse("hidden -> (3 heads head_dim)").shape(sizes) == (12, 36)
    assert parse("(kv_heads group head_dim + 2 kv_heads head_dim) <- hidden").shape(sizes) == (24, 12)
    assert parse("(kv_heads (group + 2) head_dim) <- hidden").shape(sizes) == (24, 12)
    assert parse("(2 (group + 3 (kv_heads + 1)) + 5)").shape(sizes) == (27,)
    assert parse("norm(hidden)").shape(sizes) == (12,)
    assert parse("norm(kv_heads head_dim)").shape(sizes) == (6,)
    assert parse("<- hidden").shape(sizes) == (12,)
    assert parse("heads hidden -> (group 2)").shape(sizes) == (4, 12, 4)


def test_the_axes_of_a_tensor_are_its_names_and_not_its_numbers() -> None:
    layout = parse("hidden -> (3 heads head_dim + 2 ffn)")
    assert layout.axes == {"hidden", "heads", "head_dim", "ffn"}
    assert layout.axes_of(0) == {"hidden"}
    assert layout.axes_of(1) == {"heads", "head_dim", "ffn"}
    assert parse("(kv_heads (group + 2 (q + 1)) head_dim) <- hidden").axes_of(0) == {
        "kv_heads",
        "group",
        "q",
        "head_dim",
    }


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("(a (b))", "(a b)"),
        ("((a b) c)", "(a b c)"),
        ("(a (b (c d)))", "(a b c d)"),
        ("((a + b) + c)", "(a + b + c)"),
        ("((a + b))", "(a + b)"),
        ("((a (b + c)) d)", "(a (b + c) d)"),
        ("norm((a b))", "norm(a b)"),
        ("(((a))) <- ((b))", "a <- b"),
    ],
)
def test_parentheses_that_change_nothing_leave_no_trace(line: str, plain: str) -> None:
    assert (parse(line).dims, parse(line).reads) == (parse(plain).dims, parse(plain).reads)


@pytest.mark.parametrize("line", ["norm(hidden)", " norm ( hidden ) ", "hidden", "(a b)", "norm(a (b + 2) c)"])
def test_a_vector_becomes_a_reader_that_the_language_can_spell(line: str) -> None:
    reader = parse(line).as_reader()
    assert reader.dims == parse(line).dims
    assert (reader.reads, reader.norm) == (0, False)
    assert parse(reader.text) == reader


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("", 1),
        ("   ", 1),
        ("vocab hid-den", 10),
        ("vocab   $hidden", 9),
        ("vocab (hidden", 14),
        ("vocab hidden)", 13),
        ("vocab ()", 8),
        ("vocab (hidden +)", 16),
        ("vocab (+ hidden)", 8),
        ("(a (b)", 7),
        ("query hidden", 7),
        ("(a query)", 9),
        ("norm(query)", 11),
        ("(query(a) + )", 13),
        ("(a (b +) c)", 8),
        ("(a () b)", 5),
        ("(a (+ b))", 5),
        ("(a + (b)) c) d", 12),
        ("(a <- b)", 4),
        ("0 hidden", 1),
        ("(00 hidden)", 2),
        ("norm hidden", 6),
        ("norm()", 6),
        ("norm(norm(a))", 6),
        ("(a norm)", 4),
        ("(" * 5000, 9),
        ("a + b", 3),
        ("a <- b <- c", 8),
        ("a -> b <- c", 8),
        ("a² b", 1),
        ("9" * 5000, 1),
        ("a.b", 2),
        ("a[0]", 2),
        ("a\x00", 2),
    ],
)
def test_an_error_points_at_the_column(line: str, column: int) -> None:
    with pytest.raises(FamilyError) as caught:
        parse(line)
    assert caught.value.details["found"].endswith(f"at column {column}")
    assert repr(line) in caught.value.problem
    assert caught.value.details["expected"]


@pytest.mark.parametrize(
    "line",
    ["a <- b c", "a b -> c d", "-> a", "a ->", "a <-", "<-", "->", "norm(a) <- b", "a <- norm(b)", "a -> norm(b)"],
)
def test_one_dimension_stands_behind_an_arrow_and_no_norm_beside_it(line: str) -> None:
    with pytest.raises(FamilyError):
        parse(line)


names = st.text("az_09", min_size=1, max_size=5).filter(str.isidentifier)  # "norm" cannot occur
atoms = st.one_of(names, st.integers(1, 999))


def parts_of(factor: st.SearchStrategy[Factor], least: int, most: int) -> st.SearchStrategy[Dim]:
    """Several products end to end; a product of one factor that is itself parts is spelled without parentheses."""
    product = st.lists(factor, min_size=1, max_size=3).map(tuple)
    product = product.filter(lambda factors: len(factors) > 1 or not isinstance(factors[0], tuple))
    return st.lists(product, min_size=least, max_size=most).map(tuple)


dims = parts_of(st.recursive(atoms, lambda inner: parts_of(inner, 2, 3), max_leaves=5), 1, 3)
spaces = st.sampled_from(["", " ", "  ", "\t"])


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Layout]:
    """A line and what it says, spelled with any spacing the language allows."""

    def spell(factor: Factor) -> str:
        if not isinstance(factor, tuple):
            return str(factor)
        gap = draw(spaces)
        blocks = [" ".join(spell(inner) for inner in block) for block in factor]
        bare = len(factor) == 1 and len(factor[0]) == 1 and draw(st.booleans())
        return blocks[0] if bare else f"({gap}{f'{gap}+{gap}'.join(blocks)}{gap})"

    found: tuple[tuple[Dim, ...], int | None, bool]
    kind = draw(st.sampled_from(["outputs", "linear", "conv", "reader", "norm"]))
    gap = draw(spaces)
    if kind == "outputs":
        several = draw(st.lists(dims, min_size=1, max_size=3).map(tuple))
        line, found = " ".join(spell(dim) for dim in several), (several, None, False)
    elif kind == "norm":
        dim = draw(dims)
        line, found = f"norm{gap}({spell(dim)})", ((dim,), None, True)
    elif kind == "reader":
        dim = draw(dims)
        line, found = f"<-{gap}{spell(dim)}", ((dim,), 0, False)
    else:
        left, right = draw(st.lists(dims, min_size=1, max_size=3)), draw(dims)
        arrow, reads = ("<-", len(left)) if kind == "linear" else ("->", len(left) - 1)
        spelled = " ".join(spell(dim) for dim in left)
        line, found = f"{spelled}{gap}{arrow}{gap}{spell(right)}", ((*left, right), reads, False)
    line = draw(spaces) + line + draw(spaces)
    return line, Layout(line, *found)


@examples(200)
@given(written(), st.integers(1, 9))
def test_what_is_written_is_what_is_parsed(case: tuple[str, Layout], size: int) -> None:
    line, layout = case
    assert parse(line) == layout
    sizes = {name: size + len(name) for name in layout.axes}

    def count(factor: Factor) -> int:
        if isinstance(factor, tuple):
            return sum(math.prod(count(inner) for inner in block) for block in factor)
        assert not isinstance(factor, Query)  # `dims` draws none
        return factor if isinstance(factor, int) else sizes[factor]

    assert layout.shape(sizes) == tuple(count(dim) for dim in layout.dims)


@examples(200)
@given(dims)
def test_a_readers_text_says_what_it_reads(dim: Dim) -> None:
    reader = Layout("", (dim,), None).as_reader()
    assert parse(reader.text) == reader


@examples(400)
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(["a", "norm", "(", ")", "+", "<-", "->", "3", "0", " ", "<", "-", "\u0663"])).map(
            "".join
        ),
    )
)
@example("(" * 5000)
@example("norm(" * 3)
@example("1" * 20)
def test_junk_is_either_understood_or_refused_as_a_family_error(line: str) -> None:
    try:
        layout = parse(line)
    except FamilyError:
        return
    assert layout.dims or layout.text.replace(" ", "") == "()"
    assert all(block for dim in layout.dims for block in dim)
    assert layout.reads is None or layout.reads in range(len(layout.dims))
    assert all(size > 0 for size in layout.shape(dict.fromkeys(layout.axes, 2)))
