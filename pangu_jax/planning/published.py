"""Published training runs: model, machine, layout and speed, each with its source.

They are what the cost model is compared with. Speeds are turned into this project's MFU (causal
half of attention, `DecoderConfig.flops_per_token`) wherever the source gives tokens or seconds;
where it gives only an MFU or FLOP/s, that is converted by the source's own formula if it states
one, and taken as it stands otherwise (which `note` says). `guessed` lists what the source leaves
open.
"""

from __future__ import annotations

import dataclasses

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import Topology, topology
from pangu_jax.planning.execution import MEGATRON_STACK, RECOMPUTED, Execution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published run. mfu: by this project's formula, see the head of this file."""

    name: str
    source: str
    model: DecoderConfig
    topology: Topology
    layout: Layout
    seq_len: int
    execution: Execution
    mfu: float
    reported: str
    note: str = ""
    guessed: tuple[str, ...] = ()


def _decoder(vocab, layers, width, mlp, heads, kv_heads, **changes) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab, num_layers=layers, hidden_dim=width, mlp_dim=mlp, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=width // heads, dtype="bfloat16", init="traditional",
        **changes,
    )  # fmt: skip


def _gpt(layers, width, heads) -> DecoderConfig:
    # An MLP of 4 D with two matrices has the weights, and its GELU the traffic, of a SwiGLU MLP of
    # 8/3 D.
    return _decoder(51_200, layers, width, round(8 * width / 3), heads, heads)


_ALL = RECOMPUTED["nothing"]
_LLAMA2_7B = _decoder(32_000, 32, 4096, 11_008, 32, 32)
_LLAMA2_70B = _decoder(32_000, 80, 8192, 28_672, 64, 8)
_LLAMA3_8B = preset("llama3_8b")
_LLAMA3_70B = _decoder(128_256, 80, 8192, 28_672, 64, 8)
_LLAMA3_405B = _decoder(128_256, 126, 16_384, 53_248, 128, 8)


def _mfu_of_rate(model: DecoderConfig, where: Topology, seq_len: int, rate: float) -> float:
    """MFU of `rate` tokens per second and device."""
    return rate * model.flops_per_token(seq_len) / where.peak("bfloat16")


def _a100(devices: int) -> Topology:
    return Topology(
        name=f"a100_{devices}", nodes=max(devices // 8, 1), devices_per_node=8,
        peak_flops={"bfloat16": 312e12}, memory_bytes=80e9, memory_bandwidth=2.039e12,
        intra_bandwidth=300e9, intra_latency=2e-6, inter_bandwidth=25e9, inter_latency=10e-6,
        device_kind="NVIDIA A100", intra_links="NVLink 3 through NVSwitch, 300 GB/s",
        inter_links="200 Gb/s InfiniBand HDR per device",
        assumptions=("latencies (order of magnitude)",),
    )  # fmt: skip


# Trainers on PyTorch and XLA that shard everything over data: float32 parameters, cast before they
# are gathered.
_FSDP = Execution(
    grad_dtype="bfloat16",
    overlap_data=True,
    lock_step=False,
    cast_first=True,
    scatter_first=True,
    exchange="direct",
)
_PANGU_LAYOUT = Layout(data=128, pipe=8, tensor=8, virtual_stages=6, microbatches=16)
_PANGU_GUESSED = (
    "micro-batch of one row and 16 micro-batches (from the bubbles that the paper gives)",
    "peak of the device and formula of MFU",
    "no recomputation but of unfused attention; 16-bit parameters with float32 copies; ZeRO-1 "
    "beside layers (Megatron's defaults)",
)


def _pangu(name, mfu, reported, layout, execution) -> Published:
    return Published(
        name=name, source="Pangu Ultra, arXiv 2504.07866, sections 4.2 and 4.3",
        model=preset("ultra_135b"), topology=topology("ascend_8192"), layout=layout, seq_len=4096,
        execution=execution, mfu=mfu, reported=reported, guessed=_PANGU_GUESSED,
        note="MFU as reported",
    )  # fmt: skip


def _maxtext(name, source, model, where, seq_len, rows, rate, again, guessed=()) -> Published:
    return Published(
        name=name, source=source, model=model, topology=where,
        layout=Layout(data=where.devices, microbatch_rows=rows, zero=3), seq_len=seq_len,
        execution=dataclasses.replace(_FSDP, recompute=again, offload=True),
        mfu=_mfu_of_rate(model, where, seq_len, rate),
        reported=f"{rate:,.0f} tokens/s per chip", guessed=guessed,
    )  # fmt: skip


def _titan(name, model, devices, rows, rate, again, guessed=(), **layout) -> Published:
    where = topology(f"h100_hbm2e_{devices}")
    chosen = Layout(microbatch_rows=rows, zero=3, **layout)
    return Published(
        name=name, source="torchtitan, benchmarks/ (December 2024 and June 2025)", model=model,
        topology=where, layout=chosen, seq_len=8192,
        execution=dataclasses.replace(_FSDP, grad_dtype="float32", recompute=again),
        mfu=_mfu_of_rate(model, where, 8192, rate), reported=f"{rate:,.0f} tokens/s per GPU",
        note="of the data sheet's peak, which the source says this machine (500 W) does not have",
        guessed=guessed,
    )  # fmt: skip


def _megatron(name, model, seconds, rows, **layout) -> Published:
    chosen = Layout(zero=0, **layout)
    where = _a100(chosen.devices)
    rate = rows * 2048 / seconds / chosen.devices
    return Published(
        name=name, source="Korthikanti et al., arXiv 2205.05198, tables 3 and 5", model=model,
        topology=where, layout=chosen, seq_len=2048,
        execution=dataclasses.replace(
            MEGATRON_STACK, even_layers=True, fused_attention=False, recompute=("attention",)
        ),
        mfu=_mfu_of_rate(model, where, 2048, rate), reported=f"{seconds} s for {rows} rows",
        guessed=("MLP with GELU as one with SwiGLU of as many weights",),
    )  # fmt: skip


def _llama3(devices, data, microbatches, mfu) -> Published:
    base = topology("h100_8192")
    where = dataclasses.replace(base, name=f"h100_{devices}", nodes=devices // 8)
    return Published(
        name=f"Llama 3 405B, {devices:,} H100", source="Llama 3, arXiv 2407.21783, table 4",
        model=_LLAMA3_405B, topology=where,
        layout=Layout(
            data=data, pipe=16, tensor=8, virtual_stages=8, microbatches=microbatches, zero=1
        ),
        seq_len=8192, execution=MEGATRON_STACK, mfu=mfu, reported=f"MFU {mfu:.0%}",
        note="MFU as reported; its formula is not stated",
        guessed=(
            "8 virtual stages of one layer (126 layers and two ends on 128 slots)",
            "gradients and parameters over data beside layers",
        ),
    )  # fmt: skip


def published_runs() -> tuple[Published, ...]:
    """All of them."""
    v6e, tier = topology("tpu_v6e_256"), "MaxText, docs/reference/models/tiering.md"
    recipes = "tpu-recipes, training/"
    two_slices = dataclasses.replace(v6e, name="2 x tpu_v6e_256", nodes=2)
    base = dataclasses.replace(
        MEGATRON_STACK, fused_attention=False, fused_pointwise=False, fused_accumulation=False,
        recompute=("attention",),
    )  # fmt: skip
    rate_7b = 492e12 / (_LLAMA2_7B.flops_per_token(4096, causal=False))
    h100 = topology("h100_8")
    return (
        _pangu("Pangu Ultra, before its optimizations", 0.43, "43 %", _PANGU_LAYOUT, base),
        _pangu(
            "Pangu Ultra, with them", 0.52, "over 52 %",
            dataclasses.replace(_PANGU_LAYOUT, overlap=True), MEGATRON_STACK,
        ),
        _maxtext(
            "MaxText Llama 2 70B, 512 v5p", tier, _LLAMA2_70B, topology("tpu_v5p_512"), 4096, 4,
            692, ("gate_up", "attention", "pointwise"),
            guessed=("4 rows a chip and the policy save_dot_except_mlpwi, of the recipe for 128",),
        ),
        _maxtext(
            "MaxText Llama 3.1 405B, 512 v5p", recipes + "v5p/Llama3.1-405B-MaxText", _LLAMA3_405B,
            topology("tpu_v5p_512"), 8192, 2, 124.618, ("qkv", "o", "gate_up", "pointwise"),
        ),
        _maxtext(
            "MaxText Llama 3.1 70B, 256 v6e", recipes + "trillium/Llama3.1-70B-MaxText",
            _LLAMA3_70B, v6e, 8192, 5, 960.248, ("o", "gate_up", "attention", "pointwise"),
        ),
        _maxtext(
            "MaxText Llama 3.1 8B, 256 v6e", recipes + "trillium/Llama3.1-8B-MaxText", _LLAMA3_8B,
            v6e, 8192, 4, 7207.336, ("gate_up", "attention", "pointwise"),
        ),
        _maxtext(
            "MaxText Llama 3.1 405B, 2 x 256 v6e", recipes + "trillium/Llama3.1-405B-MaxText",
            _LLAMA3_405B, two_slices, 8192, 1, 149.482,
            _ALL,
        ),
        _maxtext(
            "MaxText Llama 2 70B, 256 v6e", recipes + "trillium/Llama2-70B-MaxText", _LLAMA2_70B,
            v6e, 4096, 4, 943.086, _ALL,
            guessed=("full recomputation, of the configuration for real data",),
        ),
        Published(
            name="MaxText Llama 2 7B, 8 H100", source="MaxText, configs/gpu/a3/llama_2_7b",
            model=_LLAMA2_7B, topology=h100, layout=Layout(data=8, microbatch_rows=4, zero=3),
            seq_len=4096, execution=dataclasses.replace(_FSDP, recompute=("pointwise",)),
            mfu=_mfu_of_rate(_LLAMA2_7B, h100, 4096, rate_7b), reported="492 TFLOP/s per GPU",
            note="converted from the rule that counts all of attention (assumed: the older one)",
        ),
        _titan(
            "torchtitan Llama 3.1 8B, 8 H100", _LLAMA3_8B, 8, 2, 6667, ("gate_up", "pointwise"),
            data=8, guessed=("selective checkpointing repeats about half of the products",),
        ),
        _titan(
            "torchtitan Llama 3.1 8B, 128 H100", _LLAMA3_8B, 128, 2, 6514,
            ("gate_up", "pointwise"), data=128,
            guessed=("selective checkpointing repeats about half of the products",),
        ),
        _titan(
            "torchtitan Llama 3.1 70B, 256 H100", _LLAMA3_70B, 256, 16, 597, _ALL, data=32,
            tensor=8,
        ),
        _titan(
            "torchtitan Llama 3.1 70B, 256 H100, async TP", _LLAMA3_70B, 256, 16, 652, _ALL,
            data=32, tensor=8, overlap=True,
        ),
        _megatron("Megatron GPT 22B, 8 A100", _gpt(48, 6144, 64), 1.10, 4, tensor=8,
                  microbatch_rows=4),
        _megatron("Megatron GPT 175B, 64 A100", _gpt(96, 12_288, 96), 13.75, 64, pipe=8, tensor=8,
                  virtual_stages=3, microbatches=64),
        _megatron("Megatron GPT 530B, 280 A100", _gpt(105, 20_480, 128), 37.83, 280, pipe=35,
                  tensor=8, virtual_stages=3, microbatches=280),
        _megatron("Megatron GPT 1T, 512 A100", _gpt(128, 25_600, 160), 71.49, 512, pipe=64,
                  tensor=8, microbatches=512),
        _llama3(8192, 64, 32, 0.43),
        _llama3(16_384, 128, 16, 0.41),
    )  # fmt: skip
