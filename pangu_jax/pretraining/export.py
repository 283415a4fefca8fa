"""A checkpoint of pre-training as a Hugging Face directory, for inference and fine-tuning."""

from __future__ import annotations

import pathlib
from typing import Any

from pangu_jax.models.config import DecoderConfig
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.corpus import Corpus
from pangu_jax.weights import LoadedTokenizer, SpecialTokens, describe_weights, export_safetensors

_PAD = "<|pad|>"


def export_checkpoint(
    config: PretrainConfig, corpus: Corpus, model: DecoderConfig, params: Any, *,
    folder: pathlib.Path, max_length: int,
) -> pathlib.Path:  # fmt: skip
    """Writes weights, config.json and the tokenizer of the corpus; returns the folder.

    The end of a document is the end of text. A run that went on from other weights keeps their
    special tokens and chat template where they can still be read.

    Args:
      model: with the RoPE base that `params` were trained with.
      max_length: tokens of the rows they were trained on.

    Raises:
      WeightsError: as `export_safetensors`.
    """
    return export_safetensors(
        model, params, folder, dtype=config.export.dtype, max_length=max_length,
        max_shard_bytes=round(config.export.shard_gb * 1e9), tokenizer=_tokenizer(config, corpus),
    )  # fmt: skip


def _tokenizer(config: PretrainConfig, corpus: Corpus) -> LoadedTokenizer:
    from tokenizers import Tokenizer

    # Afresh: the corpus's own reads special tokens as plain text.
    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    if config.initial_weights:
        try:
            theirs = describe_weights(config.initial_weights).tokenizer
        except (ValueError, OSError):  # moved or deleted since
            theirs = None
        if theirs is not None and theirs.tokenizer.get_vocab() == tokenizer.get_vocab():
            return theirs
    return LoadedTokenizer(
        tokenizer,
        SpecialTokens(eos=corpus.train.eod_id, pad=tokenizer.token_to_id(_PAD)),
    )
