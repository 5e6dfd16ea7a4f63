"""What a training reads before it starts, each checked against the others.

That is: config, tokenizer, text, and weights of a model directory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures.heads import head_of
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError, TrainingError
from hyperclone.hf import models
from hyperclone.hf.unread_model import UnreadModel
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.files import user_path
from hyperclone.io.tensor_files import read_header
from hyperclone.optimizer_state import writer
from hyperclone.training import data_sources, token_cache
from hyperclone.training.config import Training
from hyperclone.training.data_sources import TextSource
from hyperclone.training.events import Tokenizing, Watch
from hyperclone.training.mixture import DataSource
from hyperclone.training.streamed_text import StreamedText
from hyperclone.training.token_cache import Corpus, ReadingOptions, TextSize

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Texts:
    """The tokenized text of a run.

    Attributes:
        train: to train on, of each source of the mixture; one where there are no weights; none of streamed text.
        held_out: of each of these, or the text of --eval-data; empty if no held-out text is wanted.
    """

    train: tuple[Corpus, ...]
    held_out: tuple[Corpus, ...]

    @property
    def digests(self) -> list[str]:
        """Of each corpus: the same text has the same digests, wherever its files lie."""
        return [corpus.digest[:20] for corpus in (*self.train, *self.held_out)]


def load_config(directory: Path) -> Any:
    """The model's config, read by unmodified transformers.

    Raises:
        CheckpointError: there is none, or transformers does not understand it.
    """
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise CheckpointError("not a model directory: it has no config.json", file=directory)
    with models.quiet():
        try:
            return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever a config provokes
            raise CheckpointError("transformers cannot read this config", file=directory, found=error) from error


def load_tokenizer(directory: Path) -> Any:
    """The model's tokenizer.

    Raises:
        CheckpointError: it has none.
    """
    tokenizer = models.load_tokenizer(directory)
    if tokenizer is None:
        raise CheckpointError("this model has no usable tokenizer", file=directory, expected="tokenizer.json")
    return tokenizer


def check_grown_moments(directory: Path) -> None:
    """The optimizer state in a directory must belong to the model in it.

    Raises:
        CheckpointError: it does not.
    """
    entries = Checkpoint.open(directory).entries
    for file in sorted(set(writer.moment_files(directory).values())):
        for moment, entry in read_header(file).items():
            name, _, kind = moment.rpartition(".")
            if name not in entries or entries[name].shape != entry.shape:
                raise CheckpointError(
                    "this optimizer state belongs to another model",
                    file=file,
                    tensor=name,
                    found=f"{kind} of {list(entry.shape)}",
                    expected=list(entries[name].shape) if name in entries else "a tensor of the model",
                    cure="--grown-moments none starts without it",
                )


def load_texts(training: Training, config: Any, tokenizer: Any, *, seq_len: int, watch: Watch) -> Texts:
    """The text to train on, and the held-out text.

    Args:
        training: the request.
        config, tokenizer: the model's.
        seq_len: tokens of a window.
        watch: called with progress.

    Raises:
        TrainingError: no text, too little of it, or tokens that the model does not have.
        DestinationError: the cache cannot be written.
    """

    def progress(done: int, total: int | None) -> None:
        watch(Tokenizing(nbytes=done, total=total))

    read = partial(token_cache.prepare, progress=progress)
    texts = _texts(training, config, tokenizer, seq_len=seq_len, read=read)
    assert texts is not None
    return texts


def cached_texts(training: Training, config: Any, tokenizer: Any, *, seq_len: int) -> Texts | None:
    """The same, if it has been tokenized already; None if not. Nothing is written."""
    return _texts(training, config, tokenizer, seq_len=seq_len, read=token_cache.cached)


def streamed_texts(training: Training, config: Any, tokenizer: Any) -> tuple[StreamedText, ...]:
    """The text to train on as it is streamed, of each source of the mixture; none of text that is not streamed.

    Raises:
        TrainingError: there are no such files, or no end-of-text token.
    """
    if not training.streaming:
        return ()
    end = _end_of_text(tokenizer, config)
    return tuple(
        StreamedText(
            ", ".join(source.spelled),
            tuple(text_sources(source.spelled)),
            training.text_field,
            training.sample_by,
            tokenizer,
            end,
            _vocabulary(config),
        )
        for source in training.data_sources
    )


def digests(texts: Texts, streamed: Sequence[StreamedText]) -> list[str]:
    """What tells the text of a run from another one, wherever its files lie."""
    return [*(text.digest[:20] for text in streamed), *texts.digests]


def text_sources(spelled: Sequence[str]) -> list[TextSource]:
    """The sources of --data or --eval-data, without their weights.

    Raises:
        TrainingError: there are no such files, or files of an unknown kind.
    """
    return [source for spelling in spelled for source in data_sources.find(spelling)]


def _texts(
    training: Training,
    config: Any,
    tokenizer: Any,
    *,
    seq_len: int,
    read: Callable[..., tuple[Corpus, Corpus] | None],
) -> Texts | None:
    """The text and the held-out text as `read` gives them; None if it has not got one of them."""
    end = _end_of_text(tokenizer, config)
    cache = user_path(training.cache) if training.cache else token_cache.default_cache()

    def corpora(source: DataSource, held_out: float) -> tuple[Corpus, Corpus] | None:
        sources = text_sources(source.spelled)
        limit = _limit(training, sources, source.share, seq_len)
        reading = ReadingOptions(training.text_field, training.sample_by, held_out, limit)
        return read(sources, reading, tokenizer, end=end, cache=cache)

    if training.skipped_tokens and training.total_tokens:
        check_files([one for source in training.data_sources for one in source.spelled], field="skip_tokens")
    held_out = 0.0 if training.eval_data else training.held_out
    streams = [] if training.streaming else [corpora(source, held_out) for source in training.data_sources]
    evaluated = [corpora(DataSource(tuple(training.eval_data)), 0.0)] if training.eval_data else streams
    if any(pair is None for pair in (*streams, *evaluated)):
        return None
    texts = Texts(
        tuple(pair[0] for pair in streams if pair),
        tuple(pair[0] if training.eval_data else pair[1] for pair in evaluated if pair),
    )
    _check_texts(training, texts, seq_len=seq_len, vocabulary=_vocabulary(config))
    if not training.eval_data and not training.held_out:
        return Texts(texts.train, ())
    _check_held_out(training, texts, seq_len)
    return texts


def _vocabulary(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def _end_of_text(tokenizer: Any, config: Any) -> int:
    """The id of the token that is put between documents."""
    for token in (tokenizer.eos_token_id, config.eos_token_id):
        if isinstance(token, int):
            return token
    raise TrainingError(
        "neither tokenizer nor config has an end-of-text token to put between documents", field="eos_token_id"
    )


def check_files(spelled: Sequence[str], *, field: str) -> None:
    """Check that text is the same for runs of any length.

    Args:
        spelled: of --data or --eval-data, without weights.
        field: the option that needs it.

    Raises:
        TrainingError: some of it is a Hub dataset, of which only as much is fetched as a run needs.
    """
    if hub := next((source for source in text_sources(spelled) if source.kind == "hub"), None):
        raise TrainingError(
            "of a Hub dataset only as much is fetched as a run needs, so the order of the data depends on the run's "
            "length, and two runs cannot share it",
            field=field, found=hub.spelled, cure="download the dataset, and give its files",
        )  # fmt: skip


def _limit(training: Training, sources: list[TextSource], share: Fraction, seq_len: int) -> int | None:
    """Tokens after which reading stops: of a Hub dataset, no more is fetched than its share of the budget needs."""
    streamed = any(source.kind == "hub" for source in sources)
    if not streamed or not training.total_tokens:
        return None
    rounding = 0 if share == 1 else seq_len  # a source may be ahead of its share by less than a window
    return math.ceil(training.total_tokens * share) + rounding + seq_len


def _check_texts(training: Training, texts: Texts, *, seq_len: int, vocabulary: int) -> None:
    sources = () if training.streaming else training.data_sources
    for number, (source, text) in enumerate(zip(sources, texts.train, strict=True)):
        name = source.spelled[0] if len(sources) > 1 else None
        if not text.tokens:
            documents = texts.held_out[number].documents
            raise TrainingError(
                "every document is held out, and none is left to train on",
                file=name,
                field="held_out",
                found=f"{documents} document{'s' if documents > 1 else ''}",
                cure="--held-out 0, --eval-data, or smaller documents (--sample-by paragraph)",
            )
        if name is not None and text.tokens < seq_len:
            raise TrainingError(
                "this source of the mixture does not fill one window",
                file=name,
                field="seq_len",
                found=f"{text.tokens} tokens",
                expected=f"at least {seq_len} tokens",
                cure="more data, a shorter --seq-len, or leave this source out",
            )
    largest = max((corpus.largest for corpus in (*texts.train, *texts.held_out)), default=0)
    token_cache.check_vocabulary(largest, vocabulary)


def _check_held_out(training: Training, texts: Texts, seq_len: int) -> None:
    if max(corpus.tokens for corpus in texts.held_out) < seq_len:
        text, held_out = TextSize.of(texts.train), TextSize.of(texts.held_out)
        raise TrainingError(
            "the held-out text does not fill one window",
            field="eval_data" if training.eval_data else "held_out",
            found=f"{held_out.tokens} tokens in {held_out.documents} of "
            f"{text.documents + held_out.documents} documents",
            expected=f"at least {seq_len} tokens" + (" of one source" if len(texts.held_out) > 1 else ""),
            cure="a larger --held-out (0 for none), a shorter --seq-len, or --sample-by paragraph",
        )


def load_model(directory: Path, training: Training, *, unread: UnreadModel | None = None) -> tuple[Any, torch.dtype]:
    """The model in fp32, with its weights or randomly initialized, and the type that its directory stores.

    Args:
        directory: the model's.
        training: the request.
        unread: the model without its weights, where these are read later.

    Raises:
        CheckpointError: weights are missing, or do not fit the config.
        TrainingError: the model cannot use the attention that is asked for.
    """
    from transformers import AutoModelForCausalLM, set_seed

    config = _causal_config(directory)
    dtype = _TYPES.get(str(config.dtype).removeprefix("torch."), torch.float32)
    if training.from_scratch:
        vars(config).pop(receipt.CONFIG_FIELD, None)  # the weights are not those that were grown
        set_seed(training.seed)
        with models.quiet():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    elif unread is not None:
        model = unread.module
    else:
        model, wrong = models.load_model(directory, torch.float32)
        if wrong:
            raise CheckpointError("the weights do not fit the config", file=directory, found="; ".join(wrong[:3]))
    _use_attention(model, training)
    model.config.use_cache = False  # with a cache, transformers does not look for documents in the positions
    return model, dtype


def empty_model(directory: Path, training: Training) -> tuple[Any, torch.dtype]:
    """The same on device meta, from the config alone: names and shapes without weights.

    Raises:
        TrainingError: the model cannot use the attention that is asked for.
    """
    from transformers import AutoModelForCausalLM

    config = _causal_config(directory)
    with models.quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    _use_attention(model, training)
    return model, _TYPES.get(str(config.dtype).removeprefix("torch."), torch.float32)


def _causal_config(directory: Path) -> Any:
    config = load_config(directory)
    if head := head_of({"architectures": config.architectures}):
        raise TrainingError(
            "this trains causal language models only", file=directory, field="architectures",
            found=config.architectures, expected="a causal language model",
            cure=f"fine-tune the grown directory with AutoModel{head}, as its source was",
        )  # fmt: skip
    return config


def _use_attention(model: Any, training: Training) -> None:
    try:
        model.set_attn_implementation(training.attention)
    except Exception as error:  # a kernel that is not installed, or that this model cannot use
        raise TrainingError(
            "this attention cannot be used here",
            field="attention",
            found=training.attention,
            expected="sdpa, eager, or flash_attention_2 where it is installed",
            cure=str(error).splitlines()[0],
        ) from error
