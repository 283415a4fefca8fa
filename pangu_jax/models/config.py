"""What a decoder is: one frozen dataclass for Pangu, Llama-type and imported weights.

Letters: V vocabulary, L layers, D hidden width, F MLP width, N query heads, K key-value heads,
H head width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pangu_jax.models.remat import check_policy

NormScheme = Literal["pre_ln", "sandwich", "dssn"]
Init = Literal["tiny", "traditional"]
SandwichGamma = Literal["one", "c"]
RopeLayout = Literal["half", "interleaved"]

_DTYPES = ("float64", "float32", "bfloat16", "float16")


class ModelConfigError(ValueError):
    """Sizes or choices of a model that do not fit together; the text names the field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 style stretching of the slow rotary frequencies.

    Wavelengths beyond original_length / low_freq_factor are multiplied by `factor`, those below
    original_length / high_freq_factor are kept, and those between are blended.
    Source: the rope_scaling entry ('rope_type': 'llama3') of the Llama 3.1 configurations.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ModelConfigError(
                f"rope_scaling has factor={self.factor}, low_freq_factor={self.low_freq_factor}, "
                f"high_freq_factor={self.high_freq_factor}; needed: factor >= 1 and "
                "0 < low_freq_factor < high_freq_factor"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer: GQA, SwiGLU, RMSNorm, RoPE.

    norm_scheme: 'pre_ln' two norms per block; 'sandwich' and 'dssn' add a norm on each branch's
      output, before the residual sum. Initial post-norm gain: dssn c / sqrt(num_layers) (Pangu
      Ultra Eq. 1); sandwich 1 or c by `sandwich_gamma` (the paper does not say which).
    norm_eps: not stated for Pangu Ultra. It matters: under 'tiny' initial weights the branch
      outputs are so small that a usual eps keeps the post-norm from normalising at step 0
      (specification 1.5).
    c_mlp: 0.432 belongs to mlp_dim / hidden_dim = 7/3; for another ratio use
      0.283 * sqrt(mlp_dim / hidden_dim) (reconstructed closed form, specification 1.2).
    init: 'tiny' std sqrt(1 / (2 D L)) for every weight; 'traditional' sqrt(2 / (5 D)), and
      sqrt(2 / (5 D L)) for the output projections.
    rope_layout: which features turn together, (i, i + H/2) or (2i, 2i + 1). Imported weights are
      permuted to 'half'; 'interleaved' exists for comparison.
    dtype: of activations and products; parameters are float32 unless imported otherwise.
    loss_chunk: positions per row whose logits exist at one time in the loss; 0 for all at once.
    """

    vocab_size: int
    num_layers: int
    hidden_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    norm_scheme: NormScheme = "pre_ln"
    norm_eps: float = 1e-6
    c_attn: float = 0.283
    c_mlp: float = 0.432
    sandwich_gamma: SandwichGamma = "one"
    init: Init = "tiny"
    embedding_std: float = 0.5

    rope_base: float = 10_000.0
    rope_layout: RopeLayout = "half"
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False

    dtype: str = "float32"
    remat: str = "none"  # none | nothing | attention | dots | products
    scan_unroll: bool = False  # True unrolls the layer loop: slower to compile, no slicing
    attention_implementation: str = "auto"
    norm_implementation: str = "auto"
    loss_chunk: int = 256

    def __post_init__(self):
        for field in (
            "vocab_size", "num_layers", "hidden_dim", "mlp_dim", "num_heads", "num_kv_heads",
            "head_dim",
        ):  # fmt: skip
            value = getattr(self, field)
            if value < 1:
                raise ModelConfigError(f"{field}={value} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}: every key-value head serves equally many heads"
            )
        if self.head_dim % 2:
            raise ModelConfigError(
                f"head_dim={self.head_dim} must be even: rotary embedding turns pairs of features"
            )
        if self.norm_eps <= 0 or self.rope_base <= 0 or self.embedding_std < 0:
            raise ModelConfigError(
                f"norm_eps={self.norm_eps} and rope_base={self.rope_base} must be positive, "
                f"embedding_std={self.embedding_std} not negative"
            )
        if self.loss_chunk < 0:
            raise ModelConfigError(f"loss_chunk={self.loss_chunk} must be 0 (off) or positive")
        for field, choices in (
            ("norm_scheme", get_args(NormScheme)),
            ("init", get_args(Init)),
            ("sandwich_gamma", get_args(SandwichGamma)),
            ("rope_layout", get_args(RopeLayout)),
            ("dtype", _DTYPES),
        ):
            if getattr(self, field) not in choices:
                raise ModelConfigError(
                    f"{field}={getattr(self, field)!r} is not one of {', '.join(choices)}"
                )
        try:
            check_policy(self.remat)
        except ValueError as error:
            raise ModelConfigError(str(error)) from error

    @property
    def has_post_norms(self) -> bool:
        return self.norm_scheme != "pre_ln"

    def without_initial_values(self) -> DecoderConfig:
        """The configuration less what only initial values depend on.

        Models that are equal here have the same parameters and run the same program.
        """
        return dataclasses.replace(
            self, norm_scheme="dssn" if self.has_post_norms else "pre_ln", sandwich_gamma="one",
            init="tiny", embedding_std=0.5, c_attn=0.283, c_mlp=0.432,
        )  # fmt: skip

    def parameter_counts(self) -> dict[str, int]:
        """Exact number of parameters by component; the values sum to `num_parameters()`."""
        d, h, layers = self.hidden_dim, self.head_dim, self.num_layers
        q, kv = self.num_heads * h, self.num_kv_heads * h
        biases = self.qkv_bias * (q + 2 * kv) + self.out_bias * d
        norms = (4 if self.has_post_norms else 2) * d + self.qk_norm * 2 * h
        return {
            "embedding": self.vocab_size * d,
            "attention": layers * (2 * d * q + 2 * d * kv + biases),
            "mlp": layers * 3 * d * self.mlp_dim,
            "norms": layers * norms + d,
            "head": 0 if self.tie_embeddings else d * self.vocab_size,
        }

    def num_parameters(self) -> int:
        """Exact number of parameters; a tied head counts once."""
        return sum(self.parameter_counts().values())

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> float:
        """Model FLOPs of one training token, forward and backward, a multiply-add counted as 2.

            6 * P + 12 * L * N * H * S'       S' = seq_len / 2 if causal, else seq_len

        P are the weights of matrix products: attention, MLP and the head (tied or not); not the
        embedding look-up, norms and biases. The second term is q k^T and its product with v.
        causal=True counts the half of the map that is needed; PaLM's formula counts all of it.
        Recomputation is not counted, and documents shorter than the row make the true attention
        work smaller.
        """
        counts = self.parameter_counts()
        biases = self.num_layers * (
            self.qkv_bias * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
            + self.out_bias * self.hidden_dim
        )
        products = counts["attention"] - biases + counts["mlp"] + self.hidden_dim * self.vocab_size
        length = seq_len / 2 if causal else seq_len
        attention = 12.0 * self.num_layers * self.num_heads * self.head_dim * length
        return 6.0 * products + attention
