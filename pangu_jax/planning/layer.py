"""Work of one layer on one device for one micro-batch: FLOPs, memory traffic, kept arrays.

Letters: D hidden width, F MLP width, N query heads, K key-value heads, H head width, V vocabulary;
T tokens of a micro-batch on a device (rows * sequence / context), R those of the residual stream
(T / tensor with sequence parallelism), S keys that a query may see at most, t tensor ranks.
"""

from __future__ import annotations

import dataclasses
import functools

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.planning.execution import PRODUCTS, Execution, PlanError, itemsize

# Bytes per score that unfused attention moves through memory, forward: scores written and read, a
# mask read, weights written and read (2-byte numbers, 1-byte mask). Backward twice as many.
_SCORE_BYTES = 9.0
# One-pass kernels against one kernel per primitive operation; assumed.
_UNFUSED_POINTWISE = 3.0


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product on one device: (m, k) times (k, n); the weight is (k, n)."""

    m: float
    k: float
    n: float

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    def traffic(self, size: int) -> float:
        """Bytes that it must at least move: both operands and the result, once each."""
        return size * (self.m * self.k + self.k * self.n + self.m * self.n)


@dataclasses.dataclass(frozen=True)
class LayerWork:
    """What one layer does on one device for one micro-batch.

    products: by part (qkv, o, gate_up, down), forward.
    attention_flops: forward, of the scores that are computed and their product with the values.
    score_bytes: forward traffic of scores that leave the chip; 0 for fused attention.
    pointwise_bytes: forward traffic of norms, rotary embedding, SwiGLU and residual sums.
    saved_bytes: by part, what the backward pass needs of its results; 'input' is the layer's.
    """

    products: dict[str, tuple[Product, ...]]
    attention_flops: float
    score_bytes: float
    pointwise_bytes: float
    saved_bytes: dict[str, float]

    @property
    def product_flops(self) -> float:
        return sum(p.flops for part in self.products.values() for p in part)

    def kept_bytes(self, recomputed: tuple[str, ...]) -> float:
        """Bytes that a layer keeps for its backward pass when `recomputed` parts are run again."""
        kept = [size for part, size in self.saved_bytes.items() if part not in recomputed]
        return float(sum(kept))


def tokens_per_device(layout: Layout, seq_len: int) -> float:
    """T: tokens of a micro-batch on one device."""
    return layout.microbatch_rows * seq_len / layout.context


def stream_tokens(layout: Layout, seq_len: int) -> float:
    """R: tokens of the residual stream that a device holds of a micro-batch."""
    t = tokens_per_device(layout, seq_len)
    return t / layout.tensor if layout.sequence_parallel else t


def layers_of_stages(model: DecoderConfig, layout: Layout, execution: Execution) -> tuple[int, ...]:
    """Number of layers of every stage, in stage order."""
    return _layers_of_stages(model.num_layers, layout, execution.even_layers)


@functools.lru_cache(maxsize=4096)
def _layers_of_stages(num_layers: int, layout: Layout, even: bool) -> tuple[int, ...]:
    if not even:
        return tuple(len(layers) for layers in layout.stage_layers(num_layers))
    if num_layers % layout.stages:
        raise PlanError(
            f"execution.even_layers: {num_layers} layers cannot be divided evenly over "
            f"{layout.stages} stages (pipe {layout.pipe} x virtual_stages "
            f"{layout.virtual_stages}); turn it off or choose divisors."
        )
    return (num_layers // layout.stages,) * layout.stages


def layer_work(
    model: DecoderConfig, layout: Layout, seq_len: int, execution: Execution
) -> LayerWork:
    """The work of a layer; lengths in tokens, sizes in bytes.

    Attention is taken to be causal over whole rows (no document borders), which is the most it can
    be. Fused attention computes the causal half, unfused all of it.
    """
    if seq_len < 1:
        raise PlanError(f"seq_len={seq_len} must be at least 1.")
    d, f, h = model.hidden_dim, model.mlp_dim, model.head_dim
    t, size = layout.tensor, itemsize(model.dtype)
    tokens, stream = tokens_per_device(layout, seq_len), stream_tokens(layout, seq_len)
    q, kv = model.num_heads * h / t, model.num_kv_heads * h / t
    heads, width = model.num_heads / t, f / t

    products = {
        "qkv": (Product(tokens, d, q + 2 * kv),),
        "o": (Product(tokens, q, d),),
        "gate_up": (Product(tokens, d, 2 * width),),
        "down": (Product(tokens, width, d),),
    }
    assert tuple(products) == PRODUCTS
    scores = tokens * seq_len * heads
    attention = 4.0 * scores * h * (0.5 if execution.fused_attention else 1.0)
    # Reads and writes of one-pass kernels: pre-norm 2 streams; the step between the branches reads
    # stream and branch and writes stream and normed; the last sum reads two and writes one. With
    # post-norms the same kernels do them.
    pointwise = size * (
        9 * stream * d
        + 2 * tokens * (q + kv)  # rotary embedding
        + 3 * tokens * width  # SwiGLU
    )
    saved = {
        "input": size * stream * d,
        "qkv": size * tokens * (q + 2 * kv),
        "attention": size * tokens * q + 4.0 * tokens * heads,  # and the log-normalisers, float32
        "o": size * stream * d,
        "gate_up": size * tokens * 2 * width,
        "down": size * stream * d if model.has_post_norms else 0.0,
        # Two normed streams and the sum between the branches, rotated q and k, and of SwiGLU what
        # automatic differentiation keeps: the sigmoid, its product with the gate, the output.
        "pointwise": size * (3 * stream * d + tokens * (q + kv) + 3 * tokens * width),
    }
    if not execution.fused_attention:
        saved["attention"] += 2.0 * size * scores  # scores and weights
    if not execution.fused_pointwise:
        pointwise *= _UNFUSED_POINTWISE
    return LayerWork(
        products=products,
        attention_flops=attention,
        score_bytes=0.0 if execution.fused_attention else _SCORE_BYTES * scores,
        pointwise_bytes=pointwise,
        saved_bytes=saved,
    )


def head_product(model: DecoderConfig, layout: Layout, seq_len: int) -> Product:
    """The product that makes logits, for one micro-batch on one device of the last stage."""
    return Product(
        tokens_per_device(layout, seq_len), model.hidden_dim, model.vocab_size / layout.tensor
    )


def layer_parameters(model: DecoderConfig) -> float:
    """Parameters of one layer, all tensor ranks together."""
    counts = model.parameter_counts()
    total = counts["attention"] + counts["mlp"] + counts["norms"] - model.hidden_dim
    return total / model.num_layers


def end_parameters(model: DecoderConfig) -> tuple[int, int]:
    """(embedding, head and final norm) parameters; a tied head has none of its own."""
    counts = model.parameter_counts()
    return counts["embedding"], counts["head"] + model.hidden_dim
