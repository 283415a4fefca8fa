"""A training step of DKT, SAKT and AKT here and in pykt-toolkit (PyTorch), on a CPU.

    python -m venv /tmp/pykt
    /tmp/pykt/bin/pip install torch==2.13.0 numpy pandas scikit-learn
    /tmp/pykt/bin/pip install --no-deps pykt-toolkit==0.0.38
    python benchmarks/tracing_train_step.py --peer_python=/tmp/pykt/bin/python

The same networks at the same sizes on both sides, from the same initial weights (ours, handed over
under pyKT's names), on the same random answers: one concept per question, no padding, so that both
have the same work. The same step: binary cross entropy of all answers but the first, Adam, float32,
dropout, the same cores. Ours is the step of the training loop (`pangu_jax.training.step`), theirs
pyKT's `model_forward` and the loop around it. Before the first step both sides compute loss and
gradient norm without dropout, which must agree.

Both processes live at the same time and take turns, so that what else runs on the machine falls on
both; `ratio` is the median over rounds of the peer's median step over ours in the same round.
--evaluation times passes without gradients in the same way. torch.compile (--compile) needs a C++
compiler. Prints JSON lines. See docs/tracing_speed.md for what differs in work.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.peers.environment import huge_pages, intel_mkl
from benchmarks.peers.timed_turns import answer_turns, tell, warm_up
from benchmarks.pretrain_step import ROOT, Side

# Like ASSISTments 2009 and EdNet (5,000 students); what a step costs depends little on these.
SHAPES = {
    "assist09": {"questions": 16_000, "concepts": 123, "batch": 64, "length": 200},
    "ednet": {"questions": 12_000, "concepts": 189, "batch": 64, "length": 200},
    "debug": {"questions": 50, "concepts": 7, "batch": 4, "length": 24},
}
# pyKT's defaults, by the names of our configs.
MODELS = {
    "dkt": {"embedding_dim": 200, "hidden_dim": 200, "dropout_rate": 0.2},
    "sakt": {"embedding_dim": 256, "num_heads": 8, "num_blocks": 1, "dropout_rate": 0.2},
    "akt": {
        "embedding_dim": 256, "ffn_dim": 512, "num_heads": 8, "num_blocks": 4, "dropout_rate": 0.1,
    },
}  # fmt: skip
OPTIMIZER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
BATCHES = 4
AGREEMENT = 1e-4  # relative, of loss and gradient norm

_PEER = flags.DEFINE_string("peer_python", None, "Python of the peer's environment; none: ours.")
_MODELS = flags.DEFINE_list("models", list(MODELS), "Models to run.")
_SHAPE = flags.DEFINE_enum("shape", "assist09", list(SHAPES), "Sizes of batch and data.")
_CHANGES = flags.DEFINE_string("changes", "{}", "JSON: other fields of the models' configs.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of every side.", lower_bound=1)
_TURN = flags.DEFINE_float("turn_seconds", 3.0, "About how long a turn takes; one step at least.")
_WARM_UP = flags.DEFINE_integer("warm_up", 2, "Steps before the first turn.", lower_bound=2)
_THREADS = flags.DEFINE_integer("threads", 0, "Cores of every side; 0: all.")
_COMPILE = flags.DEFINE_bool("compile", False, "Also the peer by torch.compile.")
_EVALUATION = flags.DEFINE_bool("evaluation", False, "Also time passes without gradients.")
_MKL = flags.DEFINE_enum("mkl", "as_is", ["as_is", "intel"], "See benchmarks/peers/environment.py.")
_SIDE = flags.DEFINE_string("side", None, "Internal: be our side of this model.")
_DATA = flags.DEFINE_string("data", None, "Internal: npz file of the answers.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Internal: where to write the initial weights.")


def threads() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _THREADS.value or available


def sizes(model: str) -> dict:
    """Fields of our config; pyKT's are made from them."""
    return MODELS[model] | json.loads(_CHANGES.value).get(model, {})


def write_answers(path: pathlib.Path) -> None:
    """Random answers, int32 [BATCHES, batch, length] each; ids run from 1."""
    import numpy as np

    shape, rng = SHAPES[_SHAPE.value], np.random.default_rng(0)
    dims = (BATCHES, shape["batch"], shape["length"])
    concept_of = rng.integers(1, shape["concepts"] + 1, shape["questions"] + 1, dtype=np.int32)
    questions = rng.integers(1, shape["questions"] + 1, dims, dtype=np.int32)
    responses = rng.integers(0, 2, dims, dtype=np.int32)
    np.savez(path, questions=questions, concepts=concept_of[questions], responses=responses)


def our_module(model: str, shape: dict):
    """The module of one model for a shape of SHAPES' fields."""
    from recsys_jax.tracing.models import build, model_spec

    values = sizes(model)
    if model == "sakt":
        values["max_len"] = shape["length"]
    if model == "akt":
        # pyKT adds the sum of the squares to a mean over steps; ours is a mean.
        values["difficulty_l2"] = 1e-5 * shape["batch"] * shape["length"]
    config = model_spec(model).config_class(**values)
    return build(
        model, config, num_questions=shape["questions"], num_concepts=shape["concepts"]
    )  # fmt: skip


def peer_arguments(model: str, shape: dict) -> dict:
    """Arguments of pyKT's class."""
    ours = sizes(model)
    dim, dropout = ours["embedding_dim"], ours["dropout_rate"]
    if model == "dkt":
        return {"num_c": shape["concepts"], "emb_size": dim, "dropout": dropout}
    if model == "sakt":
        return {
            "num_c": shape["concepts"], "seq_len": shape["length"], "emb_size": dim,
            "num_attn_heads": ours["num_heads"], "dropout": dropout, "num_en": ours["num_blocks"],
        }  # fmt: skip
    return {
        "n_question": shape["concepts"], "n_pid": shape["questions"], "d_model": dim,
        "n_blocks": ours["num_blocks"], "dropout": dropout, "d_ff": ours["ffn_dim"],
        "num_attn_heads": ours["num_heads"],
    }  # fmt: skip


def peer_weights(model: str, params: dict, num_concepts: int) -> dict:
    """Our parameters under pyKT's names; what pyKT has beside them is left to its own start."""
    import numpy as np

    def linear(name, tree):
        return {f"{name}.weight": tree["kernel"].T, f"{name}.bias": tree["bias"]}

    def norm(name, tree):
        return {f"{name}.weight": tree["scale"], f"{name}.bias": tree["bias"]}

    def answers(table):  # without the rows of padding
        return np.concatenate([table[1 : num_concepts + 1], table[num_concepts + 2 :]])

    if model == "dkt":
        lstm, readout = params["lstm"], params["readout"]
        return {
            "interaction_emb.weight": answers(params["interactions"]["concept"]),
            "lstm_layer.weight_ih_l0": lstm["kernel"].T,
            "lstm_layer.weight_hh_l0": lstm["recurrent"].T,
            "lstm_layer.bias_ih_l0": lstm["bias"],
            "lstm_layer.bias_hh_l0": np.zeros_like(lstm["bias"]),
            "out_layer.weight": readout["kernel"][1:],
            "out_layer.bias": readout["bias"][1:],
        }
    if model == "sakt":
        weights = {
            "interaction_emb.weight": answers(params["answer"]["concept"]),
            "exercise_emb.weight": params["concept"]["table"][1:],
            "position_emb.weight": params["positions"],
        } | linear("pred", params["head"]["logit"]["dense"])
        for i in range(sum(name.startswith("block_") for name in params)):
            block, to = params[f"block_{i}"], f"blocks.{i}"
            parts = [block["attention"][name]["dense"] for name in ("query", "key", "value")]
            weights |= {
                f"{to}.attn.in_proj_weight": np.concatenate([p["kernel"].T for p in parts]),
                f"{to}.attn.in_proj_bias": np.concatenate([p["bias"] for p in parts]),
            }
            weights |= linear(f"{to}.attn.out_proj", block["attention"]["out"]["dense"])
            weights |= norm(f"{to}.attn_layer_norm", block["attention_norm"])
            weights |= linear(f"{to}.FFN.FFN.0", block["ffn"]["in"]["dense"])
            weights |= linear(f"{to}.FFN.FFN.3", block["ffn"]["out"]["dense"])
            weights |= norm(f"{to}.FFN_layer_norm", block["ffn_norm"])
        return weights
    response = params["response_variation"]["table"]
    # pyKT's table has 2 C + 1 rows, of which responses take the first two.
    padded = np.zeros((2 * num_concepts + 1, response.shape[1]), response.dtype)
    padded[:2] = response
    weights = {
        "difficult_param.weight": params["difficulty"]["table"],
        "q_embed.weight": params["concept"]["table"][1:],
        # Ids from 0 there: the last row stays unused.
        "q_embed_diff.weight": np.roll(params["concept_variation"]["table"], -1, 0),
        "qa_embed.weight": params["response"]["table"],
        "qa_embed_diff.weight": padded,
    }
    weights["difficult_param.weight"] = np.roll(weights["difficult_param.weight"], -1, 0)
    blocks = sum(name.startswith("answers_") for name in params)
    places = {f"answers_{i}": f"model.blocks_1.{i}" for i in range(blocks)}
    places |= {f"questions_{i}": f"model.blocks_2.{2 * i}" for i in range(blocks)}
    places |= {f"retriever_{i}": f"model.blocks_2.{2 * i + 1}" for i in range(blocks)}
    for name, to in places.items():
        block, attention = params[name], params[name]["attention"]
        weights[f"{to}.masked_attn_head.gammas"] = attention["gamma"][:, None, None]
        for ours, theirs in (("value", "v_linear"), ("key", "k_linear"), ("out", "out_proj")):
            weights |= linear(f"{to}.masked_attn_head.{theirs}", attention[ours]["dense"])
        weights |= norm(f"{to}.layer_norm1", block["attention_norm"])
        if "ffn" in block:
            weights |= linear(f"{to}.linear1", block["ffn"]["in"]["dense"])
            weights |= linear(f"{to}.linear2", block["ffn"]["out"]["dense"])
            weights |= norm(f"{to}.layer_norm2", block["ffn_norm"])
    for ours, theirs in (("hidden_0", "out.0"), ("hidden_1", "out.3"), ("logit", "out.6")):
        weights |= linear(theirs, params["head"][ours]["dense"])
    return weights


def parameter_differences(model: str) -> dict[str, int]:
    """Why the peer has other numbers of parameters than we: its count less ours, by cause."""
    concepts, ours = SHAPES[_SHAPE.value]["concepts"], sizes(model)
    dim = ours["embedding_dim"]
    if model == "dkt":
        hidden = ours["hidden_dim"]
        return {
            "our padding rows": -(2 * dim + hidden + 1),
            "two LSTM biases": 4 * hidden,
        }
    if model == "sakt":
        return {"our padding rows": -3 * dim}
    width = ours["ffn_dim"]
    unused = 2 * dim * width + width + dim + 2 * dim
    return {
        "our padding row": -dim,
        "unused rows of response variations": (2 * concepts - 1) * dim,
        "unused feed-forward parts of question blocks": ours["num_blocks"] * unused,
    }


def serve(model: str) -> None:
    """Our side: the warm-up, then as many steps as each line of the input says."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: threads()])
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from pangu_jax.parallel.sharding import unbox
    from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
    from pangu_jax.training.state import LossSums, create_state
    from pangu_jax.training.step import gradients_of, make_dispatch
    from recsys_jax.tracing.batch import Batch
    from recsys_jax.tracing.models.losses import masked_bce

    module = our_module(model, SHAPES[_SHAPE.value])
    with np.load(_DATA.value) as stored:
        answers = [stored[name] for name in ("questions", "concepts", "responses")]
    batches = [
        Batch(q, c[..., None], r, np.ones(q.shape, bool)) for q, c, r in zip(*answers, strict=True)
    ]

    def loss_fn(params, batch, rng, train=True):
        logits, sown = module.apply(
            {"params": params}, batch, train=train, rngs={"dropout": rng}, mutable=["losses"]
        )
        # pyKT does not predict a student's first answer.
        asked = batch.mask.at[:, 0].set(False)
        weight = asked.sum().astype(jnp.float32)
        total = masked_bce(logits, batch.responses, asked) + sum(jax.tree.leaves(sown))
        return LossSums(total * weight, weight)

    b1, b2 = OPTIMIZER["betas"]
    optimizer = build_optimizer(
        OptimizerConfig(
            name="adam", learning_rate=OPTIMIZER["lr"], b1=b1, b2=b2, eps=OPTIMIZER["eps"]
        ),
        1,
    )  # fmt: skip
    params = unbox(jax.jit(module.init)(jax.random.key(0), batches[0])["params"])
    if model == "akt":
        # They start at zero, where the comparison of losses would not see them.
        table = params["difficulty"]["table"]
        params["difficulty"]["table"] = 0.1 * jax.random.normal(jax.random.key(1), table.shape)
    host = jax.tree.map(np.asarray, params)
    np.savez(_WEIGHTS.value, **peer_weights(model, host, SHAPES[_SHAPE.value]["concepts"]))

    evaluation = jax.jit(lambda p, b: loss_fn(p, b, jax.random.key(0), train=False))

    def checked(p):
        sums = evaluation(p, batches[0])
        return sums.total / sums.weight

    check, gradient = jax.value_and_grad(checked)(params)
    state = create_state(lambda _: params, optimizer, jax.random.key(0))
    bad, done = jnp.int32(-1), 0
    arguments = state, bad, jax.tree.map(lambda x: x[None], batches[0])
    dispatch = jax.jit(make_dispatch(gradients_of(loss_fn), optimizer), donate_argnums=0)
    started = time.perf_counter()
    train = dispatch.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started

    def step() -> float:
        nonlocal state, bad, done
        stacked = jax.tree.map(lambda x: x[None], batches[done % len(batches)])
        done += 1
        state, bad, out = train(state, bad, stacked)
        return float(out.total[0] / out.weight[0])

    losses, first = warm_up(step, _WARM_UP.value)
    tell(
        {
            "versions": f"jax {jax.__version__}",
            "parameters": sum(x.size for x in jax.tree.leaves(host)),
            "compile_seconds": compile_seconds,
            "check_loss": float(check),
            "check_gradient_norm": float(optax.global_norm(gradient)),
            "first_step_seconds": first,
            "losses": losses,
        }
    )

    def evaluate() -> None:
        jax.block_until_ready(evaluation(state.params, batches[0]))

    answer_turns(step, evaluate)


def take_turns(sides: list[Side], sign: int) -> None:
    """Rounds in which every side does steps for about --turn_seconds; sign -1: evaluation."""
    counts = {}
    for side in sides:
        side.turn(sign)  # one step of a warm process says how long a step is
        counts[side.name] = max(1, min(50, round(_TURN.value / side.turns.pop()["step"])))
    for _ in range(_ROUNDS.value):
        for side in sides:
            time.sleep(0.3)  # the threads of the one before go to sleep
            side.turn(sign * counts[side.name])


def timings(side: Side, base: Side) -> dict:
    shape = SHAPES[_SHAPE.value]
    seconds = [s for turn in side.turns for s in turn["seconds"]]
    step = statistics.median(seconds)
    pairs = list(zip(side.turns, base.turns, strict=True))
    values = {
        "step_ms": round(step * 1e3, 1),
        "steps_per_second": round(1 / step, 3),
        "answers_per_second": round(shape["batch"] * shape["length"] / step),
        "ratio": round(statistics.median(a["step"] / b["step"] for a, b in pairs), 2),
        "ratios": [round(a["step"] / b["step"], 2) for a, b in pairs],
        "steps": len(seconds),
        "peak_rss_mib": max(turn["peak_rss_mib"] for turn in side.turns),
    }
    elsewhere = [turn["elsewhere"] for turn in side.turns if turn["elsewhere"] is not None]
    if elsewhere:
        values["cores_busy_elsewhere"] = round(statistics.median(elsewhere), 2)
    return values


def compare(model: str, scratch: pathlib.Path) -> list[str]:
    """Runs one model on all sides; the names of sides whose numbers do not agree with ours."""
    shape = SHAPES[_SHAPE.value]
    data, weights = scratch / "answers.npz", scratch / f"{model}.npz"
    if not data.exists():
        write_answers(data)
    common = [f"--threads={threads()}", f"--warm_up={_WARM_UP.value}", f"--weights={weights}"]
    ours = [
        sys.executable, __file__, *sys.argv[1:], f"--side={model}", f"--data={data}", *common,
    ]  # fmt: skip
    mkl = intel_mkl(scratch) if _MKL.value == "intel" else {}
    sides = [Side("ours", ours, scratch, huge_pages())]
    if _PEER.value:
        peer = [
            _PEER.value, str(ROOT / "benchmarks" / "peers" / "pykt_train_step.py"),
            f"--model={model}", f"--sizes={json.dumps(peer_arguments(model, shape))}",
            f"--batches={data}", f"--optimizer={json.dumps(OPTIMIZER)}", *common,
        ]  # fmt: skip
        sides.append(Side("pykt", peer, scratch, mkl))
        if _COMPILE.value:
            sides.append(Side("pykt_compile", [*peer, "--compile"], scratch, mkl))
    take_turns(sides, 1)
    differ = []
    lines = {side.name: timings(side, sides[0]) for side in sides}
    if _EVALUATION.value:
        for side in sides:
            side.turns = []
        take_turns(sides, -1)
    for side in sides:
        report = side.report
        line = {"model": model, "side": side.name, **lines[side.name]}
        if _EVALUATION.value:
            kept = ("step_ms", "answers_per_second", "ratio")
            evaluated = timings(side, sides[0])
            line["evaluation"] = {name: evaluated[name] for name in kept}
        line |= {k: v for k, v in report.items() if k != "losses"}
        for name in ("compile_seconds", "first_step_seconds"):
            if name in line:
                line[name] = round(line[name], 2)
        if side is not sides[0]:
            causes = parameter_differences(model)
            line["more_parameters"] = causes
            if report["parameters"] - sides[0].report["parameters"] != sum(causes.values()):
                differ.append(f"{model} {side.name}: parameters")
            for name in ("check_loss", "check_gradient_norm"):
                base = sides[0].report[name]
                if abs(report[name] - base) > AGREEMENT * abs(base):
                    differ.append(f"{model} {side.name}: {name}")
        print(json.dumps(line), flush=True)
    for side in sides:
        side.close()
    return differ


def processor() -> str:
    """The processor's name."""
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return fields.get("Model name", platform.processor()).strip()


def main(argv):
    del argv
    unknown = sorted(set(_MODELS.value) - set(MODELS))
    if unknown:
        raise app.UsageError(f"--models={','.join(unknown)}: allowed are {', '.join(MODELS)}.")
    if _SIDE.value:
        serve(_SIDE.value)
        return
    print(
        json.dumps(
            {
                "shape": _SHAPE.value, **SHAPES[_SHAPE.value], "threads": threads(),
                "rounds": _ROUNDS.value, "python": platform.python_version(),
                "processor": processor(), "sizes": {m: sizes(m) for m in _MODELS.value},
            }
        ),
        flush=True,
    )  # fmt: skip
    differ = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in _MODELS.value:
            differ += compare(model, pathlib.Path(scratch))
    if differ:
        raise SystemExit(f"The two sides do not compute the same: {'; '.join(differ)}.")


if __name__ == "__main__":
    app.run(main)
