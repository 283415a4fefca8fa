"""The one entry point: trains, evaluates, predicts and benchmarks any configuration.

    python launch.py                                    # FuXi-alpha on MovieLens-100K
    python launch.py --list                             # every configuration
    python launch.py --config=configs/recsys/hstu.py:ml100k --config.train.steps=400
    python launch.py --mode=predict --workdir=runs/fuxi_alpha-ml100k

The configuration names its experiment; this file only parses flags, prepares JAX and hands over.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parent
DEFAULT_CONFIG = "configs/recsys/fuxi_alpha.py:ml100k"

# Experiment name in a configuration -> module with one function per mode.
EXPERIMENTS = {
    "recsys.sequential": "recsys_jax.sequential.experiment",
    "recsys.tracing": "recsys_jax.tracing.experiment",
    "pangu.pretrain": "pangu_jax.pretraining.experiment",
    "pangu.comparison": "pangu_jax.pretraining.comparison",
    "pangu.plan": "pangu_jax.planning.experiment",
    "pangu.inference": "pangu_jax.inference.experiment",
    "pangu.sft": "pangu_jax.training.sft.experiment",
    "agents.bfcl_sft": "agents_jax.tools.bfcl.fine_tuning",
    "agents.meco": "agents_jax.tools.meco.experiment",
    "agents.agent": "agents_jax.tools.agent.experiment",
    "agents.toolace_r": "agents_jax.tools.toolace_r.experiment",
}
_OF_A_RUN = ("eval", "predict", "generate", "export", "needle")  # modes that read a checkpoint
MODES = (
    "train", "eval", "predict", "generate", "export", "chat", "serve", "needle", "benchmark",
    "plan",
)  # fmt: skip

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; default: runs/<config>-<variant>."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train what is not yet trained, evaluate, report. eval: evaluate the best checkpoints. "
    "predict: write top-k lists. generate: answer prompts. export: write a checkpoint as a Hugging "
    "Face directory. chat: talk to a model. "
    "serve: answer the OpenAI protocol over HTTP. needle: compare RoPE bases "
    "on needles in long contexts. benchmark: time training and evaluation. plan: what training "
    "would take on machines that are not here.",
)
_LIST = flags.DEFINE_bool("list", False, "Print every configuration, what it does and its cost.")
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", 0, "Devices to split the CPU into; 0: the configuration decides.", lower_bound=0
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port of process 0 for a run over several processes, or 'auto' on a cluster; the "
    "environment variables PANGU_JAX_COORDINATOR, _NUM_PROCESSES and _PROCESS_ID work too.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")


def _argument(argv: list[str], name: str) -> str | None:
    """Value of a flag in `argv`, before absl has parsed it; the last one counts."""
    value = None
    for index, argument in enumerate(argv):
        if argument.lstrip("-") == name and argument.startswith("-") and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith((f"--{name}=", f"-{name}=")):
            value = argument.partition("=")[2]
    return value


def _from_checkout(argv: list[str]) -> list[str]:
    """`argv` with the files of --config looked for in the checkout too, from whatever folder."""

    def found(value: str) -> str:
        name = value.partition(":")[0]
        here = pathlib.Path(name).exists() or not (ROOT / name).exists()
        return value if here else str(ROOT / value)

    out = list(argv)
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config") and equals:
            out[index] = f"{name}={found(value)}"
        elif name in ("--config", "-config") and index + 1 < len(argv):
            out[index + 1] = found(argv[index + 1])
    return out


def _stored_config(argv: list[str]):
    """The configuration a run was made with, where `argv` asks for another mode of it by its
    --workdir alone; None otherwise."""
    import json

    from pangu_jax.config.flags import stored_config_dict

    workdir, mode = _argument(argv, "workdir"), _argument(argv, "mode")
    if workdir is None or mode in (None, "train") or _argument(argv, "config") is not None:
        return None
    stored = pathlib.Path(workdir) / "config.json"
    if not stored.exists():
        if mode not in _OF_A_RUN:
            return None
        raise ValueError(
            f"--mode={mode} needs a trained run, and --workdir={workdir} holds none (no "
            "config.json). Train first, or point --workdir at a directory that training wrote."
        )
    return stored_config_dict(json.loads(stored.read_text()))


def _define_config_flag(argv: list[str]) -> None:
    """Defines --config, after checking the file, the variant and every override in `argv`.

    The flag's default is the configuration asked for: ml_collections checks overrides against the
    default already when the flag is defined.
    """
    from ml_collections import config_flags

    from pangu_jax.config import catalogue
    from pangu_jax.config.flags import check_overrides

    stored = _stored_config(argv)
    if stored is not None:
        check_overrides(stored, argv)
        config_flags.DEFINE_config_dict("config", stored, "Of the work directory.")
        return
    chosen = _argument(argv, "config") or str(ROOT / DEFAULT_CONFIG)
    catalogue.check(ROOT, chosen)
    check_overrides(catalogue.get(ROOT, chosen), argv)
    config_flags.DEFINE_config_file(
        "config",
        chosen,
        "FILE.py:VARIANT; override single values as --config.train.steps=100. See --list.",
        lock_config=True,
    )


def _config_name() -> str:
    """'fuxi_alpha-ml100k' from '.../configs/recsys/fuxi_alpha.py:ml100k'."""
    from ml_collections import config_flags

    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = pathlib.Path(path).stem
    return f"{name}-{variant}" if variant else name


def main(argv: list[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # the checkpoint library reports every step of its own
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _LIST.value:
        from pangu_jax.config import catalogue

        catalogue.print_catalogue(ROOT)
        return 0
    workdir = pathlib.Path(_WORKDIR.value or ROOT / "runs" / _config_name())
    config = flags.FLAGS.config.to_dict()
    module = EXPERIMENTS.get(config.get("experiment"))
    if module is None:
        raise SystemExit(
            f"--config.experiment={config.get('experiment')!r} is unknown; "
            f"known: {', '.join(EXPERIMENTS)}"
        )

    from pangu_jax.parallel import distributed
    from pangu_jax.training import compilation_cache

    cpu_devices = _CPU_DEVICES.value or config.get("cpu_devices") or 1
    if cpu_devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        import jax

        # XLA's CPU collectives block a thread of its pool each; with as many threads as devices
        # two devices that reach their collectives in different order wait for ever. NPROC sizes
        # that pool.
        os.environ.setdefault("NPROC", "64")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    distributed.initialize(
        distributed.DistributedConfig(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    )
    compilation_cache.enable_compilation_cache()
    experiment = importlib.import_module(module)
    return experiment.run(_MODE.value, config, workdir, command=sys.argv) or 0


def _main(argv: list[str]) -> int:
    """Turns users' mistakes into one message without a traceback."""
    try:
        return main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("PANGU_JAX_TRACEBACK"):
            raise
        print(f"\nError: {error}\n(set PANGU_JAX_TRACEBACK=1 for the traceback)", file=sys.stderr)
        from pangu_jax.training.errors import LostProcessError

        if isinstance(error, LostProcessError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)  # an ordinary exit waits for the process that is gone
        return 2


def run() -> None:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    arguments = _from_checkout(sys.argv[1:])
    try:
        _define_config_flag(arguments)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    app.run(_main, argv=[sys.argv[0], *arguments])


if __name__ == "__main__":
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from pangu_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    run()
