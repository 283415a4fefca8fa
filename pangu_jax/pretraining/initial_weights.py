"""Pre-training that goes on from given weights: their sizes, their tokenizer, their values."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pangu_jax.config.resolve import resolve
from pangu_jax.data.tokenizer import save_tokenizer, tokenizer_hash
from pangu_jax.data.wheel import cache_dir, locked
from pangu_jax.models.config import DecoderConfig
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.corpus import PretrainError
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.weights import LoadedTokenizer, describe_weights, load_weights

# How a model is computed, not what it is: the run's own choice.
_CHOICES = (
    "dtype", "remat", "scan_unroll", "attention_implementation", "norm_implementation",
    "loss_chunk",
)  # fmt: skip


def with_initial_weights(config: PretrainConfig, workdir: str | pathlib.Path) -> PretrainConfig:
    """The configuration with what `config.initial_weights` decides.

    model: sizes, norms and rotary embedding of the weights, with the run's own type of activations
    and rematerialisation. corpus.tokenizer: theirs, unless one is given; their end of text ends
    documents where the vocabulary lacks `corpus.shards.eod_token`. A run that has begun keeps to
    its config.json and needs the weights no more.

    Raises:
      PretrainError: weights without a tokenizer or without an end of text.
      WeightsError: what cannot be read.
    """
    begun = _begun(pathlib.Path(workdir))
    if begun is not None and begun.initial_weights == config.initial_weights:
        corpus = begun.corpus
        return _replaced(config, begun.model, corpus.tokenizer, corpus.shards.eod_token)
    model, tokenizer = describe_weights(config.initial_weights)
    path, end = config.corpus.tokenizer, config.corpus.shards.eod_token
    if not path:
        if tokenizer is None:
            raise PretrainError(
                f"{config.initial_weights} carries no tokenizer; put its tokenizer.json there, or "
                "name one with --config.corpus.tokenizer."
            )
        path = str(_kept(tokenizer))
        if tokenizer.tokenizer.token_to_id(end) is None:
            if tokenizer.special.eos is None:
                raise PretrainError(
                    f"The tokenizer of {config.initial_weights} has no token {end!r} and names no "
                    "end of text; set --config.corpus.shards.eod_token to one of its tokens."
                )
            end = tokenizer.tokenizer.id_to_token(tokenizer.special.eos)
    return _replaced(config, model, path, end)


def initial_params(config: PretrainConfig, mesh: Mesh, *, on_host: bool = False) -> Any:
    """The weights in float32, placed on the mesh by their logical axes.

    Args:
      on_host: NumPy arrays instead, for a step that is divided by hand.

    Raises:
      WeightsError: what cannot be read.
    """
    if on_host:
        params = load_weights(config.initial_weights, dtype="float32", tokenizer=False).params
        return jax.tree.map(np.asarray, params)
    return load_weights(config.initial_weights, dtype="float32", tokenizer=False, mesh=mesh).params


def _begun(workdir: pathlib.Path) -> PretrainConfig | None:
    """The configuration of a run that has checkpoints."""
    file = workdir / "config.json"
    if not file.is_file() or not Checkpoints.any_in(workdir / "checkpoints" / "latest"):
        return None
    return resolve(PretrainConfig, json.loads(file.read_text()))


def _replaced(config: PretrainConfig, model: DecoderConfig, tokenizer: str, end: str):
    own = {name: getattr(config.model, name) for name in _CHOICES}
    shards = dataclasses.replace(config.corpus.shards, eod_token=end)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, **own),
        corpus=dataclasses.replace(config.corpus, tokenizer=tokenizer, shards=shards),
    )


def _kept(loaded: LoadedTokenizer) -> pathlib.Path:
    """tokenizer.json in the cache, written once: the corpus is known by that file."""
    folder = cache_dir() / "tokenizers"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{tokenizer_hash(loaded.tokenizer)[:16]}.json"
    with locked(folder / ".lock"):
        if not path.is_file():
            save_tokenizer(loaded.tokenizer, path)
    return path
