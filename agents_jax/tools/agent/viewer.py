"""What an agent did, on a terminal.

python -m agents_jax.tools.agent.viewer runs/agent/transcripts.jsonl --failed
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from agents_jax.llm import RecordingError
from agents_jax.llm.transcript import shorten
from agents_jax.tools.agent.policy import Proposal
from agents_jax.tools.agent.transcript import ENDS, Transcript, Turn, read_transcripts
from agents_jax.tools.calls import Call

if TYPE_CHECKING:
    from rich.console import Console


def lines_of(transcript: Transcript, *, length: int = 2000) -> Iterator[tuple[str, str]]:
    """(heading, text) of all that happened, for a reader; `length`: characters per text, 0: all."""
    for message in transcript.messages[: transcript.num_given]:
        yield str(message.get("role")), shorten(str(message.get("content") or ""), length)
    for number, turn in enumerate(transcript.turns):
        for heading, text in lines_of_turn(turn):
            yield f"{number} {heading}", shorten(text, length)
    if transcript.error:
        yield "error", shorten(transcript.error, length)


def lines_of_turn(turn: Turn) -> Iterator[tuple[str, str]]:
    """(heading, text) of one turn."""
    if turn.decision is not None and turn.decision.call is not None:
        score = "" if turn.decision.score is None else f", score {turn.decision.score:.4g}"
        said = "call" if turn.decision.call else "no call"
        yield "decision", f"{said}{score} ({turn.decision.reason})"
    if turn.proposal is not None:
        yield from _lines_of_proposal("model", turn.proposal)
    if turn.refinement is not None and turn.refinement.steps:
        for step in turn.refinement.steps:
            yield from _lines_of_proposal("refined", step)
        yield "refinement", f"{len(turn.refinement.steps)} steps: {turn.refinement.reason}"
    for seen in turn.observations:
        kind = "" if seen.ok else f" [{seen.error_kind}]"
        yield f"observation{kind}", f"{seen.call.name}: {seen.text}"
    if turn.told:
        yield "told", turn.told


def _lines_of_proposal(heading: str, proposal: Proposal) -> Iterator[tuple[str, str]]:
    if proposal.text:
        yield heading, proposal.text
    for call in proposal.calls or ():
        yield f"{heading} calls", f"{call.name}({_arguments(call)})"
    if proposal.calls is None:
        yield f"{heading} [unreadable]", proposal.problem


def _arguments(call: Call) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())


def show(transcripts: Sequence[Transcript], *, length: int, console: Console | None = None) -> None:
    """Prints transcripts; texts longer than `length` characters are shortened (0: never)."""
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = console or Console()
    for transcript in transcripts:
        cost = transcript.cost
        facts = (
            f"{transcript.end}  {len(transcript.calls)} calls  {cost.prompt_tokens} + "
            f"{cost.completion_tokens} tokens  {transcript.seconds:.2f} s"
        )
        lines = [Text(facts, style="dim")]
        for heading, text in lines_of(transcript, length=length):
            lines.append(Text(shorten(heading, 0), style="cyan"))
            lines.append(Text(text))
        style = "dim" if transcript.end in ("answer", "calls") else "red"
        title = Text(shorten(transcript.id, 80))
        console.print(Panel(Group(*lines), title=title, border_style=style))


def main(arguments: Sequence[str] | None = None) -> int:
    """The viewer's command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m agents_jax.tools.agent.viewer",
        description="Shows what an agent did.",
    )
    parser.add_argument("file")
    parser.add_argument("--id", help="only this task")
    parser.add_argument("--end", choices=ENDS, help="only tasks that ended so")
    parser.add_argument("--failed", action="store_true", help="only tasks without an answer")
    parser.add_argument("--length", type=int, default=2000, help="characters per text; 0 for all")
    options = parser.parse_args(arguments)
    if not pathlib.Path(options.file).exists():
        print(f"There is no file {options.file}.", file=sys.stderr)
        return 2
    try:
        found = read_transcripts(options.file)
    except RecordingError as error:
        print(error, file=sys.stderr)
        return 2
    kept = [
        transcript
        for transcript in found.values()
        if options.id in (None, transcript.id)
        and options.end in (None, transcript.end)
        and not (options.failed and transcript.end in ("answer", "calls"))
    ]
    show(kept, length=options.length)
    print(f"{len(kept)} of {len(found)} tasks", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
