"""Token ids without the rest of what a tokenizer's call returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperclone.hf.tokenizing import encoder

ModelDir = Callable[..., Path]
TEXTS = ["one two three", "naïve Ω 你好 \U0001f600\n\n\t ", "a <|endoftext|> b <s>c</s>", " ", "x" * 3000]


@pytest.fixture
def tokenizer(model_dir: ModelDir) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir("llama-grouped-tied"))


def test_ids_are_those_of_a_call_whatever_the_tokenizer_did_before(tokenizer: Any) -> None:
    called = [tokenizer(text)["input_ids"] for text in TEXTS]
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)  # leaves both switched on in the library's tokenizer
    assert encoder(tokenizer)(TEXTS) == called


def test_a_tokenizer_with_a_call_of_its_own_is_called(tokenizer: Any) -> None:
    class Upper(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__([each.upper() for each in text], **options)

    called = [tokenizer(text.upper())["input_ids"] for text in TEXTS]
    assert called != [tokenizer(text)["input_ids"] for text in TEXTS]
    tokenizer.__class__ = Upper
    assert encoder(tokenizer)(TEXTS) == called
