"""Speed of the whole training step on one device, beside what the planner predicts for it.

    python benchmarks/train_step.py                                   # a tiny model, on a CPU too
    python benchmarks/train_step.py --cases=0.4b:4:none,1.3b:4:products \
        --attention=pallas_gpu --norm=xla --steps=8
    python benchmarks/train_step.py --cases=0.4b:4:none --attention=xla,pallas_gpu --documents=8

The step is the trainer's: forward and backward pass of the decoder, chunked cross entropy,
clipping, AdamW, the guard against values that are not finite, state donated; parameters and
moments float32, products in --dtype; random tokens. A case is size:rows:remat, rows of
--seq_len tokens. All cases are compiled at once, then run one after the other.

One JSON line per case on stdout:
  step_ms            median of the timed steps, each waited for
  mfu                tokens/s * flops_per_token / peak; flops_per_token = 6 * weights of products
                     + 6 * layers * heads * width * length (the causal half of attention), nothing
                     for recomputation; peak: the data sheet's dense figure of the topology
  peak_gb            highest use that the device reports of this process so far (rising over cases)
  compiled_gb        arguments and temporaries as the compiler laid them out
  predicted          step_ms, mfu, memory_gb of pangu_jax.planning for one such device, and the
                     parts of its step; None where no topology describes the device
  step_over_predicted  measured time over predicted
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pangu_jax.kernels.timing import alone
from pangu_jax.models import Decoder, DecoderConfig, cross_entropy
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.sharding import unbox
from pangu_jax.parallel.topology import TOPOLOGIES, Topology
from pangu_jax.planning.cost import predict
from pangu_jax.planning.execution import Execution
from pangu_jax.planning.memory import memory_plan
from pangu_jax.planning.train_program import PANGU_ADAMW
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.state import create_state
from pangu_jax.training.step import gradients_of, make_dispatch

# Llama-like; widths are multiples of 128.
SIZES = {
    "tiny": dict(vocab_size=512, num_layers=2, hidden_dim=128, mlp_dim=352, num_heads=4,
                 num_kv_heads=2, head_dim=32),
    "0.4b": dict(vocab_size=32_000, num_layers=24, hidden_dim=1024, mlp_dim=4096, num_heads=8,
                 num_kv_heads=4, head_dim=128),
    "1.3b": dict(vocab_size=32_000, num_layers=26, hidden_dim=2048, mlp_dim=5632, num_heads=16,
                 num_kv_heads=4, head_dim=128),
}  # fmt: skip

_CASES = flags.DEFINE_list("cases", [], "size:rows:remat; default: tiny, or both on a GPU.")
_ATTENTION = flags.DEFINE_list("attention", ["auto"], "auto, xla, cudnn, pallas_gpu, pallas_tpu.")
_NORM = flags.DEFINE_string("norm", "auto", "Implementation of RMSNorm.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 0, "Tokens of a row; 0: 4,096, on a CPU 128.")
_DOCUMENTS = flags.DEFINE_integer(
    "documents", 1, "Documents packed in a row; 0: rows without ids, which is what cuDNN serves."
)
_DTYPE = flags.DEFINE_string("dtype", "", "Of products; default bfloat16, on a CPU float32.")
_LOSS_CHUNK = flags.DEFINE_integer("loss_chunk", 512, "Positions of a row with logits at a time.")
_STEPS = flags.DEFINE_integer("steps", 6, "Timed steps.", lower_bound=1)
_WARM_UP = flags.DEFINE_integer("warm_up", 2, "Steps before them.", lower_bound=1)
_LOCK = flags.DEFINE_string(
    "lock", "", "File to lock while the clock runs: several of these can compile side by side."
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "For the prediction; default: by device name.")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    rows: int
    config: DecoderConfig


def cases(cpu: bool) -> list[Case]:
    wanted = _CASES.value or (["tiny:4:none"] if cpu else ["0.4b:4:none", "1.3b:4:products"])
    found = []
    for text in wanted:
        size, rows, remat = text.split(":")
        for attention in _ATTENTION.value:
            config = DecoderConfig(
                **SIZES[size], init="traditional", embedding_std=0.02, remat=remat,
                dtype=_DTYPE.value or ("float32" if cpu else "bfloat16"),
                attention_implementation=attention, norm_implementation=_NORM.value,
                loss_chunk=_LOSS_CHUNK.value,
            )  # fmt: skip
            found.append(Case(f"{text}:{attention}", int(rows), config))
    return found


def loss_of(config: DecoderConfig):
    """The loss of pre-training (`pangu_jax.pretraining.objective`, which needs the data layer)."""
    model = Decoder(config)

    def loss(params, batch, rng):
        out = model.apply(
            {"params": params}, batch["tokens"], batch.get("segment_ids"), batch.get("positions"),
            method="run",
        )  # fmt: skip
        return cross_entropy(out.hidden, out.head, batch["labels"], chunk=config.loss_chunk)

    return loss


def make_batch(case: Case, seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Random tokens [1, rows, seq_len] in documents of equal length, as a dispatch takes them."""
    rng = np.random.default_rng(seed)
    shape = (1, case.rows, seq_len)
    tokens = rng.integers(0, case.config.vocab_size, shape, dtype=np.int32)
    batch = {"tokens": tokens, "labels": np.roll(tokens, -1, axis=-1)}
    if _DOCUMENTS.value:
        length = -(-seq_len // _DOCUMENTS.value)
        place = np.arange(seq_len, dtype=np.int32)
        ends = (place % length == length - 1) | (place == seq_len - 1)
        batch["labels"] = np.where(ends, np.int32(-1), batch["labels"])
        batch["segment_ids"] = np.broadcast_to(place // length + 1, shape).astype(np.int32)
        batch["positions"] = np.broadcast_to(place % length, shape).astype(np.int32)
    return batch


def compile_case(case: Case, seq_len: int):
    """(compiled creation of the state, compiled step, seconds)."""
    started = time.perf_counter()
    optimizer = build_optimizer(PANGU_ADAMW, 1)

    def create(key):
        tokens = jnp.zeros((1, 8), jnp.int32)
        init = lambda key: unbox(Decoder(case.config).init(key, tokens)["params"])  # noqa: E731
        return create_state(init, optimizer, key)

    key = jax.random.key(0)
    state = jax.eval_shape(create, key)
    dispatch = make_dispatch(gradients_of(loss_of(case.config)), optimizer)
    step = jax.jit(dispatch, donate_argnums=(0,))
    arguments = state, jax.ShapeDtypeStruct((), jnp.int32), make_batch(case, seq_len, 0)
    compiled = step.lower(*arguments).compile()
    return jax.jit(create).lower(key).compile(), compiled, time.perf_counter() - started


def run(case: Case, seq_len: int, create, step) -> tuple[list[float], list[float]]:
    """(milliseconds of the timed steps, losses of all)."""
    state, bad = create(jax.random.key(0)), jnp.int32(-1)
    batches = [jax.device_put(make_batch(case, seq_len, seed)) for seed in range(2)]
    times, losses = [], []
    for number in range(_WARM_UP.value + _STEPS.value):
        batch = jax.block_until_ready(batches[number % 2])
        started = time.perf_counter()
        state, bad, out = jax.block_until_ready(step(state, bad, batch))
        times.append(1e3 * (time.perf_counter() - started))
        losses.append(float(out.total[0] / out.weight[0]))
    return times[_WARM_UP.value :], losses


def device_topology(kind: str) -> Topology | None:
    """The smallest topology of devices of that name, as planners call them."""
    if _TOPOLOGY.value:
        return TOPOLOGIES[_TOPOLOGY.value]
    # The figures for a CPU are invented, for examples.
    found = [t for t in TOPOLOGIES.values() if kind.startswith(t.device_kind) and kind != "cpu"]
    return min(found, key=lambda t: t.devices, default=None)


def prediction(case: Case, seq_len: int, where: Topology | None):
    """What the planner says of this step on one device: (time, memory), None without figures.

    Attention by 'xla' works block by block, so that its scores pass through memory but do not stay:
    its time is that of unfused attention, its memory that of fused.
    """
    if where is None:
        return None
    config, attention = case.config, case.config.attention_implementation
    if config.remat == "products" and attention not in ("auto", "xla"):
        # Only 'xla' names what that policy keeps of attention.
        config = dataclasses.replace(config, remat="dots")
    fused = attention not in ("auto", "xla")
    layout = Layout(zero=0, microbatch_rows=case.rows)
    return (
        predict(config, layout, where, seq_len, Execution(fused_attention=fused)),
        memory_plan(config, layout, seq_len, Execution()),
    )


def record(case: Case, seq_len: int, where, device, compiled, seconds) -> dict:
    create, step = compiled
    times, losses = run(case, seq_len, create, step)
    milliseconds = statistics.median(times)
    rate = case.rows * seq_len / milliseconds * 1e3
    flops = rate * case.config.flops_per_token(seq_len)
    memory, stats = step.memory_analysis(), device.memory_stats() or {}
    peak = where.peak(case.config.dtype) if where else None
    planned = prediction(case, seq_len, where)
    values = {
        "case": case.name, "device": device.device_kind, "jax": jax.__version__,
        "parameters": case.config.num_parameters(), "dtype": case.config.dtype,
        "norm": case.config.norm_implementation, "rows": case.rows, "seq_len": seq_len,
        "documents": _DOCUMENTS.value, "compile_s": round(seconds, 1),
        "step_ms": round(milliseconds, 3), "step_ms_all": [round(t, 2) for t in times],
        "tokens_per_s": round(rate), "model_tflops": round(flops / 1e12, 3),
        "mfu": peak and round(flops / peak, 4),
        "peak_gb": round(stats.get("peak_bytes_in_use", 0) / 1e9, 2) or None,
        "compiled_gb": memory and round(
            (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9, 2
        ),
        "first_loss": round(losses[0], 3), "last_loss": round(losses[-1], 3),
    }  # fmt: skip
    if planned:
        planned, planned_memory = planned
        values["predicted"] = {
            "topology": where.name, "step_ms": round(1e3 * planned.seconds, 3),
            "mfu": round(planned.mfu, 4), "memory_gb": round(planned_memory.total / 1e9, 2),
            "parts_ms": {k: round(1e3 * v, 2) for k, v in planned.parts.items() if v > 1e-6},
        }  # fmt: skip
        values["step_over_predicted"] = round(milliseconds / (1e3 * planned.seconds), 3)
    return values


def main(argv):
    del argv
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    seq_len = _SEQ_LEN.value or (128 if cpu else 4096)
    where = device_topology(device.device_kind)
    wanted = cases(cpu)
    failed = 0
    with ThreadPoolExecutor(len(wanted)) as pool:
        futures = [pool.submit(compile_case, case, seq_len) for case in wanted]
    with alone(_LOCK.value):
        for case, future in zip(wanted, futures, strict=True):
            try:
                create, step, seconds = future.result()
                values = record(case, seq_len, where, device, (create, step), seconds)
            except Exception as error:  # a case that does not fit leaves the others their turn
                failed += 1
                values = {"case": case.name, "error": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps(values), flush=True)
    return 1 if failed == len(wanted) else 0


if __name__ == "__main__":
    app.run(main)
