"""Where the answers stand in the text of a chat, found from the template itself.

A template that marks them ({% generation %}) is believed. For any other, the text up to an answer
(with the opening of the assistant's turn) and the text up to its end must each begin the text that
comes next; the answer is what lies between. A template that rewrites earlier turns breaks that, and
then only the last turn of a rendering can be learned from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.records import Chat
from pangu_jax.weights import LoadedTokenizer, WeightsError, render_chat, render_chat_marked

TrainOn = Literal["all_assistant", "last_assistant", "each_assistant"]
TRAIN_ON: tuple[TrainOn, ...] = ("all_assistant", "last_assistant", "each_assistant")


class Rendered(NamedTuple):
    """text and the spans [start, stop) of its characters to learn, ascending; the last ends it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render_spans(
    tokenizer: LoadedTokenizer, chat: Chat, train_on: TrainOn = "all_assistant"
) -> list[Rendered]:
    """Text and spans of a chat.

    Args:
      train_on: 'all_assistant' one text, all answers; 'last_assistant' one text up to the last
        answer, which alone counts; 'each_assistant' one text for every answer, rendered as it was
        when the answer was to be written.

    Raises:
      FineTuneError: a template that refuses the messages, leaves out tools or calls of tools, opens
        the assistant's turn in another way than it writes it, or rewrites earlier turns where
        train_on needs them; each with the chat's origin.
    """
    answers = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant"]
    try:
        _check_tools(tokenizer, chat)
        if train_on == "all_assistant":
            return [_all(tokenizer, chat, answers)]
        chosen = answers[-1:] if train_on == "last_assistant" else answers
        return [_one(tokenizer, chat, i) for i in chosen]
    except WeightsError as error:
        raise FineTuneError(f"{chat.where}: {error}") from error


def has_marks(tokenizer: LoadedTokenizer) -> bool:
    """Whether the template names the answers itself, by {% generation %} blocks."""
    return "endgeneration" in (tokenizer.special.chat_template or "")


def _all(tokenizer, chat, answers) -> Rendered:
    if has_marks(tokenizer):
        text, spans = render_chat_marked(tokenizer, chat.messages, tools=chat.tools)
        if not spans:
            raise FineTuneError(f"{chat.where}: the template marks no answer in this chat.")
        return Rendered(text[: spans[-1][1]], tuple(spans))
    texts = [(i, *_before_and_after(tokenizer, chat, i)) for i in answers]
    for (_, _, earlier), (later, before, _) in zip(texts, texts[1:], strict=False):
        if not before.startswith(earlier):
            raise FineTuneError(
                f"{chat.where}: the chat template writes earlier turns differently once a later one"
                f" follows (seen before message {later}; templates that drop the reasoning of "
                "earlier answers do so), so that one text cannot hold every answer as it was "
                "written. Set --config.data.train_on=each_assistant (a text for every answer) or "
                "last_assistant."
            )
    return Rendered(texts[-1][2], tuple((len(before), len(after)) for _, before, after in texts))


def _one(tokenizer, chat, index) -> Rendered:
    if has_marks(tokenizer):
        part = chat.messages[: index + 1]
        text, spans = render_chat_marked(tokenizer, part, tools=chat.tools)
        if not spans:
            raise FineTuneError(f"{chat.where}: the template marks no answer in message {index}.")
        return Rendered(text[: spans[-1][1]], spans=(spans[-1],))
    before, after = _before_and_after(tokenizer, chat, index)
    return Rendered(after, ((len(before), len(after)),))


def _before_and_after(tokenizer, chat, index) -> tuple[str, str]:
    before = render_chat(
        tokenizer, chat.messages[:index], tools=chat.tools, add_generation_prompt=True
    )
    after = render_chat(
        tokenizer, chat.messages[: index + 1], tools=chat.tools, add_generation_prompt=False
    )
    if not after.startswith(before) or len(after) == len(before):
        at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), -1)
        raise FineTuneError(
            f"{chat.where}: the chat template does not write the assistant's turn (message {index})"
            f" as it opens it for generation: {before[max(0, at - 20) :][:60]!r} against "
            f"{after[max(0, at - 20) :][:60]!r}. Give a template with {{% generation %}} blocks by "
            "--config.data.chat_template."
        )
    return before, after


def _check_tools(tokenizer, chat) -> None:
    """Tools that a template does not write would be learned as calls of what nobody offered."""
    if chat.tools:
        with_tools, without = (
            render_chat(tokenizer, chat.messages[:1], tools=tools, add_generation_prompt=False)
            for tools in (chat.tools, None)
        )
        # Some templates write tools before the last user's turn, which the first message may not be
        if with_tools == without:
            with_tools, without = (
                render_chat(tokenizer, chat.messages, tools=tools, add_generation_prompt=False)
                for tools in (chat.tools, None)
            )
        if with_tools == without:
            raise FineTuneError(
                f"{chat.where} has tools, which the chat template does not write. Put their "
                "description into the system message and leave the key out, or give a template "
                "that takes tools by --config.data.chat_template."
            )
    if not any(message.get("tool_calls") for message in chat.messages):
        return
    bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in chat.messages]
    if render_chat(tokenizer, chat.messages, tools=chat.tools) == render_chat(
        tokenizer, bare, tools=chat.tools
    ):
        raise FineTuneError(
            f"{chat.where} has tool_calls, which the chat template does not write. Put the call "
            "into the content as text, or give a template that takes them by "
            "--config.data.chat_template."
        )
