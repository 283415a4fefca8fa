"""Where each layer lives: decoder parameters in the order of pipeline stages, and back.

A pipeline of p ranks with v chunks each has p * v stages; stage c * p + r is chunk c of rank r.
Every stage has arrays for k layers, of which some stages use fewer (`Layout.stage_layers`): those
that embed or make logits, and those for which the layers do not suffice. Slots without a layer are
skipped. Of the 8 x 6 x 2 slots of Pangu Ultra, 94 hold layers.

Slots are stored rank by rank (rank, chunk, slot), so that a rank's share is contiguous. Both
directions are gathers: values are moved, never changed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.mesh import MeshError

# Logical axes of parameters -> mesh axes of the step that is divided by hand.
_AXES = {
    "layers": "pipe",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """Parameters of `config` for `layout`."""

    config: DecoderConfig
    layout: Layout

    @property
    def slots(self) -> int:
        """Layer slots of a stage."""
        return self.layout.slots_per_stage(self.config.num_layers)

    @functools.cached_property
    def layer_of_slot(self) -> np.ndarray:
        """int (p, v, k): the layer in each slot, -1 for none."""
        p, v, k = self.layout.pipe, self.layout.virtual_stages, self.slots
        layers = np.full((p, v, k), -1)
        for stage, held in enumerate(self.layout.stage_layers(self.config.num_layers)):
            layers[stage % p, stage // p, : len(held)] = held
        return layers

    @functools.cached_property
    def _slot_of_layer(self) -> np.ndarray:
        flat = self.layer_of_slot.ravel()
        order = np.argsort(flat, kind="stable")
        return order[flat[order] >= 0]

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the token table: the vocabulary, rounded up to what the tensor axis divides."""
        ways = self.layout.tensor
        return -(-self.config.vocab_size // ways) * ways

    def to_stages(self, params: Any) -> Any:
        """A tree of the decoder's parameters (or their moments) in the order of stages.

        Slots without a layer and rows beyond the vocabulary are zeros.
        """
        layer = self.layer_of_slot.ravel()

        def place(leaf):
            taken = jnp.take(leaf, np.maximum(layer, 0), axis=0)
            empty = (layer < 0).reshape(-1, *(1,) * (leaf.ndim - 1))
            return jnp.where(empty, jnp.zeros((), leaf.dtype), taken) if empty.any() else taken

        return self._convert(params, place, self._pad)

    def from_stages(self, params: Any) -> Any:
        """The inverse of `to_stages`."""
        return self._convert(
            params, lambda leaf: jnp.take(leaf, self._slot_of_layer, axis=0), self._cut
        )

    def _convert(self, params, layers, vocabulary):
        converted = {
            name: jax.tree.map(functools.partial(vocabulary, name), sub)
            for name, sub in params.items()
            if name != "layers"
        }
        return converted | {"layers": jax.tree.map(layers, params["layers"])}

    def _pad(self, name, leaf):
        more = self.padded_vocabulary - self.config.vocab_size
        if name not in _VOCABULARY_AXIS or not more:
            return leaf
        widths = [(0, 0)] * leaf.ndim
        widths[_VOCABULARY_AXIS[name]] = (0, more)
        return jnp.pad(leaf, widths)

    def _cut(self, name, leaf):
        if name not in _VOCABULARY_AXIS:
            return leaf
        return jax.lax.slice_in_dim(leaf, 0, self.config.vocab_size, axis=_VOCABULARY_AXIS[name])

    @functools.cached_property
    def logical_axes(self) -> Any:
        """Tree of PartitionSpec with the logical name of every parameter's axes."""
        return nn.get_partition_spec(self._abstract_boxed)

    @functools.cached_property
    def _abstract_boxed(self) -> Any:
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        model = Decoder(self.config)
        return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

    def abstract(self) -> Any:
        """Shapes and types of the parameters in the order of stages."""
        return jax.eval_shape(self.to_stages, nn.unbox(self._abstract_boxed))

    def specs(self) -> Any:
        """PartitionSpec of every parameter in the order of stages.

        Raises:
          MeshError: an axis that its mesh axis does not divide.
        """
        sizes = {"pipe": self.layout.pipe, "tensor": self.layout.tensor}

        def spec(path, names, leaf):
            axes = []
            for dim, name in enumerate(tuple(names) + (None,) * (leaf.ndim - len(names))):
                axis = _AXES.get(name)
                if axis is not None and leaf.shape[dim] % sizes[axis]:
                    raise MeshError(
                        f"Parameter {jax.tree_util.keystr(path)} has {leaf.shape[dim]} entries on "
                        f"axis {dim} ({name!r}), which layout.{axis}={sizes[axis]} does not divide."
                    )
                axes.append(axis)
            axes = self._over_data(path, axes, leaf.shape) if self.layout.zero >= 3 else axes
            return PartitionSpec(*axes)

        return jax.tree_util.tree_map_with_path(
            spec, self.logical_axes, self.abstract(), is_leaf=lambda x: isinstance(x, PartitionSpec)
        )

    def moment_specs(self) -> Any:
        """PartitionSpec of gradients and optimizer moments: those of the parameters, and for ZeRO
        also divided over data on the first axis that is free and divisible."""
        if self.layout.zero == 0:
            return self.specs()
        return jax.tree_util.tree_map_with_path(
            lambda path, spec, leaf: PartitionSpec(
                *self._over_data(path, list(spec), leaf.shape, layers_only=False)
            ),
            self.specs(),
            self.abstract(),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def stored_specs(self) -> Any:
        """PartitionSpec of parameters in the model's own order, as checkpoints see them: over
        tensor, and over as many of the other devices as divide a free axis."""
        layout = self.layout
        groups = (("data", "pipe", "context"), ("data", "pipe"), ("data",), ("pipe",))

        def spec(names, leaf):
            axes = [_AXES.get(name) for name in tuple(names) + (None,) * (leaf.ndim - len(names))]
            axes = [
                axis if axis == "tensor" and size % layout.tensor == 0 else None
                for axis, size in zip(axes, leaf.shape, strict=True)
            ]
            for group in groups:
                ways = math.prod(getattr(layout, name) for name in group)
                for dim, axis in enumerate(axes):
                    if axis is None and leaf.shape[dim] % ways == 0:
                        return PartitionSpec(*axes[:dim], group, *axes[dim + 1 :])
            return PartitionSpec(*axes)

        return jax.tree.map(
            spec,
            self.logical_axes,
            nn.unbox(self._abstract_boxed),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def _over_data(self, path, axes, shape, *, layers_only=True):
        ways = self.layout.data
        of_layer = getattr(path[0], "key", None) == "layers"
        # ZeRO 3 gathers a chunk's matrices where they are used; vectors and the ends stay whole.
        if "data" in axes or (layers_only and not (of_layer and len(shape) > 2)):
            return axes
        for dim, axis in enumerate(axes):
            if axis is None and shape[dim] % ways == 0:
                return axes[:dim] + ["data"] + axes[dim + 1 :]
        return axes

    def shardings(self, mesh: Mesh, specs: Any) -> Any:
        """NamedShardings of a tree of specs."""
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )


_VOCABULARY_AXIS = {"embed": 0, "head": 1}
