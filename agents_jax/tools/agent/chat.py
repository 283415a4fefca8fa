"""--mode=chat: a conversation on the terminal, the agent's calls shown as they are made."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from agents_jax.llm import user
from agents_jax.llm.transcript import shorten
from agents_jax.tools.agent.loop import Agent
from agents_jax.tools.agent.policy import Message
from agents_jax.tools.agent.tasks import Task
from agents_jax.tools.agent.transcript import TranscriptFile, Turn
from agents_jax.tools.agent.viewer import lines_of_turn

_HELP = """/tools        list the tools
/reset        forget the conversation
/exit         end; so does the end of input. Ctrl-C stops an answer."""
_SHOWN = 600  # characters of an observation


class Live:
    """A listener that prints what is new in a turn."""

    def __init__(self, console: Console):
        self._console = console
        self._shown: list[tuple[str, str]] = []

    def __call__(self, event: str, turn: Turn) -> None:
        lines = list(lines_of_turn(turn))
        if event == "decision":
            self._shown = []
        if turn.proposal is not None and turn.proposal.calls == ():
            lines = [line for line in lines if line[0] == "decision"]  # the answer comes by itself
        for heading, text in lines[len(self._shown) :]:
            line = Text(f"  {shorten(heading, 40)} ", style="cyan")
            line.append(shorten(text, _SHOWN), style="dim")
            self._console.print(line)
        self._shown = lines


def chat(
    agent: Agent,
    path: str | os.PathLike[str],
    *,
    read: Callable[[str], str] = input,
    console: Console | None = None,
) -> None:
    """Questions from `read` until its end; transcripts are appended to `path`."""
    console = console or Console()
    agent.listener = Live(console)
    file = TranscriptFile(path)
    messages: tuple[Message, ...] = ()
    console.print(f"{agent.model.name} with {len(agent.tools)} tools; /help lists commands.")
    try:
        while True:
            try:
                line = read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if line in ("/exit", "/quit"):
                return
            if line == "/reset":
                messages = ()
            elif line == "/tools":
                for tool in agent.tools:
                    console.print(Text(f"{tool.name}: {tool.description}"))
            elif line.startswith("/"):
                console.print(_HELP)
            elif line:
                messages = _answer(agent, file, messages, line, console)
    finally:
        file.close()


def _answer(
    agent: Agent, file: TranscriptFile, messages: tuple[Message, ...], line: str, console: Console
) -> tuple[Message, ...]:
    """The conversation with the question and its answer; as it was where there is none."""
    name = datetime.datetime.now(datetime.UTC).isoformat()
    transcript = agent.run(Task(id=name, messages=(*messages, user(line))))
    file.add(transcript)
    if transcript.end != "answer":
        error = f": {transcript.error}" if transcript.error else ""
        console.print(Text(shorten(f"[{transcript.end}{error}]", _SHOWN), style="red"))
        return messages
    console.print(Text(shorten(transcript.answer or "", 0)))
    first = 1 if agent.settings.system else 0  # which every task begins with anew
    return transcript.messages[first:]
