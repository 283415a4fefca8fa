"""Pangu Ultra, 135B, planned: what its training would take on a cluster that is not here.

    python launch.py --config=configs/pangu/ultra_135b.py --mode=plan
    python launch.py --config=configs/pangu/ultra_135b.py --mode=plan --config.plan.sweep
    python launch.py --config=configs/pangu/ultra_135b.py:h100_8192 --mode=plan \
        --config.plan.compile

Memory, collectives, timeline and MFU of the 4K, 8K, 32K and 128K phases (arXiv 2504.07866, sections
3 and 4) from a cost model; no device is used and nothing is trained. With the compiler of the
extras aot-cuda or aot-tpu, `plan.compile` adds what it makes of the first phase's step.
"""

from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.planning.config import PlanConfig, PlanOptions

VARIANTS = {
    "ascend_8192": Variant("the paper's cluster, 1,024 nodes of 8 NPUs", "7 s; sweep 51 s",
                           "predicted MFU at 4K, 8K, 32K, 128K: 31.7, 33.3, 31.0, 30.2 %"),
    "tpu_v5p_8192": Variant("8,192 TPU v5p in one slice", "5 s; compiled: 6 to 11 min",
                            "predicted 34.4, 34.5, 33.1, 31.6 %"),
    "h100_8192": Variant("1,024 nodes of 8 H100", "5 s; compiled: 1 min",
                         "predicted 30.0, 32.7, 29.8, 29.3 %"),
    "debug": Variant("a tiny model on 8 CPU devices", "3 s", "one phase, made-up device"),
}  # fmt: skip


def plan_config(variant: str) -> PlanConfig:
    """The plan of a variant, for other configurations to change."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "debug":
        return PlanConfig(
            model=preset("debug", num_layers=6), topology="cpu_8", seq_len=64, batch_rows=8,
            layout=Layout(data=2, pipe=2, tensor=2, microbatches=4),
            plan=PlanOptions(validate=False, ablation=False),
        )  # fmt: skip
    # Memory is plentiful with chunk inputs alone in flight, so nothing is recomputed beyond the
    # second run of a chunk.
    # Rings of neighbours would use one of the seven links of the Ascend node's full mesh.
    rings = variant != "ascend_8192"
    return PlanConfig(
        model=preset("ultra_135b", remat="none"),
        topology=variant,
        layout=Layout(pipe=8, tensor=8, virtual_stages=6, overlap=rings),
        plan=PlanOptions(ablation=variant == "ascend_8192"),
    )


def get_config(variant: str = "ascend_8192"):
    return as_config_dict(plan_config(variant))
