"""The modes of inference: generate, chat, serve, benchmark."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

from pangu_jax.config.resolve import resolve, to_dict
from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.load import load_engine
from pangu_jax.inference.prompts import chat_ids, prompt_ids, text_ids
from pangu_jax.inference.request import Completion, Delta, Request
from pangu_jax.inference.run_config import InferenceConfig


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; the process's exit code."""
    del command
    experiment = resolve(InferenceConfig, config)
    modes = {"generate": _generate, "chat": _chat, "serve": _serve, "benchmark": _benchmark}
    if mode not in modes:
        raise ValueError(
            f"--mode={mode} does not exist for inference; use --mode={' or --mode='.join(modes)}."
        )
    return modes[mode](experiment, workdir)


def _generate(config: InferenceConfig, workdir: pathlib.Path) -> int:
    chosen = config.generate
    if bool(chosen.prompt) == bool(chosen.input):
        raise ValueError(
            "Give either --config.generate.prompt (a text) or --config.generate.input (JSON lines "
            "of prompts)."
        )
    if chosen.input:
        return _answer_file(config, workdir)
    engine = load_engine(config)
    ids = prompt_ids(engine.tokenizer, chosen.prompt, raw=chosen.raw, system=chosen.system)

    def show(delta: Delta) -> None:
        sys.stdout.write(delta.text)
        sys.stdout.flush()

    request = Request(id="prompt", prompt_ids=ids, sampling=config.sampling)
    (completion,) = engine.generate([request], on_delta=show)
    print(flush=True)
    return _fail(completion) if completion.error else 0


def _fail(completion: Completion) -> int:
    print(f"Error: {completion.error}", file=sys.stderr)
    return 1


def _answer_file(config: InferenceConfig, workdir: pathlib.Path) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from pangu_jax.inference.jsonl import answer_file, read_prompts

    chosen = config.generate
    read_prompts(chosen.input, config.sampling)  # mistakes in it before the model is loaded
    engine = load_engine(config)
    output = pathlib.Path(chosen.output or workdir / "answers.jsonl")

    def answer(prompts):
        requests = []
        for line in prompts:
            if line.messages is not None:
                ids = chat_ids(engine.tokenizer, line.messages)
            elif chosen.raw:
                ids = text_ids(engine.tokenizer, line.prompt)
            else:
                ids = prompt_ids(engine.tokenizer, line.prompt, system=chosen.system)
            requests.append(
                Request(id=line.id, prompt_ids=ids, sampling=line.sampling, adapters=line.adapters)
            )
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("answers", total=len(requests))
            for completion in engine.completions(requests):
                bar.advance(task)
                yield completion

    settings = {
        "model": config.model,
        "weights": config.engine.weights,
        "dtype": config.dtype,
        "adapters": to_dict(config.adapters),
        "raw": chosen.raw,
        "system": chosen.system,
    }
    done = answer_file(
        chosen.input, output, answer, defaults=config.sampling, settings=settings,
        token_text=engine.tokenizer.tokenizer.id_to_token,
    )  # fmt: skip
    print(f"{done.new} answers written to {output}, {done.kept} were there")
    for name, reason in done.failed:
        print(f"no answer to {name!r}: {reason}", file=sys.stderr)
    return 1 if done.failed else 0


def _chat(config: InferenceConfig, workdir: pathlib.Path) -> int:
    del workdir
    from pangu_jax.inference.chat import Conversation, chat

    chat(Conversation(load_engine(config), config.sampling, config.chat.system))
    return 0


def _serve(config: InferenceConfig, workdir: pathlib.Path) -> int:
    del workdir
    from pangu_jax.inference.async_engine import EngineThread

    try:
        from pangu_jax.inference.server import api_key_from_environment, serve
    except ImportError as error:
        raise RequestError(
            f"Serving needs the extra 'serve' ({error.name} is missing): pip install -e '.[serve]'."
        ) from error
    chosen = config.serve
    # An empty variable is a mistake that would leave the server open; an absent one is a choice.
    key = None
    if chosen.api_key_env in os.environ:
        key = api_key_from_environment(chosen.api_key_env)
    engine = load_engine(config)
    serve(
        EngineThread(engine), engine.tokenizer, host=chosen.host, port=chosen.port, api_key=key,
        adapters=engine.adapter_names, drain_seconds=chosen.drain_seconds,
        access_log=chosen.access_log,
    )  # fmt: skip
    return 0


def _benchmark(config: InferenceConfig, workdir: pathlib.Path) -> int:
    from pangu_jax.inference.benchmark import benchmark

    return benchmark(config, workdir)
