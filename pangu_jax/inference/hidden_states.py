"""Hidden states of chosen layers at chosen positions, as a pure function.

Letters: B rows, T positions, D hidden width, C captured layers, S captured positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.inference.checks import check_tokens, layer_numbers
from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.forward import final_norm
from pangu_jax.inference.weights import look_up
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.context import AttentionContext
from pangu_jax.models.decoder import Block
from pangu_jax.models.rope import rope_tables

_LEAST_LENGTH = 16


@functools.partial(jax.jit, static_argnames=("config", "layers", "normed"))
def capture(
    config: DecoderConfig, weights: dict[str, Any], tokens: jax.Array, segment_ids: jax.Array,
    positions: jax.Array, *, layers: tuple[int, ...], normed: bool = False,
    lora: tuple[Any, ...] | None = None,
) -> jax.Array:  # fmt: skip
    """The residual stream (C, B, S, D) after `layers` blocks, at `positions`.

    Layers beyond the deepest one asked for are not computed.

    Args:
      weights: of `prepare_weights`.
      tokens, segment_ids: int32 (B, T), 0 in segment_ids for padding; a row is one text.
      positions: int32 (B, S), indices into the row.
      layers: 0 for the embedding, l for the stream after block l, up to num_layers.
      normed: whether the stream after the last block passes the final norm, as `transformers`
        returns it.
      lora: per layer, adapters' variables; None for the base.
    """
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    context = AttentionContext(rope_tables(config, order), segment_ids, segment_ids, None, None)
    block = Block(config)
    x = look_up(weights["embedding"], tokens, config.dtype)
    found = {}

    def keep(layer, x):
        if layer in layers:
            if normed and layer == config.num_layers:
                x = final_norm(config, weights, x)
            found[layer] = jnp.take_along_axis(x, positions[..., None], axis=1)

    keep(0, x)
    for layer, params in enumerate(weights["layers"][: max(layers)]):
        variables = {"params": params} | ({} if lora is None else {"lora": lora[layer]})
        (x, _), _ = block.apply(variables, (x, None), layer, context)
        keep(layer + 1, x)
    return jnp.stack([found[layer] for layer in layers])


def hidden_states(
    config: DecoderConfig, weights: dict[str, Any], prompts: Sequence[Sequence[int]], *,
    layers: Sequence[int], positions: Sequence[Sequence[int]] | Sequence[int],
    normed: bool = False, batch_rows: int = 8, lora: tuple[Any, ...] | None = None,
) -> np.ndarray:  # fmt: skip
    """`capture` over any number of texts of any length: float32 (texts, C, S, D).

    Args:
      layers: from 0 (embedding) to num_layers; negative ones count from the end.
      positions: of each text, or one list for all; negative ones count from its end.
      batch_rows: texts per call. lora: as in `capture`, with one row of weights for all texts.

    Raises:
      RequestError: an empty text, ids beyond the vocabulary, a layer or a position that is not
        there.
    """
    wanted, places = counted(config, prompts, layers, positions)
    config = dataclasses.replace(config, remat="none")
    out: list[Any] = [None] * len(prompts)
    # Texts of like length together: a batch is as long as its longest.
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), batch_rows):
        chosen = by_length[start : start + batch_rows]
        length = _LEAST_LENGTH
        while length < len(prompts[chosen[-1]]):
            length *= 2
        rows = 1
        while rows < len(chosen):
            rows *= 2
        tokens = np.zeros((rows, length), np.int32)
        segments = np.zeros((rows, length), np.int32)
        at = np.zeros((rows, len(places[chosen[0]])), np.int32)
        for row, index in enumerate(chosen):
            tokens[row, : len(prompts[index])] = prompts[index]
            segments[row, : len(prompts[index])] = 1
            at[row] = places[index]
        found = capture(
            config, weights, tokens, segments, at, layers=wanted, normed=normed, lora=lora
        )
        found = np.asarray(found, np.float32).swapaxes(0, 1)
        for row, index in enumerate(chosen):
            out[index] = found[row]
    return np.stack(out) if out else np.zeros((0, len(wanted), 0, config.hidden_dim), np.float32)


def counted(
    config: DecoderConfig, prompts: Sequence[Sequence[int]], layers: Sequence[int],
    positions: Sequence[Sequence[int]] | Sequence[int],
) -> tuple[tuple[int, ...], list[list[int]]]:  # fmt: skip
    """Layers counted from the embedding, and positions of each text from its beginning.

    Args, Raises: as `hidden_states`.
    """
    wanted = layer_numbers(layers, config.num_layers)
    if positions and not isinstance(positions[0], Sequence):
        positions = [positions] * len(prompts)
    if len(positions) != len(prompts):
        raise RequestError(f"There are {len(prompts)} texts, but {len(positions)} position lists.")
    places = [
        _places(i, len(p), at) for i, (p, at) in enumerate(zip(prompts, positions, strict=True))
    ]
    if len({len(at) for at in places}) > 1:
        raise RequestError("Every text needs equally many positions.")
    for index, tokens in enumerate(prompts):
        check_tokens(f"Text {index}", tokens, config.vocab_size)
    return wanted, places


def _places(index: int, length: int, positions: Sequence[int]) -> list[int]:
    if not length:
        raise RequestError(f"Text {index} is empty; it has no hidden states.")
    places = [p if p >= 0 else length + p for p in positions]
    for given, place in zip(positions, places, strict=True):
        if not 0 <= place < length:
            raise RequestError(f"Text {index} has {length} tokens; there is no position {given}.")
    return places
