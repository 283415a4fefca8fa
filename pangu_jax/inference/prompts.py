"""Texts and chats as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_jax.inference.errors import RequestError
from pangu_jax.weights.chat import render_chat
from pangu_jax.weights.tokenizer_import import LoadedTokenizer


def chat_ids(
    loaded: LoadedTokenizer, messages: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[int, ...]:
    """Ids of a chat up to the opening of the assistant's turn; options as in `render_chat`."""
    text = render_chat(loaded, messages, **options)
    return tuple(loaded.tokenizer.encode(text, add_special_tokens=False).ids)


def text_ids(loaded: LoadedTokenizer, text: str) -> tuple[int, ...]:
    """Ids of a plain text, with whatever the model expects before it.

    Raises:
      RequestError: an empty text, where the model expects nothing before it.
    """
    ids = tuple(loaded.tokenizer.encode(text).ids)
    if not ids:
        raise RequestError("The prompt is empty; give it some text.")
    return ids


def prompt_ids(
    loaded: LoadedTokenizer, prompt: str, *, raw: bool = False, system: str = ""
) -> tuple[int, ...]:
    """A lone prompt: as a user's message where the model has a chat template, unless `raw`."""
    if raw or loaded.special.chat_template is None:
        return text_ids(loaded, prompt)
    before = [{"role": "system", "content": system}] if system else []
    return chat_ids(loaded, [*before, {"role": "user", "content": prompt}])
