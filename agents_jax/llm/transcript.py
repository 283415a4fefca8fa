"""Transcripts of calls on a terminal.

python -m agents_jax.llm.transcript FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.llm.errors import LlmError
from agents_jax.llm.jsonl import read_lines


def shorten(text: Any, length: int = 0) -> str:
    """Text of strangers for a terminal: without control characters, which could steer it, and cut
    to `length` characters (0: whole)."""
    text = "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in str(text))
    if length <= 0 or len(text) <= length:
        return text
    return f"{text[:length]} … ({len(text) - length} characters more)"


def _parts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(heading, text) of what was said in a call."""
    request, answer = record["request"], record["answer"]
    parts = []
    if "prompt" in request:
        parts.append(("prompt", request["prompt"]))
    for message in request.get("messages", ()):
        text = message.get("content")
        text = text if isinstance(text, str) else "" if text is None else str(text)
        for call in message.get("tool_calls") or ():
            text += f"\n[call] {call.get('function', call)}"
        parts.append((str(message.get("role", "?")), text.strip()))
    for choice in answer.get("choices", ()):
        text = choice.get("text", "")
        for call in choice.get("tool_calls", ()):
            text += f"\n[call] {call['name']}({call['arguments']})"
        reason = choice.get("finish_reason", "stop")
        parts.append((f"answer {choice.get('sample', 0)} ({reason})", text.strip()))
    for score in answer.get("continuations", ()):
        sign = "<=" if score.get("bound") else "="
        parts.append(("score", f"{score['text']!r}: log-probability {sign} {score['logprob']:.4f}"))
    if "values" in answer:
        parts.append(("hidden states", f"shape {answer['values']['shape']}"))
    if answer.get("error"):
        parts.append(("error", f"{answer['error']['kind']}: {answer['error']['message']}"))
    return parts


def _facts(record: Mapping[str, Any]) -> str:
    answer = record["answer"]
    usage = answer.get("usage", {})
    tried = [a["outcome"] for a in answer.get("attempts", ())]
    facts = [
        record["time"],
        str(record["model"].get("model", record["model"])),
        record["hash"][:12],
        f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens",
        f"{answer.get('latency', 0.0):.2f} s",
    ]
    facts += [f"attempts: {', '.join(tried)}"] if len(tried) > 1 else []
    facts += [f"tag {record['tag']}"] if record.get("tag") else []
    facts += ["from the recording"] if answer.get("cached") else []
    return "  ".join(facts)


def show(records: Sequence[Mapping[str, Any]], *, length: int, console: Any = None) -> None:
    """Prints calls; texts longer than `length` characters are shortened (0: never)."""
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.text import Text

    console = console or Console()
    styles = {"user": "cyan", "system": "magenta", "error": "bold red", "prompt": "cyan"}
    for record in records:
        lines = [Text(shorten(_facts(record)), style="dim")]
        for heading, text in _parts(record):
            style = styles.get(heading, "green")
            lines.append(Text(shorten(heading), style=style))
            lines.append(Text(shorten(text, length)))
        failed = bool(record["answer"].get("error"))
        console.print(Panel(Group(*lines), border_style="red" if failed else "dim"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The viewer's command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m agents_jax.llm.transcript", description="Shows a transcript of calls."
    )
    parser.add_argument("file")
    parser.add_argument("--tag", help="only calls with this tag")
    parser.add_argument("--hash", help="only calls whose hash begins so")
    parser.add_argument("--errors", action="store_true", help="only calls that failed")
    parser.add_argument("--last", type=int, default=0, help="only the last so many; 0 for all")
    parser.add_argument("--length", type=int, default=2000, help="characters per text; 0 for all")
    options = parser.parse_args(arguments)
    try:
        records = [record for _, record in read_lines(options.file)]
    except LlmError as error:
        print(error, file=sys.stderr)
        return 2
    needed = {"time", "model", "hash", "request", "answer"}
    if any(not needed <= record.keys() for record in records):
        print(f"{options.file} is no transcript: a line lacks {sorted(needed)}.", file=sys.stderr)
        return 2
    kept = [
        record
        for record in records
        if (options.tag is None or record.get("tag") == options.tag)
        and (options.hash is None or record["hash"].startswith(options.hash))
        and (not options.errors or record["answer"].get("error"))
    ]
    show(kept[-options.last :] if options.last > 0 else kept, length=options.length)
    print(f"{len(kept)} of {len(records)} calls", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
