"""Haystacks with needles: the data of the needle test (needle in a haystack).

A needle is a sentence 'The magic number of <city> is <digits>.' in the middle of held-out text;
behind the text stands the same sentence up to 'is', and the digits are what a model has to say.
The report (Pangu Ultra, arXiv 2504.07866, section 3.2) uses such a test to choose the base of the
rotary embedding and says nothing about its form: sentence, values, depths and scoring are ours.

Letters: C tokens of a context, A questions about a context, K values to choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pangu_jax.pretraining.config import NeedleConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pangu_jax.data.text import TextShards

KEYS = (
    "Accra", "Ankara", "Athens", "Baku", "Berlin", "Bogota", "Cairo", "Dakar", "Delhi", "Dublin",
    "Havana", "Helsinki", "Jakarta", "Kabul", "Kyoto", "Lagos", "Lima", "Lisbon", "London",
    "Madrid", "Manila", "Milan", "Nairobi", "Oslo", "Paris", "Prague", "Quito", "Riga", "Rome",
    "Seoul", "Sofia", "Tokyo", "Tunis", "Vienna", "Warsaw", "Zurich",
)  # fmt: skip
# Pieces are encoded one by one, so that question and answer are the very tokens of the needle.
QUESTION, VALUE, END = "\nThe magic number of {key} is", " {value}", ".\n"

Encode = Callable[[str], list[int]]


class NeedleError(ValueError):
    """A needle test that cannot be made; the text says what to change."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Held-out text as token ids.

    lengths: tokens of each document. read: number -> its ids. eod_id: put between documents, or
    None.
    """

    lengths: np.ndarray
    read: Callable[[int], np.ndarray]
    eod_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One context, what is asked about it, and what the answers may be.

    context: int32 (C,). questions: A lists of ids. values: K lists of ids.
    right: int (A,), which value is the answer. depths: (A,), nominal.
    starts: (A,), where the needle begins in the context; -1 in a control, which has none.
    """

    context: np.ndarray
    questions: list[list[int]]
    values: list[list[int]]
    right: np.ndarray
    depths: np.ndarray
    starts: np.ndarray

    @property
    def control(self) -> bool:
        return bool((self.starts < 0).all())


def encoder(tokenizer: Tokenizer) -> Encode:
    """Text to ids, without the special tokens that a tokenizer may put around a text."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def documents_of(shards: TextShards) -> Documents:
    """The documents of tokenised shards, read when they are needed."""
    return Documents(
        np.asarray(shards.index["length"], np.int64),
        lambda number: shards.records([number])[0].tokens,
        shards.eod_id,
    )


def documents_from_ids(ids: Sequence[Sequence[int]], eod_id: int | None = None) -> Documents:
    """Documents that are in memory."""
    arrays = [np.asarray(one, np.int32) for one in ids]
    return Documents(np.array([len(one) for one in arrays], np.int64), arrays.__getitem__, eod_id)


def stretches(documents: Documents, length: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless int32 stretches of `length` tokens: the documents in random order, one after another.

    Two stretches share text only after all of it has been dealt once.

    Raises:
      NeedleError: no text, or less than one stretch.
    """
    total = int(documents.lengths.sum()) if len(documents.lengths) else 0
    if total < length:
        raise NeedleError(
            f"The held-out text has {total:,} tokens in {len(documents.lengths):,} documents, one "
            f"haystack needs {length:,}. Lower --config.needle.lengths, or make a corpus with a "
            "larger --config.corpus.shards.held_out."
        )
    parts: list[np.ndarray] = []
    have = 0
    while True:
        for number in rng.permutation(len(documents.lengths)):
            tokens = np.asarray(documents.read(int(number)), np.int32)
            if documents.eod_id is not None:
                tokens = np.append(tokens, np.int32(documents.eod_id))
            parts.append(tokens)
            have += len(tokens)
            if have < length:
                continue
            text = np.concatenate(parts)
            for start in range(0, have - length + 1, length):
                yield text[start : start + length]
            parts, have = [text[have - have % length :]], have % length


def insert(
    haystack: np.ndarray, needles: Sequence[Sequence[int]], depths: Sequence[float], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(context (length,), first position of each needle in it).

    The haystack's start is kept and its end cut off, so that the whole has `length` tokens. A
    needle of depth d stands behind round(d * remaining haystack) of its tokens; needles never
    split one another.

    Raises:
      NeedleError: a depth outside [0, 1], or a length that the needles alone exceed.
    """
    if any(not 0 <= depth <= 1 for depth in depths):
        raise NeedleError(f"A needle has depth {list(depths)}; depths lie in [0, 1].")
    rest = length - sum(map(len, needles))
    if rest < 0 or rest > len(haystack):
        raise NeedleError(
            f"{length} tokens of context cannot be made of {len(haystack)} tokens of text and "
            f"needles of {sum(map(len, needles))}."
        )
    places = np.array([round(depth * rest) for depth in depths], int)
    starts, parts, done, at = np.zeros(len(needles), int), [], 0, 0
    for index in np.argsort(places, kind="stable"):
        parts += [haystack[done : places[index]], np.asarray(needles[index], np.int32)]
        at += places[index] - done
        starts[index], done = at, places[index]
        at += len(needles[index])
    return np.concatenate([*parts, haystack[done:rest]]).astype(np.int32), starts


def make_rows(
    documents: Documents, encode: Encode, settings: NeedleConfig, length: int
) -> list[Row]:
    """The contexts of one length: needles at every depth, and controls without any.

    Context, longest question and longest answer have `length` tokens together. Each haystack has
    text, keys and values of its own, drawn from (seed, length). Every haystack has one control:
    the same text, question and choices without the needle (of one depth in turn; of all depths
    with `together`).

    Raises:
      NeedleError: a length that needle and question do not fit into, or too little text.
    """
    rng = np.random.default_rng([settings.seed, length])
    if settings.choices > len(KEYS):
        raise NeedleError(f"choices={settings.choices} must be at most {len(KEYS)}, one per city.")
    questions = [encode(QUESTION.format(key=key)) for key in KEYS]
    end = encode(END)
    draws = settings.haystacks if settings.together else settings.haystacks * len(settings.depths)
    low = 10 ** (settings.digits - 1)
    pairs = []
    for _ in range(draws):
        keys = rng.permutation(len(KEYS))[: settings.choices]
        numbers = low + rng.choice(9 * low, settings.choices, replace=False)
        pairs.append((keys, [encode(VALUE.format(value=number)) for number in numbers]))
    longest_value = max(len(value) for _, values in pairs for value in values)
    tail = max(map(len, questions)) + longest_value
    context = length - tail
    per_row = len(settings.depths) if settings.together else 1
    needed = per_row * (tail + len(end)) + 1
    if context < needed:
        raise NeedleError(
            f"length {length} is too short: question and answer take {tail} tokens with this "
            f"tokenizer and {per_row} needle(s) {needed - 1}; give --config.needle.lengths of at "
            f"least {needed + tail}."
        )
    text = stretches(documents, context, rng)
    rows = []
    for draw, (keys, values) in enumerate(pairs):
        haystack = next(text)
        turn = draw % len(settings.depths)
        depths = list(settings.depths) if settings.together else [settings.depths[turn]]
        asked = [questions[key] for key in keys[: len(depths)]]
        needles = [[*q, *v, *end] for q, v in zip(asked, values, strict=False)]
        filled, starts = insert(haystack, needles, depths, context)
        right = np.arange(len(depths))
        row = Row(filled, asked, values, right, np.array(depths), starts)
        rows.append(row)
        # Depths take turns, and so do the depths whose questions the controls repeat.
        round_, place = divmod(draw, len(settings.depths))
        if settings.together or place == round_ % len(settings.depths):
            rows.append(dataclasses.replace(row, context=haystack, starts=np.full_like(starts, -1)))
    return rows
