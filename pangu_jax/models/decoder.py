"""The decoder: one module for Pangu Ultra, Llama-type models and imported weights.

Letters: B rows, T positions, S cache slots, D hidden width, V vocabulary, L layers.

A block holds two norms (Pre-LN) or four (sandwich, DSSN). The post-norms stand inside the branch,
before the residual sum; the residual stream itself is never normalised before the final norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm
from pangu_jax.models.attention import Attention
from pangu_jax.models.cache import KVCache
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.context import AttentionContext
from pangu_jax.models.init import normal, post_norm_gain, weight_std
from pangu_jax.models.mlp import SwiGLU
from pangu_jax.models.norm import NormScale, RMSNorm
from pangu_jax.models.ops import LOCAL, BlockOps
from pangu_jax.models.projection import RESIDUAL, constrain
from pangu_jax.models.remat import remat_block
from pangu_jax.models.rope import rope_tables
from pangu_jax.models.statistics import activation_statistics

CAPTURES = ("statistics", "hidden")


class DecoderOutput(NamedTuple):
    """What `Decoder.run` returns.

    hidden: (B, T, D) after the final norm, in the compute type.
    head: (D, V), the matrix that makes logits of it (the transposed embedding where tied).
    cache: the cache after these positions, or None.
    captured: by name. 'statistics': {'attention' | 'mlp' | 'residual': {'std', 'top1'}} of (L,)
      (branch outputs before their post-norm; the residual stream after the block). 'hidden': the
      residual stream (L + 1, B, T, D), entry 0 the embedding.
    """

    hidden: jax.Array
    head: jax.Array
    cache: KVCache | None
    captured: dict[str, Any]


class Block(nn.Module):
    """One layer: (stream, cache) -> (stream, cache), captured.

    DSSN and sandwich: x + Norm(ATTN(Norm(x))), then + Norm(MLP(Norm(.))) (Pangu Ultra Eq. 1).
    """

    config: DecoderConfig
    capture: tuple[str, ...] = ()
    ops: BlockOps = LOCAL

    @nn.compact
    def __call__(self, carry, layer, context: AttentionContext):
        cfg = self.config
        x, cache = carry
        captured: dict[str, Any] = {}
        valid = None if context.q_segment_ids is None else context.q_segment_ids > 0

        def scale(name, gain=1.0):
            return NormScale(cfg.hidden_dim, gain, name=name)()

        def post_scale(branch):
            if not cfg.has_post_norms:
                return None
            return scale(f"post_{branch}_norm", post_norm_gain(cfg, branch))

        def norm(x, gain):
            return rms_norm(x, gain, eps=cfg.norm_eps, implementation=cfg.norm_implementation)

        def watch(name, value):
            if "statistics" in self.capture:
                captured.setdefault("statistics", {})[name] = activation_statistics(value, valid)

        with jax.named_scope("attention"):
            normed = norm(x, scale("attn_norm"))
            branch, cache = Attention(cfg, self.ops, name="attn")(normed, context, layer, cache)
            watch("attention", branch)
        with jax.named_scope("mlp"):
            x, normed = fused_sandwich_step(
                x, constrain(branch, *RESIDUAL), post_scale("attn"), scale("mlp_norm"),
                eps=cfg.norm_eps, implementation=cfg.norm_implementation,
            )  # fmt: skip
            branch = SwiGLU(cfg, self.ops, name="mlp")(normed)
            watch("mlp", branch)
            gain = post_scale("mlp")
            branch = constrain(branch, *RESIDUAL)
            x = constrain(x + (branch if gain is None else norm(branch, gain)), *RESIDUAL)
            watch("residual", x)
        if "hidden" in self.capture:
            captured["hidden"] = x
        return (x, cache), captured


class Embedding(nn.Module):
    """Token table (V, D); ids outside it give NaN, which the training loop reports."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        table = self.param(
            "embedding",
            normal(cfg.embedding_std, "vocab", "embed"),
            (cfg.vocab_size, cfg.hidden_dim),
        )
        return jnp.take(table, tokens, axis=0).astype(cfg.dtype), table


class Head(nn.Module):
    """The parameter 'kernel' (D, V) that turns hidden states into logits."""

    config: DecoderConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        cfg = self.config
        shape = (cfg.hidden_dim, cfg.vocab_size)
        return self.param("kernel", normal(weight_std(cfg), "embed", "vocab"), shape)


class Decoder(nn.Module):
    """Tokens to logits, hidden states, or both; see `__call__`, `hidden` and `run`."""

    config: DecoderConfig

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        cache: KVCache | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """Logits (B, T, V) float32; with a cache, (logits, cache after these positions).

        Args:
          tokens: int32 (B, T).
          segment_ids: int32 (B, T), 0 = padding; documents of a row have different ids. None: one
            document per row.
          positions: int32 (B, T), of each token in its document (or row; only differences inside
            a document matter). None: the order of the row.
          cache: earlier positions, see `create_cache`. Positions then default to
            cache.length + 0, 1, ...

        Raises:
          ValueError: shapes that do not fit, or a full cache.
        """
        out = self.run(tokens, segment_ids, positions, cache=cache)
        logits = logits_of(out.hidden, out.head)
        return logits if cache is None else (logits, out.cache)

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, (B, T, D); arguments as in `__call__`."""
        return self.run(tokens, segment_ids, positions).hidden

    @nn.compact
    def run(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        cache: KVCache | None = None,
        capture: tuple[str, ...] = (),
        row_order: bool = False,
    ) -> DecoderOutput:
        """Hidden states, the head and whatever else was asked for; never the logits.

        Arguments as in `__call__`; `capture` names entries of `DecoderOutput.captured`. Capturing
        does not change any other result.

        row_order: documents lie in their rows in order, so that attention, for which `positions`
          are no news then, can skip the future without looking. Without a cache only.
        """
        cfg = self.config
        _check(tokens, segment_ids, positions, capture)
        context, cache = _context(cfg, tokens, segment_ids, positions, cache, row_order)
        with jax.named_scope("embed"):
            x, table = Embedding(cfg, name="embed")(tokens)
            x = constrain(x, *RESIDUAL)
        first = x
        stack = nn.scan(
            remat_block(Block, cfg.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=cfg.num_layers,
            unroll=cfg.num_layers if cfg.scan_unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, tuple(capture), name="layers")
        # The cache travels as carry, not as stacked outputs: XLA then updates it in place.
        carry = (x, None if cache is None else (cache.k, cache.v))
        (x, kv), captured = stack(carry, jnp.arange(cfg.num_layers), context)
        if "hidden" in capture:
            captured["hidden"] = jnp.concatenate([first[None], captured["hidden"]])
        with jax.named_scope("final_norm"):
            x = RMSNorm(cfg, name="final_norm")(x)
        head = table.T if cfg.tie_embeddings else Head(cfg, name="head")()
        if cache is not None:
            cache = dataclasses.replace(cache, k=kv[0], v=kv[1])
        return DecoderOutput(x, head, cache, captured)


def logits_of(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """hidden (..., D) times head (D, V), in the type of hidden, summed and returned in float32."""
    with jax.named_scope("head"):
        acc = jnp.promote_types(hidden.dtype, jnp.float32)
        return jnp.einsum(
            "...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=acc
        )


def _check(tokens, segment_ids, positions, capture):
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens is {tokens.dtype}{list(tokens.shape)}; int32 [B, T] is needed.")
    for name, x in (("segment_ids", segment_ids), ("positions", positions)):
        if x is not None and x.shape != tokens.shape:
            raise ValueError(f"{name} has shape {x.shape}; {tokens.shape} is needed, as of tokens.")
    for name in capture:
        if name not in CAPTURES:
            raise ValueError(f"capture={name!r} is unknown; allowed: {', '.join(CAPTURES)}.")


def _context(cfg, tokens, segment_ids, positions, cache, row_order):
    """(what the layers share, the cache with its new slots labelled)."""
    order = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    if cache is None:
        rope = rope_tables(cfg, order if positions is None else positions)
        if row_order:
            positions = None
        context = AttentionContext(rope, segment_ids, segment_ids, positions, positions)
        return context, None
    if positions is None:
        positions = jnp.broadcast_to(cache.length + order, tokens.shape)
    if segment_ids is None:
        segment_ids = jnp.ones(tokens.shape, jnp.int32)
    start = cache.length
    cache = cache.with_tokens(segment_ids, positions)
    context = AttentionContext(
        rope_tables(cfg, positions), segment_ids, cache.segment_ids, positions, cache.positions,
        start,
    )  # fmt: skip
    return context, cache
