"""Loss and gradients of a decoder on a mesh with pipeline, context and tensor axes.

One `shard_map` over all axes runs a table of ticks (`pipeline_schedule`). In a tick every rank does
at most one forward and one backward part of a chunk, of different micro-batches; activations travel
to the next rank after the first, gradients to the previous one after the second. A chunk's backward
part computes the chunk again from its input, which is all that is kept of it: memory is that of
1F1B, whatever the number of micro-batches.

What all chunks of a rank need of a micro-batch (rotary tables, segment ids, positions) is computed
once per step. Gradients leave divided over data where ZeRO wants them so; the optimizer runs
outside, under automatic sharding.

Letters: R rows of a step on this data rank, M micro-batches, B rows of one, T positions of this
context rank, S positions of the residual stream here, D hidden width, K layer slots of a chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from pangu_jax.kernels.rms_norm import rms_norm
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.context import AttentionContext
from pangu_jax.models.decoder import Block
from pangu_jax.models.loss import WHOLE_VOCABULARY, cross_entropy
from pangu_jax.models.remat import checkpointed
from pangu_jax.models.rope import rope_tables
from pangu_jax.parallel.decoder.manual import (
    ManualOps,
    TensorVocabulary,
    embed,
    in_order,
    whole_sequence,
)
from pangu_jax.parallel.decoder.stages import StageLayout
from pangu_jax.parallel.decoder.ticks import TickTable
from pangu_jax.parallel.layout import Layout
from pangu_jax.training.state import LossSums

_BATCH = ("tokens", "labels", "segment_ids", "positions")
# Parameters outside the layers that the first and the last stage use.
_OF_FIRST, _OF_LAST = ("embed",), ("final_norm", "head")


class DecoderProgram:
    """A decoder's loss and gradients, divided by hand over a mesh.

    Args:
      config: of the whole model.
      layout: how it is divided; its axes are those of `mesh`.
      mesh: with axes data, pipe, context, tensor.
      z_loss: as in `cross_entropy`.
    """

    def __init__(self, config: DecoderConfig, layout: Layout, mesh: Mesh, *, z_loss: float = 0.0):
        self.config, self.layout, self.mesh, self._z_loss = config, layout, mesh, z_loss
        self.stages = StageLayout(config, layout)
        self._specs = self.stages.specs()
        self._local = dataclasses.replace(
            config,
            num_heads=config.num_heads // layout.tensor,
            num_kv_heads=config.num_kv_heads // layout.tensor,
            mlp_dim=config.mlp_dim // layout.tensor,
        )
        self._schedule = TickTable.build(layout)
        self._block = Block(self._local, ops=ManualOps(layout))

    def _gathered(self, weights):
        """A layer's weights, whole over data (ZeRO 3; the transpose divides their gradients)."""
        if self.layout.zero < 3:
            return weights

        def gather(x, spec):
            axes = tuple(spec)[1:]
            if "data" not in axes:
                return x
            return lax.all_gather(x, "data", axis=axes.index("data"), tiled=True)

        return jax.tree.map(gather, weights, self._specs["layers"])

    def loss_and_grad(self, params: Any, batch: dict[str, jax.Array]) -> tuple[LossSums, Any]:
        """Sums over the batch and the gradient of total / weight.

        Args:
          params: in the order of stages (`StageLayout.to_stages`), placed by `stages.specs()`.
          batch: tokens, labels, segment_ids, positions, each int32 (rows, length): all rows of
            the step, divided over data; with context > 1 in the order of the zigzag.

        Returns:
          (sums, gradients placed by `stages.moment_specs()`).
        """
        rows = PartitionSpec("data", "context")
        step = jax.shard_map(
            self._step,
            mesh=self.mesh,
            in_specs=(self._specs, {name: rows for name in _BATCH}),
            out_specs=(PartitionSpec(), self.stages.moment_specs()),
            check_vma=False,
        )
        sums, grads = step(params, {name: batch[name] for name in _BATCH})
        scale = jnp.where(sums.weight > 0, 1.0 / jnp.where(sums.weight > 0, sums.weight, 1.0), 0.0)
        return sums, jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

    # A `Division` for the training loop.

    def arrange(self, params: Any) -> Any:
        """Parameters in the order of stages."""
        return self.stages.to_stages(params)

    def restore_order(self, params: Any) -> Any:
        """Parameters in the model's own order."""
        return self.stages.from_stages(params)

    def param_shardings(self) -> Any:
        """Of parameters in the order of stages."""
        return self.stages.shardings(self.mesh, self._specs)

    def moment_shardings(self) -> Any:
        """Of gradients and optimizer moments in the order of stages."""
        return self.stages.shardings(self.mesh, self.stages.moment_specs())

    def stored_shardings(self) -> Any:
        """Of parameters and moments in the model's own order."""
        return self.stages.shardings(self.mesh, self.stages.stored_specs())

    # What follows runs on one device.

    def _divided(self, d_weights):
        """ZeRO 2: a chunk's gradients (K, ...) are divided over data at once, not at the end."""
        if self.layout.zero != 2:
            return d_weights

        def scatter(g, spec):
            if "data" not in spec:
                return g
            axis = tuple(spec).index("data")
            return lax.psum_scatter(g, "data", scatter_dimension=axis, tiled=True)

        return jax.tree.map(scatter, d_weights, self.stages.moment_specs()["layers"])

    def _step(self, params, batch):
        layout, config = self.layout, self.config
        p, v = layout.pipe, layout.virtual_stages
        micro = self._micro_batches(batch)
        layers = jax.tree.map(lambda x: x.reshape(v, -1, *x.shape[1:]), params["layers"])
        ends = {name: x for name, x in params.items() if name != "layers"}
        rows, length = layout.microbatch_rows, micro["tokens"].shape[2]
        if layout.sequence_parallel:
            length //= layout.tensor
        table = self._schedule
        stream = (rows, length, config.hidden_dim)
        rank = lax.axis_index("pipe")

        def read(buffer, slot):
            return lax.dynamic_index_in_dim(buffer, slot, keepdims=False)

        def write(buffer, slot, x):
            return lax.dynamic_update_index_in_dim(buffer, x, slot, 0)

        def tick(carry, row):
            buffers, sums, grads = carry
            rows, any_forward, any_backward = row
            now = {name: read(x, rank) for name, x in rows.items()}
            stage = _Stage(self, layers, ends, micro, rank)
            x = read(buffers["activation"], now["activation_take"])
            stash = write(buffers["stash"], now["stash_put"], x)
            y = _if(p > 1, any_forward, lambda: stage.forward(now, x), lambda: x)
            activations = write(buffers["activation"], now["activation_put"], _hop(y, p, 1))
            x = read(stash, now["stash_take"])
            dy = read(buffers["gradient"], now["gradient_take"])
            x, dy = in_order(activations, (x, dy))
            dx, sums, grads = _if(
                True, any_backward, lambda: stage.backward(now, x, dy, sums, grads),
                lambda: (dy, sums, grads),
            )  # fmt: skip
            gradients = write(buffers["gradient"], now["gradient_put"], _hop(dx, p, -1))
            buffers = {"activation": activations, "stash": stash, "gradient": gradients}
            return (buffers, sums, grads), None

        first = (
            {name: jnp.zeros((n, *stream), config.dtype) for name, n in table.slots.items()},
            self._zero_sums(), self._zero_grads(layers, ends),
        )  # fmt: skip
        (_, sums, grads), _ = lax.scan(
            tick, first, (table.rows, table.any_forward, table.any_backward)
        )
        sums = jax.tree.map(lambda x: lax.psum(x, ("data", "pipe", "context")), sums)
        return sums, self._reduce(grads)

    def _micro_batches(self, batch):
        """Each array (M, B, T), and what every chunk needs of them, computed once."""
        shape = (self.layout.microbatches, self.layout.microbatch_rows)
        length = batch["tokens"].shape[1]
        micro = {name: x.reshape(*shape, length) for name, x in batch.items()}
        cos, sin = rope_tables(self.config, batch["positions"])
        micro["cos"], micro["sin"] = (x.reshape(*shape, *x.shape[1:]) for x in (cos, sin))
        return micro

    def _zero_sums(self):
        zero = jnp.zeros((), jnp.promote_types(self.config.dtype, jnp.float32))
        names = ["nll", "accuracy"] + ["z_loss"] * bool(self._z_loss)
        return LossSums(total=zero, weight=zero, metrics={name: zero for name in names})

    def _zero_grads(self, layers, ends):
        def zeros(x):
            return jnp.zeros(x.shape, x.dtype)

        of_layers = jax.eval_shape(jax.vmap(self._divided), layers)
        return jax.tree.map(zeros, ends | {"layers": of_layers})

    def _reduce(self, grads):
        """Sums over the devices that hold the same parameter; over data divided as ZeRO has it."""
        k = self.stages.slots * self.layout.virtual_stages
        grads = grads | {
            "layers": jax.tree.map(lambda x: x.reshape(k, *x.shape[2:]), grads["layers"])
        }

        def reduce(path, g, spec, out):
            names = [getattr(key, "key", None) for key in path]
            axes = ["context"]
            if "pipe" not in spec:
                axes.append("pipe")
            # Gains and biases that every tensor rank has, on its own positions or heads.
            own = self.layout.sequence_parallel or "q_norm" in names or "k_norm" in names
            if "tensor" not in spec and own:
                axes.append("tensor")
            g = lax.psum(g, tuple(axes))
            # Summed before: by the transpose of gathering the parameter, or chunk by chunk.
            if "data" in spec or (self.layout.zero == 2 and names[0] == "layers" and "data" in out):
                return g
            if "data" in out:
                return lax.psum_scatter(
                    g, "data", scatter_dimension=tuple(out).index("data"), tiled=True
                )
            return lax.psum(g, "data")

        return jax.tree_util.tree_map_with_path(
            reduce, grads, self._specs, self.stages.moment_specs()
        )


def _if(needed, predicate, yes, no):
    """`yes()` where the predicate holds, which is the same on all devices; else `no()`."""
    return lax.cond(predicate, yes, no) if needed else no()


def _hop(x, ranks, step):
    """x to the pipeline rank `step` further round the ring."""
    if ranks == 1:
        return x
    return lax.ppermute(x, "pipe", [(i, (i + step) % ranks) for i in range(ranks)])


class _Stage:
    """One rank's part of a tick.

    The layers of a chunk run on all ranks alike, also on those that have nothing to do at that
    time: others would wait for nobody there, and rings need all devices of a program. What only
    the ends do stands in branches that ranks take or not; collectives there name their groups.
    """

    def __init__(self, program: DecoderProgram, layers, ends, micro, rank):
        self._program, self._layers, self._ends = program, layers, ends
        self._micro, self._rank = micro, rank
        held = program.stages.layer_of_slot >= 0
        self._held = None if held.all() else jnp.asarray(held)

    def forward(self, now, x):
        """The chunk's output (B, S, D)."""
        of = self._at(self._micro, now["f_micro"])
        weights = self._at(self._layers, now["f_chunk"])
        x = self._if_end(now["f_first"], lambda: self._embed(self._ends, of), lambda: x)
        weights, of = in_order(x, (weights, of))
        return self._run(weights, x, of, now["f_chunk"])

    def backward(self, now, x, dy, sums, grads):
        """(gradient of the chunk's input, sums, grads), the latter two added to."""
        chunk, config = now["b_chunk"], self._program.config
        of = self._at(self._micro, now["b_micro"])
        x = self._if_end(now["b_first"], lambda: self._embed(self._ends, of), lambda: x)
        weights, of = in_order(x, (self._at(self._layers, chunk), of))
        y, pull = jax.vjp(lambda w, x: self._run(w, x, of, chunk), weights, x)
        last = [name for name in _OF_LAST if name in self._ends]
        if config.tie_embeddings:
            last.append("embed")

        def plus(names, more):
            return grads | {name: jax.tree.map(jnp.add, grads[name], more[name]) for name in names}

        def loss():
            def run(ends, y):
                sums = self._loss(ends, y, of)
                return sums.total, sums

            total, pull, more = jax.vjp(run, self._some(last), y, has_aux=True)
            d_ends, dy = pull(jnp.ones_like(total))
            added = jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more)
            return dy, added, plus(last, d_ends)

        # A rank without a backward part pulls zeros back: its gradients come out as zeros.
        received = jnp.where(now["b_active"] > 0, dy, jnp.zeros((), dy.dtype))
        dy, sums, grads = self._if_end(now["b_last"], loss, lambda: (received, sums, grads))
        d_weights, dx = in_order(dy, pull)(dy)
        grads = grads | {
            "layers": jax.tree.map(
                lambda old, d: lax.dynamic_update_index_in_dim(
                    old, lax.dynamic_index_in_dim(old, chunk, keepdims=False) + d, chunk, 0
                ),
                grads["layers"],
                self._program._divided(d_weights),
            )
        }

        def embedding():
            _, pull = jax.vjp(lambda ends: self._embed(ends, of), self._some(_OF_FIRST))
            return plus(_OF_FIRST, pull(dx)[0])

        grads = self._if_end(now["b_first"], embedding, lambda: grads)
        return in_order(grads["embed"], dx), sums, grads

    def _if_end(self, predicate, yes, no):
        """A branch of the ranks that hold an end of the model; taken by all where there is one."""
        if self._program.layout.stages == 1:
            return yes()
        return lax.cond(predicate > 0, yes, no)

    def _some(self, names):
        return {name: self._ends[name] for name in names}

    def _at(self, tree, index):
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)

    def _run(self, weights, x, of, chunk):
        """Layers of a chunk: x (B, S, D) -> (B, S, D)."""
        program = self._program
        context = AttentionContext(
            (of["cos"], of["sin"]), of["segment_ids"], of["segment_ids"], of["positions"],
            of["positions"],
        )  # fmt: skip

        def layer(x, weights):
            (x, _), _ = program._block.apply(
                {"params": program._gathered(weights)}, (x, None), 0, context
            )
            return x

        layer = checkpointed(layer, program.config.remat)

        def body(x, xs):
            weights, held = xs
            if held is None:
                return layer(x, weights), None
            if rings:  # all devices must take part, whether their rank has a layer here or not
                return jnp.where(held, layer(x, weights), x), None
            return lax.cond(held, layer, lambda x, _: x, x, weights), None

        layout = program.layout
        rings = layout.overlap or (layout.context > 1 and layout.context_strategy == "ring")
        held = None if self._held is None else self._held[self._rank, chunk]
        return lax.scan(body, x, (weights, held))[0]

    def _embed(self, ends, of):
        cfg = self._program.config
        return embed(
            ends["embed"]["embedding"], of["tokens"], cfg.vocab_size, self._program.layout,
            cfg.dtype,
        )  # fmt: skip

    def _loss(self, ends, x, of) -> LossSums:
        program = self._program
        cfg, layout = program.config, program.layout
        x = rms_norm(
            x, ends["final_norm"]["scale"], eps=cfg.norm_eps,
            implementation=cfg.norm_implementation,
        )  # fmt: skip
        head = ends["embed"]["embedding"].T if cfg.tie_embeddings else ends["head"]["kernel"]
        whole = layout.tensor == 1
        return cross_entropy(
            whole_sequence(x, layout), head, of["labels"], chunk=cfg.loss_chunk,
            z_loss=program._z_loss,
            vocabulary=WHOLE_VOCABULARY if whole else TensorVocabulary(cfg.vocab_size),
        )  # fmt: skip
