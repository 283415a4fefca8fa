"""The claim of Pangu Ultra in small: norm schemes and initialisations of a deep, narrow decoder.

    python launch.py --config=configs/pangu/norm_comparison.py:depth94 --workdir=runs/norms
    python launch.py --config=configs/pangu/norm_comparison.py:depth94_gpu --workdir=runs/norms_gpu

Pre-LN, sandwich and depth-scaled sandwich norm, each with the traditional initialisation and
TinyInit, at 94 layers: same data, same tokens, up to three learning rates, two seeds. Runs that
differ in initial values, rate and seed only are trained side by side in one program: all with
post-norms, and all without. The report's own ablation used 1.6 B and 13 B parameters; what shows at
this size may differ.
"""

import dataclasses

from configs.pangu import cpu_5m
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.models.presets import preset
from pangu_jax.pretraining.comparison import ComparisonConfig
from pangu_jax.pretraining.config import HeldOutConfig, ScheduleConfig

VARIANTS = {
    "depth94": Variant("6 models x 3 rates x 2 seeds, 94 layers of width 48, 0.12 M tokens",
                       "33 min", "held-out loss 6.29 DSSN, 6.63 Pre-LN, 7.03 sandwich"),
    "depth94_long": Variant("the same and plain sandwich with gain c; rate 4e-3, 0.8 M tokens",
                            "1 h 50 min on one core",
                            "held-out loss 5.35 DSSN, 5.39 Pre-LN, 5.72 and 6.74 sandwich"),
    "depth94_gpu": Variant("width 96, plain sandwich with gain c, rate 4e-3, 3.3 M tokens",
                           "5 min on an H100",
                           "held-out loss 4.53 DSSN, 4.64 Pre-LN, 5.07 sandwich"),
    "debug": Variant("2 models of 4 layers, a few steps", "under 1 min", "runs through"),
}  # fmt: skip


# The report does not say whether its plain sandwich starts at 1 or at c, without the square root.
SCHEMES = {
    "pre_ln": {"norm_scheme": "pre_ln"},
    "sandwich": {"norm_scheme": "sandwich", "sandwich_gamma": "one"},
    "sandwich_c": {"norm_scheme": "sandwich", "sandwich_gamma": "c"},
    "dssn": {"norm_scheme": "dssn"},
}


def _runs(schemes, rates) -> dict:
    return {
        f"{scheme}_{init}_lr{round(rate * 1e4)}": {
            "model": {**SCHEMES[scheme], "init": init},
            "schedule": {"learning_rate": rate},
        }
        for scheme in schemes
        for init in ("traditional", "tiny")
        for rate in rates
    }


def get_config(variant: str = "depth94"):
    if variant == "debug":
        base = cpu_5m.pretrain_config("debug")
        model = dataclasses.replace(base.model, num_layers=4)
        schedule = dataclasses.replace(base.schedule, tokens=10_000)
        base = dataclasses.replace(base, model=model, schedule=schedule)
        runs = {k: v for k, v in _runs(("dssn",), (3e-3,)).items()}
        return as_config_dict(ComparisonConfig(base=base, runs=runs, seeds=(0,), together=True))
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    base = cpu_5m.pretrain_config("single")
    base = dataclasses.replace(
        base,
        # d_ff / d = 7/3 as in the report, so its constants c hold.
        model=preset(
            "cpu_5m", num_layers=94, hidden_dim=48, mlp_dim=112, num_heads=4, num_kv_heads=2,
            head_dim=12,
        ),
        schedule=ScheduleConfig(tokens=1.2e5, seq_len=128, batch_rows=8, warmup_fraction=0.05),
        held_out=HeldOutConfig(rows=8),
        train=dataclasses.replace(base.train, log_every=5, eval_every=40, checkpoint_every=40),
    )  # fmt: skip
    if variant == "depth94_gpu":
        base = dataclasses.replace(
            base,
            model=dataclasses.replace(
                base.model, hidden_dim=96, mlp_dim=224, head_dim=24, dtype="bfloat16",
                remat="nothing", attention_implementation="dense",
            ),
            schedule=dataclasses.replace(
                base.schedule, tokens=3.3e6, seq_len=256, batch_rows=32
            ),
            train=dataclasses.replace(
                base.train, log_every=5, eval_every=100, checkpoint_every=200, steps_per_dispatch=5
            ),
        )  # fmt: skip
        runs = _runs(("dssn", "pre_ln", "sandwich_c"), (4e-3,))
        return as_config_dict(ComparisonConfig(base=base, runs=runs, together=True))
    if variant == "depth94_long":
        base = dataclasses.replace(
            base,
            schedule=dataclasses.replace(base.schedule, tokens=8e5),
            train=dataclasses.replace(
                base.train, log_every=10, eval_every=100, checkpoint_every=50
            ),
        )  # fmt: skip
        runs = _runs(("dssn", "pre_ln", "sandwich", "sandwich_c"), (4e-3,))
        return as_config_dict(ComparisonConfig(base=base, runs=runs, together=True))
    runs = _runs(("pre_ln", "sandwich", "dssn"), (1e-3, 4e-3, 1.6e-2))
    return as_config_dict(ComparisonConfig(base=base, runs=runs, together=True))
