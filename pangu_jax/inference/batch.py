"""Rows as the arrays that the compiled programs take, and what comes back as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pangu_jax.inference import programs
from pangu_jax.inference.checks import layer_numbers
from pangu_jax.inference.forward import Chunk
from pangu_jax.inference.request import Delta, TokenLogprob
from pangu_jax.inference.row import Row
from pangu_jax.inference.sampling import Chosen, Features, RowSampling, Seen


def at_least(value: int, least: int) -> int:
    """The least power of two times `least` that is not below `value`."""
    while least < value:
        least *= 2
    return least


def column(values: Sequence[int], size: int) -> np.ndarray:
    """int32 (size,), filled up with zeros."""
    return np.asarray([*values, *[0] * (size - len(values))], np.int32)


def logprob_at(chosen: Chosen, at: tuple[int, ...], top: int) -> TokenLogprob:
    """One token's log-probability and the `top` likeliest ones in its place."""
    best = ()
    if top and chosen.top_ids is not None:
        best = tuple(
            (int(i), float(x))
            for i, x in zip(chosen.top_ids[at][:top], chosen.top_logprobs[at][:top], strict=True)
        )
    return TokenLogprob(int(chosen.token[at]), float(chosen.logprob[at]), best)


def keep_prompt_logprobs(row: Row, found: Chosen, index: int, count: int) -> None:
    """Adds what a chunk of `count` tokens says about the prompt tokens that were asked for."""
    sampling = row.request.sampling
    for position in range(count):
        token = row.computed + position + 1  # whose log-probability stands at this position
        expected = sampling.prompt_logprobs_from + len(row.prompt_logprobs)
        if token == expected and token < len(row.request.prompt_ids):
            row.prompt_logprobs.append(logprob_at(found, (index, position), sampling.logprobs or 0))


def keep_hidden(row: Row, streams: np.ndarray, index: int) -> None:
    """Takes a row's hidden states from the streams (layers + 2, B, D) of `forward`."""
    asked, last = row.request.hidden, len(streams) - 2
    numbers = [
        number + (asked.normed and number == last) for number in layer_numbers(asked.layers, last)
    ]
    row.hidden = streams[numbers, index]


def block_tables(rows: Sequence[Row], size: int, pages: int) -> np.ndarray:
    """int32 (size, pages); what a row lacks is page 0."""
    tables = np.zeros((size, pages), np.int32)
    for index, row in enumerate(rows):
        held = row.pages[:pages]
        tables[index, : len(held)] = held
    return tables


def chunk_width(longest: int, budget: int) -> int:
    """Positions per row of a chunk: one of a few, so that few programs are compiled.

    Longer prompts are read in several chunks of 128, or of the whole budget where they fill it.
    """
    for width in (32, 64, 128):
        if longest <= width:
            return min(width, budget)
    return budget if longest >= budget else min(128, budget)


def chunk_of(
    rows: Sequence[Row], counts: Sequence[int], size: int, width: int, pages: int
) -> tuple[Chunk, np.ndarray]:
    """The next `counts` tokens of each row, and int32 (size, width) the token after each of them.

    Args:
      pages: of each row's table.
    """
    tokens = np.zeros((size, width), np.int32)
    targets = np.zeros((size, width), np.int32)
    for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
        tokens[index, :count] = row.tokens(row.computed, row.computed + count)
        following = row.tokens(row.computed + 1, row.computed + 1 + count)
        targets[index, : len(following)] = following
    start = column([row.computed for row in rows], size)
    chunk = Chunk(tokens, start, column(counts, size), block_tables(rows, size, pages))
    return chunk, targets


def choice_of(rows: Sequence[Row], size: int, vocabulary: int) -> tuple[Features, programs.Choice]:
    """What decides about the next tokens of these rows, beside the logits."""
    asked = [row.request.sampling for row in rows]
    features = Features.of(asked)
    seen = mask = None
    if features.penalties:
        prompts = np.zeros((size, vocabulary), bool)
        counts = np.zeros((size, vocabulary), np.int32)
        for index, row in enumerate(rows):
            found = row.seen(vocabulary)
            if found is not None:
                prompts[index], counts[index] = found
        seen = Seen(prompts, counts)
    if features.mask:
        mask = np.full((size, -(-vocabulary // 32)), 0xFFFFFFFF, np.uint32)
        for index, row in enumerate(rows):
            if row.mask is not None:
                mask[index] = row.mask
    generated = column([len(row.generated) for row in rows], size)
    return features, programs.Choice(RowSampling.of(asked, size), generated, seen, mask)


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several news of one request as one."""
    last = deltas[-1]
    return dataclasses.replace(
        last,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(t for delta in deltas for t in delta.token_ids),
        logprobs=tuple(x for delta in deltas for x in delta.logprobs),
        cached_tokens=max(delta.cached_tokens for delta in deltas),
    )
