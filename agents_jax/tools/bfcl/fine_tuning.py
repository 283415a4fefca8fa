"""Fine-tuning on BFCL: chats of one part of the functions, exact match on functions never seen.

An experiment of `launch.py` ('agents.bfcl_sft'): `pangu_jax.training.sft` tunes the model, and at
every evaluation the local engine answers the held-out items, which BFCL's rules then judge.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from agents_jax.tools.bfcl.data import CITATION, LICENCE, Item, load
from agents_jax.tools.bfcl.evaluate import Report, evaluate
from agents_jax.tools.bfcl.prompts import Style, prompt_messages, to_chat
from agents_jax.tools.bfcl.splits import Split, split_by_function
from pangu_jax.config.resolve import resolve
from pangu_jax.inference import Request, SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.inference.prompts import chat_ids
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.training.sft import SftConfig, TunedModel, train
from pangu_jax.training.sft.prepare import load_base
from pangu_jax.weights import LoadedModel, LoadedTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BfclSftConfig:
    """A run on BFCL.

    categories: items of these; style: of the prompt. held_out_fraction, split_seed: of
      `split_by_function`. answer_tokens: room left in a row for the answer, and new tokens at most.
    exact_match_items: held-out items answered at each evaluation; 0 for all.
    engine: that answers them. sft: the tuning itself; its data is replaced by BFCL's.
    """

    experiment: str = "agents.bfcl_sft"
    categories: tuple[str, ...] = ("simple_python", "live_simple")
    style: Style = "compact"
    held_out_fraction: float = 0.2
    split_seed: int = 0
    answer_tokens: int = 96
    exact_match_items: int = 0
    engine: EngineConfig = EngineConfig(context_length=1024)
    sft: SftConfig = dataclasses.field(default_factory=SftConfig)


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    del command
    if mode != "train":
        raise ValueError(f"--mode={mode} does not exist for BFCL fine-tuning; use train.")
    experiment = resolve(BfclSftConfig, config)
    print(f"BFCL: {LICENCE}\n{CITATION}\n", flush=True)
    model = load_base(experiment.sft)
    split = split_items(experiment, model.tokenizer)
    for name, (ours, theirs) in split.sizes().items():
        print(f"  {name}: {ours} items to train on, {theirs} held out", flush=True)
    for reason, count in split.dropped.items():
        print(f"  left out: {count} ({reason})", flush=True)
    held_out = list(split.held_out)
    asked = held_out[: experiment.exact_match_items or None]
    workdir = pathlib.Path(workdir)

    def exact_match(tuned: TunedModel, step: int) -> dict[str, float]:
        start = time.perf_counter()
        report = judge(tuned, asked, experiment)
        seconds = time.perf_counter() - start
        _keep(workdir, step, report)
        print(f"\nstep {step}, {seconds:.0f} s for {len(asked)} answers:\n{report}", flush=True)
        unread = report.calls.num_parse_failures / max(report.calls.num_items, 1)
        return {"exact_match": report.calls.rate, "parse_failure_rate": unread}

    result = train(
        experiment.sft, workdir,
        examples=[to_chat(item, experiment.style) for item in split.train],
        held_out=[to_chat(item, experiment.style) for item in held_out],
        evaluate=exact_match, model=model,
    )  # fmt: skip
    return result.exit_code


def split_items(config: BfclSftConfig, tokenizer: LoadedTokenizer) -> Split:
    """Items whose prompt and answer fit a row, split by function."""

    def tokens(item: Item) -> int:
        return len(chat_ids(tokenizer, prompt_messages(item, config.style)))

    return split_by_function(
        load(config.categories), held_out_fraction=config.held_out_fraction,
        seed=config.split_seed, num_tokens=tokens,
        max_tokens=config.sft.seq_len - config.answer_tokens,
    )  # fmt: skip


def judge(tuned: TunedModel, items: Sequence[Item], config: BfclSftConfig) -> Report:
    """Greedy answers of a tuned model, judged by BFCL's rules.

    Raises:
      RuntimeError: the engine failed on one of them.
    """
    sampling = SamplingParams(max_tokens=config.answer_tokens)
    # The engine runs on one device, whatever training is divided over.
    params, adapter = jax.device_get((tuned.params, tuned.adapter))
    with jax.set_mesh(make_mesh(devices=jax.local_devices()[:1])):
        adapters = () if adapter is None else (adapter,)
        model = LoadedModel(tuned.config, params, tuned.tokenizer)
        engine = Engine(model, config.engine, adapters=adapters)
        requests = [
            Request(
                id=item.id, sampling=sampling, adapters=tuple((a.name, 1.0) for a in adapters),
                prompt_ids=chat_ids(tuned.tokenizer, prompt_messages(item, config.style)),
            )
            for item in items
        ]  # fmt: skip
        completions = engine.generate(requests)
    failed = [completion for completion in completions if completion.error is not None]
    if failed:  # an answer that was never made is not a wrong one
        raise RuntimeError(
            f"{len(failed)} of {len(completions)} held-out items were not answered; the first, "
            f"{failed[0].id!r}: {failed[0].error}"
        )
    return evaluate(items, [completion.text for completion in completions])


def _keep(workdir: pathlib.Path, step: int, report: Report) -> None:
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "exact_match.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **report.to_dict()}) + "\n")
