"""The whole training step of a layout, without arrays: for lowering and compiling only.

It is what `pangu_jax.training.fit` runs for a layout divided by hand: `DecoderProgram`'s gradients,
clipping and AdamW under automatic sharding, the guard against values that are not finite, the
state donated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, check_layout
from pangu_jax.parallel.sharding import replicated
from pangu_jax.training.division import DividedState
from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
from pangu_jax.training.state import create_state
from pangu_jax.training.step import make_dispatch

# Pangu Ultra, arXiv 2504.07866, section 3.1.3: AdamW, its decay on all parameters, norms too.
PANGU_ADAMW = OptimizerConfig(
    name="adamw", learning_rate=1e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0
)


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A jitted step and the abstract arguments that it takes.

    step: (state, bad_step, batches [1, rows, length]) -> (state, bad_step, outputs).
    arguments: ShapeDtypeStructs with their shardings.
    mesh: that of the layout.
    """

    step: Any
    arguments: tuple[Any, ...]
    mesh: Mesh | AbstractMesh

    def trace(self):
        """The traced step, as `jax.jit(...).trace` returns it."""
        concrete = isinstance(self.mesh, Mesh)
        here = jax.set_mesh if concrete else jax.sharding.use_abstract_mesh
        with here(self.mesh):
            return self.step.trace(*self.arguments)


def train_program(
    config: DecoderConfig,
    layout: Layout,
    mesh: Mesh | AbstractMesh,
    seq_len: int,
    *,
    optimizer: OptimizerConfig = PANGU_ADAMW,
) -> TrainProgram:
    """The training step of `layout.batch_rows` rows of `seq_len` tokens.

    Args:
      mesh: with the layout's axes; of devices that are here, of a topology that is not, or
        abstract. Kernels are chosen for its devices.

    Raises:
      LayoutError: a layout that does not fit the model or the rows.
    """
    check_layout(layout, config, seq_len=seq_len)
    program = DecoderProgram(config, layout, mesh)
    adamw = build_optimizer(optimizer, 1)

    def create(key):
        tokens = jnp.zeros((1, 8), jnp.int32)
        return create_state(lambda key: Decoder(config).init(key, tokens)["params"], adamw, key)

    state = nn.unbox(jax.eval_shape(create, jax.random.key(0)))
    divided = DividedState(program, state)
    fixed = replicated(mesh)
    arranged = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(divided.arrange, state),
        divided.shardings,
    )
    rows = NamedSharding(mesh, PartitionSpec(None, "data", "context"))
    shape = (1, layout.batch_rows, seq_len)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
        for name in ("tokens", "labels", "segment_ids", "positions")
    }
    bad_step = jax.ShapeDtypeStruct((), jnp.int32, sharding=fixed)
    step = jax.jit(
        make_dispatch(
            lambda params, batch, _: program.loss_and_grad(params, batch),
            adamw,
            place=divided.place,
        ),
        donate_argnums=(0,),
        out_shardings=(divided.shardings, fixed, fixed),
    )
    return TrainProgram(step, (arranged, bad_step, batch), mesh)
