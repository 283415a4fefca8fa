"""--mode=chat: a conversation on the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from pangu_jax.inference.engine import Engine
from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.prompts import chat_ids
from pangu_jax.inference.request import Request, SamplingParams
from pangu_jax.weights.errors import WeightsError

_HELP = """/system TEXT  say what the assistant is (starts anew)
/reset        forget the conversation
/undo         take back the last question and its answer
/exit         end; so does the end of input. Ctrl-C stops an answer."""


class Conversation:
    """Messages so far; each answer is added to them.

    Args:
      sampling: of every answer; the seed grows by one with each.
    """

    def __init__(self, engine: Engine, sampling: SamplingParams, system: str = ""):
        if engine.tokenizer.special.chat_template is None:
            raise WeightsError(
                f"{engine.model_name} has no chat template, so it cannot chat; use "
                "--mode=generate --config.generate.raw=True, or weights with a template."
            )
        self._engine, self._sampling, self._count = engine, sampling, 0
        self.start(system)

    def start(self, system: str | None = None) -> None:
        """Forgets everything; `system` replaces the system message unless it is None."""
        if system is not None:
            self.system = system
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def undo(self) -> bool:
        """Takes back the last question and its answer; whether there was one."""
        while self.messages and self.messages[-1]["role"] != "system":
            if self.messages.pop()["role"] == "user":
                return True
        return False

    def ask(self, text: str) -> Iterator[str]:
        """The answer piece by piece. The oldest turns are left out where the context is full.

        Closing the iterator stops the answer; what had come of it stays in the conversation.

        Raises:
          RequestError: a question that is too long for the context by itself.
        """
        request, messages = self._request([*self.messages, {"role": "user", "content": text}])
        self._engine.add(request)
        self.messages = messages
        self._count += 1
        answer = []
        try:
            while True:
                for delta in self._engine.step():
                    if delta.error is not None:
                        raise RuntimeError(delta.error)
                    answer.append(delta.text)
                    yield delta.text
                    if delta.finish_reason is not None:
                        return
        finally:
            self._engine.cancel(request.id)
            self._engine.take(request.id)
            self.messages.append({"role": "assistant", "content": "".join(answer)})

    def _request(self, messages) -> tuple[Request, list[dict[str, str]]]:
        """The request, and the messages that it holds."""
        sampling = self._sampling
        sampling = dataclasses.replace(sampling, seed=sampling.seed + self._count)
        room = self._engine.context_length - min(sampling.max_tokens or 1, 256)
        fixed = 1 if self.system else 0
        while True:
            ids = chat_ids(self._engine.tokenizer, messages)
            if len(ids) < room or len(messages) <= fixed + 1:
                name = f"chat-{self._count}"
                return Request(id=name, prompt_ids=ids, sampling=sampling), messages
            # Without the oldest question and its answer.
            messages = messages[:fixed] + messages[fixed + 2 :]


def chat(
    conversation: Conversation, *, read: Callable[[str], str] = input, out: TextIO = sys.stdout
) -> None:
    """Questions from `read` until its end, answers to `out` as they come."""

    def say(text: str, end: str = "\n") -> None:
        out.write(text + end)
        out.flush()

    say("Type a message; /help lists commands.")
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            conversation.start()
        elif command == "/system":
            conversation.start(rest)
        elif command == "/undo":
            say("taken back" if conversation.undo() else "there is nothing to take back")
        elif command.startswith("/"):
            say(_HELP)
        else:
            answer = conversation.ask(line)
            try:
                for piece in answer:
                    say(piece, end="")
            except KeyboardInterrupt:
                answer.close()
                say(" [stopped]", end="")
            except RequestError as error:
                say(f"Error: {error}", end="")
            say("")
