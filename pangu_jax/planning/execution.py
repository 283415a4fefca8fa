"""How a step is carried out beyond its layout, and how well devices and links are used.

`Execution` holds choices of the program; `Efficiencies` holds what fraction of a data sheet's
figure is reached. Neither depends on the system that is being planned for: the same numbers serve
every prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp

from pangu_jax.models.config import DecoderConfig

Stash = Literal["inputs", "activations"]
Exchange = Literal["ring", "direct"]

# Parts of a layer's forward pass. What a policy makes the backward pass do again:
PRODUCTS = ("qkv", "o", "gate_up", "down")
PARTS = (*PRODUCTS, "attention", "pointwise")
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "none": (),
    "products": ("pointwise",),
    "dots": ("attention", "pointwise"),
    "attention": (*PRODUCTS, "pointwise"),
    "nothing": PARTS,
}


class PlanError(ValueError):
    """A plan that cannot be made; the text names the value and what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Choices of the step program that layout and model leave open.

    param_dtype: of the stored parameters; where it is not the model's dtype, products cast them at
      every use (what the trainer here does), unless `compute_copy`.
    compute_copy: a copy of the parameters in the model's dtype, made once per step.
    master: the optimizer keeps its own float32 parameters.
    grad_dtype: in which gradients are summed over micro-batches and devices.
    recompute: parts of a layer (PARTS) that the backward pass runs again; None: what the model's
      remat policy says. For trainers of others, whose policies have no name here.
    stash: what a pipeline keeps of a unit between its forward and backward pass: its 'inputs'
      (the chunk is run again, then differentiated: the step program here), or the 'activations'
      that the remat policy saves (no second run of the chunk).
    lock_step: all pipeline ranks do one forward and one backward unit per tick, idle or not.
    even_layers: layers are divided evenly over stages, with embedding and head on top of the first
      and last; otherwise both ends take a slot of their own (`Layout.stage_layers`).
    replicate_ends: every pipeline rank stores embedding and head (one program for all ranks).
    fused_attention: blocks of scores never leave the chip, and those above the diagonal are not
      computed. Otherwise S x S scores, mask and weights go through memory.
    fused_pointwise: norms, rotary embedding and SwiGLU read and write their arrays once.
    fused_accumulation: weight gradients are added where the product makes them.
    exchange: how layout.overlap moves the pieces: round a 'ring' of neighbours (the step program
      here), which on a full mesh uses one link of a device at a time; or 'direct' from each to
      each over all its links (fused kernels such as MC2).
    cast_first: parameters are cast before they are gathered over data, not after.
    scatter_first: gradients are divided over data before they are summed over context and pipe
      (what is divided early anyway, zero 2 and 3, is).
    overlap_data: gathers and scatters of parameters and gradients run beside layers; otherwise
      before and after them (the step program here, but for zero 3).
    offload: saved activations wait in host memory (costs no time here: taken to be hidden).
    context_imbalance: attention work of the busiest context rank over the mean.
    """

    param_dtype: str = "float32"
    compute_copy: bool = False
    master: bool = False
    grad_dtype: str = "float32"
    recompute: tuple[str, ...] | None = None
    stash: Stash = "inputs"
    lock_step: bool = True
    even_layers: bool = False
    replicate_ends: bool = True
    fused_attention: bool = True
    fused_pointwise: bool = True
    fused_accumulation: bool = True
    exchange: Exchange = "ring"
    cast_first: bool = False
    scatter_first: bool = False
    overlap_data: bool = False
    offload: bool = False
    context_imbalance: float = 1.0

    def __post_init__(self):
        if self.stash not in get_args(Stash):
            raise PlanError(
                f"execution.stash={self.stash!r} must be one of {', '.join(get_args(Stash))}."
            )
        if self.exchange not in get_args(Exchange):
            raise PlanError(
                f"execution.exchange={self.exchange!r} must be one of "
                f"{', '.join(get_args(Exchange))}."
            )
        for part in self.recompute or ():
            if part not in PARTS:
                raise PlanError(
                    f"execution.recompute names {part!r}; allowed: {', '.join(PARTS)}, or None."
                )
        if self.context_imbalance < 1:
            raise PlanError(
                f"execution.context_imbalance={self.context_imbalance} must be at least 1 (the "
                "busiest rank over the mean)."
            )
        for field in ("param_dtype", "grad_dtype"):
            itemsize(getattr(self, field))

    def recomputed(self, model: DecoderConfig) -> tuple[str, ...]:
        """Parts of a layer that its backward pass runs again to have their results.

        A block without post-norms ends in a sum, whose gradient does not need the last product:
        the compiler drops it.
        """
        parts = RECOMPUTED[model.remat] if self.recompute is None else self.recompute
        return parts if model.has_post_norms else tuple(p for p in parts if p != "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiencies:
    """Fractions of data-sheet figures that a step reaches; one set for all systems.

    Each comes from a measurement of a single operation or is assumed; none is fitted to whole
    systems (`validation.leave_one_out` says what fitting would give).

    matmul: large bfloat16 products. 769-798 of 989 TFLOP/s for 8192^3 on an H200 (measured).
    attention_forward, attention_backward: fused causal attention by the FLOPs that it must do (2.5
      times the forward ones in the backward pass): 595 and 408-452 of 989 TFLOP/s on an H100 at
      4K-16K tokens and width 128 (published kernel timings). Assumed for other devices.
    memory: of the memory bandwidth, by one-pass kernels: 4.3 of 4.8 TB/s (copy on an H200), 3.02
      of 3.35 TB/s (LayerNorm on an H100).
    links: of the link bandwidth, by large collectives. Assumed; 0.8 is what large all-gathers over
      NVLink are commonly seen to reach.
    overlap_*: share of the communication that can run beside the computation that it has for
      company; it is never more than that computation lasts. tensor: only with layout.overlap; an
      all-gather followed by its product reaches 49 % of the peak on 8 H100, a fused ring of both
      64 % (JAX documentation, collective matmul), which with products alone at 78 % hides 0.63 of
      the gather. data: gathers and scatters of parameters and gradients beside layers. context:
      rings beside attention. These two are assumed.
    """

    matmul: float = 0.78
    attention_forward: float = 0.60
    attention_backward: float = 0.43
    memory: float = 0.90
    links: float = 0.80
    overlap_tensor: float = 0.63
    overlap_data: float = 0.90
    overlap_context: float = 0.90

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = "0 to 1" if field.name.startswith("overlap") else "above 0, at most 1"
            if not 0 <= value <= 1 or (value == 0 and not field.name.startswith("overlap")):
                raise PlanError(f"efficiencies.{field.name}={value} must be {lowest}.")


def itemsize(dtype: str) -> int:
    """Bytes of one number of that dtype.

    Raises:
      PlanError: no such dtype.
    """
    try:
        return jnp.dtype(dtype).itemsize
    except TypeError as error:
        raise PlanError(
            f"dtype {dtype!r} is unknown; use float32, bfloat16, float16 or float64."
        ) from error


# Megatron's family, Pangu Ultra's stack among it (reconstructed, the paper names none of this):
# 16-bit parameters, float32 copies in an optimizer divided over data, activations stay, every rank
# runs a program of its own, fused kernels for products with their communication.
MEGATRON_STACK = Execution(
    param_dtype="bfloat16", master=True, stash="activations", lock_step=False,
    replicate_ends=False, overlap_data=True, scatter_first=True, recompute=(), exchange="direct",
)  # fmt: skip
