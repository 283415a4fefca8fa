"""Adapters beside a base: the variables of the collection 'lora' that a model is applied with.

    variables = {"params": params, "lora": bind([adapter], weights)}
    Decoder(config).apply(variables, tokens)

Letters: L layers, B rows, M adapters, r rank (of the widest), I... inputs, O... outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora.adapter import Adapter, check_adapter
from pangu_jax.models.lora.config import TARGETS, LoraError
from pangu_jax.models.lora.targets import axes_of, get_target, set_target

Choice = None | str | Mapping[str, float] | Iterable[tuple[str, float]]


def bind(
    adapters: Sequence[Adapter],
    weights: jax.Array | np.ndarray | None = None,
    *,
    config: DecoderConfig | None = None,
    base_fingerprint: str | None = None,
) -> dict[str, Any]:
    """The collection 'lora' of a stacked decoder: `stack`, then `with_weights`.

    Args:
      adapters: M of them. None of them: an empty collection, the base alone.
      weights: (B, M) or (1, M), any real numbers, differentiable; row b of a batch runs with
        W + sum_m weights[b, m] * scale_m * A_m B_m. None: 1 for a lone adapter.
      config, base_fingerprint: of the base, checked where given (`check_adapter`).

    Raises:
      LoraError: adapters for another base or for different ones, two of one name, weights of
        another shape.
    """
    stacked = stack(adapters, config=config, base_fingerprint=base_fingerprint)
    if weights is None:
        if len(adapters) > 1:
            raise LoraError(
                f"weights is None with {len(adapters)} adapters; give (rows, {len(adapters)}) "
                "numbers, see `select`."
            )
        weights = jnp.ones((1, len(adapters)), jnp.float32)
    if np.ndim(weights) != 2 or np.shape(weights)[1] != len(adapters):
        raise LoraError(
            f"weights has shape {np.shape(weights)}; (rows, {len(adapters)}) is needed, one "
            f"column for each of: {', '.join(a.name for a in adapters) or '(no adapter)'}."
        )
    return with_weights(stacked, weights)


def stack(
    adapters: Sequence[Adapter],
    *,
    config: DecoderConfig | None = None,
    base_fingerprint: str | None = None,
) -> dict[str, Any]:
    """Adapters side by side, without weights: what a server keeps while requests come and go.

    Per target 'a' (L, M, I..., r), 'b' (L, M, r, O...), 'scale' (L, M), where any adapter has one
    'dropout' (L, M). Lower ranks are filled with zeros; an adapter that lacks a target has zeros
    and scale 0 there.

    Raises:
      LoraError: as `bind`.
    """
    names = [adapter.name for adapter in adapters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LoraError(f"Two adapters are called {twice[0]!r}; rename one.")
    if config is not None:
        for adapter in adapters:
            check_adapter(adapter, config, base_fingerprint)
    _check_one_base(adapters, base_fingerprint)
    variables: dict[str, Any] = {}
    for name in TARGETS:
        held = [get_target(nn.unbox(adapter.params), name) for adapter in adapters]
        if any(leaves is not None for leaves in held):
            set_target(variables, name, _stacked(name, adapters, held))
    return variables


def with_weights(stacked: Mapping[str, Any], weights: jax.Array | np.ndarray) -> dict[str, Any]:
    """`stacked` with its 'mix' set to weights (B, M); works on all layers and on `layer_slice`s."""
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.float32)

    def add(node):
        if "scale" not in node:
            return {key: add(value) for key, value in node.items()}
        layers = node["scale"].shape[:-1]
        return {**node, "mix": jnp.broadcast_to(weights, (*layers, *weights.shape))}

    return add(stacked)


def select(names: Sequence[str], per_example: Iterable[Choice]) -> np.ndarray:
    """Weights (B, M) float32 from what each example asks for.

    Args:
      names: of the M adapters, in the order in which they are bound.
      per_example: for each of B examples a name (weight 1), names with weights (a mapping or
        pairs, as in `Request.adapters`), or None for the base alone.

    Raises:
      LoraError: a name that is not bound.
    """
    column = {name: index for index, name in enumerate(names)}
    rows = []
    for choice in per_example:
        if choice is None:
            choice = ()
        elif isinstance(choice, str):
            choice = ((choice, 1.0),)
        elif isinstance(choice, Mapping):
            choice = choice.items()
        row = np.zeros(len(column), np.float32)
        for name, weight in choice:
            if name not in column:
                raise LoraError(
                    f"There is no adapter {name!r}; loaded are: {', '.join(names) or '(none)'}."
                )
            row[column[name]] += weight
        rows.append(row)
    return np.stack(rows) if rows else np.zeros((0, len(column)), np.float32)


def layer_slice(tree: Mapping[str, Any], layer: int | jax.Array) -> Any:
    """One layer of a stacked tree ('layers' on top), as a lone `Block` is applied with.

    Serves the collection 'lora' and parameters alike; an empty collection stays empty.
    """
    return jax.tree.map(lambda x: x[layer], tree["layers"]) if "layers" in tree else {}


def with_logical_axes(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with every array boxed with its logical axis names, for `shardings_for`.

    A has the input axes of its kernel, B the output axes; rank and adapters are never divided.
    Takes an adapter's parameters and the (stacked) collection 'lora'.
    """
    boxed: dict[str, Any] = {}
    for name in TARGETS:
        leaves = get_target(tree, name)
        if leaves is None:
            continue
        inputs, outputs = axes_of(name)
        bound = ("layers", None) if "scale" in leaves else ("layers",)
        axes = {
            "a": (*bound, *inputs, None),
            "b": (*bound, None, *outputs),
            "scale": bound,
            "dropout": bound,
        }
        if "mix" in leaves:  # one row for all rows has nothing to divide
            axes["mix"] = ("layers", "batch" if leaves["mix"].shape[1] > 1 else None, None)
        set_target(
            boxed,
            name,
            {leaf: nn.LogicallyPartitioned(x, axes[leaf]) for leaf, x in leaves.items()},
        )
    return boxed


def _stacked(name: str, adapters: Sequence[Adapter], held: Sequence[Any]) -> dict[str, jax.Array]:
    """Leaves of one target; `held` has None for adapters that lack it."""
    present = [leaves for leaves in held if leaves is not None]
    rank = max(leaves["a"].shape[-1] for leaves in present)

    def filled(leaf, axis):
        like = present[0][leaf]
        full = (*like.shape[:axis], rank, *like.shape[axis + 1 :])
        parts = []
        for leaves in held:
            part = jnp.zeros(full, like.dtype) if leaves is None else leaves[leaf]
            parts.append(jnp.pad(part, [(0, w - h) for w, h in zip(full, part.shape, strict=True)]))
        return jnp.stack(parts, axis=1)

    a, b = filled("a", present[0]["a"].ndim - 1), filled("b", 1)
    layers = a.shape[0]

    def per_adapter(values):
        return jnp.broadcast_to(jnp.asarray(values, jnp.float32), (layers, len(adapters)))

    has = [leaves is not None for leaves in held]
    leaves = {
        "a": a,
        "b": b,
        "scale": per_adapter([x.config.scale * h for x, h in zip(adapters, has, strict=True)]),
    }
    if any(adapter.config.dropout for adapter in adapters):
        leaves["dropout"] = per_adapter([adapter.config.dropout for adapter in adapters])
    return leaves


def _check_one_base(adapters: Sequence[Adapter], base_fingerprint: str | None) -> None:
    """Fingerprints and shapes of all agree; without a config this is all that can be said."""
    known = {} if base_fingerprint is None else {base_fingerprint: "this model"}
    shapes: dict[str, tuple[str, tuple]] = {}
    for adapter in adapters:
        mine = adapter.base_fingerprint
        if mine is not None and known and mine not in known:
            other, of = next(iter(known.items()))
            raise LoraError(
                f"Adapter {adapter.name!r} was trained on the base {mine}, {of} is {other}: "
                "adapters that run side by side need one base."
            )
        if mine is not None:
            known.setdefault(mine, f"that of {adapter.name!r}")
        for name in TARGETS:
            leaves = get_target(nn.unbox(adapter.params), name)
            if leaves is None:
                continue
            a, b = leaves["a"].shape, leaves["b"].shape
            shape = (a[:-1], b[2:])
            first, wanted = shapes.setdefault(name, (adapter.name, shape))
            if shape != wanted:
                raise LoraError(
                    f"Adapters {first!r} and {adapter.name!r} have {name} of (layers, inputs), "
                    f"(outputs) {wanted} and {shape}: they belong to different bases."
                )
