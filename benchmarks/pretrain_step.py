"""A pre-training step here and in PyTorch, eager and torch.compile: tokens per second on a CPU.

    python -m venv /tmp/hf
    /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    python benchmarks/pretrain_step.py --peer_python=/tmp/hf/bin/python

The same network on both sides: a Pre-LN Llama of the sizes of --preset, here `pangu_jax.models`,
there LlamaForCausalLM of transformers, which gets our initial weights through the safetensors
exporter. The same step: cross entropy over all positions of random tokens, global norm clipped to
1, AdamW on all parameters, float32, the same cores. The losses of the warm-up steps show that both
do the same. Rows: ours ('pre_ln'), the same with documents packed into rows ('packed': segment ids
and positions, as in our training runs), our own norm scheme ('dssn'), the two peers. All processes
live at the same time and take turns, so that what else runs on the machine falls on all of them;
`ratio` is the median over rounds of the peer's step time over that of 'pre_ln' in the same round.
Our rows run with huge pages, as launch.py runs (--huge_pages=all gives them to all, none to none).
On a processor that is not Intel's --mkl=intel shows the peers as they would be there.
torch.compile needs a C++ compiler. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.environment import HUGE_PAGES, huge_pages, intel_mkl  # noqa: E402
from benchmarks.peers.timed_turns import answer_turns, tell, warm_up  # noqa: E402

OURS, PEERS = ("pre_ln", "packed", "dssn"), ("torch_eager", "torch_compile")
OPTIMIZER = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
BATCHES = 4
AGREEMENT = 1e-4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", help="Python of the peers' environment; none: ours alone.")
    parser.add_argument("--preset", default="cpu_5m", help="Sizes, of pangu_jax.models.PRESETS.")
    parser.add_argument("--batch", type=int, default=8, help="Rows of a batch.")
    parser.add_argument("--length", type=int, default=256, help="Tokens of a row.")
    parser.add_argument("--documents", type=int, default=4, help="Of a row, in 'packed'.")
    parser.add_argument("--rounds", type=int, default=7, help="Turns of every side.")
    parser.add_argument("--steps", type=int, default=5, help="Steps of a turn.")
    parser.add_argument("--warm_up", type=int, default=4, help="Steps before; losses compared.")
    parser.add_argument("--threads", type=int, default=len(_cores()), help="Cores of every side.")
    parser.add_argument("--huge_pages", choices=HUGE_PAGES, default="ours", help="Who gets them.")
    parser.add_argument("--mkl", choices=("as_is", "intel"), default="as_is", help="Of the peers.")
    parser.add_argument("--rows", default=",".join(OURS + PEERS), help="What to run.")
    parser.add_argument("--changes", default="{}", help="JSON: fields of our DecoderConfig.")
    parser.add_argument("--tokens", help=argparse.SUPPRESS)  # internal: file of the tokens
    parser.add_argument("--side", choices=OURS, help=argparse.SUPPRESS)  # internal: be this row
    return parser.parse_args()


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def model_config(options, side: str):
    from pangu_jax.models import preset

    scheme = "dssn" if side == "dssn" else "pre_ln"
    wanted = {"norm_scheme": scheme, "dtype": "float32"}
    return preset(options.preset, **(wanted | json.loads(options.changes)))


def initial_parameters(config):
    """Function of a key: the parameters of our side."""
    import jax.numpy as jnp

    from pangu_jax.models import Decoder

    return lambda key: Decoder(config).init(key, jnp.zeros((1, 8), jnp.int32))["params"]


def serve(options) -> None:
    """Our side: the warm-up, then as many steps as each line of the input says."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _cores()[: options.threads])
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pangu_jax.parallel.sharding import unbox
    from pangu_jax.pretraining.objective import make_loss
    from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
    from pangu_jax.training.state import create_state
    from pangu_jax.training.step import gradients_of, make_dispatch

    config = model_config(options, options.side)
    wanted = dict(OPTIMIZER)
    b1, b2 = wanted.pop("betas")
    optimizer = build_optimizer(
        OptimizerConfig(
            learning_rate=wanted["lr"], b1=b1, b2=b2, eps=wanted["eps"],
            weight_decay=wanted["weight_decay"], clip_norm=wanted["clip"],
        ),
        1,
    )  # fmt: skip
    # The parameters of the parent's export: create_state would draw others from the same key.
    init = initial_parameters(config)
    params = unbox(jax.jit(init)(jax.random.key(0)))
    state = create_state(lambda _: params, optimizer, jax.random.key(0))
    bad = jnp.int32(-1)
    batches = [packed_batch(options, rows) for rows in np.load(options.tokens)]
    train = jax.jit(make_dispatch(gradients_of(make_loss(config)), optimizer), donate_argnums=0)
    done = 0

    def step() -> float:
        nonlocal state, bad, done
        stacked = jax.tree.map(lambda x: x[None], batches[done % len(batches)])
        done += 1
        state, bad, out = train(state, bad, stacked)
        return float(out.total[0] / out.weight[0])

    losses, first = warm_up(step, options.warm_up)
    tell(
        {
            "versions": f"jax {jax.__version__}",
            "parameters": config.num_parameters(),
            "compile_seconds": first,
            "losses": losses,
        }
    )
    answer_turns(step)


def packed_batch(options, rows):
    """A batch of the training loop from int32 (rows, length + 1)."""
    import numpy as np

    batch = {"tokens": rows[:, :-1], "labels": rows[:, 1:], "segment_ids": None, "positions": None}
    if options.side == "packed":
        length, count = options.length, options.documents
        segment = np.arange(length) * count // length
        first = np.searchsorted(segment, segment)
        for name, x in (("segment_ids", segment + 1), ("positions", np.arange(length) - first)):
            batch[name] = np.broadcast_to(x, batch["tokens"].shape).astype(np.int32)
    return batch


class Side:
    """One row's process; `report` is what it said after its warm-up."""

    def __init__(
        self, name: str, command: list[str], scratch: pathlib.Path,
        environment: dict[str, str] | None = None,
    ):  # fmt: skip
        self.name, self.turns = name, []
        self._log = scratch / f"{name}.log"
        environment = os.environ | {
            # Cold caches: what compilation costs is measured.
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "JAX_PLATFORMS": "cpu",
            **(environment or {}),
        }
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment,
            )  # fmt: skip
        self.report = self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        self._process.wait()
        raise SystemExit(f"{self.name} failed:\n{self._log.read_text(encoding='utf-8')[-3000:]}")

    def turn(self, steps: int) -> None:
        busy = _busy_seconds()
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        turn = self._answer()
        wall = sum(turn["seconds"])
        turn["elsewhere"] = None
        if busy is not None:
            turn["elsewhere"] = max(_busy_seconds() - busy - turn["cpu_seconds"], 0) / wall
        self.turns.append(turn | {"step": statistics.median(turn["seconds"])})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _busy_seconds() -> float | None:
    """Processor seconds that all processes of the machine have used so far."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def row(side: Side, options, config, base: Side) -> dict:
    step = statistics.median(s for turn in side.turns for s in turn["seconds"])
    tokens = options.batch * options.length
    line = {
        "row": side.name,
        "tokens_per_second": round(tokens / step),
        "step_ms": round(step * 1e3, 1),
        "ratio": round(
            statistics.median(
                a["step"] / b["step"] for a, b in zip(side.turns, base.turns, strict=True)
            ),
            3,
        ),
        "gflops": round(tokens / step * config.flops_per_token(options.length) / 1e9, 1),
        "peak_rss_mib": max(turn["peak_rss_mib"] for turn in side.turns),
        **{k: v for k, v in side.report.items() if k != "losses"},
        "first_loss": side.report["losses"][0],
    }
    line["compile_seconds"] = round(line["compile_seconds"], 1)
    elsewhere = [turn["elsewhere"] for turn in side.turns if turn["elsewhere"] is not None]
    if elsewhere:
        line["cores_busy_elsewhere"] = round(statistics.median(elsewhere), 2)
    if side.name in PEERS and base.name == "pre_ln":
        pairs = list(zip(side.report["losses"], base.report["losses"], strict=True))
        line["first_loss_difference"] = abs(pairs[0][0] - pairs[0][1])
        line["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
    return line


def main() -> None:
    options = parse()
    if options.side:
        serve(options)
        return
    import jax
    import numpy as np

    from pangu_jax.parallel.sharding import unbox
    from pangu_jax.weights import export_safetensors

    names = options.rows.split(",")
    unknown = set(names) - set(OURS + PEERS)
    if unknown:
        raise SystemExit(f"--rows={options.rows}: allowed are {', '.join(OURS + PEERS)}.")
    missing = {}
    if not options.peer_python:
        missing = dict.fromkeys(PEERS, "no --peer_python")
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        missing = {"torch_compile": "no C++ compiler (g++ or clang++)"}
    config = model_config(options, "pre_ln")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        shape = (BATCHES, options.batch, options.length + 1)
        tokens = np.random.default_rng(0).integers(config.vocab_size, size=shape, dtype=np.int32)
        np.save(scratch / "tokens.npy", tokens)
        common = [
            f"--tokens={scratch / 'tokens.npy'}", f"--threads={options.threads}",
            f"--warm_up={options.warm_up}",
        ]  # fmt: skip
        params = unbox(jax.jit(initial_parameters(config))(jax.random.key(0)))
        folder = export_safetensors(config, params, scratch / "model", max_length=options.length)
        del params
        commands = {
            name: [sys.executable, __file__, *sys.argv[1:], f"--side={name}", *common]
            for name in OURS
        }
        peer = [
            options.peer_python, str(ROOT / "benchmarks" / "peers" / "transformers_train.py"),
            f"--folder={folder}", f"--optimizer={json.dumps(OPTIMIZER)}", *common,
        ]  # fmt: skip
        commands |= {"torch_eager": peer, "torch_compile": [*peer, "--compile"]}
        pages = huge_pages()
        given = {"all": OURS + PEERS, "ours": OURS, "none": ()}[options.huge_pages]
        mkl = intel_mkl(scratch) if options.mkl == "intel" else {}
        sides = [
            Side(
                name, commands[name], scratch,
                (pages if name in given else {}) | (mkl if name in PEERS else {}),
            )
            for name in names
            if name not in missing
        ]  # fmt: skip
        for _ in range(options.rounds):
            for side in sides:
                time.sleep(0.3)  # the threads of the one before go to sleep
                side.turn(options.steps)
        for side in sides:
            side.close()
    print(
        json.dumps(
            {
                "preset": options.preset,
                "batch": [options.batch, options.length],
                "threads": options.threads,
                "rounds": options.rounds,
                "steps": options.steps,
                "huge_pages": options.huge_pages if pages else "none",
                "mkl": options.mkl,
                "python": platform.python_version(),
                "processor": _processor(),
            }
        )
    )
    differ = []
    for side in sides:
        line = row(side, options, config, sides[0])
        print(json.dumps(line), flush=True)
        if line.get("first_loss_difference", 0) > AGREEMENT:
            differ.append(side.name)
    for name, why in missing.items():
        if name in names:
            print(json.dumps({"row": name, "not_available": why}))
    if differ:
        raise SystemExit(f"First loss differs by more than {AGREEMENT}: {', '.join(differ)}.")


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    main()
