"""The weights of a decoder that an adapter may change: where they lie and their axes.

Letters: D hidden width, F MLP width, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from pangu_jax.models.config import DecoderConfig

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
_MODULE = {name: "attn" for name in "qkvo"} | {name: "mlp" for name in ("gate", "up", "down")}
# Logical names of input axes and of output axes, as the kernels themselves carry them.
_AXES = {
    "q": (("embed",), ("heads", "head_dim")),
    "k": (("embed",), ("kv_heads", "head_dim")),
    "v": (("embed",), ("kv_heads", "head_dim")),
    "o": (("heads", "head_dim"), ("embed",)),
    "gate": (("embed",), ("mlp",)),
    "up": (("embed",), ("mlp",)),
    "down": (("mlp",), ("embed",)),
}


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """A weight of one layer: inputs and outputs are its sizes, ..._axes their logical names."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_axes: tuple[str, ...]
    output_axes: tuple[str, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """Of the module in a stacked decoder, from the root: ('layers', 'attn', 'q')."""
        return path_of(self.name)

    @property
    def fan_in(self) -> int:
        """Inputs, flattened."""
        return math.prod(self.inputs)


def path_of(name: str) -> tuple[str, ...]:
    """Of a target's module in a stacked decoder: ('layers', 'attn', 'q')."""
    return ("layers", _MODULE[name], name)


def axes_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Logical names of a target's input and output axes."""
    return _AXES[name]


def target_specs(config: DecoderConfig) -> dict[str, TargetSpec]:
    """Every weight that an adapter may change, by name."""
    sizes = {
        "embed": config.hidden_dim,
        "mlp": config.mlp_dim,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }
    return {
        name: TargetSpec(
            name,
            tuple(sizes[axis] for axis in inputs),
            tuple(sizes[axis] for axis in outputs),
            inputs,
            outputs,
        )
        for name, (inputs, outputs) in _AXES.items()
    }


def get_target(tree: Any, name: str) -> dict[str, Any] | None:
    """A target's leaves in a tree of a stacked decoder ('layers' on top), None without them."""
    for key in path_of(name):
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def set_target(tree: dict[str, Any], name: str, value: Any) -> None:
    """Puts a target's leaves into a tree, making the levels above."""
    *above, last = path_of(name)
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = value
