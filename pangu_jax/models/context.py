"""What the attention of all layers shares in one call.

Letters: B rows, T queries, S keys, H head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax


class AttentionContext(NamedTuple):
    """What all layers share; made once per call.

    rope: cos and sin, (B, T, H / 2). q_segment_ids, q_positions: int32 (B, T); kv_...: (B, S).
    Segment ids None: one document per row. Positions None: a row's order is its documents' order,
    which lets attention skip the future without looking. cache_start: first slot to write.
    """

    rope: tuple[jax.Array, jax.Array]
    q_segment_ids: jax.Array | None
    kv_segment_ids: jax.Array | None
    q_positions: jax.Array | None
    kv_positions: jax.Array | None
    cache_start: jax.Array | None = None


def visibility(context: AttentionContext) -> dict[str, jax.Array | None]:
    """The arguments of `segment_attention` that say which query sees which key."""
    return {
        "q_segment_ids": context.q_segment_ids,
        "kv_segment_ids": context.kv_segment_ids,
        "q_positions": context.q_positions,
        "kv_positions": context.kv_positions,
    }
