"""The value of the operation."""

from __future__ import annotations

from typing import NamedTuple

import jax


class SiluAttentionOutput(NamedTuple):
    """The channels, each [B, N, H, D] of v's type, or None where the channel is off.

    With bias='added' there is one map, and its product with v is in `semantic`.
    """

    semantic: jax.Array | None
    time: jax.Array | None
    position: jax.Array | None
