"""What a training reads before it starts, each checked against the others.

That is: config, tokenizer, text, and weights of a model directory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyperclone.architectures.heads import head_of
from hyperclone.conversion import receipt
from hyperclone.errors import CheckpointError, TrainingError
from hyperclone.hf import models
from hyperclone.io.checkpoint import Checkpoint
from hyperclone.io.files import user_path
from hyperclone.io.tensor_files import read_header
from hyperclone.optimizer_state import writer
from hyperclone.training import data_sources, token_cache
from hyperclone.training.config import Training
from hyperclone.training.data_sources import TextSource
from hyperclone.training.events import Tokenizing, Watch
from hyperclone.training.token_cache import Corpus, ReadingOptions

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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


def load_texts(
    training: Training, config: Any, tokenizer: Any, *, seq_len: int, watch: Watch
) -> tuple[Corpus, Corpus | None]:
    """The text to train on, and the held-out text (None if none is wanted).

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


def cached_texts(
    training: Training, config: Any, tokenizer: Any, *, seq_len: int
) -> tuple[Corpus, Corpus | None] | None:
    """The same, if it has been tokenized already; None if not. Nothing is written."""
    return _texts(training, config, tokenizer, seq_len=seq_len, read=token_cache.cached)


def text_sources(spelled: Sequence[str]) -> list[TextSource]:
    """The sources of --data or --eval-data.

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
) -> tuple[Corpus, Corpus | None] | None:
    """The text and the held-out text as `read` gives them; None if it has not got one of them."""
    end = _end_of_text(tokenizer, config)
    cache = user_path(training.cache) if training.cache else token_cache.default_cache()

    def corpora(spelled: Sequence[str], held_out: float) -> tuple[Corpus, Corpus] | None:
        sources = text_sources(spelled)
        reading = ReadingOptions(training.text_field, training.sample_by, held_out, _limit(training, sources, seq_len))
        return read(sources, reading, tokenizer, end=end, cache=cache)

    streams = corpora(training.data, 0.0 if training.eval_data else training.held_out)
    evaluated = corpora(training.eval_data, 0.0) if training.eval_data else streams
    if streams is None or evaluated is None:
        return None
    text, held_out = streams[0], evaluated[0] if training.eval_data else streams[1]
    wanted = bool(training.eval_data) or training.held_out > 0
    _check_texts(training, text, held_out, vocabulary=int(config.get_text_config().vocab_size))
    if wanted:
        _check_held_out(training, text, held_out, seq_len)
    return text, held_out if wanted else None


def _end_of_text(tokenizer: Any, config: Any) -> int:
    """The id of the token that is put between documents."""
    for token in (tokenizer.eos_token_id, config.eos_token_id):
        if isinstance(token, int):
            return token
    raise TrainingError(
        "neither tokenizer nor config has an end-of-text token to put between documents", field="eos_token_id"
    )


def _limit(training: Training, sources: list[TextSource], seq_len: int) -> int | None:
    """Tokens after which reading stops: of a Hub dataset, no more is fetched than the budget needs."""
    streamed = any(source.kind == "hub" for source in sources)
    return training.total_tokens + seq_len if streamed and training.total_tokens else None


def _check_texts(training: Training, text: Corpus, held_out: Corpus, *, vocabulary: int) -> None:
    if not text.tokens:
        raise TrainingError(
            "every document is held out, and none is left to train on",
            field="held_out",
            found=f"{held_out.documents} document{'s' if held_out.documents > 1 else ''}",
            cure="--held-out 0, --eval-data, or smaller documents (--sample-by paragraph)",
        )
    if (largest := max(text.largest, held_out.largest)) >= vocabulary:
        raise TrainingError(
            "the tokenizer has more tokens than the model",
            field="vocab_size",
            found=f"token {largest} in the text",
            expected=f"below {vocabulary}",
        )


def _check_held_out(training: Training, text: Corpus, held_out: Corpus, seq_len: int) -> None:
    if held_out.tokens < seq_len:
        raise TrainingError(
            "the held-out text does not fill one window",
            field="eval_data" if training.eval_data else "held_out",
            found=f"{held_out.tokens} tokens in {held_out.documents} of "
            f"{text.documents + held_out.documents} documents",
            expected=f"at least {seq_len} tokens",
            cure="a larger --held-out (0 for none), a shorter --seq-len, or --sample-by paragraph",
        )


def load_model(directory: Path, training: Training) -> tuple[Any, torch.dtype]:
    """The model in fp32, with its weights or randomly initialized, and the type that its directory stores.

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
