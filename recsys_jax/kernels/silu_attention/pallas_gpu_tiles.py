"""What the backward kernels of SiLU attention on Hopper GPUs share: a tile, operands by name."""

from __future__ import annotations

import jax.numpy as jnp

from pangu_jax.kernels import mosaic_gpu
from recsys_jax.kernels.silu_attention import pallas_gpu_common as common

TILE = mosaic_gpu.TILE


class Tile:
    """Mask and bias tiles of query tile i and key tile j; queries run along `query_axis`."""

    def __init__(self, ops, spec, refs, query_meta, key_meta, b, i, j, query_axis):
        key_axis = 1 - query_axis
        self.mask = common.visible(ops, spec, query_meta.at[0], key_meta.at[0], i, j, query_axis)
        self.dt = self.time = self.position = self.bias = None
        if spec.time:
            self.dt = common.time_difference(
                ops.vector(query_meta.at[2], query_axis), ops.vector(key_meta.at[1], key_axis)
            )
            self.low, self.high = refs["buckets"][0, b, i, j], refs["buckets"][1, b, i, j]
        self._ops, self._refs, self._spec, self._delta = ops, refs, spec, i - j

    def load_time(self):
        if self._spec.time:
            refs = self._refs
            self.time = common.time_bias(
                self._ops,
                self._spec,
                self.dt,
                self.low,
                self.high,
                refs["theta"],
                refs["table"],
            )
        return self.time

    def load_position(self):
        if self._spec.position:
            self.position = self._ops.matrix(self._refs["toeplitz"].at[self._delta])
        return self.position

    def activate(self, s):
        """Pre-activation (s, plus the biases in 'added' mode) -> what SiLU is made of."""
        if self._spec.added:
            for bias in (self.time, self.position):
                s = s if bias is None else s + bias
        return common.half_and_tanh(s)

    def silu(self, parts):
        return jnp.where(self.mask, common.silu(self._spec, *parts), 0.0)

    def silu_gradient(self, parts, da):
        """Gradient of the pre-activation, given that of the map."""
        return jnp.where(self.mask, da * common.silu_gradient(self._spec, *parts), 0.0)


def named(spec, prepared, table, toeplitz, **tensors):
    """Operands by name, in a fixed order, without those that are off."""
    operands = {name: x for name, x in tensors.items() if x is not None}
    operands |= {
        'meta': prepared.meta, 'span': prepared.span, 'buckets': prepared.buckets,
        'theta': prepared.theta,
    }  # fmt: skip
    if spec.time:
        operands["table"] = table
    if spec.position:
        operands["toeplitz"] = toeplitz
    return operands


def tensor_scratch(spec, operands, names, group, lead=()):
    """Shared memory for [group, 64, width] slices of the named tensors."""
    return {
        name: mosaic_gpu.swizzled((*lead, group, TILE, operands[name].shape[-1]), spec.dtype)
        for name in names
        if name in operands
    }


def copy_counter(operands, group):
    return lambda names: common.count_copies([operands[name] for name in names], group)


def call(spec, body, grid, names, operands, out_type, scratch):
    """Launch `body(refs, outputs, scratch)` with dictionaries instead of positions."""

    scratch = common.table_scratch(spec) | scratch

    def flat(*refs):
        refs = list(refs)
        ins = dict(zip(operands, refs, strict=False))
        outs = refs[len(operands) : len(operands) + len(out_type)]
        work = dict(zip(scratch, refs[len(operands) + len(out_type) :], strict=True))
        common.load_tables(spec, ins, work)
        if spec.time:  # From here on the kernel reads the shared-memory copies.
            ins |= {"theta": work["theta"], "table": work["table"]}
        body(ins, outs, work)

    return mosaic_gpu.launch(
        spec.interpret, flat, grid, names, out_type, list(scratch.values()), *operands.values()
    )
