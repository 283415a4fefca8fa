"""Multi-turn items against a model, from the command line.

python -m agents_jax.tools.bfcl.multi_turn --model=local:smollm2 --limit=5 --out=runs/turns.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from agents_jax.llm import LlmError, ModelConfig, open_model
from agents_jax.llm.factory import FORMS
from agents_jax.tools.bfcl.data import CITATION, LICENCE, BfclDataError
from agents_jax.tools.bfcl.multi_turn.data import MULTI_TURN_CATEGORIES, load_multi_turn
from agents_jax.tools.bfcl.multi_turn.evaluate import evaluate_multi_turn
from agents_jax.tools.bfcl.multi_turn.rollout import RolloutSettings
from agents_jax.tools.bfcl.multi_turn.run import RunError, may_pass, run_multi_turn
from agents_jax.tools.bfcl.multi_turn.sandbox import Limits, Sandbox, SandboxError
from pangu_jax.data.wheel import WheelError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agents_jax.tools.bfcl.multi_turn",
        description="Asks a model BFCL's multi-turn items and scores its answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults, limits = RolloutSettings(), Limits()
    add = parser.add_argument
    add("--model", required=True, help=FORMS)
    add("--engine", default="{}", help="settings of a local engine as JSON")
    add("--endpoint", default="{}", help="settings of an endpoint as JSON")
    add("--categories", default="multi_turn_base", help="comma-separated, of "
        + ", ".join(MULTI_TURN_CATEGORIES))  # fmt: skip
    add("--limit", type=int, default=0, help="items of each category; 0 for all")
    add("--out", help="JSON lines of transcripts; a run goes on where the file ends")
    add("--record", help="file that keeps the model's answers, so that none is asked twice")
    add("--transcript", help="file in which every call of the model is written")
    add("--ledger", help="file of what calls cost")
    add("--report", help="file for the scores as JSON")
    add("--calls", default=defaults.calls, help="prompted or native")
    add("--style", default=defaults.style, help="of the prompt: compact or official")
    add("--results-as", default=defaults.results_as, help="role of prompted results: user or tool")
    add("--max-steps", type=int, default=defaults.max_steps, help="steps of a turn")
    add("--max-tokens", type=int, default=defaults.max_tokens, help="tokens of an answer")
    add("--temperature", type=float, default=defaults.temperature, help="0 for the likeliest token")
    add("--seed", type=int, help="of sampling")
    add("--max-result-chars", type=int, help="of a result, as the model is given it; all if absent")
    add("--parallel", type=int, default=4, help="items at once")
    add("--request-seconds", type=float, default=limits.request_seconds,
        help="wall time for the calls of a step")  # fmt: skip
    return parser


def _settings(flag: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{flag}={text} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"--{flag}={text} is no JSON object; write '{{\"name\": value}}'.")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (1 where some requests failed, to be asked
    again by the same command; 2 where nothing could be run)."""
    options = _parser().parse_args(arguments)
    print(f"{LICENCE}\n{CITATION}", file=sys.stderr)
    try:
        items = []
        for category in options.categories.split(","):
            found = load_multi_turn(category.strip())
            items += found[: options.limit] if options.limit > 0 else found
        settings = RolloutSettings(
            calls=options.calls,
            style=options.style,
            results_as=options.results_as,
            max_steps=options.max_steps,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
            max_result_chars=options.max_result_chars,
        )
        limits = Limits(request_seconds=options.request_seconds)
        config = ModelConfig(
            spec=options.model,
            engine=_settings("engine", options.engine),
            endpoint=_settings("endpoint", options.endpoint),
            record=options.record,
            transcript=options.transcript,
            ledger=options.ledger,
        )
        with open_model(config) as model:
            transcripts = run_multi_turn(
                items,
                model,
                settings,
                out=options.out,
                parallel=options.parallel,
                limits=limits,
                on_item=lambda t: print(
                    f"{t.id}: {sum(len(turn.steps) for turn in t.turns)} steps in "
                    f"{len(t.turns)} turns{': ' + t.error if t.error else ''}",
                    file=sys.stderr,
                ),
            )
        with Sandbox(limits=limits) as sandbox:
            report = evaluate_multi_turn(items, transcripts, sandbox=sandbox)
    except (LlmError, BfclDataError, RunError, SandboxError, WheelError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report)
    if options.report:
        with open(options.report, "w", encoding="utf-8") as file:
            json.dump(report.to_dict(), file, indent=1)
    return 1 if any(may_pass(transcript) for transcript in transcripts) else 0


if __name__ == "__main__":
    sys.exit(main())
