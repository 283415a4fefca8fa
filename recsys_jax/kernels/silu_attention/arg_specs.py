"""Named shapes of real workloads, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """Shape of one call: B rows, N positions, H heads, K width of q and k, D width of v."""

    name: str
    batch: int
    n: int
    heads: int
    width_qk: int
    width_v: int
    num_buckets: int = 128

    def abstract_args(self, dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
        """Arguments of `silu_attention` as shapes: differentiable ones first, then int32 ones."""
        rows = (self.batch, self.n)
        shape = jax.ShapeDtypeStruct
        wide = (*rows, self.heads, self.width_qk)
        ids = shape(rows, jnp.int32)
        return {
            "q": shape(wide, dtype),
            "k": shape(wide, dtype),
            "v": shape((*rows, self.heads, self.width_v), dtype),
            "position_weights": shape((self.n,), jnp.float32),
            "time_weights": shape((self.num_buckets + 1,), jnp.float32),
            "segment_ids": ids,
            "timestamps": ids,
            "query_times": ids,
        }

    def matmul_flops(self, bias: str = "separate", backward: bool = False) -> float:
        """Floating-point operations of the products, causal half, multiply-add = 2.

        Forward: q k^T and one product with v per channel. Backward: the logits again, dA, dq, dk
        and dv of the semantic map, and two products per further channel.
        """
        pairs = self.batch * self.n * (self.n + 1) / 2 * self.heads
        qk, v = self.width_qk, self.width_v
        extra = 2 if bias == "separate" else 0
        if backward:
            return 2.0 * pairs * (3 * qk + 2 * v + extra * 2 * v)
        return 2.0 * pairs * (qk + v + extra * v)


# Specification section 2.1; the last two are the long-sequence settings of sections 2.3 and 5.1.
CONFIGS = (
    ArgSpec("ml1m", 128, 211, 1, 50, 50),
    ArgSpec("ml1m_large", 128, 211, 2, 25, 25),
    ArgSpec("ml20m", 128, 211, 4, 64, 64),
    ArgSpec("ml20m_large", 128, 211, 8, 32, 32),
    ArgSpec("kuairand_1k", 64, 1024, 4, 32, 32),
    ArgSpec("long_8k", 8, 8192, 8, 32, 32),
)


def by_name(name: str) -> ArgSpec:
    """The configuration of that name.

    Raises:
      ValueError: if there is none; the message lists the names.
    """
    for spec in CONFIGS:
        if spec.name == name:
            return spec
    names = ", ".join(repr(spec.name) for spec in CONFIGS)
    raise ValueError(f"config {name!r} is unknown; allowed are {names}.")
