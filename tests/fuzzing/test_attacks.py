"""Every input that was ever found, and a few new ones, through its reader: refused with an error of ours, or read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import targets, wrong_values
from tests.helpers.examples import examples, scale

HERE = Path(__file__).parent
LLAMA = b'model_types = ["llama"'  # whose config the family files are used on
KEPT = sorted(file for place in (HERE.parent / "attacks", HERE / "corpus") for file in place.glob("*/*"))


def test_there_are_kept_inputs_of_known_targets() -> None:
    assert {file.parent.name for file in KEPT} <= set(targets.TARGETS)
    assert (HERE.parent / "attacks").is_dir()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_kept_input_is_read_or_refused(name: str) -> None:
    for file in KEPT:
        if file.parent.name == name:
            targets.run(name, file.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_valid_inputs_are_read(name: str) -> None:
    with targets.guarded():
        targets.TARGETS[name](next(data for data in reversed(targets.seeds(name)) if name != "family" or LLAMA in data))


@pytest.mark.parametrize("name", [*wrong_values.JSON, *wrong_values.TOML])
def test_one_wrong_value_is_read_or_refused(name: str) -> None:
    """Evenly drawn from all of them; each in the long profile."""
    inputs = list(wrong_values.wrong(name))
    for make in inputs[:: max(1, round(len(inputs) / (60 * scale())))]:
        targets.run(name, make())


def edits(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a valid input that are flipped, left out, put in, or taken from elsewhere in it."""
    place = st.integers(0, len(data))
    edit = st.tuples(place, place, st.one_of(st.binary(max_size=8), st.tuples(place, place)))

    def changed(several: list[tuple[int, int, bytes | tuple[int, int]]]) -> bytes:
        text = data
        for start, length, new in several:
            inserted = new if isinstance(new, bytes) else data[new[0] : new[0] + new[1] % 64]
            text = text[:start] + inserted + text[start + length % 9 :]
        return text

    return st.lists(edit, min_size=1, max_size=4).map(changed)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_changed_input_is_read_or_refused(name: str) -> None:
    @examples(40)
    @given(st.sampled_from(targets.seeds(name)).flatmap(edits))
    def check(data: bytes) -> None:
        targets.run(name, data)

    check()


@pytest.mark.parametrize("file", [HERE / "written", Path("/written")])
def test_an_escape_is_seen(file: Path) -> None:
    with pytest.raises(AssertionError, match="outside"), targets.guarded():
        file.write_bytes(b"")
    assert not file.exists()
